"""Random numbers as a function of (seed, step, sample, name): no generator state, no dependence on batch shape or call order.

Each row of a batch owns one 64-bit key; the j-th number of a named stream is SplitMix64 (Steele, Lea, Flood 2014) of that key and j.
The same example therefore meets the same noise alone or in a batch, on one process or on eight, before and after a resume.
"""

import functools
import hashlib
import math

import torch
from torch import Tensor

_GAMMA = -0x61C8864680B583EB  # 0x9E3779B97F4A7C15 as a signed 64-bit integer
_MULTIPLY_1 = -0x40A7B892E31B1A47  # 0xBF58476D1CE4E5B9
_MULTIPLY_2 = -0x6B2FB644ECCEEE15  # 0x94D049BB133111EB


def _shift_right(z: Tensor, bits: int) -> Tensor:
    return (z >> bits) & ((1 << (64 - bits)) - 1)  # torch shifts signed integers arithmetically: clear the copied sign


def _mix(z: Tensor) -> Tensor:
    z = (z ^ _shift_right(z, 30)) * _MULTIPLY_1
    z = (z ^ _shift_right(z, 27)) * _MULTIPLY_2
    return z ^ _shift_right(z, 31)


@functools.lru_cache(maxsize=4096)
def _name_key(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little", signed=True)


class Rng:
    """One random stream per row and name: `Rng(seed, step, sample_id)` with `sample_id` (B,) long, on the device it draws on."""

    def __init__(self, seed: int, step: int, sample_id: Tensor) -> None:
        key = torch.full_like(sample_id, _name_key(f"seed {seed} step {step}"), dtype=torch.int64)
        self.key = _mix(_mix(key + _GAMMA) ^ (sample_id.to(torch.int64) * _GAMMA))  # (B,)

    @classmethod
    def _from_key(cls, key: Tensor) -> "Rng":
        rng = cls.__new__(cls)
        rng.key = key
        return rng

    def rows(self, index: Tensor) -> "Rng":
        """The same streams for a subset of rows; `index` (N,) long or (B,) bool."""
        return self._from_key(self.key[index])

    def draw(self, k: int) -> "Rng":
        """Independent streams for the k-th repetition: a Monte Carlo draw or a sampling step."""
        return self._from_key(_mix(_mix(self.key + _GAMMA) + self.key.new_tensor(k + 1) * _MULTIPLY_1))

    def bits(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """64 random bits as (B, *shape) int64; number j of a row depends on j alone, so a longer row begins like a shorter one."""
        counter = torch.arange(1, math.prod(shape) + 1, device=self.key.device).mul_(_GAMMA)
        stream = _mix(self.key ^ _name_key(name))
        return _mix(stream[:, None] + counter).view(len(self.key), *shape)

    def uniform(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Uniform numbers strictly inside (0, 1), (B, *shape) float64, on a grid of 2^-52 so that rare events keep their rate."""
        return (_shift_right(self.bits(name, shape), 12).double() + 0.5) * 2.0**-52  # 52 bits: the largest value stays below 1

    def normal(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Standard normal numbers, (B, *shape) float64, by inversion."""
        return torch.special.ndtri(self.uniform(name, shape))

    def integers(self, name: str, shape: tuple[int, ...], high: int) -> Tensor:
        """Uniform integers in [0, high), (B, *shape) long."""
        return (self.uniform(name, shape) * high).long()
