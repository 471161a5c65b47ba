"""A denoiser that is known in closed form: independent Gaussian numbers under Gaussian noise, and with no variance the truth itself."""

from dataclasses import dataclass

import torch
from torch import Tensor

from textdiff.batch import Batch
from textdiff.prediction import Prediction
from textdiff.processes.gaussian import Gaussian
from textdiff.state_prediction import StatePrediction


class Vectors(StatePrediction):
    """A belief about vectors alone."""

    def __init__(self, x0: Tensor) -> None:
        self.x0, self.shape, self.device = x0, (x0.shape[0], x0.shape[1]), x0.device

    def state(self, where: Tensor | None = None) -> Tensor:
        return self.x0 if where is None else self.x0[where]


@dataclass(frozen=True, eq=False)
class GaussianData:
    """x0 ~ N(mean, variance) for each of D numbers at every position; variance 0: a perfect denoiser of x0 = mean."""

    process: Gaussian
    mean: Tensor  # (D,)
    variance: Tensor  # (D,)

    def predictor(self, batch: Batch) -> "GaussianData":
        return self

    def rows(self, index: Tensor) -> "GaussianData":
        return self

    def __call__(self, xt: Tensor, t: Tensor, previous: Prediction | None = None) -> Vectors:
        a, s = self.process.levels(t)
        return Vectors(self.mean + a * self.variance / (a**2 * self.variance + s**2) * (xt - a * self.mean))

    def canvas(self, batch: Batch) -> tuple[Tensor, Tensor]:
        return self.mean.expand(*batch.tokens.shape, -1), batch.target

    def decode(self, x0: Tensor) -> Tensor:
        raise AssertionError("these vectors stand for no tokens")

    def end_of_flow(self, x1: Tensor) -> Tensor:
        """Where the probability flow takes x1: to the same quantile of x0's law."""
        a, s = self.process.levels(torch.ones(1, dtype=torch.float64))
        return self.mean + (self.variance / (a**2 * self.variance + s**2)).sqrt() * (x1 - a * self.mean)
