import pytest
import torch

from textdiff.log_snr import Gumbel
from textdiff.models.learned_schedule import LearnedGumbel
from textdiff.processes.gaussian import Gaussian

BEGIN = Gumbel(location=0.0, scale=1.0, low=-6.0, high=10.0)


def learned() -> LearnedGumbel:
    module = LearnedGumbel(BEGIN, height=6.0)
    module.reset()
    return module.double()


def test_fresh_corrections_leave_the_schedule_as_it_is() -> None:
    assert learned().process(Gaussian(BEGIN)).schedule == BEGIN


def test_the_fit_finds_the_curve_that_made_the_costs() -> None:
    """Costs of 4 exp(-exp(-(gamma - 2) / 0.7)) at levels drawn by the schedule itself give location 2 and scale 0.7 back."""
    module, optimizer_steps = learned(), 400
    optimizer = torch.optim.Adam(module.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(optimizer_steps):
        process = module.process(Gaussian(BEGIN))
        gamma = process.gamma(torch.rand(512, dtype=torch.float64, generator=generator))
        nats = 4 * torch.exp(-torch.exp(-(gamma - 2) / 0.7))
        optimizer.zero_grad()
        module.misfit(gamma, nats).mean().backward()
        optimizer.step()
    schedule = module.process(Gaussian(BEGIN)).schedule
    assert isinstance(schedule, Gumbel)
    assert schedule.location == pytest.approx(2.0, abs=0.02)
    assert schedule.scale == pytest.approx(0.7, abs=0.02)


def test_costs_get_no_gradient_from_the_fit() -> None:
    nats = torch.ones(4, dtype=torch.float64, requires_grad=True)
    loss = learned().misfit(torch.linspace(-2, 2, 4, dtype=torch.float64), nats * 2).sum()
    loss.backward()
    assert nats.grad is None
