import math

import pytest
import torch

from tests.contracts import check_schedule
from textdiff.log_snr import Gumbel, LinearBeta, LinearLogSNR, Shifted, Sqrt, gamma_of
from textdiff.schedules import CosineSquared, Schedule


@pytest.mark.parametrize(
    "schedule", [Sqrt(), Sqrt(steps=30), LinearBeta(), Shifted(), Shifted(factor=0.5), Shifted(Sqrt(), factor=4.0)], ids=str
)
def test_keeps_the_contract(schedule: Schedule) -> None:
    check_schedule(schedule)


@pytest.mark.parametrize(
    ("schedule", "low", "high"),
    [
        (LinearLogSNR(), -3, 6),
        (LinearLogSNR(-9, 9), -9, 9),
        (Gumbel(), -4, 8),
        (Gumbel(location=4.72, scale=0.85, low=-2, high=15), -2, 15),
        (Shifted(LinearLogSNR(-4, 6), factor=math.e), -2, 8),
    ],
    ids=str,
)
def test_schedules_that_begin_with_noise_keep_the_contract_between_their_ends(schedule: Schedule, low: float, high: float) -> None:
    first, last = (1 / (1 + math.exp(gamma)) for gamma in (low, high))
    check_schedule(schedule, first, last)
    ends = gamma_of(schedule.alpha(torch.tensor([0.0, 1.0])))
    torch.testing.assert_close(ends, torch.tensor([low, high], dtype=torch.float64), rtol=0, atol=1e-6)


@pytest.mark.parametrize("steps", [20, 2000])
def test_sqrt_is_the_beta_table_of_diffusion_lm(steps: int) -> None:
    """abar_i = prod (1 - beta_j), beta_j = min(1 - f((j + 1) / T) / f(j / T), 0.999)."""

    def f(u: float) -> float:
        return 1 - math.sqrt(u + 1e-4)

    table, product = [], 1.0
    for i in range(steps):
        product *= 1 - min(1 - f((i + 1) / steps) / f(i / steps), 0.999)
        table.append(product)
    alpha = Sqrt(steps=steps).alpha(torch.arange(1, steps + 1, dtype=torch.float64) / steps)
    torch.testing.assert_close(alpha, torch.tensor(table, dtype=torch.float64), rtol=1e-12, atol=1e-15)
    if steps == 2000:
        assert float(alpha[0]) == pytest.approx(0.985359, abs=5e-7)
        assert float(alpha[-1]) == pytest.approx(2.0e-7, rel=0.02)


def test_linear_beta_is_the_limit_of_the_tables_of_ddpm() -> None:
    """abar_i of beta_i from 0.1 / T to 20 / T is alpha(i / T) but for O(1 / T): T = 1000 is DDPM's own table."""
    errors = []
    for steps in (500, 1000, 2000):
        beta = torch.linspace(0.1 / steps, 20 / steps, steps, dtype=torch.float64)
        alpha = LinearBeta().alpha(torch.arange(1, steps + 1, dtype=torch.float64) / steps)
        errors.append(float(((1 - beta).cumprod(0) - alpha).abs().max()))
    assert errors[1] < 3e-3
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.05)
    assert errors[1] / errors[2] == pytest.approx(2, rel=0.05)


@pytest.mark.parametrize("factor", [0.5, 4.0])
def test_a_shift_adds_its_log_square_to_gamma_everywhere(factor: float) -> None:
    t = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    inner = CosineSquared(eps=0.0)
    shift = gamma_of(Shifted(inner, factor).alpha(t)) - gamma_of(inner.alpha(t))
    torch.testing.assert_close(shift, torch.full_like(t, 2 * math.log(factor)))


def test_gumbel_times_are_the_cut_off_law_of_gamma() -> None:
    """The share of the run spent below gamma is exp(-exp(-(gamma - m) / b)), between the same of the two ends."""
    schedule = Gumbel(location=1.0, scale=0.7, low=-1.0, high=5.0)
    gamma = torch.linspace(-1, 5, 61, dtype=torch.float64)
    law = torch.exp(-torch.exp(-(gamma - 1.0) / 0.7))
    torch.testing.assert_close(schedule.inverse(torch.sigmoid(-gamma)), (law - law[0]) / (law[-1] - law[0]), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Sqrt(steps=1), "steps is 1"),
        (lambda: Sqrt(steps=20_000), "fewer than 0.99 / offset = 9900"),
        (lambda: Sqrt(offset=0.0), "offset is 0.0"),
        (lambda: LinearLogSNR(2, 2), "gamma runs from 2 to 2"),
        (lambda: Gumbel(scale=0), "scale 0"),
        (lambda: Shifted(factor=-1), "factor is -1"),
    ],
)
def test_wrong_numbers_are_refused(build: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()  # type: ignore[operator]
