"""What holds for every process q_t(. | x) = alpha_t e_x + b_t alike: its bound, its posteriors and its leave-one-out predictions."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy
import pytest
import torch
from torch import Tensor

from tests.contracts import DATA, OTHER, STATES, Enumeration
from tests.processes.formulas import SHARE, Moment, hybrid_moment, uniform_moment
from textdiff.batch import Clean
from textdiff.prediction import HeadPrediction, TablePrediction
from textdiff.processes.hybrid import Hybrid
from textdiff.processes.interpolating import Interpolating
from textdiff.processes.uniform import Uniform
from textdiff.projection import Head, Tilt
from textdiff.randomness import Rng
from textdiff.schedules import Geometric, LogLinear
from textdiff.vocab import Vocab

TIMES = (1e-3, 0.03, 0.2, 0.5, 0.8, 0.97, 1 - 1e-3)
WITH_MASK = Vocab(size=4, tokens=4, mask_id=3)
UNIFORM, HYBRID = Uniform().bind(WITH_MASK), Hybrid(share=SHARE).bind(WITH_MASK)
ENTROPY = float(torch.special.entr(DATA).sum())


def uniform_noise(t: float) -> Tensor:
    return torch.tensor([t / 3] * 3 + [0], dtype=torch.float64)


def hybrid_noise(t: float, gamma: float = 1.0, share: float = SHARE) -> Tensor:
    """GIDD's b_t over three tokens and the mask."""
    c = 2**gamma * share / (1 - share) * math.sqrt(t * (1 - t)) ** gamma
    return torch.tensor([c / 3 / (1 + c)] * 3 + [t / (1 + c)], dtype=torch.float64)


BOTH = pytest.mark.parametrize(("process", "noise"), [(UNIFORM, uniform_noise), (HYBRID, hybrid_noise)], ids=["uniform", "hybrid"])


def bound(process: Interpolating, moments: list[Moment], times: list[float], dtype: torch.dtype = torch.float64) -> Tensor:
    """The process's nats for each moment at its time, (N,) float64."""
    x, z = (torch.tensor([[value] for value in values]) for values in ([m.x for m in moments], [m.z for m in moments]))
    with numpy.errstate(divide="ignore"):
        log = numpy.stack([numpy.log(m.p) for m in moments]).astype(numpy.float64)
    pred = TablePrediction(torch.from_numpy(log)[:, None].to(dtype))
    return process.nelbo_at(pred, Clean(x, x), z, torch.tensor(times, dtype=torch.float64), torch.ones_like(x, dtype=torch.bool))[:, 0]


@dataclass(frozen=True)
class Family:
    """A process over `size` ids and its moments written out by hand."""

    process: Callable[[int], Interpolating]
    moment: Callable[[float, int, int, int], Moment]

    def moments(self, size: int) -> tuple[list[Moment], list[float]]:
        """At every time: the token kept, replaced by another, and replaced by the last id (a hybrid's mask)."""
        cells = [(t, x, z) for t in TIMES for x, z in ((0, 0), (1, 0), (1, size - 1))]
        return [self.moment(t, size, x, z) for t, x, z in cells], [t for t, _, _ in cells]


FAMILIES = {
    "uniform": Family(lambda size: Uniform().bind(Vocab(size=size, tokens=size)), uniform_moment),
    "hybrid": Family(lambda size: Hybrid(share=SHARE).bind(Vocab(size=size, tokens=size, mask_id=size - 1)), hybrid_moment),
}
EVERY_FAMILY = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES.keys())
EVERY_SIZE = pytest.mark.parametrize("size", [3, 16, 50_000])


@EVERY_FAMILY
@EVERY_SIZE
def test_the_bound_is_the_divergence_of_ratios_and_the_theorem_of_gidd(family: Family, size: int) -> None:
    moments, times = family.moments(size)
    nats = bound(family.process(size), moments, times).tolist()
    assert nats == pytest.approx([m.bregman() for m in moments], rel=1e-10)
    assert nats == pytest.approx([m.kl_and_itakura_saito() for m in moments], rel=1e-10)


@EVERY_FAMILY
@EVERY_SIZE
def test_float32_logits_cost_a_thousandth_at_most(family: Family, size: int) -> None:
    moments, times = family.moments(size)
    exact = torch.tensor([m.bregman() for m in moments], dtype=torch.float64)
    single = bound(family.process(size), moments, times, torch.float32)
    assert float(((single - exact) / exact.clamp_min(1e-2)).abs().max()) < 1e-3


@EVERY_FAMILY
@EVERY_SIZE
@pytest.mark.parametrize(("dtype", "rounding"), [(torch.bfloat16, 0.1), (torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_the_bound_is_finite_and_not_negative_at_all_times(family: Family, size: int, dtype: torch.dtype, rounding: float) -> None:
    ends = [0.0, 1e-12, 1e-9, 1e-6, 1 - 1e-6, 1 - 1e-12, 1.0]
    moments = [family.moment(0.5, size, x, z) for x, z in ((0, 0), (1, 0), (1, size - 1)) for _ in ends]
    nats = bound(family.process(size), moments, ends * 3, dtype)
    assert bool(nats.isfinite().all())
    assert float(nats.min()) > -rounding


class Posterior(Enumeration):
    """The believed law's p(x0_l | xt), the noisy token itself included."""

    def prediction(self, xt: Tensor, t: float, dtype: torch.dtype = torch.float64) -> TablePrediction:
        own = self.forward(t).T[xt]  # q(xt_l | x0_l) of every x0_l, (N, 2, K)
        table = super().prediction(xt, t).table.exp()
        table[..., :STATES] *= own
        return TablePrediction((table / table.sum(-1, keepdim=True)).log().to(dtype))


def everything(truth: Enumeration, t: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x0, xt, times and `where` of every cell."""
    x0, xt, _ = truth.cells(t)
    return x0, xt, torch.full((len(x0),), t, dtype=torch.float64), torch.ones_like(x0, dtype=torch.bool)


@BOTH
@pytest.mark.parametrize("t", [1e-3, 0.4, 0.999])
def test_surprise_takes_the_token_seen_out_of_a_posterior(process: Interpolating, noise: Callable[[float], Tensor], t: float) -> None:
    _, xt, times, where = everything(Enumeration(noise), t)
    posterior, exact = Posterior(noise).prediction(xt, t).table, Enumeration(noise).prediction(xt, t).table
    tilted = Tilt(xt[where], -process.surprise(xt, times)[where]).add_to(posterior[where].clone()).log_softmax(-1)
    torch.testing.assert_close(tilted.exp(), exact[where].exp(), rtol=1e-9, atol=1e-12)


@BOTH
def test_the_exact_leave_one_out_belief_has_no_gap_and_the_posterior_has_one(
    process: Interpolating, noise: Callable[[float], Tensor]
) -> None:
    start, end = 0.02, 0.98
    exact = Enumeration(noise)
    entropy = exact.divergence(start) - exact.divergence(end)
    assert exact.integral(process, start, end) == pytest.approx(entropy, abs=1e-7)
    assert Posterior(noise).integral(process, start, end) > entropy + 0.1


@BOTH
@pytest.mark.parametrize(("t", "s"), [(0.9, 0.6), (0.5, 0.49), (0.3, 0.0)])
def test_the_plug_in_of_the_leave_one_out_belief_is_the_mixture_over_the_posterior(
    process: Interpolating, noise: Callable[[float], Tensor], t: float, s: float
) -> None:
    """sum over x0 of q(xs | xt, x0) p(x0 | xt), Bayes' rule enumerated; every row sums to one."""
    truth = Enumeration(noise, belief=OTHER)
    _, xt, times, where = everything(truth, t)
    log = process.log_posterior(truth.prediction(xt, t), xt, times, torch.full_like(times, s), where)
    torch.testing.assert_close(log.exp().sum(-1), torch.ones(len(log), dtype=torch.float64), rtol=1e-12, atol=0)
    exact = truth.reverse(t, s)[:, xt[:, 0], xt[:, 1]].permute(1, 2, 0)
    torch.testing.assert_close(log.exp().view(exact.shape), exact, rtol=1e-9, atol=1e-12)


@BOTH
def test_cross_entropy_is_that_of_the_true_posterior(process: Interpolating, noise: Callable[[float], Tensor]) -> None:
    for t in (1e-3, 0.4, 0.999):
        x0, xt, times, where = everything(Enumeration(noise), t)
        where = where & (torch.arange(2 * len(x0)).view(-1, 2) % 3 > 0)
        posterior = Posterior(noise, belief=OTHER).prediction(xt, t).table
        exact = -posterior.gather(-1, x0[..., None])[..., 0].where(where, 0.0)
        pred = Enumeration(noise, belief=OTHER).prediction(xt, t)
        torch.testing.assert_close(process.cross_entropy(pred, Clean(x0, x0), xt, times, where), exact, rtol=1e-9, atol=1e-12)


@BOTH
def test_log_ratio_is_that_of_the_enumerated_laws_of_xt(process: Interpolating, noise: Callable[[float], Tensor]) -> None:
    """p(xt with j at position l) / p(xt), for every row of xt, position and j."""
    truth, t = Enumeration(noise, belief=OTHER), 0.4
    _, xt, times, where = everything(truth, t)
    q = truth.forward(t)
    law = q.T @ OTHER @ q
    first, second = law[:, xt[:, 1]].T, law[xt[:, 0]]  # (N, V) each
    exact = torch.stack([first, second], 1) / law[xt[:, 0], xt[:, 1]][:, None, None]
    log = process.log_ratio(truth.prediction(xt, t), xt, times, where)
    torch.testing.assert_close(log.exp().view(exact.shape), exact, rtol=1e-10, atol=1e-14)


@BOTH
def test_emission_is_the_column_of_the_forward_law(process: Interpolating, noise: Callable[[float], Tensor]) -> None:
    for t in (0.0, 0.4, 1.0):
        truth = Enumeration(noise)
        _, xt, times, _ = everything(truth, t)
        torch.testing.assert_close(process.emission(xt, times, STATES), truth.forward(t).T[xt], rtol=1e-12, atol=1e-15)


@BOTH
def test_bins_times_their_number_become_the_integrand_at_rate_one_over_steps(
    process: Interpolating, noise: Callable[[float], Tensor]
) -> None:
    """T KL of the bin (t - 1/T, t) against the integrand, relative: ten times nearer for ten times as many steps."""
    truth, t = Enumeration(noise, belief=OTHER), 0.4
    nats, probability = truth.nelbo(process, t)
    exact, errors = float((nats.sum(1) * probability).sum()), []
    for steps in (1e2, 1e3, 1e4):
        bins, probability = truth.nelbo(process, t, t - 1 / steps)
        errors.append(abs(steps * float((bins.sum(1) * probability).sum()) / exact - 1))
    assert errors[0] < 0.03
    assert errors[0] / errors[1] == pytest.approx(10, rel=0.15)
    assert errors[1] / errors[2] == pytest.approx(10, rel=0.15)


def steps_bound(process: Interpolating, truth: Enumeration, steps: int) -> float:
    """The whole bound of `steps` bins, the first of which is the reconstruction."""
    total = 0.0
    for i in range(1, steps + 1):
        nats, probability = truth.nelbo(process, i / steps, (i - 1) / steps)
        total += float((nats.sum(1) * probability).sum())
    return total


@pytest.mark.parametrize("few", [30, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("process", [Uniform(), Hybrid(share=SHARE, gamma=2.0)], ids=["uniform", "hybrid"])
def test_all_bins_together_approach_the_entropy_from_above(process: Interpolating, few: int) -> None:
    """Ten times the steps, a tenth of the excess. With gamma < 2 hybrid noise starts infinitely fast, and the rate is log(T) / T."""
    process = process.bind(WITH_MASK)
    truth = Enumeration(uniform_noise if isinstance(process, Uniform) else lambda t: hybrid_noise(t, gamma=2.0))
    near, far = (steps_bound(process, truth, steps) - ENTROPY for steps in (10 * few, few))
    assert 0 < near < far
    assert far / near == pytest.approx(10, rel=0.1 if few < 1000 else 0.01)


def sequences(rows: int) -> Tensor:
    """Pairs of law DATA, (rows, 2)."""
    pairs = torch.cartesian_prod(torch.arange(STATES), torch.arange(STATES))
    return pairs[torch.multinomial(DATA.flatten(), rows, replacement=True, generator=torch.Generator().manual_seed(0))]


@pytest.mark.parametrize("eps", [0.0, 0.2])
@pytest.mark.parametrize(("kind", "noise"), [(Uniform(), uniform_noise), (Hybrid(share=SHARE), hybrid_noise)], ids=["uniform", "hybrid"])
def test_the_boundary_is_the_reconstruction_and_the_prior(kind: Interpolating, noise: Callable[[float], Tensor], eps: float) -> None:
    """E -log p(x0_l | xt) at t_min under independent corruptions, plus KL( q(x1 | x0) || prior ) where alpha(1) > 0."""
    t_min, rows = 0.05, 30_000
    process = replace(kind, schedule=LogLinear(eps)).bind(WITH_MASK)
    truth = Enumeration(lambda t: noise((1 - eps) * t), belief=OTHER)
    x0, xt, probability = truth.cells(t_min)
    posterior = Posterior(truth.noise, belief=OTHER).prediction(xt, t_min).table
    exact = -float((probability[:, None] * posterior.gather(-1, x0[..., None])[..., 0]).sum())
    end, prior = truth.forward(1.0), truth.noise(1.0) / truth.noise(1.0).sum()
    law = DATA.sum(0) + DATA.sum(1)
    exact += float((law[:, None] * (torch.xlogy(end, end) - torch.xlogy(end, prior))).sum())

    x0, rng = sequences(rows), Rng(0, 0, torch.arange(rows))
    where = torch.ones_like(x0, dtype=torch.bool)
    drawn = process.boundary(lambda xt, t: truth.prediction(xt, t_min), Clean(x0, x0), where, rng, t_min).sum(1)
    assert abs(float(drawn.mean()) - exact) < 4.5 * float(drawn.std()) / rows**0.5
    unscored = process.boundary(lambda xt, t: truth.prediction(xt, t_min), Clean(x0, x0), ~where, rng, t_min)
    assert bool((unscored == 0).all())


@BOTH
@pytest.mark.parametrize("ids", [None, (0, 2)], ids=["every noise id", "a subset"])
def test_gradients_of_the_bound_are_those_of_autograd_through_a_softmax(
    process: Interpolating, noise: Callable[[float], Tensor], ids: tuple[int, ...] | None
) -> None:
    """A head projects, normalises and sums in one fused pass; a table of logits leaves all of it to autograd."""
    process = process if ids is None else replace(process, ids=ids).bind(WITH_MASK)
    x0, xt, times, where = everything(Enumeration(noise), 0.4)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(*xt.shape, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    banned, tilt = torch.tensor([3]), Tilt(xt, torch.full(xt.shape, -0.7, dtype=torch.float64))
    logits = (hidden @ weight.T).index_fill(-1, banned, -torch.inf)
    logits = logits.scatter_add(-1, xt[..., None], tilt.amount[..., None])
    fused, plain = HeadPrediction(hidden, Head(weight, None, banned), tilt), TablePrediction(logits)
    for bound_of in (process.nelbo_at, process.cross_entropy):
        ours, theirs = (bound_of(pred, Clean(x0, x0), xt, times, where) for pred in (fused, plain))
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-13)
        pairs = zip(*(torch.autograd.grad(nats.sum(), (hidden, weight), retain_graph=True) for nats in (ours, theirs)), strict=True)
        for mine, exact in pairs:
            torch.testing.assert_close(mine, exact, rtol=1e-9, atol=1e-12)


@BOTH
def test_changes_are_the_only_positions_that_a_step_changes(process: Interpolating, noise: Callable[[float], Tensor]) -> None:
    truth, rows = Enumeration(noise), 3000
    rng, t, s = Rng(0, 0, torch.arange(rows)), torch.full((rows,), 0.8), torch.full((rows,), 0.5)
    xt = process.corrupt(sequences(rows), t, rng.draw(0))
    xs = process.step(truth.prediction(xt, 0.8), xt, t, s, rng)
    changes = process.changes(xt, t, s, rng)
    assert bool((changes | (xs == xt)).all())
    assert bool((xs != xt).any())
    assert bool((~changes).any())


@BOTH
def test_rows_with_their_own_times_are_noised_at_their_own_rates(process: Interpolating, noise: Callable[[float], Tensor]) -> None:
    """t (B, L): each position by its own clock (block diffusion)."""
    times, rows = (0.2, 0.9), 20_000
    t = torch.tensor(times, dtype=torch.float64).repeat(rows, 1)
    xt = process.corrupt(torch.ones(rows, 2, dtype=torch.long), t, Rng(0, 0, torch.arange(rows)))
    for position, time in enumerate(times):
        share = torch.bincount(xt[:, position], minlength=4) / rows
        exact = Enumeration(noise).forward(time)[1]
        assert bool(((share - exact).abs() <= 4.5 * (exact / rows).sqrt()).all())


@pytest.mark.parametrize("kind", [Uniform, Hybrid])
def test_a_schedule_that_begins_noisy_is_refused(kind: type[Uniform] | type[Hybrid]) -> None:
    """Its bound would owe a reconstruction at t = 0 that nothing here charges."""
    with pytest.raises(ValueError, match="leaves noise at t = 0"):
        kind(Geometric())
