"""Either term keeps its own mean, and the network is called as often as is said."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.models.tiny import VOCAB, ragged, trunk
from textdiff.models.embedding import EmbeddingDiffusion
from textdiff.models.time_allocation import allocated_mean, readings
from textdiff.randomness import Rng

INDEX = torch.tensor([3, 0, 5_000])


@pytest.mark.parametrize(("draws", "count"), [(1, 1), (8, 1), (9, 2), (16, 2)])
def test_a_reading_for_every_eight_draws_and_means_of_both(draws: int, count: int) -> None:
    """Numbers that name their draw: means over 1 .. draws and over 1 .. count."""
    made: list[int] = []

    def numbered(sign: int) -> Callable[..., Tensor]:
        def term(*_: object) -> Tensor:
            made.append(sign)
            return torch.full((3,), float(made.count(sign)) * (1.0 if sign > 0 else 100.0), dtype=torch.float64)

        return term

    found = allocated_mean(numbered(1), numbered(-1), INDEX, 0, draws)
    assert (made.count(1), made.count(-1)) == (draws, count) == (draws, readings(draws))
    assert found.tolist() == [(draws + 1) / 2 + 100 * (count + 1) / 2] * 3


def test_each_stratum_is_visited_once() -> None:
    """The mean of t over strata is 1/2 within the half of a stratum, for every sequence by itself."""

    def time(rng: Rng, stratum: Tensor) -> Tensor:
        return stratum[:, 0].double() / stratum[:, 1]

    found = allocated_mean(time, lambda rng: torch.zeros(3, dtype=torch.float64), INDEX, 0, 4)
    assert bool(((found - 0.5).abs() <= 1 / 8).all())
    assert len(set(found.tolist())) == 3
    alone = [float(allocated_mean(time, lambda rng: torch.zeros(1, dtype=torch.float64), INDEX[i : i + 1], 0, 4)) for i in range(3)]
    assert alone == found.tolist()


@pytest.mark.parametrize("self_conditioning", [0.0, 0.5])
def test_an_embedding_model_calls_its_network_as_often_as_it_says(self_conditioning: float) -> None:
    model, calls = EmbeddingDiffusion(backbone=trunk(), width=4, self_conditioning=self_conditioning).build(VOCAB).double().eval(), []
    model.backbone.register_forward_pre_hook(lambda _, given: calls.append(1))
    model.mean_nll(ragged(), 0, 10)
    assert len(calls) == model.calls(10)
