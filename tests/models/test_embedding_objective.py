import pytest
import torch

from textdiff.batch import Clean
from textdiff.log_snr import Sqrt
from textdiff.models.embedding_objective import DiffusionLM, Encoded, TokenCrossEntropy
from textdiff.processes.base import Noised
from textdiff.processes.gaussian import Gaussian
from textdiff.projection import Head
from textdiff.state_prediction import Interpolated, Regressed

PROCESS = Gaussian(Sqrt(), t_min=1 / 2000)
TABLE = torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
TOKENS = torch.tensor([[1, 4, 2], [5, 0, 3]])
WHERE = torch.tensor([[True, True, False], [True, True, True]])
TIMES = torch.tensor([1 / 2000, 0.6], dtype=torch.float64)  # the first row is in the first step


def case() -> tuple[Regressed, Encoded, Noised]:
    generator = torch.Generator().manual_seed(1)
    rows = TABLE[TOKENS]
    state = rows + 0.121 * torch.randn(rows.shape, dtype=torch.float64, generator=generator)
    guess = torch.randn(rows.shape, dtype=torch.float64, generator=generator)
    noised = Noised(state, TIMES, torch.ones(2, dtype=torch.float64))
    return Regressed(guess, Head(TABLE), TABLE), Encoded(Clean(TOKENS, state), rows), noised


def nats(x: torch.Tensor) -> torch.Tensor:
    return -(x @ TABLE.T).log_softmax(-1).gather(-1, TOKENS[..., None])[..., 0]


@pytest.mark.parametrize(("rounding", "anchor"), [(1.0, 0.0), (0.0, 0.0), (0.5, 2.0)])
def test_diffusion_lm_is_the_sum_of_its_terms(rounding: float, anchor: float) -> None:
    pred, encoded, noised = case()
    wanted = torch.stack([encoded.rows[0], encoded.clean.x[1]])  # the first step is held to the embedding, later ones to the noised x0
    end = float(Sqrt().alpha(torch.ones(())))
    expected = (wanted - pred.state()).square().mean(-1) + end * encoded.clean.x.square().mean(-1)
    expected = expected + rounding * nats(encoded.clean.x) + anchor * nats(pred.state())
    loss = DiffusionLM(rounding=rounding, anchor=anchor)(PROCESS, pred, encoded, noised, WHERE)
    torch.testing.assert_close(loss, expected.where(WHERE, 0.0))


def test_cross_entropy_is_that_of_the_prediction() -> None:
    pred, encoded, noised = case()
    torch.testing.assert_close(TokenCrossEntropy()(PROCESS, pred, encoded, noised, WHERE), nats(pred.state()).where(WHERE, 0.0))


def test_only_the_anchor_carries_rounding_gradients_to_the_prediction() -> None:
    """The published rounding term reads the noised truth: moving the prediction does not change it."""
    for anchor, moves in ((0.0, False), (1.0, True)):
        pred, encoded, noised = case()
        guess = pred.state().requires_grad_()
        squared = DiffusionLM(rounding=0.0)(PROCESS, pred, encoded, noised, WHERE)
        whole = DiffusionLM(anchor=anchor)(PROCESS, pred, encoded, noised, WHERE)
        (gradient,) = torch.autograd.grad((whole - squared).sum(), guess)
        assert bool(gradient.abs().max() > 1e-12) is moves


def test_the_rounding_term_needs_a_rounding_head() -> None:
    _, encoded, noised = case()
    softmax = Interpolated(torch.randn(2, 3, 4, dtype=torch.float64), Head(torch.randn(6, 4, dtype=torch.float64)), TABLE)
    with pytest.raises(ValueError, match="use Regression"):
        DiffusionLM()(PROCESS, softmax, encoded, noised, WHERE)
