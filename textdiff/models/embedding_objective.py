"""What embedding diffusion models differentiate; the bound they are measured by is the process's."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from textdiff.batch import Clean
from textdiff.processes.base import Noised, per_token
from textdiff.processes.gaussian import Gaussian
from textdiff.state_prediction import Regressed, StatePrediction


class Encoded(NamedTuple):
    """Tokens and their vectors."""

    clean: Clean  # tokens, and the state that is noised
    rows: Tensor  # (B, L, D) the embeddings themselves, which the state may surround with noise


@dataclass(frozen=True)
class EmbeddingObjective:
    """A per-token loss."""

    own_noise = 0.0  # standard deviation of the noise around embeddings that makes the state x0 in training

    def __call__(self, process: Gaussian, pred: StatePrediction, encoded: Encoded, noised: Noised, where: Tensor) -> Tensor:
        """Nats, or squared error per number, (B, L), zero off `where`."""
        raise NotImplementedError


@dataclass(frozen=True)
class TokenCrossEntropy(EmbeddingObjective):
    """-log p(token | xt), every noise level alike (CDCD, LangFlow; Diffusion-LM's "e2e-simple" with `own_noise`). Its gradient passes
    through the prediction, so that equal embeddings cost something."""

    own_noise: float = 0.0

    def __call__(self, process: Gaussian, pred: StatePrediction, encoded: Encoded, noised: Noised, where: Tensor) -> Tensor:
        return _spread(-pred.log_prob(encoded.clean.tokens, where), where)


@dataclass(frozen=True)
class DiffusionLM(EmbeddingObjective):
    """Diffusion-LM's end-to-end loss (Li et al. 2022, eq. 2), means over the numbers of a vector:

        |x0 - f(xt)|^2, or |E(w) - f(xt)|^2 in the first of `steps` steps from t_min;  |a_1 x0|^2;  -log p(w | x0)

    with x0 = E(w) + own_noise z. The last term reads the noised truth, not the prediction: weights below 1 let embeddings collapse, and
    `anchor` adds the cross-entropy of the prediction, which does not (Difformer, Gao et al. 2024).
    """

    own_noise: float = 0.121  # sqrt(1 - alpha) after the first of 2000 steps of the sqrt schedule
    steps: int = 2000
    rounding: float = 1.0
    anchor: float = 0.0

    def __post_init__(self) -> None:
        if min(self.rounding, self.anchor, self.own_noise) < 0 or self.steps < 1:
            raise ValueError(f"rounding {self.rounding}, anchor {self.anchor}, own_noise {self.own_noise}: expected 0 or more of each")

    def __call__(self, process: Gaussian, pred: StatePrediction, encoded: Encoded, noised: Noised, where: Tensor) -> Tensor:
        clean = encoded.clean
        first = per_token(noised.t) < process.t_min + 1 / self.steps
        wanted = torch.where(first.expand(where.shape)[..., None], encoded.rows, clean.x)
        end = process.alpha(torch.ones((), dtype=torch.float64, device=where.device)).to(clean.x.dtype)
        loss = (wanted - pred.state()).square().mean(-1) + end * clean.x.square().mean(-1)
        if self.rounding:
            loss = loss + self.rounding * _spread(-_regressed(pred).rounded(clean.x).log_prob(clean.tokens, where), where)
        if self.anchor:
            loss = loss + self.anchor * _spread(-pred.log_prob(clean.tokens, where), where)
        return loss.where(where, 0.0)


def _spread(nats: Tensor, where: Tensor) -> Tensor:
    return nats.new_zeros(where.shape).masked_scatter(where, nats)


def _regressed(pred: StatePrediction) -> Regressed:
    if not isinstance(pred, Regressed):
        raise ValueError("the rounding term reads vectors by a rounding head, which a softmax output lacks: use Regression")
    return pred
