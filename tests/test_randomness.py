import math

import torch

from textdiff.randomness import _GAMMA, Rng, _mix


def unsigned(value: torch.Tensor) -> int:
    return int(value) & (2**64 - 1)


def test_mixing_is_splitmix64() -> None:
    """The first three outputs of the reference implementation for seed 0 (Vigna, splitmix64.c)."""
    state = torch.tensor([_GAMMA * i for i in (1,)]) + torch.arange(3) * _GAMMA
    assert [unsigned(_mix(s)) for s in state] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


def test_uniform_numbers_follow_the_uniform_law() -> None:
    """Kolmogorov-Smirnov over rows and over columns, mean, variance, and neighbours uncorrelated, at about 4.5 sigma."""
    u = Rng(0, 0, torch.arange(1000)).uniform("a", (200,))
    n = u.numel()
    ordered = u.flatten().sort().values
    distance = (ordered - (torch.arange(n) + 0.5) / n).abs().max()
    assert float(distance) < 2.3 / math.sqrt(n)  # P(K > 2.3) = 5e-5
    assert abs(float(u.mean()) - 0.5) < 4.5 * math.sqrt(1 / 12 / n)
    assert abs(float(u.var()) - 1 / 12) < 4.5 * math.sqrt(1 / 180 / n)
    centred = (u - 0.5) * math.sqrt(12)
    for product in (centred[:, 1:] * centred[:, :-1], centred[1:] * centred[:-1]):  # along a stream, and across consecutive samples
        assert abs(float(product.mean())) < 4.5 / math.sqrt(product.numel())


def test_uniform_numbers_stay_inside_the_open_interval_at_the_extreme_bits() -> None:
    """All bits zero gives 2^-53 and all bits one gives 1 - 2^-53, neither 0 nor 1."""

    class Extreme(Rng):
        def bits(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
            return torch.tensor([[0], [-1]])

    assert Extreme(0, 0, torch.arange(2)).uniform("a", (1,)).flatten().tolist() == [2.0**-53, 1 - 2.0**-53]
    assert bool(Extreme(0, 0, torch.arange(2)).normal("a", (1,)).isfinite().all())
    for high in (1, 3, 1000, 50257, 2**20):
        assert Extreme(0, 0, torch.arange(2)).integers("a", (1,), high).flatten().tolist() == [0, high - 1]


def test_a_row_does_not_depend_on_the_batch_around_it() -> None:
    rng = Rng(3, 5, torch.arange(10))
    whole = rng.uniform("a", (8, 4))
    assert torch.equal(Rng(3, 5, torch.tensor([7])).uniform("a", (8, 4))[0], whole[7])
    assert torch.equal(rng.rows(torch.tensor([4, 2])).uniform("a", (8, 4)), whole[[4, 2]])
    assert torch.equal(rng.rows(torch.arange(10) % 2 == 0).uniform("a", (8, 4)), whole[::2])
    assert torch.equal(rng.rows(torch.tensor([4])).draw(3).uniform("a", (8,)), rng.draw(3).uniform("a", (8,))[4:5])


def test_a_longer_row_begins_like_a_shorter_one() -> None:
    rng = Rng(0, 0, torch.arange(4))
    assert torch.equal(rng.uniform("a", (12,))[:, :5], rng.uniform("a", (5,)))
    assert torch.equal(rng.normal("a", (12, 2))[:, :5], rng.normal("a", (5, 2)))


def test_numbers_do_not_depend_on_the_order_of_calls() -> None:
    first, second = Rng(0, 0, torch.arange(4)), Rng(0, 0, torch.arange(4))
    a, b = first.uniform("a", (6,)), first.uniform("b", (6,))
    assert torch.equal(second.uniform("b", (6,)), b)
    assert torch.equal(second.uniform("a", (6,)), a)


def test_streams_of_other_seeds_steps_names_and_repetitions_are_uncorrelated() -> None:
    rows, length = torch.arange(500), (100,)
    rng = Rng(0, 0, rows)
    others = [Rng(1, 0, rows), Rng(0, 1, rows), Rng(1, 1, rows), *(rng.draw(k) for k in (0, 1, 2, 1023)), rng.draw(0).draw(0)]
    streams = [rng.uniform("a", length), rng.uniform("b", length), *(other.uniform("a", length) for other in others)]
    flat = torch.stack([stream.flatten() for stream in streams])
    correlation = torch.corrcoef(flat) - torch.eye(len(flat))
    assert float(correlation.abs().max()) < 4.5 / math.sqrt(flat.shape[1])


def test_normal_numbers_have_the_moments_of_the_normal_law() -> None:
    z = Rng(0, 0, torch.arange(1000)).normal("a", (200,))
    n = z.numel()
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(float((z**power).mean()) - moment) < 4.5 * math.sqrt(variance / n)


def test_integers_are_equally_frequent() -> None:
    counts = torch.bincount(Rng(0, 0, torch.arange(1000)).integers("a", (70,), 7).flatten(), minlength=7)
    assert counts.sum() == 70_000
    chi_square = float(((counts - 10_000.0) ** 2 / 10_000).sum())
    assert chi_square < 30  # 6 degrees of freedom: P < 4e-5
