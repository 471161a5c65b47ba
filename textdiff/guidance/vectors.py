"""Guidance of vectors under Gaussian noise: what moves the belief about x0, and classifier-free guidance (Ho and Salimans 2022).

With c the belief of a network that is told the condition and u that of one that is not,
    x0hat = u + gamma (c - u)
which is the same in eps and in v, all being affine in one another given xt.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from textdiff.batch import Batch
from textdiff.guidance.base import GuidedDenoiser
from textdiff.prediction import Prediction
from textdiff.processes.base import Denoiser, Predictor, Process
from textdiff.processes.gaussian import Gaussian, states_of
from textdiff.state_prediction import Moved, StatePrediction

Move = Callable[[StatePrediction, Tensor, Tensor, Batch], Moved]  # (belief, xt, t, batch) -> the belief moved


def gaussian_process(process: Process) -> Gaussian:
    """The process of a model of vectors; raises ValueError for any other."""
    if not isinstance(process, Gaussian):
        raise ValueError(f"this guidance moves vectors under Gaussian noise and the model's process is {type(process).__name__}")
    return process


class MovingDenoiser(GuidedDenoiser):
    """A denoiser whose beliefs about vectors pass through `move`; raises ValueError for noise that is not Gaussian."""

    def __init__(self, inner: Denoiser, move: Move) -> None:
        gaussian_process(inner.process)
        super().__init__(inner)
        self.move = move

    def predictor(self, batch: Batch) -> Predictor:
        return _MovingPredictor(self.inner.predictor(batch), batch, self.move)


@dataclass(frozen=True)
class _MovingPredictor:
    inner: Predictor
    batch: Batch
    move: Move

    def __call__(self, xt: Tensor, t: Tensor, previous: Prediction | None = None) -> Moved:
        """The moved belief. A network that reads its own belief before reads it unmoved, as in training."""
        before = previous.inner if isinstance(previous, Moved) else previous
        return self.move(states_of(self.inner(xt, t, before)), xt, t, self.batch)

    def rows(self, index: Tensor) -> "_MovingPredictor":
        return replace(self, inner=self.inner.rows(index), batch=self.batch.rows(index))


class SourceHidden(GuidedDenoiser):
    """A denoiser that attends to no source, as rows hide theirs in training: a label is unknown to it, and of a text that an encoder reads
    nothing arrives."""

    def predictor(self, batch: Batch) -> Predictor:
        return self.inner.predictor(batch._replace(source_attend=torch.zeros_like(batch.source_attend)))


class Weighed(Moved):
    """u + gamma (c - u); of tokens it says what the conditional belief does."""

    def __init__(self, conditional: StatePrediction, without: StatePrediction, gamma: float) -> None:
        u, c = without.state(), conditional.state()
        super().__init__(conditional, u + gamma * (c - u), conditional.calls + without.calls)
        self.conditional, self.without = conditional, without


class WeighedVectors(GuidedDenoiser):
    """Asks a denoiser with its source and without; each of the two reads its own belief before."""

    def __init__(self, inner: Denoiser, gamma: float) -> None:
        super().__init__(inner)
        self.gamma, self.without = gamma, SourceHidden(inner)

    def predictor(self, batch: Batch) -> Predictor:
        if batch.source.shape[1] == 0:
            raise ValueError(f"guidance with gamma {self.gamma} needs a condition and the batch has no source: give one, or gamma 0")
        return _WeighingPredictor(self.inner.predictor(batch), self.without.predictor(batch), self.gamma)


@dataclass(frozen=True)
class _WeighingPredictor:
    conditional: Predictor
    without: Predictor
    gamma: float

    def __call__(self, xt: Tensor, t: Tensor, previous: Prediction | None = None) -> Weighed:
        before = (previous.conditional, previous.without) if isinstance(previous, Weighed) else (None, None)
        return Weighed(states_of(self.conditional(xt, t, before[0])), states_of(self.without(xt, t, before[1])), self.gamma)

    def rows(self, index: Tensor) -> "_WeighingPredictor":
        return replace(self, conditional=self.conditional.rows(index), without=self.without.rows(index))
