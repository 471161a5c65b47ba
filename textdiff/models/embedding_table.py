"""Token vectors, and how a trunk reads noisy ones: what an embedding diffusion model has in place of a trunk's own embedding."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init

from textdiff.backbones.time_features import TIME_FEATURES, level_of, time_features

_RADIANS = 60.0  # largest angle of the features of gamma's range: two radians per unit of gamma
_ALIKE = 0.9  # mean cosine of two rows from which a table counts as collapsed
_NARROW = 1.5  # effective rank up to which it does, where there are more than three dimensions
_SEEN = 4096  # rows of a table whose spread is watched


@dataclass(frozen=True)
class Table:
    """How the rows of an embedding table (V, D) are made of its weights."""

    trained = True  # whether the weights learn

    def rows(self, weight: Tensor) -> Tensor:
        """The vectors (V, D)."""
        raise NotImplementedError


@dataclass(frozen=True)
class Free(Table):
    """Learnt vectors as they are, begun at N(0, I) (Diffusion-LM)."""

    def rows(self, weight: Tensor) -> Tensor:
        return weight


@dataclass(frozen=True)
class Sphere(Table):
    """Learnt directions of norm sqrt(D), so that each number has unit variance (CDCD, LangFlow)."""

    def rows(self, weight: Tensor) -> Tensor:
        return F.normalize(weight, dim=-1) * math.sqrt(weight.shape[-1])


@dataclass(frozen=True)
class Frozen(Sphere):
    """Random directions of norm sqrt(D) that do not learn."""

    trained = False


class Spread(NamedTuple):
    """How far apart the rows of a table are."""

    cosine: Tensor  # mean cosine of two different rows: 1 when all are one direction
    rank: Tensor  # effective rank of the rows, exp of the entropy of their normalised squared singular values (Roy & Vetterli 2007): 1 .. D


@torch.no_grad()
def spread(rows: Tensor) -> Spread:
    """The spread of vectors (V, D), of at most 4,096 of them, evenly spaced; no pairs are formed."""
    rows = rows[:: -(-len(rows) // _SEEN)]
    count = len(rows)
    unit = F.normalize(rows, dim=-1)
    cosine = (unit.sum(0).double().square().sum() - count) / max(1, count * (count - 1))
    power = torch.linalg.eigvalsh((rows.T @ rows).double()).clamp(min=0)
    rank = torch.special.entr(power / power.sum().clamp(min=1e-300)).sum().exp()
    return Spread(cosine, rank)


class EmbeddingCollapseWarning(UserWarning):
    """Token vectors are becoming one vector."""


def health(rows: Tensor, count: Tensor) -> dict[str, Tensor]:
    """The spread of vectors (V, D) times `count`, because metrics are sums over tokens; warns when they have collapsed."""
    found = spread(rows)
    if found.cosine > _ALIKE or (rows.shape[1] > 3 and found.rank < _NARROW):
        warnings.warn(
            "embeddings have collapsed (embedding_cosine and embedding_rank in the log say how far): train on TokenCrossEntropy, "
            "give DiffusionLM an anchor, or use a Sphere table",
            EmbeddingCollapseWarning,
            stacklevel=2,
        )
    return {"embedding_cosine": found.cosine * count, "embedding_rank": found.rank * count}


class Reader(nn.Module):
    """Ids or noisy vectors to the trunk's width: a linear layer each for the vector and for `beliefs` about it that others held before, the
    noise level, and a mark at positions that are known.

    It stands in the trunk's place for ids, so that an encoder reads the same vectors as the decoder does.
    """

    def __init__(self, table: Table, size: int, width: int, hidden: int, beliefs: int, scale: float) -> None:
        super().__init__()
        self.table, self.scale = table, scale
        self.weight = nn.Parameter(torch.empty(size, width), requires_grad=table.trained)
        self.read = nn.Linear(width, hidden)
        self.beliefs = nn.ModuleList(nn.Linear(width, hidden, bias=False) for _ in range(beliefs))
        self.known = nn.Parameter(torch.empty(hidden))
        self.time = nn.Sequential(nn.Linear(TIME_FEATURES, hidden), nn.SiLU(), nn.Linear(hidden, hidden))

    def reset(self) -> None:
        """Fresh weights: unit-variance vectors, read at the scale asked for."""
        init.normal_(self.weight)
        for layer in (self.read, *self.beliefs):
            init.normal_(layer.weight, std=self.scale / math.sqrt(self.weight.shape[1]))
        init.zeros_(self.read.bias)
        init.normal_(self.known, std=self.scale)

    def train(self, mode: bool = True) -> "Reader":
        """Loading makes every weight learn; those of a frozen table never do."""
        self.weight.requires_grad_(self.table.trained)
        return super().train(mode)

    def rows(self) -> Tensor:
        """The table (V, D)."""
        return self.table.rows(self.weight)

    def forward(self, ids: Tensor) -> Tensor:
        """Clean text (B, S) at the trunk's width, (B, S, H)."""
        return self.read(F.embedding(ids, self.rows()))

    def noisy(self, x: Tensor, gamma: Tensor, target: Tensor, beliefs: Sequence[Tensor | None]) -> Tensor:
        """Noisy vectors (B, L, D) of log-SNR -gamma (B,) or (B, L) at the trunk's width; positions off `target` (B, L) are known.

        Of targets a xt is read, the best linear guess of a unit-variance x0: pure noise is nothing. Each of `beliefs` about x0 is
        (B, L, D), or None where there is none yet.
        """
        told = gamma if gamma.dim() == 2 else gamma[:, None]
        x = x * torch.sigmoid(-told).sqrt().where(target, 1.0)[..., None].to(x.dtype)
        read = self.read(x) + self.time(time_features(level_of(gamma), _RADIANS).to(x.dtype)) + (~target)[..., None] * self.known
        for layer, belief in zip(self.beliefs, beliefs, strict=True):
            if belief is not None:
                read = read + layer(belief)
        return read
