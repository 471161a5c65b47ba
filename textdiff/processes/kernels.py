"""Which tokens noise turns into which: the transition matrices of D3PM (Austin et al. 2021, appendix A.2) as rates of jumps.

Rates R make a matrix for any time, expm(sigma R), so that the same noise has bins and a continuous limit.
"""

import functools
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from textdiff.vocab import Vocab

_FORGOTTEN = 64.0  # sigma from which on exp(-sigma) is nothing beside 1
_TERMS = 18  # of the exponential series below one expected jump: the next is 1 / 18! = 1.6e-16
_DISCONNECTED = 1e-12
_LARGEST = 1024


@dataclass(frozen=True)
class Kernel:
    """Relative rates of jumps; their scale and their diagonal do not matter."""

    def rates(self, ids: Tensor, vocab: Vocab) -> Tensor:
        """Rates from row to column, (V, V) float64, for the real tokens `ids` (K,); raises ValueError when the vocabulary does not fit."""
        raise NotImplementedError


def _among(ids: Tensor, vocab: Vocab, rates: Tensor) -> Tensor:
    """Rates between the real tokens (K, K) as rates between all ids (V, V)."""
    table = torch.zeros(vocab.size, vocab.size, dtype=torch.float64)
    table[ids[:, None], ids] = rates.double()
    return table


def _distance(ids: Tensor) -> Tensor:
    """How far apart two real tokens stand in the order of ids, (K, K)."""
    rank = torch.arange(len(ids))
    return (rank[:, None] - rank).abs()


@dataclass(frozen=True)
class Absorbing(Kernel):
    """Every token becomes [MASK]: `Masked` written as a matrix."""

    def rates(self, ids: Tensor, vocab: Vocab) -> Tensor:
        if vocab.mask_id is None:
            raise ValueError("absorbing noise needs a mask token and the tokenizer has none: call textdiff.vocab.add_mask_token first")
        table = torch.zeros(vocab.size, vocab.size, dtype=torch.float64)
        table[ids, vocab.mask_id] = 1
        return table


@dataclass(frozen=True)
class UniformKernel(Kernel):
    """Every token becomes every other at one rate: `Uniform` written as a matrix."""

    def rates(self, ids: Tensor, vocab: Vocab) -> Tensor:
        return _among(ids, vocab, torch.ones(len(ids), len(ids)))


@dataclass(frozen=True)
class Banded(Kernel):
    """Tokens whose ids stand at most `width` places apart exchange at one rate (ordinal tokens)."""

    width: int = 1

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ValueError(f"width is {self.width}, expected 1 or more places")

    def rates(self, ids: Tensor, vocab: Vocab) -> Tensor:
        return _among(ids, vocab, _distance(ids) <= self.width)


@dataclass(frozen=True)
class DiscretisedGaussian(Kernel):
    """Tokens exchange at rate exp(-d^2 / (2 deviation^2)), d the number of places between their ids (D3PM-Gauss)."""

    deviation: float = 1.0

    def __post_init__(self) -> None:
        if not self.deviation > 0:
            raise ValueError(f"deviation is {self.deviation}, expected more than 0 places")

    def rates(self, ids: Tensor, vocab: Vocab) -> Tensor:
        return _among(ids, vocab, (-((_distance(ids) / self.deviation).double() ** 2) / 2).exp())


@dataclass(frozen=True)
class NearestNeighbour(Kernel):
    """Tokens exchange with their nearest neighbours in an embedding (D3PM-NN): `neighbours` lists those of every id of the vocabulary."""

    neighbours: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, embeddings: Tensor, count: int, vocab: Vocab) -> "NearestNeighbour":
        """The `count` real tokens nearest to each by Euclidean distance of `embeddings` (V, D)."""
        banned = torch.tensor(vocab.unemittable, dtype=torch.long)
        distance = torch.cdist(embeddings.double(), embeddings.double()).fill_diagonal_(torch.inf).index_fill(1, banned, torch.inf)
        nearest = distance.topk(count, largest=False).indices.index_fill(0, banned, -1)
        return cls(tuple(tuple(i for i in row if i >= 0) for row in nearest.tolist()))

    def rates(self, ids: Tensor, vocab: Vocab) -> Tensor:
        if len(self.neighbours) != vocab.size:
            raise ValueError(f"neighbours are given for {len(self.neighbours)} ids and the model has {vocab.size} rows: one list for each")
        table = torch.zeros(vocab.size, vocab.size, dtype=torch.float64)
        for i, row in enumerate(self.neighbours):
            table[i, list(row)] = 1
        return (table + table.T) / 2


class Flow(NamedTuple):
    """The semigroup expm(sigma R) of rates scaled so that what is forgotten last decays as exp(-sigma).

    expm(h R) is a mixture over numbers of jumps, sum over n of Poisson(n; h speed) jump^n: no term is negative, so that even the smallest
    entry keeps its digits, which ratios of laws need. What exceeds one expected jump is applied by powers of two.
    """

    rates: Tensor  # (V, V) off the diagonal
    stationary: Tensor  # (V,)
    limit: Tensor  # (V, V) expm(sigma R) for sigma = infinity; ids without noise stay
    jump: Tensor  # (V, V) stochastic
    speed: float  # jumps per unit of sigma, the fastest exit rate
    powers: tuple[Tensor, ...]  # (V, V) stochastic: expm(2^k R / speed)

    def forward(self, law: Tensor, sigma: Tensor) -> Tensor:
        """Laws (N, V) after noise of sigma (N,): law expm(sigma R)."""
        return self._apply(law, sigma, self.jump, self.powers, self.limit)

    def backward(self, likelihood: Tensor, sigma: Tensor) -> Tensor:
        """Likelihoods (N, V) of what was there before noise of sigma (N,): expm(sigma R) likelihood."""
        return self._apply(likelihood, sigma, self.jump.T, tuple(power.T for power in self.powers), self.limit.T)

    def _apply(self, start: Tensor, sigma: Tensor, jump: Tensor, powers: tuple[Tensor, ...], limit: Tensor) -> Tensor:
        expected = sigma.clamp_max(_FORGOTTEN) * self.speed
        whole = expected.long()
        result = _series(start, (expected - whole)[:, None], jump)
        for k, power in enumerate(powers):
            result = torch.where(((whole >> k) & 1)[:, None] == 1, result @ power, result)
        return torch.where(sigma[:, None] >= _FORGOTTEN, start @ limit, result)


def _series(start: Tensor, expected: Tensor, jump: Tensor) -> Tensor:
    """`start` after a Poisson number of jumps of which at most one is expected."""
    term = result = start
    for n in range(1, _TERMS):
        term = term @ jump * (expected / n)
        result = result + term
    return result * (-expected).exp()


@functools.lru_cache(maxsize=8)
def flow_of(kernel: Kernel, vocab: Vocab, device: torch.device) -> Flow:
    """The semigroup of a kernel over a vocabulary; raises ValueError when it is too large, or when noise does not mix all tokens."""
    if vocab.size > _LARGEST:
        raise ValueError(f"matrix noise is made for up to {_LARGEST} ids and the model has {vocab.size}: use Masked, Uniform or Hybrid")
    banned = set(vocab.unemittable)
    rates = kernel.rates(torch.tensor([i for i in range(vocab.size) if i not in banned]), vocab).fill_diagonal_(0)
    noisy = ((rates > 0).any(0) | (rates > 0).any(1)).nonzero()[:, 0]
    generator = (rates - rates.sum(1).diag())[noisy[:, None], noisy]
    rates = rates / _gap(generator)
    stationary = torch.zeros(vocab.size, dtype=torch.float64).index_copy(0, noisy, _stationary(generator))
    identity = torch.eye(vocab.size, dtype=torch.float64)
    limit = identity.index_copy(0, noisy, stationary.expand(len(noisy), -1))
    leaving = rates.sum(1)
    speed = float(leaving.max())
    jump = (rates + (speed - leaving).diag()) / speed
    powers = [_series(identity, torch.ones(1, 1, dtype=torch.float64), jump)]
    while 2 ** len(powers) <= _FORGOTTEN * speed:
        square = powers[-1] @ powers[-1]
        powers.append(square / square.sum(1, keepdim=True))  # or the rounding of each doubling would double with it
    rates, stationary, limit, jump, *moved = (table.to(device) for table in (rates, stationary, limit, jump, *powers))
    return Flow(rates, stationary, limit, jump, speed, tuple(moved))


def _gap(generator: Tensor) -> float:
    """The rate at which what is forgotten last is forgotten."""
    symmetric = bool((generator == generator.T).all())
    decay = torch.linalg.eigvalsh(-generator) if symmetric else torch.linalg.eigvals(-generator).real.sort().values
    if len(decay) < 2 or decay[1] <= _DISCONNECTED * decay[-1]:
        raise ValueError("the kernel leaves groups of tokens that noise never mixes: widen it or give it more neighbours")
    return float(decay[1])


def _stationary(generator: Tensor) -> Tensor:
    """The law p with p R = 0, the only one that also solves p (11^T - R) = 1^T."""
    law: Tensor = torch.linalg.solve((1 - generator).T, torch.ones(len(generator), dtype=torch.float64))
    law = law.where(law > _DISCONNECTED, 0.0)
    return law / law.sum()
