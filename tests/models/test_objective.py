import pytest
import torch

from tests.models.tiny import MASK, TEXT, diffusion, logits, ragged
from textdiff.batch import Clean
from textdiff.models.discrete import DiscreteDiffusionLM
from textdiff.models.objective import Bound, CrossEntropy, Objective
from textdiff.prediction import TablePrediction
from textdiff.processes.base import Noised, Noising, UniformTime
from textdiff.processes.left_to_right import LeftToRight
from textdiff.processes.exact_count import ExactCount
from textdiff.randomness import Rng

SEED, STEP = 4, 9


def hand_costs(model: DiscreteDiffusionLM) -> tuple[Noised, torch.Tensor]:
    """The noise of one loss, and -log p of every hidden token (B, L) by a plain softmax, zero elsewhere."""
    batch = ragged()
    noised = model.spec.noising(model.process, batch.tokens, batch.target, batch.stratum, Rng(SEED, STEP, batch.sample_id))
    log_prob = logits(model, noised.xt, batch)[..., :TEXT].log_softmax(-1)
    costs = -log_prob.gather(-1, batch.tokens.clamp(max=TEXT - 1)[..., None])[..., 0]
    return noised, costs.masked_fill(noised.xt != MASK, 0.0)


@pytest.mark.parametrize("noising", [ExactCount(), UniformTime()], ids=str)
def test_cross_entropy_is_the_unweighted_cost_of_the_hidden_tokens(noising: Noising) -> None:
    model = diffusion(objective=CrossEntropy(), noising=noising)
    _, costs = hand_costs(model)
    torch.testing.assert_close(model(ragged(), SEED, STEP).total, costs.sum())


def test_bound_weighs_a_row_by_targets_over_hidden_tokens() -> None:
    model, batch = diffusion(), ragged()
    noised, costs = hand_costs(model)
    hidden = (noised.xt == MASK).sum(1)
    assert hidden.tolist() == [2, 1, 4, 2]  # strata 2, 0, 7 and 4 of 8 among 4, 2, 4 and 3 targets
    torch.testing.assert_close(model(batch, SEED, STEP).total, (costs.sum(1) * batch.target.sum(1) / hidden).sum())


@pytest.mark.parametrize("noising", [ExactCount(), UniformTime()], ids=str)
def test_the_reported_bound_does_not_depend_on_what_is_differentiated(noising: Noising) -> None:
    plain, weighted = (diffusion(objective=objective, noising=noising)(ragged(), SEED, STEP) for objective in (CrossEntropy(), Bound()))
    torch.testing.assert_close(plain.nelbo, weighted.nelbo)
    torch.testing.assert_close(weighted.total.detach(), weighted.nelbo)
    assert float(plain.total) < float(weighted.total)
    assert not plain.nelbo.requires_grad


def test_cross_entropy_has_the_gradient_of_the_plain_cost() -> None:
    model = diffusion(objective=CrossEntropy())
    parameters = list(model.parameters())
    ours = torch.autograd.grad(model(ragged(), SEED, STEP).total, parameters)
    by_hand = torch.autograd.grad(hand_costs(model)[1].sum(), parameters)
    for gradient, expected in zip(ours, by_hand, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("objective", [Bound(), CrossEntropy()], ids=str)
@pytest.mark.parametrize("noising", [ExactCount(), UniformTime()], ids=str)
def test_a_row_without_targets_adds_nothing_to_loss_or_gradient(objective: Objective, noising: Noising) -> None:
    model, batch = diffusion(objective=objective, noising=noising), ragged()
    batch.target[1] = False
    rest = batch.rows(torch.tensor([0, 2, 3]))
    whole, without = model(batch, SEED, STEP), model(rest, SEED, STEP)
    torch.testing.assert_close(whole.total, without.total)
    torch.testing.assert_close(whole.nelbo, without.nelbo)
    whole.total.backward()
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)


def test_cross_entropy_refuses_a_process_without_masks() -> None:
    tokens = torch.zeros(1, 2, dtype=torch.long)
    noised = Noised(tokens, torch.ones(1), torch.ones(1))
    with pytest.raises(ValueError, match="LeftToRight needs the Bound objective"):
        CrossEntropy()(LeftToRight(), TablePrediction(torch.zeros(1, 2, 3)), Clean(tokens, tokens), noised, tokens == 0)
