"""Either term keeps its own mean, and the network is called as often as is said."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.models.tiny import VOCAB, ragged, trunk
from textdiff.models.embedding import EmbeddingDiffusion
from textdiff.models.latent import LatentDiffusion
from textdiff.models.time_allocation import Allocation, allocated_mean, readings
from textdiff.processes.base import stratified
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


def test_a_latent_model_calls_its_denoiser_as_often_as_it_says() -> None:
    model, calls = LatentDiffusion(backbone=trunk(tied=True)).build(VOCAB).double().eval(), []
    for part in (model.backbone, model.autoencoder):
        part.register_forward_pre_hook(lambda _, given: calls.append(1))
    assert model.calls(10) == 1 + 10 + 2


SHARES = Allocation((0.5, 0.125, 0.25, 0.125))


def test_times_have_the_density_of_the_shares() -> None:
    """The inverse of the cumulative law at its ends and between them, and one over the density."""
    t, weight = SHARES.place(torch.tensor([0.0, 0.25, 0.5, 0.5625, 0.75, 1.0 - 1e-12], dtype=torch.float64))
    assert t.tolist() == pytest.approx([0, 0.125, 0.25, 0.375, 0.625, 1])
    assert weight.tolist() == pytest.approx([0.5, 0.5, 2, 2, 1, 2])


@pytest.mark.parametrize("power", [0, 1, 3])
def test_weighed_times_give_the_integral(power: int) -> None:
    u = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    t, weight = SHARES.place(u)
    assert float((weight * t**power).mean()) == pytest.approx(1 / (power + 1), abs=1e-8)


def test_shares_follow_the_root_mean_square() -> None:
    """A term of 1 in the half of [0, 1] where it is not 3: shares of 1 to 3, over an even tenth, but for the two parts at the border."""
    t = (torch.arange(640, dtype=torch.float64) + 0.5) / 640
    nats = torch.where(t < 0.5, 3.0, 1.0) * torch.where(torch.arange(640) % 2 == 0, 1.0, -1.0)
    shares = Allocation.fitted(t, nats).shares
    assert sum(shares) == pytest.approx(1)
    assert shares[0] == pytest.approx(0.1 / 16 + 0.9 * 3 / 32)
    assert shares[-1] == pytest.approx(0.1 / 16 + 0.9 * 1 / 32)
    assert shares[7] == pytest.approx(0.1 / 16 + 0.9 * 2.5 / 32)


def test_what_a_pilot_cannot_tell_is_left_even() -> None:
    t = torch.tensor([0.1, 0.9], dtype=torch.float64)
    for nats in ([0.0, 0.0], [torch.inf, 1.0], [torch.nan, 1.0]):
        found = Allocation.fitted(t.repeat(4), torch.tensor(nats, dtype=torch.float64).repeat(4)).shares
        assert found == pytest.approx([1 / 2] * 2)
    assert Allocation.fitted(t, torch.tensor([1.0, 2.0], dtype=torch.float64)).shares == (1.0,)  # two calls tell nothing


def test_an_allocation_leaves_the_bound_where_it_is() -> None:
    """512 copies of each row: the means with and without a pilot differ by less than four standard errors."""
    torch.manual_seed(0)
    model = EmbeddingDiffusion(backbone=trunk(), width=4).build(VOCAB).double().eval()
    rows = ragged()
    count = len(rows.tokens)
    told = model.pilot(rows.rows(torch.arange(16) % count)._replace(sample_id=torch.arange(16)), 0, 4)
    assert len(told.shares) == 16
    copies = rows.rows(torch.arange(count).repeat(512))._replace(sample_id=torch.arange(512 * count))
    even, allotted = (model.mean_nll(copies, 1, 4, pilot).view(512, count) for pilot in (None, told))
    gap = (even.mean(0) - allotted.mean(0)).abs()
    assert bool((gap < 4 * ((even.var(0) + allotted.var(0)) / 512).sqrt()).all())


def test_a_term_in_a_narrow_band_is_met_by_most_draws() -> None:
    """exp(-((t - 0.4) / 0.05)^2 / 2), once more or less by a tenth: four draws have a tenth of the variance, about the same mean."""
    index = torch.arange(4_000)

    def term(t: Tensor, rng: Rng) -> Tensor:
        return torch.exp(-(((t - 0.4) / 0.05) ** 2) / 2) * (1 + 0.1 * rng.normal("noise", ()))

    t = (torch.arange(64, dtype=torch.float64) + 0.5) / 64
    told = Allocation.fitted(t, term(t, Rng(1, 0, torch.arange(64))))

    def even(rng: Rng, stratum: Tensor) -> Tensor:
        return term(stratified(rng, stratum)[:, 0], rng)

    def allotted(rng: Rng, stratum: Tensor) -> Tensor:
        place, weight = told.place(stratified(rng, stratum)[:, 0])
        return term(place, rng) * weight

    found = [allocated_mean(way, lambda rng: 0 * index.double(), index, 0, 4) for way in (even, allotted)]
    assert float(found[1].mean()) == pytest.approx(0.05 * (2 * torch.pi) ** 0.5, rel=0.01)
    assert float(found[1].var()) < 0.1 * float(found[0].var())
