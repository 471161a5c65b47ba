from typing import Any

import pytest
import torch

from tests.models.tiny import MASK, TEXT, VOCAB, diffusion, logits, ragged, trunk
from textdiff.batch import Clean
from textdiff.models.discrete import DiscreteDiffusionLM
from textdiff.models.objective import Bound, BoundAndCrossEntropy, Clipped, CrossEntropy, Dynamic, Objective
from textdiff.models.parameterisation import Score
from textdiff.prediction import TablePrediction
from textdiff.processes.base import Bins, Noised, Noising, Process, UniformTime
from textdiff.processes.exact_count import ExactCount
from textdiff.processes.hybrid import Hybrid
from textdiff.processes.kernels import Absorbing
from textdiff.processes.left_to_right import LeftToRight
from textdiff.processes.masked import Masked
from textdiff.processes.matrix import Matrix
from textdiff.processes.uniform import Uniform
from textdiff.randomness import Rng

SEED, STEP = 4, 9


def hand_costs(model: DiscreteDiffusionLM) -> tuple[Noised, torch.Tensor]:
    """The noise of one loss, and -log p of every hidden token (B, L) by a plain softmax, zero elsewhere."""
    batch = ragged()
    noised = (model.spec.noising or model.process.measure)(
        model.process, batch.tokens, batch.target, batch.stratum, Rng(SEED, STEP, batch.sample_id)
    )
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


def test_objectives_over_tokens_refuse_a_process_without_noise_over_tokens() -> None:
    tokens = torch.zeros(1, 2, dtype=torch.long)
    noised = Noised(tokens, torch.ones(1), torch.ones(1))
    with pytest.raises(ValueError, match="LeftToRight is none: use Bound"):
        CrossEntropy()(LeftToRight(), TablePrediction(torch.zeros(1, 2, 3)), Clean(tokens, tokens), noised, tokens == 0)
    clean = Clean(tokens, tokens)
    with pytest.raises(ValueError, match="Masked is not a Hybrid"):
        Dynamic()(Masked().bind(VOCAB), TablePrediction(torch.zeros(1, 2, 11)), clean, noised, tokens == 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": Dynamic()}, "expected Hybrid noise without a curriculum, got Masked"),
        ({"objective": Dynamic(), "process": Hybrid(), "curriculum": 0.5}, "expected Hybrid noise without a curriculum"),
        ({"parameterisation": Score(), "process": Hybrid()}, "not under this Hybrid: use LeaveOneOut"),
        ({"parameterisation": Score(), "process": Uniform(every_id=True)}, "uniform noise over the real tokens"),
        ({"parameterisation": Score(), "process": Uniform(ids=(3, 4))}, "uniform noise over the real tokens"),
        ({"parameterisation": Score(), "process": Uniform(), "objective": CrossEntropy()}, "train it on Bound or Clipped"),
        ({"label_dropout": 0.1}, "the trunk reads no labels"),
    ],
)
def test_what_does_not_go_together_is_refused_before_training(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        diffusion(**options)


FAMILY = {"masked": Masked(), "uniform": Uniform(), "hybrid": Hybrid(share=0.3)}
each_process = pytest.mark.parametrize("process", FAMILY.values(), ids=FAMILY)


@each_process
@pytest.mark.parametrize(
    "objective", [CrossEntropy(), Clipped(1.5), BoundAndCrossEntropy()], ids=lambda objective: type(objective).__name__
)
def test_every_objective_reports_the_bound_beside_its_loss(process: Process, objective: Objective) -> None:
    options = {"process": process, "backbone": trunk(time_conditioning=True)}
    found, plain = (diffusion(objective=chosen, **options)(ragged(), SEED, STEP) for chosen in (objective, Bound()))
    torch.testing.assert_close(found.nelbo, plain.total.detach())
    assert abs(float(found.total.detach() - plain.total.detach())) > 1e-3


@each_process
def test_clipped_is_the_bound_where_no_weight_exceeds_the_limit(process: Process) -> None:
    """With equal times and no limit reached, the loss is the integrand itself, without the factor of importance sampling."""
    batch, model = ragged(), diffusion(process=process, noising=UniformTime(), backbone=trunk(time_conditioning=True))
    bound = model(batch, SEED, STEP).total
    loose = diffusion(process=process, noising=UniformTime(), objective=Clipped(1e12), backbone=trunk(time_conditioning=True))
    torch.testing.assert_close(loose(batch, SEED, STEP).total * (1 - UniformTime().t_min), bound)
    tight = diffusion(process=process, noising=UniformTime(), objective=Clipped(1e-3), backbone=trunk(time_conditioning=True))
    assert 0 < float(tight(batch, SEED, STEP).total) < 1e-2 * float(bound)


def test_dynamic_weighs_masks_by_two_other_noise_by_one_and_clean_tokens_by_their_signal() -> None:
    """Against the divergences of the bound divided by GIDD's weights, written out."""
    process = Hybrid(share=0.4).bind(VOCAB)
    t, n, peak = 0.3, len(process.ids), 2 * 0.4 / 0.6
    clean = torch.tensor([[1, 2, 3]])
    xt = torch.tensor([[MASK, 5, 3]])
    pred = TablePrediction(torch.randn(1, 3, 11, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    pred.table[..., TEXT:] = -torch.inf
    noised, where = Noised(xt, torch.tensor([t], dtype=torch.float64), torch.ones(1, dtype=torch.float64)), xt >= 0
    loss, bound = Dynamic()(process, pred, Clean(clean, clean), noised, where)
    c = peak * (t * (1 - t)) ** 0.5
    rate = c + (1 - t) * peak / 2 * (1 - 2 * t) / (t * (1 - t)) ** 0.5
    weight = torch.tensor([1 / (t * (1 - t)), rate / ((1 - t) * c), rate / n / ((1 - t) * (1 - t + c / n))], dtype=torch.float64)
    signal = (1 - t) / (t + c)  # alpha / (1 - alpha)
    wanted = torch.tensor([2.0, 1.0, min(2.0, peak / n * signal**0.5)], dtype=torch.float64)
    torch.testing.assert_close(loss[0], bound[0] / weight * wanted)


@each_process
def test_bins_train_the_t_step_bound(process: Process) -> None:
    """With the same noise the loss is steps times the KL of each row's bin; weights of continuous time are refused."""
    options = {"process": process, "backbone": trunk(time_conditioning=True), "noising": Bins(steps=5)}
    batch, model = ragged(), diffusion(**options)
    noised = Bins(steps=5)(model.process, batch.tokens, batch.target, batch.stratum, Rng(SEED, STEP, batch.sample_id))
    assert noised.s is not None
    torch.testing.assert_close((noised.t - noised.s) * 5, torch.ones(4, dtype=torch.float64))
    pred = model.predictor(batch)(noised.xt, noised.t)
    nats = model.process.nelbo_at(pred, Clean(batch.tokens, batch.tokens), noised.xt, noised.t, batch.target, noised.s)
    loss = model(batch, SEED, STEP)
    torch.testing.assert_close(loss.total, 5 * nats.sum())
    torch.testing.assert_close(loss.nelbo, loss.total.detach())
    with pytest.raises(ValueError, match="the times are bins"):
        diffusion(**options, objective=Clipped())(batch, SEED, STEP)


def test_a_matrix_model_trains_and_is_measured_by_bins() -> None:
    """D3PM-absorbing and masked diffusion are one process: the same noise, the same weights, the same T-step loss."""
    batch = ragged()
    explicit, plain = (
        diffusion(process=kind, noising=Bins(steps=7), objective=BoundAndCrossEntropy()) for kind in (Matrix(kernel=Absorbing()), Masked())
    )
    draws = torch.stack([torch.stack([model(batch, SEED, step).total for step in range(300)]) for model in (explicit, plain)]).detach()
    difference = draws.mean(1).diff().abs()
    assert float(difference) < 4.5 * float((draws.var(1) / 300).sum().sqrt())
    nats = torch.stack([explicit.nll(batch, Rng(k, 0, batch.sample_id)) for k in range(300)])
    counted = torch.stack([plain.nll(batch, Rng(k, 0, batch.sample_id)) for k in range(300)])
    error = ((nats.sum(1).var() + counted.sum(1).var()) / 300).sqrt()
    assert abs(float(nats.sum(1).mean() - counted.sum(1).mean())) < 4.5 * float(error)
