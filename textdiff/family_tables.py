"""The tables of a comparison of families: a row for each family at each budget, and what seeds allow to say of each pair."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean

from textdiff.evaluation.comparison import FEWEST_SEEDS, RESAMPLES, TESTED, Family, family_pairings
from textdiff.evaluation.comparison_tables import Table, family_pairs, perplexity
from textdiff.evaluation.measurement import Measurement
from textdiff.evaluation.seeds import interval
from textdiff.evaluation.statistics import ratio
from textdiff.family_runs import Run, paces

_BIT = math.log(2)  # nats
_ONE = (
    "one training seed: ± is one standard error over texts, and how far another seed would move a family is not known; a claim about "
    f"families needs {FEWEST_SEEDS} seeds"
)
_FEW = (
    "± between seeds is half a 95 % interval (Student's t), ± of texts one standard error of the seeds' mean; a claim about families needs "
    f"{FEWEST_SEEDS} seeds"
)


def budget_tables(
    data: str,
    at_equal_tokens: Sequence[Run],
    at_equal_seconds: Sequence[Run],
    seconds: float,
    parameters: Mapping[str, int],
    measured: Mapping[Run, Measurement],
) -> list[Table]:
    """One table for each budget, the fewest bits per byte first; then, of enough seeds, the pairs of families at each."""
    tokens = paces(at_equal_tokens[0].folder / "log.jsonl")[-1].tokens
    shown = f"{seconds:,.0f}" if seconds >= 10 else f"{seconds:.2g}"
    worth = f"steps worth {shown} seconds of training at the pace of the first budget"
    budgets = [(f"{tokens:,} training tokens each", at_equal_tokens), (worth, at_equal_seconds)]
    tables, pairs = [], []
    for title, runs in budgets:
        groups = {family: [run for run in runs if run.family == family] for family in dict.fromkeys(run.family for run in runs)}
        families = [Family(family, tuple(measured[run] for run in those)) for family, those in groups.items()]
        families.sort(key=lambda family: ratio(family.averaged(), TESTED).value)
        several = len(groups[runs[0].family]) > 1
        rows = [_row(family, groups[family.name], parameters[family.name], several) for family in families]
        columns = ("family", *_numbers(several), "kind", "trained parameters", "steps", "training tokens", "seconds")
        tables.append(Table(f"{data}, {title}", columns, rows, _FEW if several else _ONE))
        if len(groups[runs[0].family]) >= FEWEST_SEEDS:
            pairs.append(family_pairs(f"{data}, {title}", family_pairings(families)))
    return [*tables, *pairs]


def _numbers(several: bool) -> tuple[str, ...]:
    if several:
        return "seeds", "nats/token between seeds", "nats/token of texts", "bits/byte between seeds", "bits/byte of texts", "perplexity"
    return "seed", "nats/token", "bits/byte", "perplexity"


def _row(family: Family, runs: Sequence[Run], parameters: int, several: bool) -> tuple[str, ...]:
    mean = family.averaged()
    of_texts = {per: ratio(mean, per, RESAMPLES) for per in ("tokens", TESTED)}
    shown = {
        per: f"{found.value / unit:.4f} ± {found.error / unit:.4f}"
        for (per, found), unit in zip(of_texts.items(), (1.0, _BIT), strict=True)
    }
    numbers = [f"{runs[0].seed} alone", shown["tokens"], shown[TESTED]]
    if several:
        between = [str(interval([nats / unit for nats in family.values(per)])) for per, unit in (("tokens", 1.0), (TESTED, _BIT))]
        numbers = [f"{len(runs)}", between[0], shown["tokens"], between[1], shown[TESTED]]
    ends = [paces(run.folder / "log.jsonl")[-1] for run in runs]
    return (
        family.name,
        *numbers,
        perplexity(of_texts["tokens"].value),
        mean.kind,
        f"{parameters:,}",
        f"{runs[0].steps:,}",
        f"{fmean(end.tokens for end in ends):,.0f}",
        f"{fmean(end.seconds for end in ends):,.1f}",
    )
