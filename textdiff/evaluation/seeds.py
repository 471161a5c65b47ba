"""Intervals over the training seeds of a claim: few runs, so Student's t."""

import math
from collections.abc import Sequence
from statistics import mean, stdev
from typing import NamedTuple


class Interval(NamedTuple):
    """A mean with the half-width of its interval, nan for one value."""

    mean: float
    half_width: float

    def __str__(self) -> str:
        return f"{self.mean:.4f} (one seed)" if math.isnan(self.half_width) else f"{self.mean:.4f} ± {self.half_width:.4f}"


def interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """The mean of independent values with its Student-t interval; raises ValueError without values or for a level outside (0, 1)."""
    if not values or not 0 < level < 1:
        raise ValueError(f"{len(values)} values at level {level}: expected one or more, at a level between 0 and 1")
    n = len(values)
    return Interval(mean(values), quantile((1 + level) / 2, n - 1) * stdev(values) / math.sqrt(n) if n > 1 else math.nan)


class Gap(NamedTuple):
    """How far the means of two families of runs are apart, with the half-width of its interval and the two-sided p-value of 0."""

    mean: float
    half_width: float
    p: float


class Further(NamedTuple):
    """An error that all runs have in common, such as that of the texts they are measured on."""

    error: float
    degrees: int


def gap(a: Sequence[float], b: Sequence[float], level: float = 0.95, further: Further | None = None) -> Gap:
    """The mean of `a` less that of `b` by Welch's t-test, which takes the runs of each family as independent normal draws of one law.

    With `further` the variance of another, independent error is added: the test is then of both at once. Degrees of freedom are estimated
    (Satterthwaite) and rounded down. nan for a family of one run, whose spread is not known.
    """
    apart = mean(a) - mean(b)
    if min(len(a), len(b)) < 2:
        return Gap(apart, math.nan, math.nan)
    of = [(stdev(values) ** 2 / len(values), len(values) - 1) for values in (a, b)]
    of += [] if further is None else [(further.error**2, further.degrees)]
    parts = [part for part, _ in of]
    if sum(parts) == 0:
        return Gap(apart, 0.0, float(apart == 0))
    degrees = sum(parts) ** 2 / sum(part**2 / free for part, free in of)
    n, error = math.floor(degrees + 1e-9), math.sqrt(sum(parts))
    return Gap(apart, quantile((1 + level) / 2, n) * error, 1 - _central(abs(apart) / error, n))


def quantile(p: float, degrees: int) -> float:
    """The p-quantile, p >= 1/2, of Student's t with so many degrees of freedom, by bisection of its distribution function."""
    low, high = 0.0, 1.0
    while _central(high, degrees) < 2 * p - 1:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _central(middle, degrees) < 2 * p - 1 else (low, middle)
    return high


def _central(t: float, degrees: int) -> float:
    """P(|T| <= t) as a finite sum (Abramowitz and Stegun, 26.7.3 and 26.7.4)."""
    angle = math.atan(t / math.sqrt(degrees))
    odd = degrees % 2
    term = math.cos(angle) if odd else 1.0
    terms = []
    for k in range(2 + odd, degrees + 1, 2):
        terms.append(term)
        term *= math.cos(angle) ** 2 * (k - 1) / k
    total = math.sin(angle) * math.fsum(terms)
    return 2 / math.pi * (angle + total) if odd else total
