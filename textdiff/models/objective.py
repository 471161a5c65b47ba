"""What is differentiated: an option of the model, kept apart from the bound so that no training heuristic leaks into a reported number."""

from dataclasses import dataclass

import torch
from torch import Tensor

from textdiff.batch import Clean
from textdiff.prediction import Prediction
from textdiff.processes.base import Noised, Process, TokenProcess, per_token
from textdiff.processes.hybrid import Hybrid
from textdiff.schedules import inside


@dataclass(frozen=True)
class Objective:
    """A per-token loss."""

    def __call__(self, process: Process, pred: Prediction, clean: Clean, noised: Noised, where: Tensor) -> tuple[Tensor, Tensor]:
        """(loss, bound), each (B, L) nats and zero off `where`; only the loss carries gradients."""
        raise NotImplementedError


@dataclass(frozen=True)
class Bound(Objective):
    """The negative evidence lower bound itself."""

    def __call__(self, process: Process, pred: Prediction, clean: Clean, noised: Noised, where: Tensor) -> tuple[Tensor, Tensor]:
        nats = process.nelbo_at(pred, clean, noised.xt, noised.t, where, noised.s)
        weight = per_token(noised.weight).to(nats.dtype)
        return nats * weight.nan_to_num(1.0), nats.detach() * weight  # times from a part of [0, 1] make a loss, but no bound


@dataclass(frozen=True)
class CrossEntropy(Objective):
    """Plain cross-entropy of the tokens that noise may have changed, every noise level alike (BERT, MaskGIT; UDLM's simple loss)."""

    def __call__(self, process: Process, pred: Prediction, clean: Clean, noised: Noised, where: Tensor) -> tuple[Tensor, Tensor]:
        process = _tokens(process)
        nats = process.cross_entropy(pred, clean, noised.xt, noised.t, where)
        if process.clean_costs or noised.s is not None:
            return nats, _bound(process, pred, clean, noised, where)
        found = nats.detach()  # only touched tokens cost something, and that is their cross-entropy times the weight
        weight = (process.weight(clean, noised.xt, noised.t) * per_token(noised.weight)).where(found != 0, 0.0)
        return nats, found * weight.to(nats.dtype)


@dataclass(frozen=True)
class Clipped(Objective):
    """The bound with its weight w_t(z) / q(z) cut at `limit`: rare draws near t = 0 shake the weights less (GIDD's clip)."""

    limit: float = 2.0

    def __post_init__(self) -> None:
        if self.limit <= 0:
            raise ValueError(f"limit is {self.limit}, expected a weight above 0")

    def __call__(self, process: Process, pred: Prediction, clean: Clean, noised: Noised, where: Tensor) -> tuple[Tensor, Tensor]:
        nats = process.nelbo_at(pred, clean, noised.xt, noised.t, where)
        weight = _tokens(process).weight(clean, noised.xt, _continuous(noised))
        share = weight.clamp(max=self.limit) / weight.clamp_min(1e-300)
        return nats * share.to(nats.dtype), nats.detach() * per_token(noised.weight).to(nats.dtype)


@dataclass(frozen=True)
class Dynamic(Objective):
    """GIDD's dynamic weights in place of w_t(z) / q(z): 2 on [MASK], 1 on other noise, and on clean tokens peak / N times
    (alpha / (1 - alpha))^(gamma / 2), at most 2 (their code reads t for the log-SNR; the log-SNR is meant)."""

    def __call__(self, process: Process, pred: Prediction, clean: Clean, noised: Noised, where: Tensor) -> tuple[Tensor, Tensor]:
        if not isinstance(process, Hybrid):
            raise ValueError(f"Dynamic weighs mask and uniform noise apart; {type(process).__name__} is not a Hybrid: use Clipped or Bound")
        nats = process.nelbo_at(pred, clean, noised.xt, noised.t, where)
        weight = process.weight(clean, noised.xt, _continuous(noised)).clamp_min(1e-300)
        alpha = process.alpha(inside(per_token(noised.t)))
        on_clean = (process.peak / len(process.ids) * (alpha / (1 - alpha)) ** (process.gamma / 2)).clamp(max=2.0)
        wanted = torch.where(noised.xt == process.mask_id, 2.0, torch.where(noised.xt == clean.tokens, on_clean, 1.0))
        return nats * (wanted / weight), nats.detach() * per_token(noised.weight).to(nats.dtype)


@dataclass(frozen=True)
class BoundAndCrossEntropy(Objective):
    """The bound plus `weight` times the cross-entropy of each token (D3PM, Austin et al. 2021, eq. 5)."""

    weight: float = 0.01

    def __call__(self, process: Process, pred: Prediction, clean: Clean, noised: Noised, where: Tensor) -> tuple[Tensor, Tensor]:
        loss, bound = Bound()(process, pred, clean, noised, where)
        return loss + self.weight * _tokens(process).cross_entropy(pred, clean, noised.xt, noised.t, where), bound


def _continuous(noised: Noised) -> Tensor:
    if noised.s is not None:
        raise ValueError("this objective replaces the weights of continuous time and the times are bins: use Bound or CrossEntropy")
    return noised.t


def _tokens(process: Process) -> TokenProcess:
    if not isinstance(process, TokenProcess):
        raise ValueError(f"this objective needs noise over tokens and {type(process).__name__} is none: use Bound")
    return process


@torch.no_grad()
def _bound(process: Process, pred: Prediction, clean: Clean, noised: Noised, where: Tensor) -> Tensor:
    return Bound()(process, pred, clean, noised, where)[1]
