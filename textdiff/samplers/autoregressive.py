"""Left-to-right sampling with a key-value cache."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from textdiff.batch import Batch
from textdiff.prediction import Prediction
from textdiff.processes.base import Denoiser
from textdiff.processes.left_to_right import LeftToRight
from textdiff.randomness import Rng
from textdiff.samplers.base import Canvas, Sampler


@runtime_checkable
class NextToken(Protocol):
    """A predictor that reads left to right."""

    def read(self, tokens: Tensor) -> Prediction:
        """Read `tokens` (B, n) after all that was read before; the belief about the next one, (B, 1)."""
        ...


def require_beginning(target: Tensor, attend: Tensor) -> None:
    """Raise ValueError when a row of targets (B, L) begins with one, or with padding."""
    if not bool(attend[:, 0].all()):
        raise ValueError("rows are padded on the left, which a key-value cache would read as text: pad them on the right")
    if bool(target[:, 0].any()):
        raise ValueError("the first token has nothing before it to be predicted from: begin each row with a prompt or a BOS token")


@dataclass(frozen=True)
class Autoregressive(Sampler):
    """Column by column: a target is drawn from the prediction, anything else is read as it stands, so rows may be ragged.

    `eos_id` >= 0 ends a row at its first drawn end token: its later targets are left as they were given.
    """

    requires: ClassVar[type[LeftToRight]] = LeftToRight
    law: ClassVar[str] = "exact"
    eos_id: int = -1

    @torch.no_grad()
    def trajectory(self, denoiser: Denoiser, batch: Batch, rng: Rng) -> Iterator[Canvas]:
        self.check(denoiser)
        x, target = denoiser.canvas(batch)
        rows, length = target.shape
        require_beginning(target, batch.attend)
        predictor = denoiser.predictor(batch)
        assert isinstance(predictor, NextToken)
        nfe, running, read = torch.zeros(rows, dtype=torch.long, device=x.device), target.any(1), 0
        yield Canvas(x, 1.0, nfe, ~target)
        columns = target.any(0).nonzero()[:, 0].tolist()
        for column in columns:
            pred = predictor.read(x[:, read:column])
            drawn, _ = pred.draw(torch.ones(rows, 1, dtype=torch.bool, device=x.device), rng.draw(column))
            writes = target[:, column] & running
            read, nfe = column, nfe + writes  # a row counts the calls that it needs, however long its neighbours' prompts are
            x = x.clone()
            x[:, column] = drawn.where(writes, x[:, column])
            running = running & ~(writes & (drawn == self.eos_id)) & target[:, column + 1 :].any(1)
            yield Canvas(x, 1 - (column + 1) / length, nfe, ~target | (torch.arange(length, device=x.device) <= column))
            if not bool(running.any()):
                break
