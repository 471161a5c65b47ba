"""Vectors whose law is known: a mixture of two Gaussian classes, and everything that follows from it by Bayes."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from textdiff.batch import Batch
from textdiff.log_snr import LinearLogSNR
from textdiff.prediction import Prediction
from textdiff.processes.gaussian import Gaussian
from textdiff.state_prediction import TabledState

LENGTH, WIDTH, CLASSES, SPREAD = 3, 2, 2, 0.5
PROCESS = Gaussian(schedule=LinearLogSNR(-4.0, 4.0))
SHARES = torch.tensor([0.3, 0.7], dtype=torch.float64)
CENTRES = torch.randn(CLASSES, LENGTH, WIDTH, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
TABLE = torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(1), dtype=torch.float64)  # of tokens, for what must be decoded


def asked(rows: int, *classes: int) -> Batch:
    """`rows` rows of three blanks whose classes take turns."""
    return Batch.of(torch.zeros(rows, LENGTH, dtype=torch.long), source=torch.tensor(classes).repeat(rows)[:rows, None])


def log_classes(xt: Tensor, noise: Tensor) -> Tensor:
    """log p(y | xt) at noise levels s^2 (B,), (B, C): x0 ~ N(centre of y, SPREAD^2 I), so xt ~ N(a centre, (a SPREAD)^2 + s^2)."""
    alpha = (1 - noise)[:, None]
    distance = (xt[:, None] - alpha[..., None, None].sqrt() * CENTRES).square().flatten(2).sum(-1)
    return (SHARES.log() - distance / (2 * (alpha * SPREAD**2 + noise[:, None]))).log_softmax(1)


def mean_given(xt: Tensor, t: Tensor, label: Tensor) -> Tensor:
    """E[x0 | xt, y] for labels (B,): two Gaussians multiplied."""
    a, s = PROCESS.levels(t)
    precision = 1 / SPREAD**2 + (a / s) ** 2
    return (CENTRES[label] / SPREAD**2 + a / s**2 * xt) / precision


class Known(TabledState):
    """A mean (B, L, D), and of tokens a belief that falls with the distance to it."""

    def __init__(self, x0: Tensor) -> None:
        super().__init__(-(x0[:, :, None] - TABLE).square().sum(-1), TABLE)
        self.x0 = x0

    def state(self, where: Tensor | None = None) -> Tensor:
        return self.x0 if where is None else self.x0[where]

    def landing(self) -> Tensor:
        """The mean: the mixture's vectors are not those of the tokens."""
        return self.x0


@dataclass
class Mixture:
    """E[x0 | xt], or E[x0 | xt, y] where the class is told."""

    process: Gaussian = PROCESS
    calls: int = 0

    def predictor(self, batch: Batch) -> "MixturePredictor":
        told = batch.source_attend[:, 0] if batch.source.shape[1] else torch.zeros(len(batch.tokens), dtype=torch.bool)
        label = batch.source[:, 0] if batch.source.shape[1] else torch.zeros(len(batch.tokens), dtype=torch.long)
        return MixturePredictor(self, label, told)

    def canvas(self, batch: Batch) -> tuple[Tensor, Tensor]:
        return TABLE[batch.tokens], batch.target

    def decode(self, x0: Tensor) -> Tensor:
        return (x0[:, :, None] - TABLE).square().sum(-1).argmin(-1)


@dataclass
class MixturePredictor:
    denoiser: Mixture
    label: Tensor
    told: Tensor

    def __call__(self, xt: Tensor, t: Tensor, previous: Prediction | None = None) -> Known:
        self.denoiser.calls += 1
        chance = log_classes(xt, 1 - PROCESS.alpha(t)).exp()
        means = torch.stack([mean_given(xt, t, torch.full((len(xt),), label)) for label in range(CLASSES)], 1)
        without = (chance[:, :, None, None] * means).sum(1)
        return Known(torch.where(self.told[:, None, None], mean_given(xt, t, self.label), without))

    def rows(self, index: Tensor) -> "MixturePredictor":
        return replace(self, label=self.label[index], told=self.told[index])


class KnowsMixture:
    """The exact classifier of the same law."""

    def log_prob(self, z: Tensor, noise: Tensor, attend: Tensor) -> Tensor:
        return log_classes(z, noise)


class KnowsTokens:
    """A classifier of each token by the sign of the first number of its vector: log p = log sigmoid(+-x)."""

    def log_prob(self, z: Tensor, noise: Tensor, attend: Tensor) -> Tensor:
        return torch.stack([-z[..., 0], z[..., 0]], -1).mul(0.5).log_softmax(-1)
