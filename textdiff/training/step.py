"""One optimizer step over a window of micro-batches."""

import math
from collections.abc import Mapping
from contextlib import nullcontext
from typing import NamedTuple

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import gather_object
from torch import Tensor, nn

from textdiff.batch import Batch
from textdiff.models.base import Loss
from textdiff.training.order import derived_seed
from textdiff.training.weights import whole


class NonFiniteLossError(ValueError):
    """The loss or its gradient is infinite or not a number; the weights are as they were before the step."""


class Outcome(NamedTuple):
    """What a step did, summed over all processes."""

    tokens: int
    sums: dict[str, float]  # loss, nelbo and the model's metrics, each a sum over the tokens
    gradient_norm: float  # before clipping


class OptimizerStep:
    """Forward and backward over a window, clipping and the update; `model` is the prepared one."""

    def __init__(self, accelerator: Accelerator, model: nn.Module, optimizer: AcceleratedOptimizer, clip: float, seed: int) -> None:
        self.accelerator, self.model, self.optimizer, self.clip, self.seed = accelerator, model, optimizer, clip, seed

    def __call__(self, step: int, window: list[Batch], learning_rate: float, progress: float) -> Outcome:
        """Take step `step`; raises NonFiniteLossError before anything has changed, ValueError when a micro-batch does not fit in memory."""
        self.optimizer.zero_grad()
        counted = torch.tensor(sum(int(batch.target.sum()) for batch in window), device=self.accelerator.device)
        count = self.accelerator.reduce(counted, reduction="sum")
        try:
            losses = [self._backward(step, micro, window, count, progress) for micro in range(len(window))]
        except torch.OutOfMemoryError as error:
            rows = len(window[0].tokens)
            raise ValueError(f"out of memory at step {step} with {rows} rows at a time: raise accumulation or lower batch_size") from error
        norm = whole(self.accelerator.clip_grad_norm_(self.model.parameters(), self.clip))
        sums = self.accelerator.reduce(_sums(losses), reduction="sum")
        *totals, gradient_norm, tokens = torch.cat([sums, torch.stack([norm, count]).to(sums)]).tolist()
        if not (math.isfinite(totals[0]) and math.isfinite(gradient_norm)):
            raise NonFiniteLossError(self._fault(step, window, losses, totals[0], gradient_norm))
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate * group["rate"]
        self.optimizer.step()
        return Outcome(int(tokens), dict(zip(("loss", "nelbo", *losses[0].metrics), totals, strict=True)), gradient_norm)

    def _backward(self, step: int, micro: int, window: list[Batch], count: Tensor, progress: float) -> Loss:
        world = self.accelerator.num_processes
        # Dropout draws from the ambient generator: tie it to the place of the micro-batch in the global batch.
        torch.manual_seed(derived_seed(self.seed, step, self.accelerator.process_index * len(window) + micro))
        with nullcontext() if micro == len(window) - 1 else self.accelerator.no_sync(self.model):
            loss: Loss = self.model(window[micro].to(self.accelerator.device), self.seed, step, progress)
            scale = (world / count.clamp(min=1)).to(loss.total.dtype)  # the wrapper averages gradients over processes: world undoes it
            self.accelerator.backward(loss.total * scale)
        return Loss(loss.total.detach(), loss.tokens, loss.nelbo.detach(), {name: value.detach() for name, value in loss.metrics.items()})

    def _fault(self, step: int, window: list[Batch], losses: list[Loss], loss: float, norm: float) -> str:
        pairs = zip(window, losses, strict=True)
        mine = [i for batch, one in pairs if not torch.isfinite(one.total) for i in batch.sample_id.tolist()]
        suspects = gather_object(mine) or gather_object([i for batch in window for i in batch.sample_id.tolist()])
        shown = f"{suspects[:16]}{' ...' if len(suspects) > 16 else ''}"
        return (
            f"step {step}: the loss is {loss} and the gradient norm {norm}; samples {shown}. The step was not taken: "
            "lower the learning rate, look at these samples, or resume from the last checkpoint"
        )


def _sums(losses: list[Loss]) -> Tensor:
    rows = [torch.stack([value.double() for value in (loss.total, loss.nelbo, *loss.metrics.values())]) for loss in losses]
    return torch.stack(rows).sum(dim=0)


class Meter:
    """Sums since the last logged row; plain numbers, so that a checkpoint carries them over."""

    def __init__(self, saved: Mapping[str, float] | None = None) -> None:
        self.values: dict[str, float] = dict(saved or {})

    def add(self, outcome: Outcome, seconds: float) -> None:
        """Take in one step that took `seconds`."""
        for name, value in {**outcome.sums, "tokens": outcome.tokens, "seconds": seconds}.items():
            self.values[name] = self.values.get(name, 0.0) + value

    def flush(self) -> dict[str, float]:
        """Means per token, and tokens per second; the sums begin again."""
        tokens, seconds = self.values.pop("tokens"), self.values.pop("seconds")
        means = {name: value / max(1, tokens) for name, value in self.values.items()}
        self.values = {}
        return {**means, "tokens_per_second": tokens / max(seconds, 1e-9)}
