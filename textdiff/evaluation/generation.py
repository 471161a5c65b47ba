"""The quality of generated text: agreement with references, and diversity. BLEU, chrF and self-BLEU run 0..100, the other scores 0..1.

References are one text for each hypothesis, or a list of one or more. BLEU and self-BLEU see sacrebleu's 13a tokens, ROUGE the lowercased
runs of a-z and 0-9, chrF characters; distinct-n, div-4 and the mean length see words parted by white space. Errors are standard errors
over sentences: a seeded bootstrap for the corpus scores BLEU and chrF, analytic for means. They do not cover a model's own randomness.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from textdiff.evaluation.overlap import Chrf, Rouge, SentenceBleu, WordGrams
from textdiff.evaluation.overlap import rouge as sentence_rouge

References: TypeAlias = Sequence[str] | Sequence[Sequence[str]]
Statistics: TypeAlias = NDArray[np.float64] | NDArray[np.int64]


class Signed(NamedTuple):
    """A corpus score and sacrebleu's signature of how it was computed."""

    score: float  # 0..100
    signature: str


def bleu(hypotheses: Sequence[str], references: References) -> Signed:
    """Corpus BLEU, 0..100, by sacrebleu with its defaults. Raises ValueError for texts that do not pair up."""
    return _by_sacrebleu(BLEU(), hypotheses, references)


def chrf(hypotheses: Sequence[str], references: References) -> Signed:
    """Corpus chrF2, 0..100, by sacrebleu with its defaults. Raises ValueError for texts that do not pair up."""
    return _by_sacrebleu(CHRF(), hypotheses, references)


def rouge(hypotheses: Sequence[str], references: References) -> Rouge:
    """Mean ROUGE-1, ROUGE-2 and ROUGE-L F1, 0..1; of several references the best. Raises ValueError for texts that do not pair up."""
    return Rouge(*_rouge_rows(hypotheses, references).mean(0).tolist())


def exact_match(hypotheses: Sequence[str], references: References) -> float:
    """The share of hypotheses that equal a reference, white space at both ends aside. Raises ValueError for texts that do not pair up."""
    return float(_matches(hypotheses, references).mean())


def distinct(texts: Sequence[str], n: int) -> float:
    """Distinct n-grams over all n-grams of all texts together (Li et al. 2016), 0..1; 0 where no text has n words.

    DiffuSeq's dist-1 is another number: the mean over texts of `distinct([text], 1)`. Raises ValueError for no texts or n < 1.
    """
    if n < 1:
        raise ValueError(f"n is {n}, expected 1 or more")
    grams = [tuple(words[i : i + n]) for words in map(str.split, texts_of("texts", texts)) for i in range(len(words) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


def div_4(samples: Sequence[Sequence[str]]) -> float:
    """DiffuSeq's div-4 (Gong et al. 2023), 0..1: the mean over sources of `distinct` 4-grams across the samples of one source.

    Raises ValueError for no sources, or a source without samples.
    """
    if not samples:
        raise ValueError("samples is empty, expected a list of texts for each source")
    return float(np.mean([distinct(texts_of(f"samples[{i}]", texts), 4) for i, texts in enumerate(samples)]))


def self_bleu(texts: Sequence[str]) -> float:
    """Mean over texts of the sentence BLEU of each against all others as its references (Zhu et al. 2018), 0..100; lower is more diverse.

    It grows with the number of texts: compare at equal numbers. DiffuSeq averages over pairs instead. Raises ValueError for fewer than two.
    """
    if len(texts_of("texts", texts)) < 2:
        raise ValueError("self-BLEU of 1 text, expected 2 or more: each is compared with the others")
    scorer = SentenceBleu()
    counted = [scorer.count(text) for text in texts]
    most: Counter[tuple[str, ...]] = Counter()  # of each n-gram: the highest count in a text, who has it, and the highest elsewhere
    second: Counter[tuple[str, ...]] = Counter()
    owner: dict[tuple[str, ...], int] = {}
    for i, (grams, _) in enumerate(counted):
        for gram, count in grams.items():
            if count > most[gram]:
                second[gram], most[gram], owner[gram] = most[gram], count, i
            else:
                second[gram] = max(second[gram], count)
    lengths = Counter(length for _, length in counted)
    scores = []
    for i, own in enumerate(counted):
        elsewhere = {gram: second[gram] if owner[gram] == i else most[gram] for gram in own.counts}
        others = [length for length, texts_of_it in lengths.items() if length != own.length or texts_of_it > 1]
        closest = min(others, key=lambda length: (abs(length - own.length), length))
        scores.append(scorer.score(own, WordGrams({gram: count for gram, count in elsewhere.items() if count}, closest)))
    return math.fsum(scores) / len(scores)


def mean_length(texts: Sequence[str]) -> float:
    """Words per text. Raises ValueError for no texts."""
    return float(np.mean([len(text.split()) for text in texts_of("texts", texts)]))


def bootstrap_error(statistics: Statistics, score: Callable[[Statistics], float], resamples: int = 1_000, seed: int = 0) -> float:
    """Standard error of a corpus score over sentences (Koehn 2004): its deviation over corpora drawn from the sentences with replacement.

    Args:
        statistics: sufficient statistics of each sentence, (N, K).
        score: the corpus score from their sum, (K,).
        resamples: corpora drawn.
        seed: of the draws.

    Returns nan for a single sentence. Raises ValueError for fewer than 2 resamples.
    """
    if resamples < 2:
        raise ValueError(f"resamples is {resamples}, expected 2 or more")
    sentences = len(statistics)
    if sentences < 2:
        return math.nan
    rng = np.random.default_rng(seed)
    drawn = (np.bincount(rng.integers(sentences, size=sentences), minlength=sentences) for _ in range(resamples))
    return float(np.std([score(times @ statistics) for times in drawn], ddof=1))


@dataclass(frozen=True)
class GenerationQuality:
    """The numbers of one set of generated texts; BLEU, chrF and self-BLEU 0..100, other scores 0..1; `*_error` are standard errors."""

    sentences: int
    bleu: float
    bleu_error: float
    bleu_signature: str
    chrf: float
    chrf_error: float
    chrf_signature: str
    rouge_1: float
    rouge_1_error: float
    rouge_2: float
    rouge_2_error: float
    rouge_l: float
    rouge_l_error: float
    exact_match: float
    exact_match_error: float
    distinct_1: float
    distinct_2: float
    distinct_3: float
    distinct_4: float
    mean_length: float  # words
    self_bleu: float  # mean over sources of the self-BLEU of a source's samples; nan without samples
    div_4: float  # nan without samples

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers for json; None for one that does not exist, such as the error of a single sentence."""
        return {name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in asdict(self).items()}


def generation_quality(
    hypotheses: Sequence[str],
    references: References,
    samples: Sequence[Sequence[str]] = (),
    resamples: int = 1_000,
    seed: int = 0,
) -> GenerationQuality:
    """Every number of one text for each source, and of the diversity of `samples`, two or more texts for each source, where given.

    Raises ValueError for texts that do not pair up, or a source with fewer than two samples.
    """
    of_bleu, of_chrf = bleu(hypotheses, references), chrf(hypotheses, references)
    rows = np.column_stack([_rouge_rows(hypotheses, references), _matches(hypotheses, references)])
    means, errors = rows.mean(0).tolist(), [math.nan] * rows.shape[1]
    if len(rows) > 1:
        errors = (rows.std(0, ddof=1) / math.sqrt(len(rows))).tolist()
    named: dict[str, float] = {}
    for name, mean, error in zip(("rouge_1", "rouge_2", "rouge_l", "exact_match"), means, errors, strict=True):
        named |= {name: mean, f"{name}_error": error}
    return GenerationQuality(
        sentences=len(hypotheses),
        bleu=of_bleu.score,
        bleu_error=bootstrap_error(bleu_statistics(hypotheses, references), corpus_bleu, resamples, seed),
        bleu_signature=of_bleu.signature,
        chrf=of_chrf.score,
        chrf_error=bootstrap_error(chrf_statistics(hypotheses, references), corpus_chrf, resamples, seed),
        chrf_signature=of_chrf.signature,
        **named,
        **{f"distinct_{n}": distinct(hypotheses, n) for n in (1, 2, 3, 4)},
        mean_length=mean_length(hypotheses),
        self_bleu=float(np.mean([self_bleu(texts) for texts in samples])) if samples else math.nan,
        div_4=div_4(samples) if samples else math.nan,
    )


def bleu_statistics(hypotheses: Sequence[str], references: References) -> NDArray[np.int64]:
    """BLEU's sufficient statistics of each sentence, (N, 10): both lengths, matches and n-grams of each order."""
    metric = BLEU(effective_order=True)  # which changes a sentence's score only, and silences a warning
    scores = [metric.sentence_score(text, own) for text, own in paired(hypotheses, references)]
    return np.array([[score.sys_len, score.ref_len, *score.counts, *score.totals] for score in scores])


def corpus_bleu(statistics: Statistics) -> float:
    """Corpus BLEU, 0..100, of summed `bleu_statistics`, (10,)."""
    hypothesis, reference, *grams = statistics.tolist()
    return BLEU.compute_bleu(grams[:4], grams[4:], hypothesis, reference, smooth_method="exp").score


def chrf_statistics(hypotheses: Sequence[str], references: References) -> NDArray[np.int64]:
    """chrF's sufficient statistics of each sentence against its best reference, (N, 18)."""
    metric, rows = Chrf(), []
    for text, own in paired(hypotheses, references):
        counts = metric.count(text)
        rows.append(max((metric.statistics(counts, metric.count(reference)) for reference in own), key=metric.of_statistics))
    return np.array(rows)


def corpus_chrf(statistics: Statistics) -> float:
    """Corpus chrF2, 0..100, of summed `chrf_statistics`, (18,)."""
    return Chrf().of_statistics(statistics.tolist())


def _by_sacrebleu(metric: BLEU | CHRF, hypotheses: Sequence[str], references: References) -> Signed:
    pairs = paired(hypotheses, references)
    most = max(len(own) for _, own in pairs)
    streams: Any = [[own[i] if i < len(own) else None for _, own in pairs] for i in range(most)]  # None: this sentence has no more
    return Signed(metric.corpus_score([text for text, _ in pairs], streams).score, str(metric.get_signature()))


def _rouge_rows(hypotheses: Sequence[str], references: References) -> NDArray[np.float64]:
    return np.array([sentence_rouge(text, own) for text, own in paired(hypotheses, references)])  # (N, 3)


def _matches(hypotheses: Sequence[str], references: References) -> NDArray[np.float64]:
    pairs = paired(hypotheses, references)
    return np.array([text.strip() in {reference.strip() for reference in own} for text, own in pairs], dtype=np.float64)  # (N,)


def paired(hypotheses: Sequence[str], references: References) -> list[tuple[str, list[str]]]:
    """Each hypothesis with the list of its references. Raises ValueError for texts that do not pair up."""
    texts_of("hypotheses", hypotheses)
    if isinstance(references, str) or not isinstance(references, Sequence):
        raise ValueError(f"references is a {type(references).__name__}, expected a string, or a list of strings, for each hypothesis")
    if len(references) != len(hypotheses):
        raise ValueError(f"{len(references)} references for {len(hypotheses)} hypotheses, expected one, or a list of them, for each")
    several = [[own] if isinstance(own, str) else texts_of(f"references[{i}]", own) for i, own in enumerate(references)]
    return list(zip(hypotheses, several, strict=True))


def texts_of(name: str, texts: Sequence[str]) -> list[str]:
    """The same texts as a list. Raises ValueError, which calls them `name`, unless they are one or more strings."""
    if isinstance(texts, str) or not isinstance(texts, Sequence):
        raise ValueError(f"{name} is a {type(texts).__name__}, expected a list of strings")
    if len(texts) == 0:
        raise ValueError(f"{name} is empty, expected one or more texts")
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"{name}[{i}] is a {type(text).__name__}, expected a string")
    return list(texts)
