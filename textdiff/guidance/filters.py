"""Temperature, top-k and top-p: changes of the law that tokens are drawn from, applied to the prediction before any posterior."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from textdiff.batch import Batch
from textdiff.guidance.base import Guidance, GuidedDenoiser, GuidedProcess, each
from textdiff.guidance.vectors import MovingDenoiser
from textdiff.prediction import MostProbable, Prediction, TransformedPrediction
from textdiff.processes.base import Denoiser
from textdiff.processes.gaussian import Gaussian
from textdiff.state_prediction import Moved, StatePrediction


@runtime_checkable
class Weighing(Protocol):
    """A model of vectors that says what its beliefs are made of."""

    @property
    def weighs_tokens(self) -> bool:
        """True where the mean of x0 is one of a table's rows, weighed by a softmax over tokens."""
        ...


@dataclass(frozen=True)
class Filters(Guidance):
    """Divide logits by `temperature` (0: always the most probable token), keep the `top_k` best (0: all), then the nucleus of mass `top_p`.

    The token that crosses `top_p` is kept (Holtzman et al. 2020, as Hugging Face and Duo; BD3-LM and ReMDM drop it). They are made for the
    outside of other guidance, so that the tokens kept are the best of the guided belief about x0. Where guidance weighs reverse steps, each
    belief that it weighs is divided by the temperature and cut to those tokens: the best of p(xs | xt) itself is almost always not to move.

    Of vectors it is the mean that changes, where it is one of a table's rows weighed by a softmax; raises ValueError, when it wraps the
    model, for vectors that are regressed or guided.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature is {self.temperature}, expected 0 (greedy) or more, and finite")
        if self.top_k < 0:
            raise ValueError(f"top_k is {self.top_k}, expected 0 (keep all) or more")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}, expected a number in (0, 1]")

    def __call__(self, denoiser: Denoiser) -> Denoiser:
        if self == Filters():
            return denoiser
        if isinstance(denoiser.process, Gaussian):
            if isinstance(denoiser, GuidedDenoiser):
                raise ValueError("no softmax weighs vectors that guidance moved: leave temperature, top-k and top-p out, or the guidance")
            if not isinstance(denoiser, Weighing) or not denoiser.weighs_tokens:
                raise ValueError("temperature, top-k and top-p act on beliefs about tokens and this model draws vectors: leave them out")
            return MovingDenoiser(denoiser, self._moved)
        return GuidedDenoiser(denoiser, self.within if isinstance(denoiser.process, GuidedProcess) else self.applied)

    def applied(self, pred: Prediction) -> Prediction:
        """A prediction that draws from the filtered law."""
        return MostProbable(pred) if self.temperature == 0 else TransformedPrediction(pred, self.logits)

    def _moved(self, pred: StatePrediction, xt: Tensor, t: Tensor, batch: Batch) -> Moved:
        return Moved(pred, pred.landing() if self.temperature == 0 else pred.weighed(self.logits), pred.calls)

    def within(self, pred: Prediction) -> Prediction:
        """A guided prediction whose beliefs keep the tokens that the filtered guided belief does."""
        kept = self.applied(pred)
        return each(pred, lambda belief: _Kept(belief, kept, self.temperature or 1.0))  # at 0 one token is left, whatever its logit

    def logits(self, logits: Tensor) -> Tensor:
        """Filtered logits (N, V) at a temperature above 0; what is dropped is -inf."""
        logits = logits / self.temperature
        if 0 < self.top_k < logits.shape[-1]:
            least = logits.topk(self.top_k, dim=-1).values[:, -1:]
            logits = logits.masked_fill(logits < least, -torch.inf)
        if self.top_p < 1:
            ordered, index = logits.sort(dim=-1, descending=True, stable=True)
            probability = ordered.softmax(-1)
            before = probability.double().cumsum(-1) - probability.double()
            logits = logits.masked_fill((before >= self.top_p).gather(-1, index.argsort(-1)), -torch.inf)
        return logits


class _Kept(Prediction):
    """A belief at a temperature above 0, cut to the tokens that `kept` gives a chance."""

    def __init__(self, inner: Prediction, kept: Prediction, temperature: float) -> None:
        self.inner, self.kept, self.temperature = inner, kept, temperature
        self.shape, self.device, self.calls = inner.shape, inner.device, inner.calls

    def logits(self, where: Tensor | None = None) -> Tensor:
        return (self.inner.logits(where) / self.temperature).masked_fill(self.kept.logits(where).isneginf(), -torch.inf)
