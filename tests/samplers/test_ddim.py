from itertools import pairwise

import pytest
import torch

from tests.contracts import SOURCE, TABLE, check_sampler
from tests.samplers.gaussian_data import GaussianData
from textdiff.batch import Batch
from textdiff.log_snr import Gumbel, LinearLogSNR, Sqrt
from textdiff.oracle import GaussianOracle
from textdiff.processes.gaussian import Gaussian
from textdiff.randomness import Rng
from textdiff.samplers.ancestral import Ancestral
from textdiff.samplers.continuous import EqualLogSNR, EqualTimes
from textdiff.samplers.ddim import DDIM
from textdiff.schedules import CosineSquared

COSINE = Gaussian(CosineSquared(eps=0.0), t_min=1e-3)


@pytest.mark.parametrize("process", [COSINE, Gaussian(Sqrt(), t_min=1e-3), Gaussian(LinearLogSNR(-6, 9))], ids=str)
@pytest.mark.parametrize("steps", [1, 3, 40])
def test_eta_one_is_ancestral_sampling(steps: int, process: Gaussian) -> None:
    """Mean and variance of xs given xt and x0hat are the posterior's, so that the same noise gives the same states throughout."""
    batch = Batch.of(torch.zeros(20, 8, dtype=torch.long))
    oracle, rng = GaussianOracle(SOURCE, process, TABLE), Rng(0, 0, batch.sample_id)
    for ddim, ancestral in zip(
        DDIM(steps=steps, eta=1.0).trajectory(oracle, batch, rng), Ancestral(steps=steps).trajectory(oracle, batch, rng), strict=True
    ):
        assert ddim.t == ancestral.t
        torch.testing.assert_close(ddim.x, ancestral.x, rtol=0, atol=1e-10)


def test_eta_zero_follows_the_probability_flow_to_first_order() -> None:
    """Each doubling of the steps halves the distance from where the flow of Gaussian data ends; nothing is drawn after the start."""
    data = GaussianData(
        Gaussian(CosineSquared(), t_min=1e-3),
        torch.tensor([0.5, -1.0], dtype=torch.float64),
        torch.tensor([0.3, 2.0], dtype=torch.float64),
    )
    batch = Batch.of(torch.zeros(50, 2, dtype=torch.long))
    errors = []
    for steps in (20, 40, 80, 160):
        first, *_, last = DDIM(steps=steps).trajectory(data, batch, Rng(0, 0, batch.sample_id))
        errors.append(float((last.x - data.end_of_flow(first.x)).square().mean().sqrt()))
    for few, many in pairwise(errors):
        assert few / many == pytest.approx(2, rel=0.05)


@pytest.mark.parametrize(("eta", "steps"), [(0.0, 30), (0.5, 60), (1.0, 100)])
def test_keeps_the_contract_and_reproduces_the_source(eta: float, steps: int) -> None:
    check_sampler(DDIM(steps=steps, eta=eta), COSINE, rows=1500)


def test_equal_steps_of_log_snr_reproduce_the_source_under_a_gumbel_law() -> None:
    """Equal times would leave it at heavy noise: the law gives the first levels next to no time."""
    process = Gaussian(Gumbel(1.0, 1.3, -6.0, 9.0))
    equal_times, equal_levels = (DDIM(100, spacing, eta=1.0).times(process) for spacing in (EqualTimes(), EqualLogSNR()))
    assert float(process.gamma(equal_times[-2])) > -2
    assert float(process.gamma(equal_levels[-2])) < -5.8
    check_sampler(DDIM(100, EqualLogSNR(), eta=1.0), process, rows=1500)


def test_an_eta_that_is_no_share_is_refused() -> None:
    with pytest.raises(ValueError, match=r"eta is 1\.5"):
        DDIM(eta=1.5)
