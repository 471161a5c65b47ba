from itertools import pairwise

import pytest
import torch

from tests.contracts import check_sampler
from tests.samplers.gaussian_data import GaussianData
from textdiff.batch import Batch
from textdiff.log_snr import LinearLogSNR
from textdiff.processes.gaussian import Gaussian
from textdiff.randomness import Rng
from textdiff.samplers.continuous import EqualLogSNR
from textdiff.samplers.ddim import DDIM
from textdiff.samplers.dpm_solver import DPMSolver
from textdiff.schedules import CosineSquared, Polynomial, Schedule

MEAN, VARIANCE = torch.tensor([0.5, -1.0], dtype=torch.float64), torch.tensor([0.3, 2.0], dtype=torch.float64)


@pytest.mark.parametrize("schedule", [CosineSquared(), LinearLogSNR(-14, 7)], ids=str)
def test_errors_fall_fourfold_as_steps_double(schedule: Schedule) -> None:
    """Against the end of the probability flow of Gaussian data, at 20, 40, 80 and 160 steps equal in log SNR."""
    data = GaussianData(Gaussian(schedule, t_min=1e-3), MEAN, VARIANCE)
    batch, errors = Batch.of(torch.zeros(50, 2, dtype=torch.long)), []
    for steps in (20, 40, 80, 160):
        first, *_, last = DPMSolver(steps=steps, spacing=EqualLogSNR()).trajectory(data, batch, Rng(0, 0, batch.sample_id))
        errors.append(float((last.x - data.end_of_flow(first.x)).square().mean().sqrt()))
    assert errors[0] < 0.03
    for few, many in pairwise(errors):
        assert few / many == pytest.approx(4, rel=0.15)


@pytest.mark.parametrize("schedule", [CosineSquared(), Polynomial()], ids=str)
def test_the_first_move_is_that_of_ddim_also_where_no_signal_is_left(schedule: Schedule) -> None:
    data = GaussianData(Gaussian(schedule, t_min=1e-3), MEAN, VARIANCE)
    batch = Batch.of(torch.zeros(5, 2, dtype=torch.long))
    for mine, other in zip(
        list(DPMSolver(steps=9).trajectory(data, batch, Rng(0, 0, batch.sample_id)))[:2],
        DDIM(steps=9).trajectory(data, batch, Rng(0, 0, batch.sample_id)),
        strict=False,
    ):
        torch.testing.assert_close(mine.x, other.x, rtol=1e-10, atol=1e-12)


def test_the_second_move_goes_along_the_line_through_the_last_two_beliefs() -> None:
    """D = x0hat + h / (2 h') (x0hat - x0hat') with lambda = log(a / s), by hand."""
    process = Gaussian(CosineSquared(), t_min=1e-3)
    data, batch = GaussianData(process, MEAN, VARIANCE), Batch.of(torch.zeros(4, 2, dtype=torch.long))
    canvases = list(DPMSolver(steps=5).trajectory(data, batch, Rng(0, 0, batch.sample_id)))
    one, two = canvases[0], canvases[1]
    t0, t1, t2 = (torch.full((4,), canvas.t, dtype=torch.float64) for canvas in canvases[:3])
    x0_before, x0 = data(one.x, t0).state(), data(two.x, t1).state()
    (a0, s0), (a1, s1), (a2, s2) = (process.levels(t) for t in (t0, t1, t2))
    h_before, h = (a1 / s1).log() - (a0 / s0).log(), (a2 / s2).log() - (a1 / s1).log()
    d = (1 + h / (2 * h_before)) * x0 - h / (2 * h_before) * x0_before
    torch.testing.assert_close(canvases[2].x, s2 / s1 * two.x - a2 * ((-h).exp() - 1) * d, rtol=1e-10, atol=1e-12)


def test_keeps_the_contract_and_reproduces_the_source() -> None:
    check_sampler(DPMSolver(steps=20), Gaussian(CosineSquared(eps=0.0), t_min=1e-3), rows=1500)
