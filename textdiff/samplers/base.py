"""A sampler is a generator of canvases over a `Denoiser`; it knows neither the network nor the guidance around it."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from textdiff.batch import Batch
from textdiff.processes.base import Denoiser, Process, keep_known
from textdiff.processes.block import Block
from textdiff.processes.left_to_right import LeftToRight
from textdiff.randomness import Rng


class Canvas(NamedTuple):
    """One moment of a sampling run."""

    x: Tensor  # the state, (B, L) long or (B, L, D)
    t: float  # the time it stands at, 1 at the start, 0 at the end
    nfe: Tensor  # (B,) long, how many network calls each row has taken part in so far
    settled: Tensor  # (B, L) bool, positions that will not change any more


@dataclass(frozen=True)
class Sampler:
    """The loop; `law` says what its samples follow given a perfect denoiser: exactly its law, that law as steps grow, or neither.

    Vectors end on the likeliest tokens, so that "limit" supposes noise at the end which leaves no doubt about them.
    """

    requires: ClassVar[type[Process]] = Process
    law: ClassVar[str] = "approximate"

    def check(self, denoiser: Denoiser) -> None:
        """Raise ValueError when the sampler does not fit the denoiser's process."""
        process, any_noise = denoiser.process, self.requires is Process
        if isinstance(process, Block) and not issubclass(self.requires, Block):
            name = type(self).__name__
            raise ValueError(f"{name} samples a whole row at once and the model's process is Block: wrap it, Blockwise({name}(...))")
        if not isinstance(process, self.requires) or (any_noise and isinstance(process, LeftToRight)):
            needed, found = "noise" if any_noise else self.requires.__name__, type(process).__name__
            raise ValueError(f"{type(self).__name__} samples a {needed} process and the model's is {found}: choose a sampler made for it")

    def trajectory(self, denoiser: Denoiser, batch: Batch, rng: Rng) -> Iterator[Canvas]:
        """Every canvas from pure noise to the result; the tensors of a yielded canvas are never modified afterwards."""
        raise NotImplementedError

    def sample(self, denoiser: Denoiser, batch: Batch, rng: Rng) -> Tensor:
        """Token ids (B, L): the targets generated, everything else untouched."""
        last = deque(self.trajectory(denoiser, batch, rng), maxlen=1).pop()
        return written(denoiser, batch, last.x)


def written(denoiser: Denoiser, batch: Batch, x0: Tensor) -> Tensor:
    """The token ids (B, L) of a clean state; those of the batch where they are no targets. What a latent state says beyond the rows of the
    batch is left out."""
    tokens = denoiser.decode(x0)[:, : batch.tokens.shape[1]]
    return tokens.where(batch.target, batch.tokens)


def require_steps(steps: int) -> None:
    """Raise ValueError when a number of sampling steps is below 1."""
    if steps < 1:
        raise ValueError(f"steps is {steps}, expected 1 or more")


def start(denoiser: Denoiser, batch: Batch, rng: Rng) -> tuple[Canvas, Tensor, Tensor]:
    """The first canvas (noise at the targets, everything else known), the known state and the targets."""
    known, target = denoiser.canvas(batch)
    x = keep_known(denoiser.process.prior(known, rng), known, target)
    return Canvas(x, 1.0, torch.zeros(len(x), dtype=torch.long, device=x.device), ~target), known, target
