"""Classifier-free guidance (Ho and Salimans 2022) of token diffusion (D-CFG, Schiff et al. 2024; Nisonoff et al. 2024) and of vectors.

One network, trained with its condition hidden now and then, is asked twice, and the two answers are weighed:
    p_gamma ~ p(. | y)^gamma p(.)^(1 - gamma)
gamma = 0 is the unconditional model and gamma = 1 the conditional one, each in one call; above 1 the condition counts more than it should.
Masks: the beliefs about x0 are weighed, which keeps the rate of reveals. Uniform and hybrid noise: the laws p(xs | xt) are. Gaussian noise:
the means of x0 are (textdiff/guidance/vectors.py).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from textdiff.batch import Batch
from textdiff.guidance.base import Guidance, Guided, GuidedDenoiser, GuidedProcess, Law, Unconditional, each, token_process
from textdiff.guidance.vectors import SourceHidden, WeighedVectors
from textdiff.prediction import Prediction
from textdiff.processes.base import Denoiser, Predictor, Process
from textdiff.processes.gaussian import Gaussian
from textdiff.processes.hybrid import Hybrid
from textdiff.processes.masked import Masked


@runtime_checkable
class Untold(Protocol):
    """A model that says whether it has learnt to do without its condition."""

    @property
    def learnt_untold(self) -> bool:
        """True where training hid the condition now and then, or where the model reads none."""
        ...


@dataclass(frozen=True)
class ClassifierFree(Guidance):
    """The condition is the label in the batch's `source` (B, 1), for vectors also a text (B, S) that an encoder reads; the model is asked
    with it and not told it, which it must have learnt both by `label_dropout`. Rows of the data that came without a label leave no trace in
    the model and do not count.

    Raises ValueError for a negative gamma, for another gamma than 1 where the model never learnt to do without its condition, for noise
    over neither tokens nor vectors, and, when asked for a batch, where that has no source.
    """

    gamma: float = 1.0

    def __post_init__(self) -> None:
        _check(self.gamma)

    def __call__(self, denoiser: Denoiser) -> Denoiser:
        if self.gamma == 1:
            return denoiser
        _require_untold(denoiser, self.gamma)
        if isinstance(denoiser.process, Gaussian):
            return SourceHidden(denoiser) if self.gamma == 0 else WeighedVectors(denoiser, self.gamma)
        token_process(denoiser.process)
        return Unconditional(denoiser) if self.gamma == 0 else _TwoCalls(denoiser, self.gamma)


@dataclass(frozen=True)
class PromptMasked(Guidance):
    """Guidance by the prompt, for models trained without conditions (LLaDA, SMDM): the unconditional call sees [MASK] in place of every
    token that is known. Their logits = un + (w + 1) (cond - un) are this with gamma = w + 1, and w = 0 is no guidance.

    Raises ValueError for a negative gamma, and for noise without [MASK].
    """

    gamma: float = 1.0

    def __post_init__(self) -> None:
        _check(self.gamma)

    def __call__(self, denoiser: Denoiser) -> Denoiser:
        process = denoiser.process
        if not isinstance(process, (Masked, Hybrid)):
            raise ValueError(f"PromptMasked hides the prompt behind [MASK], which {type(process).__name__} noise lacks: use ClassifierFree")
        if self.gamma == 1:
            return denoiser
        hidden = _PromptHidden(denoiser, process.mask_id)
        return hidden if self.gamma == 0 else _TwoCalls(denoiser, self.gamma, hidden)


def _check(gamma: float) -> None:
    if not 0 <= gamma < float("inf"):
        raise ValueError(f"gamma is {gamma}, expected 0 (unconditional), 1 (conditional) or more")


def _require_untold(denoiser: Denoiser, gamma: float) -> None:
    model = denoiser
    while isinstance(model, GuidedDenoiser):
        model = model.inner
    if isinstance(model, Untold) and not model.learnt_untold:
        asked = f"gamma is {gamma} and the model's condition was never hidden in training"
        raise ValueError(f"{asked}: train with label_dropout above 0, or use gamma 1")


def tempered(conditional: Tensor, without: Tensor, gamma: float) -> Tensor:
    """gamma log p(. | y) + (1 - gamma) log p(.), not normalised; what either rules out stays ruled out.

    Raises ValueError where nothing is left.
    """
    ruled_out = conditional.isneginf() | without.isneginf()  # their difference would be no number
    if bool(ruled_out.all(-1).any()):
        raise ValueError("the beliefs with and without the condition have no token in common: apply filters to the guided denoiser")
    return (gamma * conditional + (1 - gamma) * without).masked_fill(ruled_out, -torch.inf)


class Tempered(Guided):
    """Two beliefs weighed, where they are asked for."""

    def __init__(self, conditional: Prediction, without: Prediction, gamma: float, target: Tensor) -> None:
        self.conditional, self.without, self.gamma, self.target = conditional, without, gamma, target
        self.shape, self.device, self.calls = conditional.shape, conditional.device, conditional.calls + without.calls

    def logits(self, where: Tensor | None = None) -> Tensor:
        return tempered(self.conditional.logits(where), self.without.logits(where), self.gamma)

    def each(self, change: Callable[[Prediction], Prediction]) -> "Tempered":
        return Tempered(each(self.conditional, change), each(self.without, change), self.gamma, self.target)

    def _chunks(self, where: Tensor) -> Iterator[tuple[slice, Tensor]]:
        for (rows, conditional), (_, without) in zip(self.conditional._chunks(where), self.without._chunks(where), strict=True):
            yield rows, tempered(conditional, without, self.gamma)


@dataclass(frozen=True)
class TemperedPosteriors(GuidedProcess):
    """Weighs p(xs | xt) of the two beliefs instead of the beliefs."""

    gamma: float = 1.0

    def law(self, pred: Prediction, xt: Tensor, t: Tensor, s: Tensor) -> Law:
        assert isinstance(pred, Tempered)
        beliefs = (pred.conditional, pred.without)

        def at(where: Tensor) -> Tensor:
            conditional, without = (self.inner.log_posterior(part, xt, t, s, where) for part in beliefs)
            return tempered(conditional, without, self.gamma).log_softmax(-1)

        return at


class _PromptHidden(GuidedDenoiser):
    """A denoiser that sees [MASK] where tokens are known."""

    def __init__(self, inner: Denoiser, mask_id: int) -> None:
        super().__init__(inner)
        self.mask_id = mask_id

    def predictor(self, batch: Batch) -> Predictor:
        _, target = self.canvas(batch)
        return _HidingPredictor(self.inner.predictor(batch._replace(target=batch.attend)), ~target & batch.attend, self.mask_id)


@dataclass(frozen=True)
class _HidingPredictor:
    inner: Predictor
    known: Tensor  # (B, L) bool
    mask_id: int

    def __call__(self, xt: Tensor, t: Tensor, previous: Prediction | None = None) -> Prediction:
        return self.inner(xt.masked_fill(self.known, self.mask_id), t, previous)

    def rows(self, index: Tensor) -> "_HidingPredictor":
        return replace(self, inner=self.inner.rows(index), known=self.known[index])


class _TwoCalls(GuidedDenoiser):
    """Asks `inner` with the condition, and `without` (default: `inner` not told it) beside it."""

    def __init__(self, inner: Denoiser, gamma: float, without: Denoiser | None = None) -> None:
        super().__init__(inner)
        self.gamma, self.without, self.by_source = gamma, without or Unconditional(inner), without is None

    @property
    def process(self) -> Process:
        process = token_process(self.inner.process)
        return process if isinstance(process, Masked) else TemperedPosteriors(process.schedule, inner=process, gamma=self.gamma)

    def predictor(self, batch: Batch) -> Predictor:
        if self.by_source and batch.source.shape[1] == 0:
            raise ValueError(f"guidance with gamma {self.gamma} needs a condition and the batch has no source: give one, or gamma 0")
        return _TwoPredictors(self.inner.predictor(batch), self.without.predictor(batch), self.gamma, self.canvas(batch)[1])


@dataclass(frozen=True)
class _TwoPredictors:
    conditional: Predictor
    without: Predictor
    gamma: float
    target: Tensor  # (B, L) bool

    def __call__(self, xt: Tensor, t: Tensor, previous: Prediction | None = None) -> Tempered:
        before = (previous.conditional, previous.without) if isinstance(previous, Tempered) else (None, None)
        return Tempered(self.conditional(xt, t, before[0]), self.without(xt, t, before[1]), self.gamma, self.target)

    def rows(self, index: Tensor) -> "_TwoPredictors":
        return replace(self, conditional=self.conditional.rows(index), without=self.without.rows(index), target=self.target[index])
