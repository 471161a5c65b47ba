"""Overlap of two texts: sentence BLEU and chrF equal to sacrebleu 2.6's, each text counted once, and ROUGE as in rouge-score 0.1.2."""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeVar

from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

_WORD_ORDER = 4  # of BLEU
_CHARACTER_ORDER = 6  # of chrF
_BETA = 2  # chrF weighs recall BETA times as much as precision
_ROUGE_BREAK = re.compile(r"[^a-z0-9]+")
_TOKENIZE = Tokenizer13a()

Counts = TypeVar("Counts")


class Gain(Protocol[Counts]):
    """How good a text is, given another: counts are made once per text, scores once per pair."""

    def count(self, text: str) -> Counts:
        """What `score` needs to know of a text."""

    def score(self, hypothesis: Counts, reference: Counts) -> float:
        """The score of a hypothesis against one reference; higher is better."""


class WordGrams(NamedTuple):
    """The 1- to 4-grams of a text's tokens, with their counts, and its length in tokens."""

    counts: Mapping[tuple[str, ...], int]
    length: int


@dataclass(frozen=True)
class SentenceBleu:
    """Sentence BLEU of 13a tokens, 0..100: BP exp(mean over n <= N of ln p_n), BP = min(1, exp(1 - r / h)) for lengths h and r.

    N is the highest order up to 4 that the hypothesis has (`effective_order`). The k-th order in which nothing matches counts as
    2^-k matches (smoothing "exp", method 3 of Chen and Cherry 2014); without any match the score is 0.
    Equals `sacrebleu.sentence_bleu`.
    """

    def count(self, text: str) -> WordGrams:
        tokens = _TOKENIZE(text.rstrip()).split()
        return WordGrams(Counter(gram for n in range(1, _WORD_ORDER + 1) for gram in _grams(tokens, n)), len(tokens))

    def score(self, hypothesis: WordGrams, reference: WordGrams) -> float:
        matches = [0] * _WORD_ORDER
        for gram in hypothesis.counts.keys() & reference.counts.keys():
            matches[len(gram) - 1] += min(hypothesis.counts[gram], reference.counts[gram])
        if not any(matches):
            return 0.0
        orders, missed, logs = min(_WORD_ORDER, hypothesis.length), 0, 0.0
        for n in range(orders):
            missed += matches[n] == 0
            logs += math.log((matches[n] or 0.5**missed) / (hypothesis.length - n))
        brevity = min(0.0, 1 - reference.length / hypothesis.length)
        return 100 * math.exp(brevity + logs / orders)


class CharacterGrams(NamedTuple):
    """The 1- to 6-grams of a text's characters without white space, with their counts, and its length in them."""

    counts: Mapping[str, int]
    length: int


@dataclass(frozen=True)
class Chrf:
    """chrF2, 0..100 (Popovic 2015): F2 of the precision and recall of character 1- to 6-grams, averaged over the orders both texts have.

    Equals `sacrebleu.sentence_chrf`, and on summed statistics `sacrebleu.corpus_chrf`.
    """

    def count(self, text: str) -> CharacterGrams:
        line = "".join(text.split())
        grams = (line[i : i + n] for n in range(1, _CHARACTER_ORDER + 1) for i in range(len(line) - n + 1))
        return CharacterGrams(Counter(grams), len(line))

    def score(self, hypothesis: CharacterGrams, reference: CharacterGrams) -> float:
        return self.of_statistics(self.statistics(hypothesis, reference))

    def statistics(self, hypothesis: CharacterGrams, reference: CharacterGrams) -> list[int]:
        """Matches, n-grams of the hypothesis and of the reference, (3 * 6,): sums over sentences are the corpus's."""
        matches = [0] * _CHARACTER_ORDER
        for gram in hypothesis.counts.keys() & reference.counts.keys():
            matches[len(gram) - 1] += min(hypothesis.counts[gram], reference.counts[gram])
        of_reference = [max(reference.length - n, 0) for n in range(_CHARACTER_ORDER)]
        # as in sacrebleu, an order that the reference lacks costs the hypothesis nothing
        of_hypothesis = [max(hypothesis.length - n, 0) if of_reference[n] else 0 for n in range(_CHARACTER_ORDER)]
        return matches + of_hypothesis + of_reference

    def of_statistics(self, statistics: Sequence[int]) -> float:
        """The score of (3 * 6,) statistics, of one sentence or summed over several."""
        matches, of_hypothesis, of_reference = (statistics[i * _CHARACTER_ORDER : (i + 1) * _CHARACTER_ORDER] for i in range(3))
        shared = [n for n in range(_CHARACTER_ORDER) if of_hypothesis[n] > 0 and of_reference[n] > 0]
        precision = sum(matches[n] / of_hypothesis[n] for n in shared)  # both are sums over the same orders:
        recall = sum(matches[n] / of_reference[n] for n in shared)  # their F is the means' F times the number of orders
        if not precision + recall:
            return 0.0
        return 100 * (1 + _BETA**2) * precision * recall / (_BETA**2 * precision + recall) / len(shared)


class Rouge(NamedTuple):
    """F1 of ROUGE-1, ROUGE-2 and ROUGE-L, 0..1 (Lin 2004)."""

    rouge_1: float
    rouge_2: float
    rouge_l: float


def rouge(hypothesis: str, references: Sequence[str]) -> Rouge:
    """ROUGE F1 of one text, 0..1; of several references each score takes its best.

    Tokens are the runs of a-z and 0-9 of the lowercased text, unstemmed, as in rouge-score: other letters only part tokens.
    """
    tokens = _rouge_tokens(hypothesis)
    others = [_rouge_tokens(reference) for reference in references]
    return Rouge(
        rouge_1=max(_gram_f1(tokens, other, 1) for other in others),
        rouge_2=max(_gram_f1(tokens, other, 2) for other in others),
        rouge_l=max(_f1(common_subsequence(tokens, other), len(tokens), len(other)) for other in others),
    )


def common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence, by bits (Hyyrö 2004): bit i of `rows` is 0 where token i of `first` makes it longer."""
    places: dict[str, int] = {}
    for i, token in enumerate(first):
        places[token] = places.get(token, 0) | 1 << i
    full = (1 << len(first)) - 1
    rows = full
    for token in second:
        met = rows & places.get(token, 0)
        rows = (rows + met | rows - met) & full
    return len(first) - rows.bit_count()


def _rouge_tokens(text: str) -> list[str]:
    return [token for token in _ROUGE_BREAK.split(text.lower()) if token]


def _gram_f1(hypothesis: Sequence[str], reference: Sequence[str], n: int) -> float:
    ours, theirs = Counter(_grams(hypothesis, n)), Counter(_grams(reference, n))
    return _f1((ours & theirs).total(), ours.total(), theirs.total())


def _f1(matches: int, of_hypothesis: int, of_reference: int) -> float:
    """2 P R / (P + R) with P and R the shares of both that match; 0 where nothing does."""
    return 2 * matches / (of_hypothesis + of_reference) if matches else 0.0


def _grams(tokens: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
