"""How well gaps of texts are filled: the tokens that come back, the gaps that come back whole, and ROUGE of the rest."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from textdiff.evaluation.comparison_tables import Table, perplexity
from textdiff.evaluation.likelihood import Likelihood
from textdiff.evaluation.overlap import rouge


class Filled(NamedTuple):
    """One gap: what stood in it and what was written."""

    own_ids: Sequence[int]
    ids: Sequence[int]  # as many
    own_text: str
    text: str


class Mean(NamedTuple):
    """A mean over gaps with its standard error, nan for one gap."""

    value: float
    error: float


@dataclass(frozen=True)
class Infilling:
    """Scores 0..1 over gaps; tokens are the model's own, so that models of other tokenizers are compared by the others."""

    gaps: int
    tokens: Mean  # of all tokens of gaps, those that are the text's own
    exact: Mean  # gaps whose text is the text's own, whatever the white space around it
    rouge_1: Mean
    rouge_2: Mean
    rouge_l: Mean

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers for json; None for the error of a single gap, which does not exist."""
        found = {name: value for name, value in asdict(self).items() if name != "gaps"}
        return {"gaps": self.gaps, **{name: {"value": v, "error": None if math.isnan(e) else e} for name, (v, e) in found.items()}}


def infilling(filled: Sequence[Filled]) -> Infilling:
    """What became of gaps. Raises ValueError without any, and for one that was not filled with as many tokens as it has."""
    if not filled:
        raise ValueError("there is no gap to judge")
    wrong = next((gap for gap in filled if len(gap.ids) != len(gap.own_ids) or not gap.ids), None)
    if wrong is not None:
        raise ValueError(f"a gap of {len(wrong.own_ids)} tokens was filled with {len(wrong.ids)}, expected as many, 1 or more")
    right = [float(sum(a == b for a, b in zip(gap.ids, gap.own_ids, strict=True))) for gap in filled]
    overlaps = [rouge(gap.text, [gap.own_text]) for gap in filled]
    whole = [float(gap.text.strip() == gap.own_text.strip()) for gap in filled]
    ones = [1.0] * len(filled)
    return Infilling(
        gaps=len(filled),
        tokens=_ratio(right, [float(len(gap.ids)) for gap in filled]),
        exact=_ratio(whole, ones),
        rouge_1=_ratio([found.rouge_1 for found in overlaps], ones),
        rouge_2=_ratio([found.rouge_2 for found in overlaps], ones),
        rouge_l=_ratio([found.rouge_l for found in overlaps], ones),
    )


def _ratio(x: Sequence[float], y: Sequence[float]) -> Mean:
    """sum x / sum y, with the error of a ratio of means (Cochran 1977, 2.11)."""
    n, value = len(x), math.fsum(x) / math.fsum(y)
    spread = math.fsum((a - value * b) ** 2 for a, b in zip(x, y, strict=True))
    return Mean(value, math.sqrt(n / (n - 1) * spread) / math.fsum(y) if n > 1 else math.nan)


class Entry(NamedTuple):
    """A row of the table."""

    model: str
    sees: str  # of the text around a gap
    quality: Infilling
    nats: Likelihood
    nfe: float


def table(data: str, entries: Sequence[Entry]) -> Table:
    """A row for each model."""
    columns = ("model", "sees", "tokens right, %", "exact, %", "ROUGE-1/2/L", "nats/token", "PPL", "bits/byte", "NFE")
    note = (
        "± is one standard error over gaps; tokens are each model's own; exact and ROUGE are of the gap's text; nats, PPL and bits are of "
        "the gap's own tokens given what the model sees; NFE is network calls for each gap"
    )
    return Table(f"gaps of {data}", columns, [_row(entry) for entry in entries], note)


def _row(entry: Entry) -> tuple[str, ...]:
    quality, nats = entry.quality, entry.nats
    sign = "<= " if nats.kind == "upper bound" else ""
    return (
        entry.model,
        entry.sees,
        _percent(quality.tokens),
        _percent(quality.exact),
        "/".join(f"{100 * found.value:.1f}" for found in (quality.rouge_1, quality.rouge_2, quality.rouge_l)),
        f"{sign}{nats.nats_per_token:.3f} ± {nats.standard_error:.3f}",
        f"{sign}{perplexity(nats.nats_per_token)}",
        f"{sign}{nats.bits_per_byte:.3f}",
        f"{entry.nfe:.1f}",
    )


def _percent(mean: Mean) -> str:
    return f"{100 * mean.value:.1f} ± {100 * mean.error:.1f}"
