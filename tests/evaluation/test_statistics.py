"""Intervals and p-values against the truth of an oracle, enumeration of all resamples, and closed forms."""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy
import pytest
import torch

from tests.evaluation.measurements import measured
from textdiff.batch import Batch, Clean
from textdiff.evaluation.measurement import Measurement
from textdiff.evaluation.statistics import Estimate, adjusted, difference, drawn, ratio, ratio_error
from textdiff.oracle import Markov, Oracle
from textdiff.processes.exact_count import ExactCount
from textdiff.processes.masked import Masked
from textdiff.randomness import Rng

SOURCE = Markov.random(4, 12, seed=1)
REPETITIONS = 1000
Interval = Callable[[Measurement], Estimate]


def studentised(measurement: Measurement) -> Estimate:
    return ratio(measurement, "tokens", resamples=500)


def exact_nats(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Fresh sequences with the exact nats of their first 1, 2, .. tokens, (count, 12)."""
    x = SOURCE.sample(count, Rng(seed, 0, torch.arange(count)))
    each = torch.cat([SOURCE.initial.log()[x[:, :1]], SOURCE.transition.log()[x[:, :-1], x[:, 1:]]], 1)
    return x, -each.cumsum(1)


def whole(texts: int) -> tuple[float, Iterator[Measurement]]:
    """Samples of whole sequences, and their block entropy per token."""
    nats = exact_nats(texts * REPETITIONS, seed=3)[1][:, -1].view(REPETITIONS, texts)
    return SOURCE.entropy() / 12, (measured(row.tolist(), [12] * texts) for row in nats)


def ragged(texts: int) -> tuple[float, Iterator[Measurement]]:
    """Samples of sequences of 2 to 12 tokens, short ones more often; the truth is that of a ratio of means."""
    weights = 0.75 ** torch.arange(11, dtype=torch.float64)
    lengths = 2 + torch.multinomial(weights, texts * REPETITIONS, replacement=True, generator=torch.Generator().manual_seed(0))
    nats = exact_nats(texts * REPETITIONS, seed=4)[1].gather(1, lengths[:, None] - 1).view(REPETITIONS, texts)
    entropies = torch.tensor([replace(SOURCE, length=int(n)).entropy() for n in range(2, 13)])
    truth = float((weights * entropies).sum() / (weights * torch.arange(2, 13)).sum())
    tokens = lengths.view(REPETITIONS, texts).tolist()
    return truth, (measured(row.tolist(), n) for row, n in zip(nats, tokens, strict=True))


def bounds(texts: int) -> tuple[float, Iterator[Measurement]]:
    """Samples of one noisy draw each of the exact denoiser's bound, whose mean is the block entropy."""
    x, _ = exact_nats(texts * REPETITIONS, seed=5)
    oracle, everywhere = Oracle.of(SOURCE, Masked()), torch.ones_like(x, dtype=torch.bool)
    noised = ExactCount()(oracle.process, x, everywhere, torch.tensor([0, 1]).expand(len(x), 2), Rng(6, 0, torch.arange(len(x))))
    pred = oracle.predictor(Batch.of(x))(noised.xt, noised.t)
    nats = (oracle.process.nelbo_at(pred, Clean(x, x), noised.xt, noised.t, everywhere) * noised.weight[:, None]).sum(1)
    rows = nats.view(REPETITIONS, texts)
    return SOURCE.entropy() / 12, (measured(row.tolist(), [12] * texts, kind="upper bound") for row in rows)


def coverage(truth: float, samples: Iterator[Measurement], interval: Interval = studentised) -> float:
    """How often the interval of a fresh sample holds the truth."""
    found = [interval(sample) for sample in samples]
    return sum(one.low <= truth <= one.high for one in found) / len(found)


@pytest.mark.parametrize("texts", [20, 60])
@pytest.mark.parametrize("draw", [whole, ragged, bounds])
def test_intervals_of_95_percent_hold_the_block_entropy_in_93_to_97_percent_of_1000_repetitions(
    draw: Callable[[int], tuple], texts: int
) -> None:
    assert 0.93 <= coverage(*draw(texts)) <= 0.97


def percentiles(measurement: Measurement) -> Estimate:
    """The interval of the resampled values' own quantiles, from as many resamples."""
    nats, tokens = (numpy.array([score[i] for score in measurement.scores]) for i in (1, 2))
    index = numpy.random.default_rng(0).integers(len(nats), size=(500, len(nats)))
    values = nats[index].sum(1) / tokens[index].sum(1)
    return Estimate(0.0, 0.0, *numpy.quantile(values, [0.025, 0.975]).tolist())


def test_other_intervals_are_found_out() -> None:
    """Half the width, and at 20 texts the quantiles of resampled values, which are the reason for the studentised ones."""

    def half(measurement: Measurement) -> Estimate:
        found = studentised(measurement)
        return found._replace(low=(found.value + found.low) / 2, high=(found.value + found.high) / 2)

    assert coverage(*whole(60), half) < 0.75
    assert coverage(*ragged(20), percentiles) < 0.93
    truth, samples = whole(60)
    assert coverage(truth * 1.05, samples) < 0.9


def shared(documents: int, level: float) -> Iterator[Measurement]:
    """Documents of 1 to 9 passages, whose nats share a level of their document; the truth is 2 nats per token."""
    generator = numpy.random.default_rng(0)
    for _ in range(REPETITIONS):
        of = numpy.repeat(numpy.arange(documents), generator.integers(1, 10, size=documents))
        nats = 20 + level * generator.normal(size=documents)[of] + generator.normal(size=len(of))
        yield measured(nats.tolist(), [10] * len(of), documents=of.tolist())


def test_passages_of_a_document_that_are_alike_do_not_shorten_the_interval() -> None:
    assert 0.93 <= coverage(2.0, shared(20, level=1.0)) <= 0.97
    alone = (replace(one, scores=tuple(s._replace(document=None) for s in one.scores)) for one in shared(20, level=1.0))
    assert coverage(2.0, alone) < 0.8
    assert [drawn(measured([1.0] * 8, documents=range(n))) for n in (8,)] == ["document"]
    assert drawn(measured([1.0] * 8, documents=[0, 1, 2, 3, 4, 5, 6, 6])) == "passage"  # too few documents
    assert drawn(measured([1.0] * 8)) == "passage"


def test_the_error_and_the_p_value_are_those_of_all_resamples() -> None:
    """Four texts have 256 resamples; their values, and the share of |t*| that reach the observed one, by enumeration."""
    nats, tokens = numpy.array([21.0, 9.0, 33.0, 12.5]), numpy.array([10, 4, 12, 7])
    other = numpy.array([20.0, 9.5, 30.0, 12.0])
    values, reached = [], 0.0

    def studentised_of(x: numpy.ndarray, y: numpy.ndarray, center: float) -> tuple[float, float]:
        value = x.sum() / y.sum()
        spread = math.sqrt(4 / 3 * ((x - value * y) ** 2).sum()) / y.sum()
        return value, math.inf if spread < 1e-12 and abs(value - center) > 1e-12 else 0.0 if spread < 1e-12 else (value - center) / spread

    apart = nats - other
    observed, t = studentised_of(apart, tokens, 0.0)
    for index in itertools.product(range(4), repeat=4):
        draw = list(index)
        values.append(nats[draw].sum() / tokens[draw].sum())
        reached += abs(studentised_of(apart[draw], tokens[draw], observed)[1]) >= abs(t)
    a, b = measured(nats.tolist(), tokens.tolist()), measured(other.tolist(), tokens.tolist(), model="b")
    found = ratio(a, "tokens", resamples=40_000)
    assert found.value == pytest.approx(nats.sum() / tokens.sum(), rel=1e-12)
    assert found.error == pytest.approx(float(numpy.std(values)), rel=0.02)
    share = reached / 256
    assert difference(a, b, "tokens", resamples=40_000).p == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / 40_000))


def test_equal_models_are_told_apart_as_rarely_as_the_p_value_says() -> None:
    """Skewed differences whose law has mean 0: p is below 0.05 in 3 to 7 % and below 0.5 in 45 to 55 % of samples."""
    generator = numpy.random.default_rng(1)
    ps = []
    for _ in range(REPETITIONS):
        shared_nats = generator.gamma(4.0, 5.0, size=40)
        a = measured((shared_nats + generator.gamma(4.0, size=40)).tolist())
        b = measured((shared_nats + generator.gamma(4.0, size=40)).tolist(), model="b")
        ps.append(difference(a, b, "tokens", resamples=400).p)
    assert 0.03 <= float(numpy.mean(numpy.array(ps) < 0.05)) <= 0.07
    assert 0.45 <= float(numpy.mean(numpy.array(ps) < 0.5)) <= 0.55


def test_pairs_tell_what_two_intervals_apart_do_not() -> None:
    """What two models share of a text leaves their difference; it is the same from both sides, and p agrees with the interval."""
    generator = numpy.random.default_rng(2)
    texts = generator.gamma(4.0, 5.0, size=50)
    for shift, told in ((0.0, False), (0.5, True)):
        a, b = measured((texts + shift + 0.3 * generator.normal(size=50)).tolist()), measured(texts.tolist(), model="b")
        one, other = difference(a, b, "tokens"), difference(b, a, "tokens")
        assert (one.p < 0.05) is (one.low > 0 or one.high < 0) is told
        assert other == pytest.approx((-one.value, one.error, -one.high, -one.low, one.p), abs=1e-12)
        assert one.value == pytest.approx(ratio(a, "tokens").value - ratio(b, "tokens").value, abs=1e-12)
    assert ratio(a, "tokens").low < ratio(b, "tokens").high  # apart they are not told


def test_a_p_value_is_never_0_and_a_model_equals_itself() -> None:
    a = measured([10.0 + i % 3 for i in range(30)])
    b = measured([30.0 + i % 2 for i in range(30)], model="b")
    assert difference(a, b, "tokens", resamples=999).p == 1 / 1000
    assert difference(a, a, "tokens") == (0.0, 0.0, 0.0, 0.0, 1.0)


def test_units_scale_the_value_and_one_text_has_no_interval() -> None:
    a = measured([30.0, 24.0, 41.0], [12, 8, 20])
    per = {unit: ratio(a, unit) for unit in ("tokens", "text_bytes", "characters", "words")}
    assert [found.value for found in per.values()] == pytest.approx([95 / 40, 95 / 200, 95 / 160, 95 / 20])
    assert per["text_bytes"].error == pytest.approx(per["tokens"].error / 5)
    value, *rest = ratio(measured([30.0], [12]), "tokens")
    assert value == 2.5
    assert all(math.isnan(number) for number in rest)


def test_very_many_texts_are_drawn_in_groups_with_the_same_error() -> None:
    generator = numpy.random.default_rng(3)
    tokens = generator.integers(1, 20, size=30_001)
    nats = 3 * tokens + generator.normal(size=30_001) * tokens
    found = ratio(measured(nats.tolist(), tokens.tolist()), "tokens")
    value = nats.sum() / tokens.sum()
    error = math.sqrt(((nats - value * tokens) ** 2).sum()) / tokens.sum()
    assert found.value == pytest.approx(value, rel=1e-12)
    assert found.error == pytest.approx(error, rel=0.05)  # of 2,000 resamples of 4,096 groups: 1.6 % and 1.1 %
    assert found.high - found.value == pytest.approx(1.96 * error, rel=0.1)


def test_a_target_that_ended_one_model_early_leaves_the_texts_that_both_scored() -> None:
    a, b = measured([10.0, 11.0, 12.0, 13.0, 19.0]), measured([9.0, 11.5, 11.0, 12.0, 14.0], model="b")
    early = replace(b, scores=(b.scores[3], b.scores[0], b.scores[1]))
    kept = [replace(m, scores=tuple(m.scores[i] for i in (0, 1, 3))) for m in (a, b)]
    assert difference(a, early, "tokens") == difference(*kept, "tokens")


def test_holm_on_a_worked_example() -> None:
    """Holm (1979): the smallest of m times m, the next times m - 1, .., never less than one before; nan is no test."""
    assert adjusted([0.01, 0.04, math.nan, 0.03, 0.005])[:2] == pytest.approx([0.03, 0.06])
    assert adjusted([0.01, 0.04, math.nan, 0.03, 0.005])[3:] == pytest.approx([0.06, 0.02])
    assert math.isnan(adjusted([0.01, 0.04, math.nan, 0.03, 0.005])[2])
    assert adjusted([0.9, 0.6]) == [1.0, 1.0]


def test_what_has_no_number_is_refused() -> None:
    a = measured([10.0, 12.0])
    with pytest.raises(ValueError, match="per is 'bits', expected one of tokens, text_bytes, characters, words"):
        ratio(a, "bits")
    with pytest.raises(ValueError, match="a scored no words of texts"):
        ratio(measured([10.0], [1]), "words")
    for other in (measured([10.0, 12.0], texts="others"), measured([10.0, 12.0], [9, 10])):
        with pytest.raises(ValueError, match="a and a did not score the same tokens of the same texts"):
            difference(a, other, "tokens")
    with pytest.raises(ValueError, match="resamples is 10, expected 100 or more"):
        ratio(a, "tokens", resamples=10)


def test_the_error_of_a_ratio_is_that_of_its_residuals() -> None:
    """For equal sizes that of a mean, and for ragged ones the spread of the ratio over fresh samples."""
    generator = numpy.random.default_rng(0)
    x = generator.normal(size=9)
    assert ratio_error(x, numpy.ones(9)) == pytest.approx(x.std(ddof=1) / 3)
    assert ratio_error(x, numpy.full(9, 4.0)) == pytest.approx(x.std(ddof=1) / 12)
    y = generator.integers(1, 20, size=(4000, 200)).astype(float)
    x = 3 * y + generator.normal(size=y.shape) * numpy.sqrt(y)
    ratios = x.sum(1) / y.sum(1)
    assert numpy.mean([ratio_error(*sample) for sample in zip(x, y, strict=True)]) == pytest.approx(ratios.std(), rel=0.03)
    assert all(math.isnan(ratio_error(numpy.array(x), numpy.ones(len(x)))) for x in ([], [1.0], [1.0, math.inf], [1.0, math.nan]))
