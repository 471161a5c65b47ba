"""Where the network calls of a Gaussian bound go: to times of the diffusion term, and few to the reconstruction, which hardly varies."""

from collections.abc import Callable

import torch
from torch import Tensor

from textdiff.randomness import Rng

_GOLDEN = (5**0.5 - 1) / 2  # multiples modulo 1 fill [0, 1) evenly
_PLACES = 256  # of a sequence inside its strata of time
_DRAWS_PER_READING = 8


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
