"""Importance-sampled counts of touched tokens have the mean of the bound they replace, and depend on each sequence alone."""

from itertools import product

import pytest
import torch

from tests.models.tiny import diffusion, lone, ragged
from textdiff.batch import Batch, Clean
from textdiff.models.base import LanguageModel
from textdiff.models.touched_counts import TouchedCounts
from textdiff.processes.hybrid import Hybrid
from textdiff.processes.interpolating import Interpolating
from textdiff.processes.masked import Masked
from textdiff.processes.uniform import Uniform
from textdiff.randomness import Rng

NOISE = [Uniform(), Hybrid(share=0.3)]


def repeated(times: int) -> Batch:
    tokens = torch.tensor([[0, 3, 1, 2]]).expand(times, 4)
    return Batch.of(tokens, target=torch.tensor([[False, True, True, True]]).expand(times, 4), sample_id=torch.arange(times))


@torch.no_grad()
def enumerated(process: Interpolating, cells: int = 400) -> float:
    """The bound of three targets: every noisy state by its probability, the midpoint rule in u^2 over the schedule's clock u."""
    model = diffusion(process=process)
    bound, clean = model.process, repeated(1)
    assert isinstance(bound, Interpolating)
    ids = [i for i in range(9) if i in bound.ids or i == bound.mask_id]
    states = torch.tensor([[0, *rest] for rest in product(ids, repeat=3)])
    batch = Batch.of(states, target=clean.target.expand(len(states), 4))._replace(tokens=clean.tokens.expand(len(states), 4))
    total, predict = 0.0, model.predictor(batch)
    for i in range(cells):
        root = (i + 0.5) / cells
        t = torch.full((len(states),), root**2, dtype=torch.float64)
        at = bound.levels(t[:, None])
        noise = bound.noise_at(states, type(at)(*(level.expand(states.shape) for level in at)))
        chance = (noise + at.alpha * (states == batch.tokens))[:, 1:].prod(1)
        nats = bound.nelbo_at(predict(states, t), Clean(batch.tokens, batch.tokens), states, t, batch.target).sum(1)
        total += float((chance * nats).sum()) * 2 * root / cells
    return total


@pytest.mark.parametrize("process", NOISE)
@pytest.mark.parametrize("draws", [4, 16])
def test_the_mean_of_repetitions_is_the_enumerated_bound(process: Interpolating, draws: int) -> None:
    batch = repeated(600)
    found = TouchedCounts(draws)(diffusion(process=process), batch, Rng(0, 0, batch.sample_id))
    assert abs(float(found.mean()) - enumerated(process)) < 3 * float(found.std()) / 600**0.5


@pytest.mark.parametrize("process", NOISE)
def test_a_ragged_batch_equals_single_rows(process: Interpolating) -> None:
    model, batch = diffusion(process=process), ragged()
    together = model.mean_nll(batch, 3, 5)
    for row in range(4):
        torch.testing.assert_close(model.mean_nll(lone(batch, row), 3, 5), together[row : row + 1])
    torch.testing.assert_close(together, TouchedCounts(5)(model, batch, Rng(3, 0, batch.sample_id)))
    nothing = batch._replace(target=torch.zeros_like(batch.target))
    assert model.mean_nll(nothing, 3, 5).tolist() == [0.0] * 4


@pytest.mark.parametrize("process", NOISE)
def test_it_varies_less_than_equal_strata(process: Interpolating) -> None:
    tokens = torch.randint(1, 6, (1, 32), generator=torch.Generator().manual_seed(0)).expand(120, 32)
    batch, model = Batch.of(tokens, sample_id=torch.arange(120)), diffusion(process=process)
    assert float(model.mean_nll(batch, 0, 16).var()) < float(LanguageModel.mean_nll(model, batch, 0, 16).var()) / 1.2


def test_other_noise_and_too_few_draws_are_refused() -> None:
    batch = ragged()
    with pytest.raises(ValueError, match="this is Masked: use the model's nll"):
        TouchedCounts(4)(diffusion(process=Masked()), batch, Rng(0, 0, batch.sample_id))
    with pytest.raises(ValueError, match="4 or more"):
        TouchedCounts(3)
