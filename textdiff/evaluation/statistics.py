"""Intervals of likelihoods over texts, and of the difference of two models on the same texts, by the studentised bootstrap.

Texts are taken as independent draws of one law, and nothing else is assumed: no normal law, no equal lengths, no symmetry. Passages of one
document are not independent, so documents are drawn, whole, where there are enough of them. With nats x and units y of each text or
document, a resample draws as many with replacement, and

    R = sum x / sum y,    s(R)^2 = n / (n - 1) * sum (x - R y)^2 / (sum y)^2,    t* = (R* - R) / s(R*)

(Efron and Tibshirani 1993, section 12.5). The interval is R -+ c s(R), where c is the 95 % quantile of |t*|: symmetric, which has the
smallest order of coverage error of the bootstrap intervals (Hall 1988). Quantiles of R* itself are short by a factor of about
sqrt((n - 1) / n) and of the normal for Student's quantile, so they fall below 93 % coverage at 20 texts. The p-value of a difference is
two-sided, for the hypothesis that it is 0 in the law that the texts come from: the share of |t*| that reach |R| / s(R), the value itself
counted among them, so that it is never below 1 / (resamples + 1), and below 0.05 where the interval leaves 0 out.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy
from numpy.typing import NDArray

from textdiff.evaluation.measurement import Measurement, TextScore

UNITS = ("tokens", "text_bytes", "characters", "words")
FEWEST_DOCUMENTS = 8  # that are drawn whole; of fewer the passages are drawn, and intervals are short by what they share
_ROUNDING = 1e-12  # of a variance that is a difference of sums, relative to the largest of them
_LEVEL = 0.95
_MOST = 4096  # texts or groups of texts in a resample
_AT_ONCE = 2**21  # texts drawn at a time, over resamples

Vector = NDArray[numpy.float64]


class Estimate(NamedTuple):
    """Nats per unit with the standard deviation of its resamples and a 95 % interval; nan where too few texts leave them open."""

    value: float
    error: float
    low: float
    high: float


class Difference(NamedTuple):
    """Nats per unit of one model less those of another on the same texts, and the two-sided p-value of their being equal."""

    value: float
    error: float
    low: float
    high: float
    p: float


def ratio(measurement: Measurement, per: str, resamples: int = 2000, seed: int = 0) -> Estimate:
    """Nats per "tokens", "text_bytes", "characters" or "words"; raises ValueError where there are none to divide by."""
    return Estimate(*_interval(*_summed(measurement, _nats(measurement), _units(measurement, per)), resamples, seed)[:4])


def nats_per(measurement: Measurement, per: str) -> float:
    """The value of `ratio` alone."""
    return math.fsum(_nats(measurement)) / math.fsum(_units(measurement, per))


def difference(a: Measurement, b: Measurement, per: str, resamples: int = 2000, seed: int = 0) -> Difference:
    """How many nats per unit `a` has more than `b` on the texts that both scored, resampling texts with both of their scores.

    Raises ValueError unless they are the same texts with the same number of units: see `textdiff.evaluation.comparability`.
    """
    texts = common(a, b)
    pair = [restricted(measurement, texts) for measurement in (a, b)]
    units = [_units(measurement, per) for measurement in pair]
    if a.texts != b.texts or not texts or not numpy.array_equal(units[0], units[1]):
        raise ValueError(f"{a.model} and {b.model} did not score the same {per} of the same texts: their difference has no pairs")
    return Difference(*_interval(*_summed(pair[0], _nats(pair[0]) - _nats(pair[1]), units[0]), resamples, seed))


def common(*measurements: Measurement) -> list[int]:
    """The numbers of the texts that all scored, which are all of them unless a target error ended one early."""
    return sorted(set.intersection(*({score.text for score in measurement.scores} for measurement in measurements)))


def restricted(measurement: Measurement, texts: Sequence[int]) -> Measurement:
    """The same measurement of some of its texts, in that order."""
    scores = {score.text: score for score in measurement.scores}
    return replace(measurement, scores=tuple(scores[text] for text in texts))


def adjusted(ps: Sequence[float]) -> list[float]:
    """p-values of several tests shown together, such that the chance of one or more false claims stays below the level (Holm 1979)."""
    order = sorted((i for i, p in enumerate(ps) if not math.isnan(p)), key=lambda i: ps[i])
    result, largest = [math.nan] * len(ps), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * ps[i]))
        result[i] = largest
    return result


def drawn(measurement: Measurement) -> str:
    """What resamples are of: "document", or what a text is."""
    documents = {score.document for score in measurement.scores}
    return "document" if None not in documents and len(documents) >= FEWEST_DOCUMENTS else measurement.rules.unit


def independent(measurement: Measurement) -> int:
    """How many documents or texts resamples are drawn from."""
    if drawn(measurement) == measurement.rules.unit:
        return len(measurement.scores)
    return len({score.document for score in measurement.scores})


def ratio_error(x: Vector, y: Vector) -> float:
    """The standard error s(R) of R = sum x / sum y over independent texts with (x, y) each, (n,); nan for fewer than two of them, and where
    a sum is no finite number.

    For y = 1 everywhere it is that of a mean: the standard deviation (with n - 1) over sqrt(n).
    """
    total = float(x.sum())
    return _residual_error(x - total / y.sum() * y, y) if len(x) > 1 and math.isfinite(total) else math.nan


def _residual_error(residual: Vector, y: Vector) -> float:
    n = len(y)
    return math.sqrt(n / (n - 1) * float(residual @ residual)) / float(y.sum())


def _summed(measurement: Measurement, x: Vector, y: Vector) -> tuple[Vector, Vector]:
    """Sums over the texts of each document, where documents are drawn, and over groups of what is drawn, where there is very much of it."""
    if drawn(measurement) != measurement.rules.unit:
        _, place = numpy.unique([score.document for score in measurement.scores], return_inverse=True)
        x, y = _totals(x, place), _totals(y, place)
    if len(x) > _MOST:  # sums of independent draws are independent too, and so many tell their spread
        place = numpy.arange(len(x)) % _MOST
        x, y = _totals(x, place), _totals(y, place)
    return x, y


def _totals(values: Vector, place: NDArray[numpy.int64]) -> Vector:
    return numpy.bincount(place, weights=values).astype(numpy.float64)


def _nats(measurement: Measurement) -> Vector:
    return numpy.array([score.nats for score in measurement.scores], dtype=numpy.float64)


def _units(measurement: Measurement, per: str) -> Vector:
    if per not in UNITS:
        raise ValueError(f"per is {per!r}, expected one of {', '.join(UNITS)}")
    column = TextScore._fields.index(per)
    units = numpy.array([score[column] for score in measurement.scores], dtype=numpy.float64)
    if not units.sum() > 0:
        raise ValueError(f"{measurement.model} scored no {per} of {measurement.data}: there is nothing to divide by")
    return units


def _interval(x: Vector, y: Vector, resamples: int, seed: int) -> tuple[float, float, float, float, float]:
    """Value, error, both ends and p-value of sum x / sum y; all but the value are nan for fewer than two texts. With two or three the ends
    are infinite: too many resamples hold one text alone, which has no spread.
    """
    if resamples < 100:
        raise ValueError(f"resamples is {resamples}, expected 100 or more: an interval of 95 % is read from their tails")
    value = math.fsum(x) / math.fsum(y)
    n = len(x)
    if n < 2 or not math.isfinite(value):
        return value, math.nan, math.nan, math.nan, math.nan
    residual = x - value * y  # sums to 0, which keeps the resampled sums from cancelling
    spread = _residual_error(residual, y)
    if spread <= 1e-12 * abs(value):  # every text has the same ratio, as of a model and itself
        return value, 0.0, value, value, 1.0 if value == 0 else 1 / (resamples + 1)
    shift, t = _resampled(residual, y, resamples, seed)
    t = numpy.abs(t)
    reach = float(numpy.sort(t)[min(math.ceil(_LEVEL * (resamples + 1)), resamples) - 1]) * spread  # as p counts them
    p = (1 + int((t >= abs(value) / spread).sum())) / (resamples + 1)
    return value, float(shift.std()), value - reach, value + reach, p


def _resampled(residual: Vector, y: Vector, resamples: int, seed: int) -> tuple[Vector, Vector]:
    """R* - R and t* of every resample, (resamples,) each."""
    n, mean = len(y), float(y.mean())
    columns = numpy.stack([residual / mean, y / mean, (residual / mean) ** 2, residual * y / mean**2, (y / mean) ** 2], axis=1)
    sums = numpy.concatenate([weights @ columns for weights in _weights(n, resamples, seed)])  # (resamples, 5)
    shift = sums[:, 0] / numpy.maximum(sums[:, 1], numpy.finfo(float).tiny)
    square = numpy.maximum(sums[:, 2] - 2 * shift * sums[:, 3] + shift**2 * sums[:, 4], 0.0)
    square[square < _ROUNDING * sums[:, 2]] = 0.0  # one text drawn n times: no spread, whatever rounding left
    spread = numpy.sqrt(n / (n - 1) * square) / numpy.maximum(sums[:, 1], numpy.finfo(float).tiny)
    with numpy.errstate(divide="ignore", invalid="ignore"):
        t = shift / spread
    return shift, numpy.where(shift == 0, 0.0, t)


def _weights(n: int, resamples: int, seed: int) -> Iterator[Vector]:
    """How often each of `n` texts is in each resample, (some, n) at a time."""
    generator = numpy.random.default_rng(seed)
    step = max(1, _AT_ONCE // n)
    for begin in range(0, resamples, step):
        rows = min(step, resamples - begin)
        drawn = generator.integers(n, size=(rows, n)) + n * numpy.arange(rows)[:, None]
        yield numpy.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n).astype(numpy.float64)
