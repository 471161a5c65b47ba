"""Where the network calls of a Gaussian bound go: to times of the diffusion term, and few to the reconstruction, which hardly varies.

Nearly all of the diffusion term of a trained model lies in a narrow band of noise levels. Of the densities of independent times the one
proportional to the root mean square of the term has the least variance (Neyman 1934, of strata); `Allocation` is that, as 64 calls of a
pilot see it, over a floor that no time falls below.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from textdiff.processes.base import Noised, Noising, Process, keep_known, stratified
from textdiff.randomness import Rng

_PARTS = 16  # of [0, 1] at most
_SEEN = 4  # times that a pilot sees in each part
_FLOOR = 0.1  # of the draws are spread evenly, whatever the pilot saw
_GOLDEN = (5**0.5 - 1) / 2  # multiples modulo 1 fill [0, 1) evenly
_PLACES = 256  # of a sequence inside its strata of time
_DRAWS_PER_READING = 8


@dataclass(frozen=True)
class Allocation(Noising):
    """Times of [0, 1] of which each of as many equal parts as there are `shares` takes that share of the draws; the shares sum to 1."""

    shares: tuple[float, ...]

    @classmethod
    def fitted(cls, t: Tensor, nats: Tensor) -> Self:
        """To draws (N,) of the term at times `t`, in units that make the rows alike; an empty part takes the mean of the others."""
        parts = max(1, min(_PARTS, len(t) // _SEEN))
        part = (t * parts).long().clamp(max=parts - 1)
        count = torch.bincount(part, minlength=parts)
        square = torch.zeros(parts, dtype=torch.float64, device=t.device).index_add(0, part, nats.double().square())
        size = (square / count.clamp_min(1)).sqrt()
        size = size.where(count > 0, size.sum() / (count > 0).sum())
        size = (torch.cat([size[:1], size[:-1]]) + 2 * size + torch.cat([size[1:], size[-1:]])) / 4  # few calls see each part
        even = torch.full_like(size, 1 / parts)
        seen = size / size.sum() if bool((size.sum() > 0) & size.sum().isfinite()) else even
        return cls(tuple((_FLOOR * even + (1 - _FLOOR) * seen).tolist()))

    def place(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """The times of uniform numbers `u` (B,), and one over their density, (B,) float64 each."""
        shares = torch.tensor(self.shares, dtype=torch.float64, device=u.device)
        ends = torch.tensor([0.0, *itertools.accumulate(self.shares)], dtype=torch.float64, device=u.device)
        part = (torch.searchsorted(ends, u, right=True) - 1).clamp(0, len(shares) - 1)
        inside = ((u - ends[part]) / shares[part]).clamp(0.0, 1.0)
        return (part + inside) / len(shares), 1 / (shares[part] * len(shares))

    def __call__(self, process: Process, x0: Tensor, target: Tensor, stratum: Tensor, rng: Rng) -> Noised:
        t, weight = self.place(stratified(rng, stratum)[:, 0])
        return Noised(keep_known(process.corrupt(x0, t, rng), x0, target), t, weight)


def readings(draws: int) -> int:
    """How many draws of the reconstruction go with `draws` of the diffusion term: one with each of every eight."""
    return -(-draws // _DRAWS_PER_READING)


def allocated_mean(
    diffusion: Callable[[Rng, Tensor], Tensor], ends: Callable[[Rng], Tensor], index: Tensor, seed: int, draws: int
) -> Tensor:
    """(B,) nats: the mean of `draws` draws of `diffusion` at times of strata (B, 2), plus that of the first `readings` draws of `ends`.

    The times of each sequence are stratified, and those of many sequences lie between one another: each sequence `index` (B,) stands
    somewhere else in its strata, at a random shift that all have in common.
    """
    shift = Rng(seed, 0, torch.zeros_like(index[:1])).uniform("shift", ())
    place = ((index.double() * _GOLDEN + shift) % 1.0 * _PLACES).long()
    total, read = torch.zeros(2, len(index), dtype=torch.float64, device=index.device)
    for k in range(draws):
        stratum = torch.stack([place + k * _PLACES, torch.full_like(index, draws * _PLACES)], dim=1)
        total += diffusion(Rng(seed, k, index), stratum)
    for k in range(readings(draws)):
        read += ends(Rng(seed, k, index))
    return total / draws + read / readings(draws)
