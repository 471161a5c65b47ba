from itertools import pairwise

import pytest
import torch

from tests.contracts import SOURCE, TABLE, check_reproduced, check_sampler
from tests.samplers.gaussian_data import GaussianData
from textdiff.batch import Batch
from textdiff.log_snr import LinearLogSNR, Sqrt
from textdiff.oracle import GaussianOracle
from textdiff.processes.gaussian import Gaussian
from textdiff.randomness import Rng
from textdiff.samplers.continuous import Belief, Continuous, Walk
from textdiff.samplers.ddim import DDIM
from textdiff.samplers.dpm_solver import DPMSolver
from textdiff.samplers.sde import HeunFlow, LangevinCorrector, ProbabilityFlow, ReverseSDE
from textdiff.schedules import CosineSquared

COSINE = Gaussian(CosineSquared(eps=0.0), t_min=1e-3)
MEAN, VARIANCE = torch.tensor([0.5, -1.0], dtype=torch.float64), torch.tensor([0.3, 2.0], dtype=torch.float64)


@pytest.mark.parametrize(("sampler", "order"), [(ProbabilityFlow, 2), (HeunFlow, 4)])
@pytest.mark.parametrize("process", [COSINE, Gaussian(CosineSquared(), t_min=1e-3)], ids=str)
def test_euler_is_first_order_and_heun_second(process: Gaussian, sampler: type[ProbabilityFlow], order: int) -> None:
    """Against the end of the flow of Gaussian data, at 20, 40, 80 and 160 steps."""
    data, batch, errors = GaussianData(process, MEAN, VARIANCE), Batch.of(torch.zeros(50, 2, dtype=torch.long)), []
    for steps in (20, 40, 80, 160):
        first, *_, last = sampler(steps=steps).trajectory(data, batch, Rng(0, 0, batch.sample_id))
        errors.append(float((last.x - data.end_of_flow(first.x)).square().mean().sqrt()))
    for few, many in pairwise(errors):
        assert few / many == pytest.approx(order, rel=0.06)


def test_one_step_of_the_flow_is_that_of_the_equation_with_beta() -> None:
    """dx = -beta/2 (x + score) dt, beta = -alpha' / alpha: the angle is only another clock."""
    process, width = Gaussian(CosineSquared(), t_min=1e-3), 1e-6
    data, batch = GaussianData(process, MEAN, VARIANCE), Batch.of(torch.zeros(4, 2, dtype=torch.long))
    t = torch.tensor([0.9, 0.6, 0.3, 0.1], dtype=torch.float64)
    x, known = Rng(0, 0, torch.arange(4)).normal("x", (2, 2)), torch.zeros(4, 2, 2, dtype=torch.float64)
    walk = Walk(process, data, known, batch.target)
    now = walk.ask(x, t)
    moved = ProbabilityFlow().move(walk, now, None, x, t - width, Rng(0, 0, torch.arange(4)))
    beta = (-process.dalpha(t) / process.alpha(t))[:, None, None]
    drift = -beta / 2 * (x + process.score(now.x0, x, t))
    torch.testing.assert_close((x - moved) / width, drift, rtol=1e-4, atol=1e-5)


def law_of_reverse_sde(process: Gaussian, steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance at the end of the linear recursion that the sampler is for Gaussian data, number by number."""
    times = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    mean, variance = torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    for t, s in pairwise(times):
        alpha = process.alpha(t)
        a, noise = alpha.sqrt(), 1 - alpha
        gain = a * VARIANCE / (alpha * VARIANCE + noise)  # x0hat = MEAN + gain (x - a MEAN)
        if s == 0:
            return MEAN + gain * (mean - a * MEAN), gain**2 * variance
        h = 1 - alpha / process.alpha(s)
        slope = 1 + h * (0.5 + (a * gain - 1) / noise)
        mean, variance = slope * mean + h * a * (1 - a * gain) / noise * MEAN, slope**2 * variance + h
    raise AssertionError("the times end at 0")


def test_the_reverse_sde_is_its_recursion_whose_law_becomes_that_of_the_data() -> None:
    process, rows, steps = Gaussian(CosineSquared(), t_min=1e-3), 40_000, 12
    data, batch = GaussianData(process, MEAN, VARIANCE), Batch.of(torch.zeros(rows, 1, dtype=torch.long))
    *_, last = ReverseSDE(steps=steps).trajectory(data, batch, Rng(0, 0, batch.sample_id))
    mean, variance = law_of_reverse_sde(process, steps)
    assert bool(((last.x.mean(0) - mean).abs() < 4.5 * (variance / rows).sqrt()).all())
    assert bool(((last.x.var(0) / variance - 1).abs() < 4.5 * (2 / rows) ** 0.5).all())

    errors = [law_of_reverse_sde(process, steps)[1] - VARIANCE for steps in (400, 800, 1600)]
    for few, many in pairwise(errors):
        torch.testing.assert_close(few / many, torch.full_like(few, 2.0), rtol=0.05, atol=0)


@pytest.mark.parametrize("sampler", [ProbabilityFlow(steps=50), HeunFlow(steps=12)], ids=str)
def test_the_flow_keeps_the_contract_and_reproduces_the_source(sampler: Continuous) -> None:
    check_sampler(sampler, COSINE, rows=1500)


@pytest.mark.parametrize(
    "sampler",
    [ReverseSDE(steps=100), pytest.param(ReverseSDE(steps=1000), marks=pytest.mark.slow)],
    ids=str,
)
def test_the_reverse_sde_keeps_the_contract_and_reproduces_the_source(sampler: ReverseSDE) -> None:
    check_sampler(sampler, Gaussian(Sqrt(), t_min=1e-3), rows=600)


@pytest.mark.slow
@pytest.mark.parametrize("sampler", [DDIM(steps=300, eta=1.0), ReverseSDE(steps=1000), DPMSolver(steps=60), HeunFlow(steps=40)], ids=str)
def test_many_steps_reproduce_the_source(sampler: Continuous) -> None:
    batch = Batch.of(torch.zeros(6000, 8, dtype=torch.long))
    samples = sampler.sample(GaussianOracle(SOURCE, COSINE, TABLE), batch, Rng(0, 0, batch.sample_id))
    check_reproduced(samples, SOURCE, slack=3e-3)


@pytest.mark.parametrize("snr", [0.16, 0.5])
def test_corrections_lead_to_the_level_arrived_at_but_for_a_known_excess(snr: float) -> None:
    """Of Gaussian data of variance u at one level, in units of what it should be, a step e = 2 snr^2 / u makes (1 - e)^2 u + 2 e, which is
    u again at u = 1 + snr^2."""
    process, t = Gaussian(CosineSquared(), t_min=1e-3), 0.5
    numbers, level = 4000, torch.full((20,), t, dtype=torch.float64)
    data = GaussianData(process, torch.zeros(1, dtype=torch.float64), torch.full((1,), 0.3, dtype=torch.float64))
    batch = Batch.of(torch.zeros(20, numbers, dtype=torch.long))
    walk = Walk(process, data, torch.zeros(20, numbers, 1, dtype=torch.float64), batch.target)

    class Stay(DDIM):
        def move(self, walk: Walk, now: Belief, before: Belief | None, xt: torch.Tensor, s: torch.Tensor, rng: Rng) -> torch.Tensor:
            return xt

    corrector = LangevinCorrector(Stay(), snr=snr, corrections=round(3 / snr**2))
    begun = 1.3 * Rng(1, 0, torch.arange(20)).normal("x", (numbers, 1))
    x = corrector.move(walk, walk.ask(begun, level), None, begun, level, Rng(0, 0, torch.arange(20)))
    exact = float(process.alpha(level[:1])) * 0.3 + 1 - float(process.alpha(level[:1]))
    assert float(x.var()) == pytest.approx(exact * (1 + snr**2), rel=4.5 * (2 / x.numel()) ** 0.5 + 0.002)


@pytest.mark.parametrize("inner", [DDIM(steps=8, eta=1.0), DPMSolver(steps=8), HeunFlow(steps=8)], ids=str)
def test_the_corrector_keeps_the_contract_around_any_sampler(inner: DDIM) -> None:
    check_sampler(LangevinCorrector(inner, corrections=2), COSINE)


def test_the_corrector_mends_the_errors_of_few_steps() -> None:
    """Twelve steps of the SDE leave sequences too improbable by more than a nat; twenty corrections a step take most of that away."""
    oracle, batch = GaussianOracle(SOURCE, Gaussian(LinearLogSNR(-6, 6)), TABLE), Batch.of(torch.zeros(500, 8, dtype=torch.long))
    inner = ReverseSDE(steps=12)
    plain, mended = (
        float(-SOURCE.log_prob(sampler.sample(oracle, batch, Rng(0, 0, batch.sample_id))).mean()) - SOURCE.entropy()
        for sampler in (inner, LangevinCorrector(inner, snr=0.3, corrections=20))
    )
    assert plain > 1
    assert abs(mended) < plain / 3


def test_wrong_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"snr 1\.0, corrections 1"):
        LangevinCorrector(snr=1.0)
    with pytest.raises(ValueError, match="corrections 0"):
        LangevinCorrector(corrections=0)
