"""Quality against network calls: what each sampler of each model costs and how good its texts are, beside held-out text.

Low entropy makes generative perplexity cheap, so each set of texts is compared with held-out text of equal lengths: texts are paired, both
cut to the shorter in the scorer's tokens, and the mean difference of their entropies within a text is the gap.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from itertools import takewhile
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple, Self

import numpy as np
from transformers import PreTrainedTokenizerBase

from textdiff.data.collate import Blocks
from textdiff.evaluation import lines
from textdiff.evaluation.comparison_tables import Table
from textdiff.evaluation.generation import distinct, self_bleu
from textdiff.evaluation.generative_perplexity import Scorer, repetition, unigram_entropy
from textdiff.evaluation.modules.pretrained import mauve
from textdiff.evaluation.raw import check_same

HELD_OUT = "held-out text"
GAP = "entropy vs held-out"
_LOW = 0.2  # nats: texts of a fifth fewer tokens in effect
_NONE = "-"
_AS_READ: Mapping[Any, tuple[Any, str]] = {  # what JSON makes of a field
    str: (str, "text"),
    int: (int, "a whole number"),
    float: (int | float, "a number"),
    float | None: (int | float | None, "a number or null"),
    Mapping[str, Any]: (Mapping, "an object with names"),
}


@dataclass(frozen=True)
class Quality:
    """The numbers of one set of texts; None for one that does not exist. Tokens are the scorer's, words are parted by white space."""

    gen_ppl: float | None
    gen_ppl_error: float | None
    entropy: float | None
    """Nats: mean over texts of `unigram_entropy`."""
    distinct_1: float
    distinct_2: float
    distinct_4: float
    self_bleu: float
    repetition: float | None
    """Mean over texts of seq-rep-4, over tokens."""
    mauve: float | None
    texts: int
    tokens_per_text: float
    entropy_error: float | None = None
    entropy_gap: float | None = None
    """Nats of entropy below held-out text at equal lengths."""
    entropy_gap_error: float | None = None
    empty: int = 0
    """Texts without a token, which only distinct-n, self-BLEU and tokens per text know of."""
    rules: str = ""

    @classmethod
    def of(cls, texts: Sequence[str], real: Sequence[str], scorer: Scorer, folder: str | Path | None = None, batch_size: int = 32) -> Self:
        """Of `texts`, two or more, beside as many of held-out text; `folder` is the network of MAUVE, None: without it.

        Raises ValueError where MAUVE cannot be had.
        """
        perplexity, ids, theirs = scorer.perplexity(texts, batch_size), scorer.encoded(texts), scorer.encoded(real)
        entropy, entropy_error = _mean([unigram_entropy(own) for own in ids])
        lengths = [min(len(own), len(other)) for own, other in zip(ids, theirs, strict=True)]
        cut = [(own[:n], other[:n]) for own, other, n in zip(ids, theirs, lengths, strict=True)]
        gap, gap_error = _mean([unigram_entropy(other) - unigram_entropy(own) for own, other in cut])
        enough = folder is not None and sum(bool(text.strip()) for text in texts) > 1
        return cls(
            gen_ppl=_finite(perplexity.value),
            gen_ppl_error=_finite(perplexity.error),
            entropy=entropy,
            distinct_1=distinct(texts, 1),
            distinct_2=distinct(texts, 2),
            distinct_4=distinct(texts, 4),
            self_bleu=self_bleu(texts),
            repetition=_mean([repetition(own) for own in ids])[0],
            mauve=mauve(texts, real, folder) if enough and folder is not None else None,
            texts=len(texts),
            tokens_per_text=fmean(map(len, ids)),
            entropy_error=entropy_error,
            entropy_gap=gap,
            entropy_gap_error=gap_error,
            empty=sum(not own for own in ids),
            rules=perplexity.rules,
        )


class Costs(NamedTuple):
    """What a set of texts took to write."""

    nfe: float  # network calls that a text took part in, on average, as they were counted
    dtype: str  # of the network, and of the random numbers that choose tokens
    seconds_per_text: float


@dataclass(frozen=True, kw_only=True)
class Point(Quality):
    """A set of texts with what it cost; held-out text took no call."""

    model: str
    sampler: str
    scorer: str
    nfe: float
    dtype: str
    seconds_per_text: float
    drawn: Mapping[str, Any] = field(default_factory=dict)
    """What the same command repeats: seed, length, data, batch size, device and digests of weights."""

    @classmethod
    def of_texts(cls, quality: Quality, model: str, sampler: str, scorer: str, costs: Costs, drawn: Mapping[str, Any]) -> Self:
        """A quality with what it belongs to."""
        return cls(**vars(quality), model=model, sampler=sampler, scorer=scorer, drawn=drawn, **costs._asdict())

    @classmethod
    def read(cls, row: Mapping[str, Any]) -> Self:
        """The point of a line of `frontier.jsonl`; raises ValueError for one that lacks something or holds something else."""
        missing = [one.name for one in fields(cls) if one.name not in row and one.default is MISSING and one.default_factory is MISSING]
        if missing:
            raise ValueError(f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing")
        strange = sorted(set(row) - {one.name for one in fields(cls)})
        if strange:
            raise ValueError(f"{strange[0]!r} is nothing that a point has")
        for one in fields(cls):
            accepted, words = _AS_READ[one.type]
            if one.name in row and not isinstance(row[one.name], accepted):
                raise ValueError(f"{one.name} is {row[one.name]!r}, expected {words}")
        return cls(**row)

    @property
    def key(self) -> tuple[str, str]:
        """What tells points of a folder apart."""
        return self.model, self.sampler

    @property
    def is_cheap(self) -> bool:
        """Whether entropy is well below that of held-out text, so that generative perplexity says little: by more than 0.2 nats and two
        standard errors."""
        if self.entropy_gap is None or self.entropy_gap_error is None:  # of a single text nothing can be told
            return False
        return self.entropy_gap > max(_LOW, 2 * self.entropy_gap_error)


def pareto(points: Sequence[Point]) -> list[Point]:
    """The points that no other matches with fewer calls or a lower generative perplexity; held-out text and cheap points stand aside."""
    able = [point for point in points if point.nfe > 0 and point.gen_ppl is not None and not point.is_cheap]
    return [point for point in able if not any(_beats(other, point) for other in able)]


def _beats(one: Point, other: Point) -> bool:
    a, b = (one.nfe, one.gen_ppl or 0.0), (other.nfe, other.gen_ppl or 0.0)
    return a[0] <= b[0] and a[1] <= b[1] and a != b


def warnings(points: Sequence[Point]) -> list[str]:
    """A line for each number that would be misread."""
    said = []
    for point in points:
        name = f"{point.model}, {point.sampler}"
        if point.is_cheap:
            gap = f"{point.entropy_gap:.2f} ± {point.entropy_gap_error:.2f} nats below {HELD_OUT} of equal lengths"
            said.append(f"{name}: entropy {gap}: a low temperature or repetition makes gen-PPL cheap, compare it at equal entropy only")
        if point.empty:
            said.append(f"{name}: {point.empty} of {point.texts} texts are empty and count in no gen-PPL")
    own = sorted({point.model for point in points if point.drawn.get("weights", "") == point.drawn.get("scorer_weights")})
    return said + [f"{model} is the scorer itself, to which its own texts are likelier than to another" for model in own]


def table(points: Sequence[Point]) -> Table:
    """A row for each point."""
    columns = ("model", "sampler", "NFE", "gen-PPL", GAP, "entropy, own length", "rep-4", "distinct-1/2/4", "self-BLEU", "MAUVE")
    best = [point.key for point in pareto(points)]
    rows = [_row(point, " !" if point.is_cheap else " *" if point.key in best else "") for point in points]
    note = (
        "± is one standard error by bootstrap over texts; * no other row has as few calls and as low a gen-PPL; "
        f"! entropy well below {HELD_OUT}, a cheap gen-PPL, left out of *; {GAP}: nats of entropy above that of {HELD_OUT} when each text "
        "and its counterpart are cut to the shorter; entropy at texts' own lengths grows with them and compares only sets of equal "
        "tokens/text; entropy and rep-4 are means over texts, of the scorer's tokens; distinct-n and self-BLEU are of words"
    )
    return Table("sample quality", (*columns, "dtype", "tokens/text", "s/text"), rows, note)


def _row(point: Point, mark: str) -> tuple[str, ...]:
    error = "" if point.gen_ppl_error is None else f" ± {point.gen_ppl_error:.2f}"
    return (
        point.model,
        point.sampler,
        f"{point.nfe:.1f}" if point.nfe else "0",
        _NONE if point.gen_ppl is None else f"{point.gen_ppl:.2f}{error}{mark}",
        _gap(point),
        _shown(point.entropy, 2),
        _shown(point.repetition, 3),
        "/".join(f"{share:.2f}" for share in (point.distinct_1, point.distinct_2, point.distinct_4)),
        f"{point.self_bleu:.1f}",
        _shown(point.mauve, 3),
        point.dtype,
        f"{point.tokens_per_text:.1f}",
        f"{point.seconds_per_text:.3g}" if point.nfe else _NONE,
    )


def _gap(point: Point) -> str:
    """Entropy above held-out text, which itself is no gap away."""
    if point.nfe == 0 or point.entropy_gap is None:
        return _NONE
    error = "" if point.entropy_gap_error is None else f" ± {point.entropy_gap_error:.2f}"
    return f"{0.0 - point.entropy_gap:+.2f}{error}"


def held_out(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, length: int, count: int) -> list[str]:
    """Real text as an ideal model of packed text would write it after BOS: `count` blocks of `length` tokens, evenly spaced among all that
    begin with text, each decoded up to its first EOS.

    Raises ValueError where the texts have too few.
    """
    blocks = Blocks(texts, tokenizer, length + 1)
    full = blocks.tokens // length
    begins = blocks.stream[blocks.first :: length][:full]
    index = np.arange(full) if tokenizer.eos_token_id is None else np.flatnonzero(begins != tokenizer.eos_token_id)
    if len(index) < count:
        raise ValueError(
            f"the held-out text has {len(index)} blocks of {length} tokens, and {count} texts are to be compared with it: name more data, "
            "or ask for fewer or shorter texts"
        )
    chosen = index[np.linspace(0, len(index) - 1, count).round().astype(int)]
    written = (blocks.at(int(i)).tokens[1:] for i in chosen)
    return [str(tokenizer.decode(list(takewhile(lambda i: i != tokenizer.eos_token_id, ids)))) for ids in written]


class Files:
    """`frontier.jsonl`, a line per point, and `samples.jsonl`, a line per text, of an output folder; both are whole at any moment."""

    def __init__(self, folder: Path) -> None:
        self.points_path, self.samples_path = folder / "frontier.jsonl", folder / "samples.jsonl"

    def points(self) -> list[Point]:
        """Those that are finished; raises ValueError, naming the line, for a file that holds something else."""
        return lines.read(self.points_path, Point.read)

    def add(self, point: Point, texts: Sequence[str]) -> None:
        """A finished point and its texts; texts of an earlier try are replaced."""
        samples = [row for row in lines.read(self.samples_path, dict) if (row.get("model"), row.get("sampler")) != point.key]
        samples += [{"model": point.model, "sampler": point.sampler, "text": text} for text in texts]
        lines.write(self.samples_path, samples)
        lines.write(self.points_path, [*lines.read(self.points_path, dict), asdict(point)])

    def check(self, wanted: Mapping[str, Any], key: tuple[str, str] | None = None) -> None:
        """Raise ValueError, naming the first difference, unless what all points here, or those of a `key`, were drawn with is `wanted`."""
        for point in self.points():
            if key in (None, point.key):
                check_same(self.points_path, point.drawn, wanted)


def _mean(values: Sequence[float]) -> tuple[float | None, float | None]:
    """The mean of those that are numbers with its standard error; None for what does not exist."""
    known = [value for value in values if not math.isnan(value)]
    mean = fmean(known) if known else None
    return mean, stdev(known) / math.sqrt(len(known)) if len(known) > 1 else None


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _shown(value: float | None, places: int) -> str:
    return _NONE if value is None else f"{value:.{places}f}"
