"""The loop of samplers that move vectors through falling noise: one network call a step, which may read the belief of the step before."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from textdiff.batch import Batch
from textdiff.processes.base import Denoiser, Process, keep_known
from textdiff.processes.gaussian import Gaussian, states_of
from textdiff.randomness import Rng
from textdiff.samplers.base import Canvas, Sampler, require_steps, start
from textdiff.state_prediction import StatePrediction


class Belief(NamedTuple):
    """What the network believed at one moment."""

    t: Tensor  # (B,)
    x0: Tensor  # (B, L, D)


@dataclass(frozen=True)
class Continuous(Sampler):
    """`steps` moves between equal times from t = 1 to the clean state; a subclass says what one move does."""

    requires: ClassVar[type[Process]] = Gaussian
    steps: int = 64

    def __post_init__(self) -> None:
        require_steps(self.steps)

    def move(self, process: Gaussian, now: Belief, before: Belief | None, xt: Tensor, s: Tensor, rng: Rng) -> Tensor:
        """The state at times s (B,), given the belief at the times of `xt` and, from the second move on, the one before it."""
        raise NotImplementedError

    @torch.no_grad()
    def trajectory(self, denoiser: Denoiser, batch: Batch, rng: Rng) -> Iterator[Canvas]:
        self.check(denoiser)
        process = denoiser.process
        assert isinstance(process, Gaussian)
        canvas, known, target = start(denoiser, batch, rng)
        predict, rows = denoiser.predictor(batch), target.any(1)
        yield canvas
        pred: StatePrediction | None = None
        before: Belief | None = None
        times = torch.linspace(1, 0, self.steps + 1, dtype=torch.float64, device=known.device)
        for i, (t, s) in enumerate(pairwise(times)):
            t_rows, s_rows = t.expand(len(known)), s.expand(len(known))
            pred = states_of(predict(canvas.x, t_rows, pred))
            now = Belief(t_rows, pred.state())
            x = keep_known(self.move(process, now, before, canvas.x, s_rows, rng.draw(i)), known, target)
            before = now
            settled = ~target if s > 0 else torch.ones_like(target)
            canvas = Canvas(x, float(s), canvas.nfe + rows * pred.calls, settled)
            yield canvas
