"""What all samplers of vectors share: the marginals at every step, steps, calls, known positions and noise without tails."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from tests.contracts import SOURCE, TABLE, check_sampler
from tests.samplers.gaussian_data import GaussianData
from textdiff.batch import Batch
from textdiff.log_snr import LinearLogSNR, Sqrt, gamma_of
from textdiff.oracle import GaussianOracle, GaussianOraclePredictor, Oracle
from textdiff.prediction import Prediction
from textdiff.processes.gaussian import Gaussian
from textdiff.processes.masked import Masked
from textdiff.randomness import Rng
from textdiff.samplers.ancestral import Ancestral
from textdiff.samplers.base import Sampler
from textdiff.samplers.continuous import Continuous, EqualLogSNR, EqualTimes, Truncated, WithoutTails
from textdiff.samplers.ddim import DDIM
from textdiff.samplers.dpm_solver import DPMSolver
from textdiff.samplers.sde import HeunFlow, LangevinCorrector, ProbabilityFlow, ReverseSDE
from textdiff.schedules import CosineSquared
from textdiff.state_prediction import TabledState

COSINE = Gaussian(CosineSquared(eps=0.0), t_min=1e-3)  # no signal at all at t = 1: the prior is the law of x1
MEAN, VARIANCE = torch.tensor([1.5, -0.5], dtype=torch.float64), torch.tensor([0.3, 2.0], dtype=torch.float64)


def blank(rows: int, length: int = 1) -> Batch:
    return Batch.of(torch.zeros(rows, length, dtype=torch.long))


@pytest.mark.parametrize("process", [COSINE, Gaussian(Sqrt(), t_min=1e-3)], ids=str)
@pytest.mark.parametrize("steps", [3, 10])
@pytest.mark.parametrize(
    "sampler", [Ancestral, DDIM, *(lambda steps, eta=eta: DDIM(steps=steps, eta=eta) for eta in (0.5, 1.0)), DPMSolver]
)
def test_a_perfect_denoiser_leads_through_the_marginals_at_any_number_of_steps(sampler: type[DDIM], steps: int, process: Gaussian) -> None:
    """xs has the mean a x0 and the variance s^2 of q(xs | x0) at every time visited, and ends at x0."""
    rows, denoiser = 20_000, GaussianData(process, MEAN, torch.zeros(2, dtype=torch.float64))
    for canvas in sampler(steps=steps).trajectory(denoiser, blank(rows), Rng(0, 0, torch.arange(rows))):
        if canvas.t == 0:
            torch.testing.assert_close(canvas.x, MEAN.expand(rows, 1, 2), rtol=0, atol=1e-12)
            return
        a, s = (float(level) for level in process.levels(torch.tensor([canvas.t], dtype=torch.float64)))
        assert bool(((canvas.x.mean(0) - a * MEAN).abs() < 4.5 * s / rows**0.5 + 1e-3 * (canvas.t == 1)).all())
        assert bool(((canvas.x.var(0) / s**2 - 1).abs() < 4.5 * (2 / rows) ** 0.5).all())


SAMPLERS = [DDIM(steps=7), DDIM(steps=7, eta=1.0), DPMSolver(steps=7), ReverseSDE(steps=7), ProbabilityFlow(steps=7)]


class Watching:
    """An oracle that notes the times it was asked at and whether it was shown the belief before."""

    def __init__(self) -> None:
        self.inner = GaussianOracle(SOURCE, COSINE, TABLE)
        self.process, self.canvas, self.decode = self.inner.process, self.inner.canvas, self.inner.decode
        self.asked = list[tuple[float, Prediction | None]]()
        self.answers = list[TabledState]()
        self.bound: GaussianOraclePredictor | None = None

    def predictor(self, batch: Batch) -> "Watching":
        self.bound = self.inner.predictor(batch)
        return self

    def rows(self, index: Tensor) -> "Watching":
        raise AssertionError("all rows go through the same times")

    def __call__(self, xt: Tensor, t: Tensor, previous: Prediction | None = None) -> TabledState:
        assert self.bound is not None
        self.asked.append((float(t[0]), previous))
        self.answers.append(self.bound(xt, t))
        return self.answers[-1]


@pytest.mark.parametrize(
    ("sampler", "calls"),
    [*((sampler, 7) for sampler in SAMPLERS), (HeunFlow(steps=7), 13), (LangevinCorrector(DDIM(steps=7), corrections=2), 19)],
    ids=str,
)
def test_calls_are_counted_and_each_is_shown_the_belief_before(sampler: Continuous, calls: int) -> None:
    """steps calls; two a move but for the last (Heun); steps + 2 (steps - 1) (two corrections after every move but the last). Rows
    without targets take part in none."""
    watching, batch = Watching(), blank(3, 8)
    target = batch.target.clone()
    target[1] = False
    canvases = list(sampler.trajectory(watching, batch._replace(target=target), Rng(0, 0, batch.sample_id)))
    assert len(watching.asked) == calls
    assert canvases[-1].nfe.tolist() == [calls, 0, calls]
    assert [canvas.t for canvas in canvases] == pytest.approx([1 - i / 7 for i in range(8)])
    assert watching.asked[0] == (1.0, None)
    for (_, shown), before in zip(watching.asked[1:], watching.answers, strict=False):
        assert shown is before
    assert all(bool(later.nfe.sum() > earlier.nfe.sum()) for earlier, later in pairwise(canvases))


@pytest.mark.parametrize("sampler", SAMPLERS, ids=str)
def test_one_step_is_the_first_belief(sampler: Sampler) -> None:
    batch = blank(5, 8)
    watching = Watching()
    *_, last = type(sampler)(steps=1).trajectory(watching, batch, Rng(0, 0, batch.sample_id))
    assert torch.equal(last.x, watching.answers[0].landing())


@pytest.mark.parametrize(
    "sampler", [*SAMPLERS, HeunFlow(steps=7), LangevinCorrector(DDIM(steps=7)), Truncated(DDIM(steps=7, eta=1.0), 1.0)], ids=str
)
def test_what_is_known_stays_put_at_every_time(sampler: Sampler) -> None:
    """The known state, and not what a network that takes it for noisy makes of it."""
    batch = blank(6, 4)
    target = torch.arange(24).view(6, 4) % 3 > 0
    data = GaussianData(COSINE, MEAN, VARIANCE)
    for canvas in sampler.trajectory(data, batch._replace(target=target), Rng(0, 0, batch.sample_id)):
        assert torch.equal(canvas.x[~target], MEAN.expand(8, 2))
        assert bool((canvas.x[target] != MEAN).all())
        assert torch.equal(canvas.settled, ~target | (canvas.t == 0))


def test_times_are_equally_spaced_in_what_they_say() -> None:
    for process in (COSINE, Gaussian(Sqrt(), t_min=1e-3), Gaussian(LinearLogSNR(-4, 8))):
        equal, by_noise = (spacing.times(process, 9) for spacing in (EqualTimes(), EqualLogSNR()))
        assert equal.tolist() == pytest.approx([1 - i / 9 for i in range(10)])
        assert by_noise[[0, -1]].tolist() == [1, 0]
        gamma = gamma_of(process.alpha(by_noise[1:-1]))
        low, high = process.gamma(torch.tensor([process.t_min, 1.0], dtype=torch.float64)).clamp(max=15)
        torch.testing.assert_close(gamma, torch.linspace(high, low, 10, dtype=torch.float64)[1:-1], rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(by_noise, equal, rtol=0, atol=1e-9)  # one and the same where log SNR is linear in t


def test_numbers_without_tails_follow_the_truncated_normal_law_and_are_streams_like_any() -> None:
    rows, limit = 200_000, 1.2
    plain = Rng(0, 0, torch.arange(rows))
    z = WithoutTails(plain, limit).normal("x", (1,))[:, 0]
    mass = torch.special.ndtr(torch.tensor([-limit, limit], dtype=torch.float64))
    assert float(z.abs().max()) <= limit
    edges = torch.linspace(-limit, limit, 13, dtype=torch.float64)
    share = torch.histogram(z, edges).hist / rows
    exact = torch.special.ndtr(edges).diff() / (mass[1] - mass[0])
    assert bool(((share - exact).abs() < 4.5 * (exact / rows).sqrt()).all())

    short = WithoutTails(plain, limit)
    index = torch.tensor([7, 3])
    assert torch.equal(short.rows(index).normal("x", (1,))[:, 0], z[index])
    assert torch.equal(short.draw(2).rows(index).normal("x", (4,)), WithoutTails(plain.draw(2), limit).normal("x", (4,))[index])
    assert torch.equal(short.uniform("u", (2,)), plain.uniform("u", (2,)))
    torch.testing.assert_close(WithoutTails(plain, 9.0).normal("x", (1,)), plain.normal("x", (1,)), rtol=1e-9, atol=1e-9)


def test_truncation_cuts_the_noise_at_the_start_and_at_every_step() -> None:
    """With a perfect denoiser all of a state's deviation is noise: at most `limit` at the start, and of variance below s^2 later."""
    rows = 20_000
    denoiser = GaussianData(COSINE, MEAN, torch.zeros(2, dtype=torch.float64))
    limit = 0.7
    variance = float(WithoutTails(Rng(0, 0, torch.arange(rows)), limit).normal("x", (8,)).var())
    for canvas in Truncated(DDIM(steps=5, eta=1.0), limit).trajectory(denoiser, blank(rows), Rng(0, 0, torch.arange(rows))):
        a, s = (float(level) for level in COSINE.levels(torch.tensor([canvas.t], dtype=torch.float64)))
        if canvas.t == 1:
            assert float(canvas.x.abs().max()) <= limit
        if canvas.t > 0:
            spread = ((canvas.x - a * MEAN) / s).var(0)
            assert bool(((spread / variance - 1).abs() < 0.06).all())


@pytest.mark.parametrize("inner", [Ancestral(steps=10), DDIM(steps=10, eta=1.0), ReverseSDE(steps=10)], ids=str)
def test_truncated_samplers_keep_the_contract_and_are_less_varied(inner: Sampler) -> None:
    sampler = Truncated(inner, limit=0.8)
    check_sampler(sampler, COSINE)
    oracle, batch = GaussianOracle(SOURCE, COSINE, TABLE), blank(500, 8)
    plain, cut = (chosen.sample(oracle, batch, Rng(1, 0, batch.sample_id)) for chosen in (inner, sampler))
    assert float(-SOURCE.log_prob(cut).mean()) < float(-SOURCE.log_prob(plain).mean()) - 0.5


def test_what_does_not_fit_is_refused() -> None:
    batch = blank(1, 8)
    with pytest.raises(ValueError, match="DDIM samples a Gaussian process and the model's is Masked"):
        DDIM().sample(Oracle.of(SOURCE, Masked()), batch, Rng(0, 0, batch.sample_id))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Truncated samples a Gaussian process"):
        Truncated(Ancestral(), 1.0).sample(Oracle.of(SOURCE, Masked()), batch, Rng(0, 0, batch.sample_id))
    with pytest.raises(ValueError, match="limit is 0"):
        Truncated(DDIM(), 0)
    with pytest.raises(ValueError, match="steps is 0"):
        DPMSolver(steps=0)
