"""What is differentiated: an option of the model, kept apart from the bound so that no training heuristic leaks into a reported number."""

from dataclasses import dataclass

from torch import Tensor

from textdiff.batch import Clean
from textdiff.prediction import Prediction
from textdiff.processes.base import Noised, Process
from textdiff.processes.masked import Masked


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
        nats = process.nelbo_at(pred, clean, noised.xt, noised.t, where)
        nats = nats * noised.weight[:, None].to(nats.dtype)
        return nats, nats.detach()


@dataclass(frozen=True)
class CrossEntropy(Objective):
    """Unweighted cross-entropy of the masked tokens (BERT, MaskGIT): every masking rate counts by its number of masks."""

    def __call__(self, process: Process, pred: Prediction, clean: Clean, noised: Noised, where: Tensor) -> tuple[Tensor, Tensor]:
        if not isinstance(process, Masked):
            raise ValueError(f"CrossEntropy divides out the weight of masked diffusion; {type(process).__name__} needs the Bound objective")
        nats, bound = Bound()(process, pred, clean, noised, where)
        weight = noised.weight * process.rate(noised.t)
        weight = weight.where(weight > 0, 1.0)  # a row without targets has weight 0, and no cost to divide
        return nats / weight[:, None].to(nats.dtype), bound
