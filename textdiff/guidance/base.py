"""Guidance wraps a denoiser in a denoiser, so that no sampler knows it exists."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from textdiff.batch import Batch
from textdiff.prediction import Prediction
from textdiff.processes.base import Denoiser, Predictor, Process


@dataclass(frozen=True)
class Guidance:
    """A change of what a denoiser predicts or how its process steps."""

    def __call__(self, denoiser: Denoiser) -> Denoiser:
        """The guided denoiser."""
        raise NotImplementedError


class GuidedPredictor:
    """A predictor whose every prediction passes through `change`."""

    def __init__(self, inner: Predictor, change: Callable[[Prediction], Prediction]) -> None:
        self.inner, self.change = inner, change

    def __call__(self, xt: Tensor, t: Tensor, previous: Prediction | None = None) -> Prediction:
        """The changed belief about x0."""
        return self.change(self.inner(xt, t, previous))

    def rows(self, index: Tensor) -> "GuidedPredictor":
        """The same for a subset of rows."""
        return GuidedPredictor(self.inner.rows(index), self.change)

    def read(self, tokens: Tensor) -> Prediction:
        """The changed belief about the next token, for predictors that read left to right."""
        return self.change(self.inner.read(tokens))  # type: ignore[attr-defined]


class GuidedDenoiser:
    """A denoiser with the process and canvas of another and its own predictions."""

    def __init__(self, inner: Denoiser, change: Callable[[Prediction], Prediction]) -> None:
        self.inner, self.change = inner, change

    @property
    def process(self) -> Process:
        """The process of the wrapped denoiser."""
        return self.inner.process

    def predictor(self, batch: Batch) -> GuidedPredictor:
        """The wrapped predictor of a batch."""
        return GuidedPredictor(self.inner.predictor(batch), self.change)

    def canvas(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The canvas of the wrapped denoiser."""
        return self.inner.canvas(batch)

    def decode(self, x0: Tensor) -> Tensor:
        """The ids of the wrapped denoiser."""
        return self.inner.decode(x0)
