"""The likelihood in an order is what asking the model token by token gives; its kind, its calls and its rules say what was done."""

import math
from itertools import product

import pytest
import torch

from tests.models.tiny import MASK, VOCAB, autoregressive, diffusion, trunk
from textdiff.batch import Batch, Example, collate
from textdiff.evaluation.likelihood import likelihood, sequence_nats
from textdiff.evaluation.reveal_orders import RandomOrders, ReadingOrder
from textdiff.models.base import LanguageModel
from textdiff.models.chain_rule import random_order
from textdiff.models.discrete import DiscreteDiffusionLM
from textdiff.models.embedding import EmbeddingDiffusion
from textdiff.processes.block import Block
from textdiff.processes.masked import Masked
from textdiff.processes.uniform import Uniform
from textdiff.randomness import Rng

ROWS = [Example([0, 1, 5, 2, 6], [False, *[True] * 4]), Example([0, 4, 4], [False, True, True]), Example([0, 3], [False, True])]


@torch.no_grad()
def asked(model: DiscreteDiffusionLM, row: Example, order: list[int]) -> float:
    """Nats of a row's targets revealed in `order`, one call of a row of one after another."""
    tokens, nats = torch.tensor([row.tokens]), 0.0
    hidden = torch.tensor([row.target])
    for place in order:
        noise = torch.tensor([float(hidden.sum()) / (sum(row.target) + 1)], dtype=torch.float64)
        where = torch.arange(tokens.shape[1])[None] == place
        pred = model.predictor(Batch.of(tokens))(tokens.masked_fill(hidden, MASK), noise)
        nats -= float(pred.log_prob(tokens, where).sum())
        hidden &= ~where
    return nats


def test_the_order_of_reading_is_the_model_asked_token_by_token() -> None:
    model = diffusion()
    expected = [asked(model, row, [i for i, target in enumerate(row.target) if target]) for row in ROWS]
    result = likelihood(model, ROWS, batch_size=2, estimator=ReadingOrder())
    assert result.nats_per_token == pytest.approx(sum(expected) / 7, rel=1e-9)
    assert (result.kind, result.tokens) == ("exact", 7)
    assert result.forwards_per_sequence == pytest.approx((4 + 2 + 1) / 3)
    assert "in the order of reading" in result.rules
    assert math.isnan(result.order_spread)


@pytest.mark.parametrize("estimator", [ReadingOrder(), RandomOrders()])
def test_one_order_is_a_law_that_sums_to_one(estimator: ReadingOrder | RandomOrders) -> None:
    model = diffusion()
    batch = Batch.of(torch.tensor([[0, *rest] for rest in product(range(7), repeat=2)]))
    batch = batch._replace(target=torch.tensor([[False, True, True]]).expand(49, 3), sample_id=torch.zeros(49, dtype=torch.long))
    assert float((-estimator(model, batch, 3, 1)).exp().sum()) == pytest.approx(1, abs=1e-9)


def test_the_mean_over_random_orders_bounds_their_mixture() -> None:
    """Each order's number is that of the model asked in it; the mean lies above -log of the mean probability."""
    model, count = diffusion(), 3
    batch = collate(ROWS, pad_id=0, sample_id=[0, 1, 2])
    nats = RandomOrders(count)(model, batch, 5, 1)
    for row, example in enumerate(ROWS):
        for i in range(count):
            rank = random_order(batch, Rng(5, 0, batch.sample_id).draw(i))[row].tolist()
            order = sorted((place for place, target in enumerate(example.target) if target), key=lambda place: rank[place])
            assert float(nats[row, i]) == pytest.approx(asked(model, example, order), rel=1e-9)
    mixture = math.log(count) - torch.logsumexp(-nats, 1)
    assert bool((nats.mean(1) >= mixture - 1e-12).all())
    assert float(nats.mean(1)[0]) > float(mixture[0]) + 1e-4
    result = likelihood(model, ROWS, seed=5, estimator=RandomOrders(count))
    assert result.nats_per_token == pytest.approx(float(nats.mean(1).sum()) / 7)
    spread = (nats.var(1) / torch.tensor([4, 2, 1]) ** 2).mean().sqrt()
    assert result.order_spread == pytest.approx(float(spread))
    assert (result.kind, result.forwards_per_sequence) == ("upper bound", 7)
    assert "3 random orders" in result.rules


def test_many_random_orders_have_the_bounds_mean() -> None:
    model = diffusion()
    bound = sequence_nats(model, [ROWS[0]] * 200, draws=4)
    orders = RandomOrders(200)(model, collate([ROWS[0]], pad_id=0, sample_id=[0]), 0, 1)[0]
    error = (float(bound.var()) / 200 + float(orders.var()) / 200) ** 0.5
    assert abs(float(bound.mean() - orders.mean())) < 3 * error


def test_blocks_are_asked_all_at_once() -> None:
    model = diffusion(process=Block(inner=Masked(), size=2))
    batch = collate(ROWS, pad_id=0, sample_id=[0, 1, 2])
    calls: list[int] = []
    model.backbone.register_forward_pre_hook(lambda _, given: calls.append(len(given[0])))
    result = likelihood(model, ROWS, estimator=RandomOrders(2))
    assert sum(calls) == round(result.forwards_per_sequence * 3) == 2 * (2 + 1 + 1)
    assert RandomOrders(2).calls(model, batch, 9).tolist() == [4, 2, 2]
    assert "inside each block" in result.rules


def embeddings() -> LanguageModel:
    return EmbeddingDiffusion(backbone=trunk(), width=4).build(VOCAB)


@pytest.mark.parametrize("estimator", [ReadingOrder(), RandomOrders(2)])
def test_models_without_masks_are_refused(estimator: ReadingOrder | RandomOrders) -> None:
    for model, message in (
        (autoregressive(), "one of its own, in which its likelihood is exact"),
        (diffusion(process=Uniform()), "Uniform noise has no masks"),
        (embeddings(), "EmbeddingDiffusionLM has no masks"),
    ):
        with pytest.raises(ValueError, match=message):
            likelihood(model, ROWS, estimator=estimator)


def test_fewer_than_one_order_is_refused() -> None:
    with pytest.raises(ValueError, match="orders is 0, expected 1 or more"):
        RandomOrders(0)
