import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from textdiff.models.reading import Distance, Noise, Regression, Rounding, Softmax, State, Target, Tied, Velocity
from textdiff.processes.gaussian import Gaussian

PROCESS = Gaussian()
TABLE = torch.randn(7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
BANNED = torch.tensor([6])
T = torch.tensor([0.2, 0.7], dtype=torch.float64)


def noisy() -> tuple[Tensor, Tensor, Tensor]:
    """Trunk states, noisy vectors and the clean ones they came from."""
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(2, 4, 5, dtype=torch.float64, generator=generator)
    x0 = TABLE[torch.randint(6, (2, 4), generator=generator)]
    a, s = PROCESS.levels(T)
    return hidden, a * x0 + s * torch.randn(2, 4, 3, dtype=torch.float64, generator=generator), x0


def enlivened(output: torch.nn.Module) -> torch.nn.Module:
    for parameter in output.parameters():
        torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(2))
    return output.double()


@pytest.mark.parametrize("tied", [False, True])
def test_softmax_logits_hold_the_evidence_of_the_noisy_vector(tied: bool) -> None:
    """log p(w) = log softmax of W h + b + log N(xt; a E_w, s^2 I), by torch.distributions; with W = E P when tied."""
    hidden, xt, _ = noisy()
    output = enlivened(Softmax(tied=tied).build(7, 3, 5))
    a, s = PROCESS.levels(T)
    evidence = Normal(a[..., None] * TABLE, s[..., None]).log_prob(xt[:, :, None]).sum(-1)  # (B, L, V)
    weight = TABLE @ output.weight if tied else output.weight
    logits = hidden @ weight.T + output.bias + evidence
    logits[..., 6] = -torch.inf
    pred = output(hidden, xt, T, PROCESS, TABLE, BANNED)
    torch.testing.assert_close(pred.logits().log_softmax(-1), logits.log_softmax(-1))
    torch.testing.assert_close(pred.state(), logits.softmax(-1) @ TABLE)
    where = torch.tensor([[True, False, True, False], [False, False, True, True]])
    torch.testing.assert_close(pred.state(where), pred.state()[where])


def test_the_evidence_alone_is_the_belief_of_a_silent_trunk() -> None:
    hidden, xt, _ = noisy()
    output = enlivened(Softmax().build(7, 3, 5))
    alone = output.alone(xt, T, PROCESS, TABLE, BANNED)
    torch.testing.assert_close(alone, output(torch.zeros_like(hidden), xt, T, PROCESS, TABLE, BANNED).state())


@pytest.mark.parametrize("target", [State(), Noise(), Velocity()])
def test_every_regression_target_means_the_same_state(target: Target) -> None:
    _, xt, x0 = noisy()
    output = {State: x0, Noise: PROCESS.noise_of(x0, xt, T), Velocity: PROCESS.velocity_of(x0, xt, T)}[type(target)]
    torch.testing.assert_close(target.x0(PROCESS, output, xt, T), x0, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("rounding", "expected"), [(Tied(), TABLE @ TABLE[2]), (Distance(), -(TABLE - TABLE[2]).square().sum(-1))])
def test_rounding_is_what_it_says(rounding: Rounding, expected: Tensor) -> None:
    output = enlivened(Regression(rounding=rounding).build(7, 3, 5))
    pred = output(*noisy()[:2], T, PROCESS, TABLE, BANNED)
    logits = pred.rounded(TABLE[2].expand(1, 1, 3)).logits()[0, 0]
    expected = (expected + output.bias).index_fill(0, BANNED, -torch.inf)
    torch.testing.assert_close(logits.log_softmax(-1), expected.log_softmax(-1))
    torch.testing.assert_close(pred.state(), noisy()[0] @ output.weight.T)
