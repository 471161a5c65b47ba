"""Models side by side on one data set: their numbers, what each pair of them allows to say, and families of runs over training seeds."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, NamedTuple

from textdiff.evaluation import seeds
from textdiff.evaluation.comparability import Claim, claim, refusal, words_defined
from textdiff.evaluation.measurement import Measurement
from textdiff.evaluation.statistics import (
    FEWEST_DOCUMENTS,
    UNITS,
    Difference,
    Estimate,
    adjusted,
    common,
    difference,
    drawn,
    independent,
    nats_per,
    ratio,
    restricted,
)

RESAMPLES = 9_999  # the smallest p-value is 1 / 10,000, which leaves room for the adjustment of many pairs
FEWEST_SEEDS = 3  # that a claim about a family needs
TESTED = "text_bytes"  # one test for each pair, in the unit that all tokenizers share

Numbers = Estimate | Difference | seeds.Interval | seeds.Gap


class Standing(NamedTuple):
    """One model's numbers."""

    measurement: Measurement
    nats: dict[str, Estimate]  # per unit; words only where they are defined

    @classmethod
    def of(cls, measurement: Measurement, resamples: int = RESAMPLES) -> "Standing":
        """With intervals from so many resamples."""
        units = [unit for unit in UNITS if unit != "words" or words_defined(measurement)]
        return cls(measurement, {unit: ratio(measurement, unit, resamples) for unit in units})

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers for json; None for one that does not exist."""
        return {**self.measurement.head(), "texts_scored": len(self.measurement.scores), "nats_per": _plain(self.nats)}


@dataclass(frozen=True)
class Family:
    """Runs that differ in their training seed alone, on one data set. Raises ValueError for runs that cannot be compared."""

    name: str
    runs: tuple[Measurement, ...]

    def __post_init__(self) -> None:
        found = [run.training_seed for run in self.runs]
        if len(set(found)) < len(found):
            raise ValueError(f"{self.name} has training seeds {found}: runs of one seed are not independent, give each once")
        for run in self.runs[1:]:
            kinds = f"one is {self.runs[0].kind}, the other {run.kind}" if run.kind != self.runs[0].kind else None
            reason = refusal(self.runs[0], run, "tokens") or kinds
            if reason:
                raise ValueError(f"{self.runs[0].model} and {run.model} cannot stand for one family: {reason}")

    def averaged(self) -> Measurement:
        """The mean over runs of each text's nats: its error is that of the texts, for these runs."""
        runs = self._runs()
        texts = zip(*(run.scores for run in runs), strict=True)
        scores = [of_runs[0]._replace(nats=math.fsum(score.nats for score in of_runs) / len(runs)) for of_runs in texts]
        return replace(runs[0], model=self.name, forwards=sum(run.forwards for run in runs), scores=tuple(scores))

    def values(self, per: str) -> list[float]:
        """Nats per unit of each run."""
        return [nats_per(run, per) for run in self._runs()]

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers for json; None for one that does not exist."""
        between = {per: seeds.interval(self.values(per)) for per in UNITS[:3]}
        texts = {per: ratio(self.averaged(), per, RESAMPLES) for per in UNITS[:3]}
        runs = [run.model for run in self.runs]
        return {"family": self.name, "runs": runs, "between_seeds": _plain(between), "over_texts": _plain(texts)}

    def _runs(self) -> list[Measurement]:
        """On the texts that all scored."""
        return [restricted(run, common(*self.runs)) for run in self.runs]


class Pairing(NamedTuple):
    """Two models, or two families, on the same texts: the first less the second."""

    a: Measurement  # of a family the mean of its runs
    b: Measurement
    nats: dict[str, Difference]  # per unit in which they can be compared
    refused: dict[str, str]  # the reason for each other unit
    between: dict[str, seeds.Gap] | None = None  # of families: the same over training seeds, per unit
    both: seeds.Gap | None = None  # of families: over seeds and texts at once, in the unit of the test
    enough: bool = True  # seeds for a claim
    p: float = math.nan  # adjusted for the pairs beside it

    @property
    def claim(self) -> Claim:
        """What may be said of the two."""
        if TESTED in self.refused:
            return Claim(None, f"not comparable: {self.refused[TESTED]}")
        if not self.enough:
            return Claim(None, f"no claim: a family needs {FEWEST_SEEDS} training seeds")
        if drawn(self.a) == "passage" and all(score.document is not None for score in self.a.scores):
            return Claim(None, f"no claim: passages of fewer than {FEWEST_DOCUMENTS} documents are not independent")
        return claim(self.a, self.b, self.nats[TESTED], self.p)

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers for json; None for one that does not exist."""
        names = {"a": self.a.model, "b": self.b.model, "better": self.claim.better, "statement": self.claim.words}
        numbers = {"difference_in_nats_per": _plain(self.nats), "between_seeds": _plain(self.between or {})}
        return {**names, "p": _finite(self.p), **numbers, "refused": self.refused}


def pairings(measurements: Sequence[Measurement], resamples: int = RESAMPLES) -> list[Pairing]:
    """Every pair of models on one data set, the p-values of their differences adjusted for one another (Holm).

    The tests of one data set are a family, those of a run are not: a claim is of models on these texts, is quoted with them alone, and must
    not change with what else was measured that day. Whoever picks the one claim out of the tables of many data sets has to adjust further.
    """
    return _adjusted([Pairing(a, b, *_differences(a, b, resamples)) for a, b in combinations(measurements, 2)])


def family_pairings(families: Sequence[Family], resamples: int = RESAMPLES) -> list[Pairing]:
    """Every pair of families on one data set, adjusted as in `pairings`. A claim speaks of further seeds and of further texts, so its test
    has the errors of both.
    """
    found = []
    for one, other in combinations(families, 2):
        texts = common(*one.runs, *other.runs)  # both errors must be of the same texts
        one, other = (replace(family, runs=tuple(restricted(run, texts) for run in family.runs)) for family in (one, other))
        a, b = one.averaged(), other.averaged()
        nats, refused = _differences(a, b, resamples)
        between = {per: seeds.gap(one.values(per), other.values(per)) for per in nats}
        enough = min(len(one.runs), len(other.runs)) >= FEWEST_SEEDS
        found.append(Pairing(a, b, nats, refused, between, _both(one, other, nats), enough))
    return _adjusted(found)


def _both(one: Family, other: Family, nats: Mapping[str, Difference]) -> seeds.Gap | None:
    """The test over seeds with the error of the texts, which all runs have in common, added."""
    if TESTED not in nats or not math.isfinite(nats[TESTED].error):
        return None
    texts = seeds.Further(nats[TESTED].error, independent(one.runs[0]) - 1)
    return seeds.gap(one.values(TESTED), other.values(TESTED), further=texts)


def _differences(a: Measurement, b: Measurement, resamples: int) -> tuple[dict[str, Difference], dict[str, str]]:
    """The difference in each unit that allows one, and why each other does not."""
    reasons = {per: refusal(a, b, per) for per in UNITS}
    refused = {per: reason for per, reason in reasons.items() if reason is not None}
    return {per: difference(a, b, per, resamples) for per in UNITS if per not in refused}, refused


def _adjusted(found: Sequence[Pairing]) -> list[Pairing]:
    return [pairing._replace(p=p) for pairing, p in zip(found, adjusted([_p(pairing) for pairing in found]), strict=True)]


def _p(pairing: Pairing) -> float:
    """Of the test that a claim needs; nan where none may be made."""
    if TESTED not in pairing.nats or not pairing.enough:
        return math.nan
    if pairing.between is None:
        return pairing.nats[TESTED].p
    return math.nan if pairing.both is None else pairing.both.p


def _plain(found: Mapping[str, Numbers]) -> dict[str, dict[str, float | None]]:
    return {name: {field: _finite(value) for field, value in numbers._asdict().items()} for name, numbers in found.items()}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
