"""Which number a network's output is decides the bound: read the wrong way, a model is scored wrongly."""

import math
from pathlib import Path

import numpy
import pytest
import torch
from torch import Tensor

from tests.contracts import DATA, Enumeration
from tests.models.tiny import MASK, TEXT, VOCAB, diffusion, ragged, trunk
from textdiff import load
from textdiff.batch import Batch, Clean
from textdiff.models.objective import Bound, CrossEntropy
from textdiff.models.parameterisation import LeaveOneOut, Parameterisation, Posterior, Score
from textdiff.prediction import HeadPrediction, Prediction, ScorePrediction
from textdiff.processes.base import TokenProcess
from textdiff.processes.hybrid import Hybrid
from textdiff.processes.masked import Masked
from textdiff.processes.uniform import Uniform
from textdiff.projection import Head
from textdiff.randomness import Rng
from textdiff.vocab import Vocab

THREE = Vocab(size=4, tokens=4, mask_id=3)


def uniform_noise(t: float) -> Tensor:
    return torch.tensor([t / 3, t / 3, t / 3, 0], dtype=torch.float64)


def read(parameterisation: Parameterisation, table: Tensor, process: TokenProcess, xt: Tensor, t: Tensor) -> Prediction:
    """A network whose logits are `table` (B, L, V): hidden states are the table, and the head is the identity."""
    head = Head(torch.eye(table.shape[-1], dtype=torch.float64), None, torch.tensor([3]))
    return parameterisation(table, head, process, xt, t)


def enumerated_bound(process: TokenProcess, parameterisation: Parameterisation, posterior: bool, nodes: int = 200) -> float:
    """The bound of the enumerated law over t in [0.001, 0.999], its true posterior or true leave-one-out law read by a parameterisation."""
    truth, total = Enumeration(uniform_noise), 0.0
    points, weights = (torch.tensor(x) for x in numpy.polynomial.legendre.leggauss(nodes))
    for point, weight in zip((points * 0.998 + 1) / 2, weights * 0.499, strict=True):
        x0, xt, probability = truth.cells(float(point))
        t = point.expand(len(x0))
        table = truth.prediction(xt, float(point)).logits()
        if posterior:
            table = table + process.emission(xt, t, 4).log()
        pred = read(parameterisation, table.nan_to_num(neginf=-1e9), process, xt, t)
        nats = process.nelbo_at(pred, Clean(x0, x0), xt, t, torch.ones_like(x0, dtype=torch.bool))
        total += float(weight) * float((nats.sum(1) * probability).sum())
    return total


def test_the_bound_is_the_entropy_only_when_the_output_is_read_as_what_it_is() -> None:
    """Two tokens, entropy 1.80 nats; what the cut ends leave out is below 0.01."""
    process = Uniform().bind(THREE)
    entropy = float(torch.special.entr(DATA).sum())
    for parameterisation, posterior in ((LeaveOneOut(), False), (Posterior(), True)):
        assert abs(enumerated_bound(process, parameterisation, posterior) - entropy) < 0.02
    assert enumerated_bound(process, LeaveOneOut(), posterior=True) > entropy + 0.3
    assert enumerated_bound(process, Posterior(), posterior=False) > entropy + 0.05


@pytest.mark.parametrize("process", [Masked(), Uniform(), Hybrid(share=0.3)], ids=lambda process: type(process).__name__)
def test_cross_entropy_trains_the_posterior_itself(process: TokenProcess) -> None:
    """Read as a posterior, the network's own softmax is what plain cross-entropy scores: -log softmax(logits)[x0]."""
    model = diffusion(process=process, objective=CrossEntropy(), parameterisation=Posterior(), backbone=trunk(time_conditioning=True))
    batch = ragged()
    noised = (model.spec.noising or model.process.measure)(
        model.process, batch.tokens, batch.target, batch.stratum, Rng(4, 9, batch.sample_id)
    )
    hidden = model.backbone(noised.xt, model.backbone.context(batch), 1 - model.process.alpha(noised.t))
    log_prob = (hidden @ model.backbone.head().weight.T)[..., :TEXT].log_softmax(-1)
    costs = -log_prob.gather(-1, batch.tokens.clamp(max=TEXT - 1)[..., None])[..., 0]
    scored = batch.target if isinstance(process, Uniform) else batch.target & ((noised.xt == MASK) | isinstance(process, Hybrid))
    torch.testing.assert_close(model(batch, 4, 9).total, costs[scored].sum())


def test_for_masks_the_posterior_is_the_leave_one_out_law() -> None:
    batch = ragged()
    plain, converted = (diffusion(parameterisation=chosen)(batch, 0, 0).total for chosen in (LeaveOneOut(), Posterior()))
    torch.testing.assert_close(plain, converted)


@pytest.mark.parametrize("chosen", [LeaveOneOut(), Posterior(), Score()], ids=lambda chosen: type(chosen).__name__)
def test_it_is_saved_with_the_model(chosen: Parameterisation, tmp_path: Path) -> None:
    model = diffusion(process=Uniform(), parameterisation=chosen, backbone=trunk(time_conditioning=True))
    model.save_pretrained(tmp_path)
    loaded = load(str(tmp_path))
    assert loaded.spec.parameterisation == chosen
    batch = ragged()
    torch.testing.assert_close(loaded.double().nll(batch, Rng(0, 0, batch.sample_id)), model.nll(batch, Rng(0, 0, batch.sample_id)))


def score_of(scores: Tensor, t: float, process: TokenProcess, xt: Tensor) -> ScorePrediction:
    """A score model whose ratios s_j (B, L, V) are given; log y is log s for uniform noise, log s (1 - alpha)/alpha for masks."""
    log_y = scores.log() + (math.log(t / (1 - t)) if isinstance(process, Masked) else -math.log(3))
    pred = read(Score(), (log_y + math.log(3)).nan_to_num(neginf=-1e9), process, xt, torch.full((len(xt),), t))
    assert isinstance(pred, ScorePrediction)
    return pred


@pytest.mark.parametrize("process", [Masked(), Uniform()], ids=["masked", "uniform"])
def test_the_score_bound_is_the_score_entropy_written_out(process: TokenProcess) -> None:
    """w_t(z) sum over j != z of B(r_j, s_j) with free random scores, by loops over all cells and states."""
    process, t = process.bind(THREE), 0.37
    is_mask = isinstance(process, Masked)
    noise = torch.tensor([0, 0, 0, t], dtype=torch.float64) if is_mask else uniform_noise(t)
    truth = Enumeration(lambda _: noise)
    x0, xt, _ = truth.cells(t)
    scores = torch.rand(len(x0), 2, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.1
    scores[..., 3] = 0
    where = torch.ones_like(x0, dtype=torch.bool)
    times = torch.full((len(x0),), t, dtype=torch.float64)
    nats = process.nelbo_at(score_of(scores, t, process, xt), Clean(x0, x0), xt, times, where)
    q = truth.forward(t)
    rate = 1 / (1 - t) if is_mask else 1 / 3 / (1 - t)
    for cell in range(len(x0)):
        for place in range(2):
            x, z, expected = int(x0[cell, place]), int(xt[cell, place]), 0.0
            for j in range(3):
                if j == z or (is_mask and z != 3):
                    continue
                r, s = float(q[x, j] / q[x, z]), float(scores[cell, place, j])
                expected += (r * math.log(r / s) if r > 0 else 0.0) - r + s
            assert float(nats[cell, place]) == pytest.approx(rate * expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("process", [Masked(), Uniform()], ids=["masked", "uniform"])
def test_true_scores_give_the_bound_of_the_true_prediction(process: TokenProcess) -> None:
    """SEDD's score entropy is the same loss as the mean parameterisation: s_j = (alpha p_j + b_j) / (alpha p_z + b_z)."""
    process, t = process.bind(THREE), 0.6
    noise = torch.tensor([0, 0, 0, t], dtype=torch.float64) if isinstance(process, Masked) else uniform_noise(t)
    truth = Enumeration(lambda _: noise)
    x0, xt, _ = truth.cells(t)
    where, times = torch.ones_like(x0, dtype=torch.bool), torch.full((len(x0),), t, dtype=torch.float64)
    mean = truth.prediction(xt, t)
    scores = process.log_ratio(mean, xt, times, where).exp().unflatten(0, (-1, 2))
    ours = process.nelbo_at(score_of(scores, t, process, xt), Clean(x0, x0), xt, times, where)
    torch.testing.assert_close(ours, process.nelbo_at(mean, Clean(x0, x0), xt, times, where), rtol=1e-8, atol=1e-9)
    read_back = process.log_ratio(score_of(scores, t, process, xt), xt, times, where)
    noisy = xt.flatten() == 3 if isinstance(process, Masked) else torch.ones(len(read_back), dtype=torch.bool)
    torch.testing.assert_close(read_back[noisy, :3].exp(), scores.flatten(0, 1)[noisy, :3])


def test_a_score_model_has_no_normalised_probabilities_and_no_bins() -> None:
    model, batch = diffusion(process=Uniform(), parameterisation=Score(), backbone=trunk(time_conditioning=True)), ragged()
    pred = model.predictor(batch)(batch.tokens, torch.full((4,), 0.5))
    with pytest.raises(ValueError, match="no normalised probabilities"):
        pred.log_prob(batch.tokens, batch.target)
    t = torch.full((4,), 0.5)
    with pytest.raises(ValueError, match="no T-step bound"):
        model.process.nelbo_at(pred, Clean(batch.tokens, batch.tokens), batch.tokens, t, batch.target, t / 2)
    assert isinstance(pred, HeadPrediction)
    drawn, _ = pred.draw(batch.target, Rng(0, 0, batch.sample_id))
    assert bool((drawn < TEXT).all())


def test_scores_train_by_their_gradient() -> None:
    """The fused score loss has the gradient of one through plain logits."""
    model, batch = diffusion(parameterisation=Score()), ragged()
    noised = (model.spec.noising or model.process.measure)(
        model.process, batch.tokens, batch.target, batch.stratum, Rng(4, 9, batch.sample_id)
    )
    hidden = model.backbone(noised.xt, model.backbone.context(batch), 1 - model.process.alpha(noised.t))
    log_y = (hidden @ model.backbone.head().weight.T)[..., :TEXT] - math.log(TEXT)
    k = (noised.xt == MASK).sum(1).clamp_min(1)
    own = log_y.gather(-1, batch.tokens.clamp(max=TEXT - 1)[..., None])[..., 0]
    costs = (log_y.exp().sum(-1) - 1 - own) * (noised.xt == MASK)
    by_hand = (costs.sum(1) * batch.target.sum(1) / k).sum()
    ours = model(batch, 4, 9).total
    torch.testing.assert_close(ours, by_hand)
    parameters = list(model.parameters())
    for mine, plain in zip(torch.autograd.grad(ours, parameters), torch.autograd.grad(by_hand, parameters), strict=True):
        torch.testing.assert_close(mine, plain, rtol=1e-8, atol=1e-10)


def test_bound_is_what_a_batch_of_one_says_of_its_own_row() -> None:
    """A uniform model's likelihood of a row does not depend on its neighbours."""
    model = diffusion(process=Uniform(), objective=Bound(), backbone=trunk(time_conditioning=True))
    batch = ragged()
    together = model.nll(batch, Rng(0, 0, batch.sample_id))
    for row in range(4):
        single = Batch(*(field[row : row + 1] for field in batch))
        torch.testing.assert_close(model.nll(single, Rng(0, 0, single.sample_id))[0], together[row])
    assert VOCAB.mask_id == MASK
