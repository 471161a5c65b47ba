"""The loop of samplers that move all tokens through the same times and may change a token more than once."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from textdiff.batch import Batch
from textdiff.prediction import Prediction
from textdiff.processes.base import Denoiser, Predictor, Process, TokenProcess
from textdiff.processes.matrix import Matrix
from textdiff.randomness import Rng
from textdiff.samplers.base import Canvas, Sampler, require_steps, start

Change = Callable[[Prediction, Tensor, Tensor], Tensor]  # (belief, states, row indices) -> new states of those rows


class Walk(NamedTuple):
    """What one sampling run moves in."""

    process: TokenProcess
    predictor: Predictor
    target: Tensor  # (B, L) bool

    def update(self, x: Tensor, t: Tensor, where: Tensor, change: Change) -> tuple[Tensor, Tensor]:
        """x with the rows that have a True position in `where` (B, L) sent through the network and changed, and the calls of each, (B,)."""
        rows = where.any(1)
        index, calls = rows.nonzero()[:, 0], 0
        if len(index):
            xt = x[index]
            pred = self.predictor.rows(index)(xt, t[index])
            x, calls = x.index_copy(0, index, change(pred, xt, index)), pred.calls
        return x, rows * calls


@dataclass(frozen=True)
class Stepwise(Sampler):
    """`steps` moves from noise to clean; a subclass says what one move does."""

    requires: ClassVar[type[Process]] = TokenProcess
    steps: int = 128

    def __post_init__(self) -> None:
        require_steps(self.steps)

    def check(self, denoiser: Denoiser) -> None:
        super().check(denoiser)
        if isinstance(denoiser.process, Matrix):  # its tokens are moved by degrees: none is touched or untouched
            raise ValueError(f"{type(self).__name__} needs noise that replaces tokens and the model's is Matrix: sample with Ancestral")

    def times(self, process: TokenProcess) -> Tensor:
        """The times that moves lead between, from 1 down to 0, float64."""
        return torch.linspace(1, 0, self.steps + 1, dtype=torch.float64)

    def move(self, walk: Walk, x: Tensor, t: Tensor, s: Tensor, rng: Rng) -> tuple[Tensor, Tensor]:
        """The state at times s (B,), and the network calls of each row, (B,) long; what is no target is put back afterwards."""
        raise NotImplementedError

    def settled(self, walk: Walk, x: Tensor) -> Tensor:
        """(B, L) bool: what no later move can change."""
        return ~walk.target

    @torch.no_grad()
    def trajectory(self, denoiser: Denoiser, batch: Batch, rng: Rng) -> Iterator[Canvas]:
        self.check(denoiser)
        process = denoiser.process
        assert isinstance(process, TokenProcess)
        canvas, known, target = start(denoiser, batch, rng)
        walk = Walk(process, denoiser.predictor(batch), target)
        yield canvas
        for i, (t, s) in enumerate(pairwise(self.times(process).to(known.device))):
            x, calls = self.move(walk, canvas.x, t.expand(len(known)), s.expand(len(known)), rng.draw(i))
            x = x.where(target, known)
            settled = self.settled(walk, x) if s > 0 else torch.ones_like(target)
            canvas = Canvas(x, float(s), canvas.nfe + calls, settled)
            yield canvas
