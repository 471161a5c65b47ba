import math

import pytest
import torch

from textdiff.models.embedding_table import Free, Frozen, Reader, Sphere, spread


def test_orthogonal_rows_have_full_rank_and_no_common_direction() -> None:
    found = spread(torch.eye(5))
    assert float(found.cosine) == pytest.approx(0.0, abs=1e-6)
    assert float(found.rank) == pytest.approx(5.0, rel=1e-5)


def test_one_direction_is_a_cosine_of_one_and_a_rank_of_one() -> None:
    found = spread(torch.arange(1.0, 7)[:, None] * torch.tensor([1.0, -2.0, 0.5]))
    assert float(found.cosine) == pytest.approx(1.0, abs=1e-5)
    assert float(found.rank) == pytest.approx(1.0, abs=1e-3)


def test_spread_is_the_mean_over_all_pairs() -> None:
    rows = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    unit = torch.nn.functional.normalize(rows, dim=-1)
    pairs = (unit @ unit.T)[~torch.eye(40, dtype=torch.bool)]
    share = torch.linalg.svdvals(rows).square() / rows.square().sum()
    found = spread(rows)
    assert float(found.cosine) == pytest.approx(float(pairs.mean()), abs=1e-6)
    assert float(found.rank) == pytest.approx(float(torch.exp(-(share * share.log()).sum())), rel=1e-5)


def test_sphere_rows_have_unit_variance_per_number() -> None:
    rows = Sphere().rows(torch.randn(9, 8, generator=torch.Generator().manual_seed(0)) * 7)
    torch.testing.assert_close(rows.norm(dim=-1), torch.full((9,), math.sqrt(8)))


def test_frozen_directions_take_no_gradient() -> None:
    def reader(table: Free | Sphere) -> Reader:
        built = Reader(table, 5, 4, 8, 0, 1.0)
        built.reset()
        return built

    for table, learns in ((Free(), True), (Sphere(), True), (Frozen(), False)):
        built = reader(table)
        built(torch.tensor([[1, 2]])).square().sum().backward()
        assert (built.weight.grad is not None and bool(built.weight.grad.any())) is learns


def test_known_positions_are_marked_and_beliefs_are_read() -> None:
    reader = Reader(Sphere(), 5, 4, 8, 1, 1.0)
    reader.reset()
    x, gamma = torch.randn(2, 3, 4), torch.zeros(2, dtype=torch.float64)
    target = torch.tensor([[True, True, False], [True, False, True]])
    plain = reader.noisy(x, gamma, target, [None])
    everything = reader.noisy(x, gamma, torch.ones_like(target), [None])
    unread = (1 - 0.5**0.5) * x @ reader.read.weight.T  # targets are read at a = sqrt(1 / 2) here
    torch.testing.assert_close(plain - everything, (~target)[..., None] * (reader.known + unread), rtol=1e-4, atol=1e-6)
    belief = torch.randn(2, 3, 4)
    torch.testing.assert_close(reader.noisy(x, gamma, target, [belief]) - plain, belief @ reader.beliefs[0].weight.T, rtol=1e-4, atol=1e-5)


def test_noise_levels_may_differ_from_token_to_token() -> None:
    reader = Reader(Sphere(), 5, 4, 8, 0, 1.0)
    reader.reset()
    x, target, gamma = torch.randn(2, 3, 4), torch.ones(2, 3, dtype=torch.bool), torch.tensor([1.0, -2.0], dtype=torch.float64)
    torch.testing.assert_close(reader.noisy(x, gamma, target, []), reader.noisy(x, gamma[:, None].expand(2, 3), target, []))
