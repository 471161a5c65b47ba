"""Exact counts for noise that leaves no trace of itself: masks, which do, are in test_masked."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy
import pytest
import torch
from torch import Tensor

from tests.contracts import DATA, OTHER, Enumeration
from tests.processes.formulas import SHARE
from tests.processes.test_interpolating import WITH_MASK, hybrid_noise, uniform_noise
from textdiff.batch import Clean
from textdiff.prediction import TablePrediction
from textdiff.processes.base import Noised, Process
from textdiff.processes.exact_count import ExactCount
from textdiff.processes.hybrid import Hybrid
from textdiff.processes.interpolating import Interpolating
from textdiff.processes.left_to_right import LeftToRight
from textdiff.processes.uniform import Uniform
from textdiff.randomness import Rng
from textdiff.schedules import CosineSquared, FlowPolynomial, LinearSigma, LogLinear, Polynomial, Schedule
from textdiff.vocab import Vocab

PAIRS = torch.cartesian_prod(torch.arange(3), torch.arange(3))


class Dealt(Rng):
    """Uniform numbers that the test deals, by name; everything else is random."""

    def __init__(self, **dealt: Tensor) -> None:
        super().__init__(0, 0, torch.arange(len(next(iter(dealt.values())))))
        self.dealt = dealt

    def uniform(self, name: str, shape: tuple[int, ...]) -> Tensor:
        return self.dealt[name] if name in self.dealt else super().uniform(name, shape)


def nodes(count: int = 60) -> tuple[Tensor, Tensor]:
    """Gauss-Legendre points and weights on [0, 1], crowded towards both ends, where integrands have logarithms."""
    points, weights = (torch.from_numpy(values) for values in numpy.polynomial.legendre.leggauss(count))
    y = (points + 1) / 2
    return y**3 * (10 - 15 * y + 6 * y**2), 15 * y**2 * (1 - y) ** 2 * weights


def draws(process: Interpolating) -> list[tuple[tuple[bool, bool], float, float, float]]:
    """(touched, time, weight, probability) of everything that `ExactCount` can draw for two targets: the count is 0, 1 or 2 with
    probability 1/3 each, both choices of one token are equally likely, and given the count the numbers dealt are order statistics:
    the smallest of three, the smaller and the larger of two."""
    level, weight = nodes()
    u, above, below = level, (1 + level) / 2, level / 2
    cases = {
        (False, False): (torch.stack([above, above], 1), 3 * (1 - u) ** 2 / 3),
        (True, False): (torch.stack([u, above], 1), 2 * (1 - u) / 6),
        (False, True): (torch.stack([above, u], 1), 2 * (1 - u) / 6),
        (True, True): (torch.stack([below, u], 1), 2 * u / 3),
    }
    found: list[tuple[tuple[bool, bool], float, float, float]] = []
    for touched, (dealt, density) in cases.items():
        x0 = torch.zeros(len(u), 2, dtype=torch.long)
        rng = Dealt(corrupt=dealt, level=1 - (1 - u[:, None]) ** 3)
        noised = ExactCount.with_count(process, x0, torch.ones_like(x0, dtype=torch.bool), torch.full((len(u),), sum(touched)), rng)
        rows = zip(noised.t.tolist(), noised.weight.tolist(), (density * weight).tolist(), strict=True)
        found += [(touched, *row) for row in rows]
    return found


def expectation(process: Interpolating, truth: Enumeration) -> float:
    """E of weight * nats over everything that can be drawn, the noise and its replacements enumerated."""
    total, where = 0.0, torch.ones(1, 2, dtype=torch.bool)
    for touched, t, weight, probability in draws(process):
        assert math.isfinite(weight)
        if truth.noise(t).sum() == 0:  # the first instants, which float64 cannot tell from t = 0
            continue
        law = truth.noise(t) / truth.noise(t).sum()
        one = torch.eye(3, len(law), dtype=torch.float64)
        ends = [law.expand(3, -1) if hit else one for hit in touched]
        joint = torch.einsum("ab,ay,bz->abyz", DATA, *ends)
        index = joint.nonzero()
        x0, xt = index[:, :2], index[:, 2:]
        times = torch.full((len(x0),), t, dtype=torch.float64)
        nats = process.nelbo_at(truth.prediction(xt, t), Clean(x0, x0), xt, times, where.expand_as(x0))
        total += probability * weight * float((joint[tuple(index.T)] * nats.sum(1)).sum())
    return total


CLOCKS: list[Schedule] = [LogLinear(), Polynomial(), FlowPolynomial(0.5), CosineSquared(), LinearSigma()]
CASES = [(Uniform(clock), uniform_noise) for clock in CLOCKS]
CASES += [(Hybrid(clock, share=SHARE), hybrid_noise) for clock in CLOCKS]


@pytest.mark.parametrize(("kind", "noise"), CASES, ids=[f"{type(kind).__name__} {kind.schedule}" for kind, _ in CASES])
def test_the_expectation_is_the_integral_over_all_times(kind: Interpolating, noise: Callable[[float], Tensor]) -> None:
    """That integral is E -log p(x0), the entropy when the belief is true: see `contracts`. Clocks that stand still at an end, start or end
    infinitely fast, or keep some signal to the last are among these; what they leave off both ends is below 1e-4."""
    process = kind.bind(WITH_MASK)
    for belief in (DATA, OTHER):
        truth = Enumeration(lambda t: noise(1 - float(kind.schedule.alpha(torch.tensor(t, dtype=torch.float64)))), belief=belief)
        assert expectation(process, truth) == pytest.approx(-float((DATA * belief.log()).sum()), rel=1e-4)


@dataclass(frozen=True)
class Single(Uniform):
    """Every position has its own time, as blocks of one token have."""

    def span(self, length: int) -> int:
        return 1


def test_spans_have_counts_and_times_of_their_own() -> None:
    """Of one target, untouched, the level is the smaller of two uniform numbers; touched, it is the target's own, at twice the weight."""
    dealt = torch.tensor([[0.2, 0.7], [0.2, 0.7], [0.2, 0.7]], dtype=torch.float64)
    x0, k = torch.zeros(3, 2, dtype=torch.long), torch.tensor([[0, 1], [1, 0], [1, 1]])
    rng = Dealt(corrupt=dealt, level=1 - (1 - dealt) ** 2)
    noised = ExactCount.with_count(Single().bind(WITH_MASK), x0, torch.ones_like(x0, dtype=torch.bool), k, rng)
    torch.testing.assert_close(noised.t, dealt)
    torch.testing.assert_close(noised.weight, torch.where(k == 1, 2 * dealt, 1.0))


def test_the_mean_over_spans_drawn_at_random_is_the_cross_entropy_of_each_position() -> None:
    """The same by Monte Carlo through the whole call, rows without targets in a span included, to 4.5 standard errors."""
    rows, process = 40_000, Single().bind(WITH_MASK)
    rng = Rng(0, 0, torch.arange(rows))
    x0 = PAIRS[torch.multinomial(DATA.flatten(), rows, replacement=True, generator=torch.Generator().manual_seed(1))]
    target = torch.ones_like(x0, dtype=torch.bool)
    target[::4, 1] = False
    stratum = torch.stack([torch.arange(rows), torch.full((rows,), rows)], 1)
    noised = ExactCount()(process, x0, target, stratum, rng)
    marginals = torch.stack([OTHER.sum(1), OTHER.sum(0)])
    pred = TablePrediction(torch.nn.functional.pad(marginals.log(), (0, 1), value=-torch.inf).expand(rows, 2, 4))
    nats = process.nelbo_at(pred, Clean(x0, x0), noised.xt, noised.t, target) * noised.weight
    assert bool((noised.xt == x0)[~target].all())
    assert bool((nats[~target] == 0).all())
    for position, law in enumerate((DATA.sum(1), DATA.sum(0))):
        found = nats[target[:, position], position]
        exact = -float((law * marginals[position].log()).sum())
        assert abs(float(found.mean()) - exact) < 4.5 * float(found.std()) / len(found) ** 0.5


def test_counts_from_none_to_all_are_equally_frequent() -> None:
    """Six rows of five targets: every count 0 .. 5 is drawn once, whichever rows this process holds."""
    rows = torch.tensor([3, 0, 5, 1, 4, 2])
    x0, size = torch.zeros(6, 5, dtype=torch.long), 100_000
    process = Uniform().bind(Vocab(size=size, tokens=size))  # so many that a replacement is never the same token
    stratum = torch.stack([rows, torch.full((6,), 6)], 1)
    noised: Noised = ExactCount()(process, x0, torch.ones_like(x0, dtype=torch.bool), stratum, Rng(7, 0, torch.arange(6)))
    assert (noised.xt != 0).sum(1).tolist() == rows.tolist()


def test_a_row_without_targets_weighs_nothing() -> None:
    x0, stratum = torch.zeros(2, 4, dtype=torch.long), torch.tensor([[0, 2], [1, 2]])
    target = torch.tensor([[False] * 4, [True] * 4])
    noised = ExactCount()(Uniform().bind(WITH_MASK), x0, target, stratum, Rng(0, 0, torch.arange(2)))
    assert float(noised.weight[0]) == 0 < float(noised.weight[1])
    assert torch.equal(noised.xt[0], x0[0])


def test_a_process_without_noised_tokens_is_refused() -> None:
    process: Process = LeftToRight()
    with pytest.raises(ValueError, match="LeftToRight has none: use UniformTime"):
        ExactCount()(process, PAIRS, PAIRS >= 0, torch.zeros(9, 2, dtype=torch.long), Rng(0, 0, torch.arange(9)))
