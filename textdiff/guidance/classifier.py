"""Classifier guidance of token diffusion (D-CBG, Schiff et al. 2024; Nisonoff et al. 2024).

A classifier p_phi(y | z) that knows noisy text steers a model that knows no labels. Each position l of a reverse step follows
    p_gamma(v) ~ p_phi(y | zs = v at l, the rest of zt)^gamma p(zs = v | zt)
With gamma = 1 and both laws exact this is p(zs | zt, y) of that position, because given zs the position's zt says nothing more. Settled
positions stay what they are; for masked noise the law that is weighed holds [MASK] too, with its chance to stay, so that reveals come
sooner where they help.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from textdiff.batch import Batch
from textdiff.guidance.base import Guidance, Guided, GuidedDenoiser, GuidedProcess, Law, Unconditional, each, token_process
from textdiff.prediction import Prediction
from textdiff.processes.base import Denoiser, Predictor, Process, per_token
from textdiff.randomness import Rng

_TOKENS = 2**16  # read by the classifier at once
_ENTRIES = 2**23  # of one-hot rows held at once


class Classifier(Protocol):
    """log p(y | z): a `textdiff.models.classifier.NoisyClassifier`, or a known law."""

    @property
    def states(self) -> int:
        """Number of ids V."""
        ...

    def log_prob(self, z: Tensor, noise: Tensor, attend: Tensor) -> Tensor:
        """(B, C) nats for z (B, L) ids, or (B, L, V) float rows that weigh ids, at noise levels 1 - alpha (B,) or (B, L); attend (B, L)."""
        ...


@dataclass(frozen=True)
class Classes:
    """What a classifier must know of a batch."""

    label: Tensor  # (B,) long
    told: Tensor  # (B,) bool, False where the class does not matter
    attend: Tensor  # (B, L) bool

    def rows(self, index: Tensor) -> "Classes":
        """The same for a subset of rows."""
        return Classes(self.label[index], self.told[index], self.attend[index])

    def chosen(self, log_prob: Tensor) -> Tensor:
        """Of (B, C) the entry of each row's class, (B,)."""
        return log_prob.gather(1, self.label[:, None])[:, 0]


class Asked(Guided):
    """A belief, and the classes that its rows are to have."""

    def __init__(self, inner: Prediction, classes: Classes, target: Tensor) -> None:
        self.inner, self.classes, self.target = inner, classes, target
        self.shape, self.device, self.calls = inner.shape, inner.device, inner.calls

    def logits(self, where: Tensor | None = None) -> Tensor:
        return self.inner.logits(where)

    def each(self, change: Callable[[Prediction], Prediction]) -> "Asked":
        """The classifier weighs what the changed belief leaves."""
        return Asked(each(self.inner, change), self.classes, self.target)

    def draw(self, where: Tensor, rng: Rng) -> tuple[Tensor, Tensor]:
        """Refused: clean tokens drawn here would not be guided."""
        raise ValueError("classifier guidance steers reverse steps, and this sampler draws clean tokens by itself: sample with Ancestral")


Gain = Callable[[Tensor, Tensor], Tensor]  # where (B, L), possible (N, V) bool -> log p(y | z with l := v) there, (N, V)


@dataclass(frozen=True, eq=False)
class ClassifierBased(Guidance):
    """The class of a row is its label in `batch.source` (B, 1); rows that do not attend to theirs are not guided, and the model is never
    told it. Samplers that draw clean tokens by themselves are refused: this guidance lives in the reverse step. Network calls (`nfe`) are
    the model's: the classifier's own passes are not counted. Filters act on the model's belief, and the classifier weighs what they keep.

    Raises ValueError for a negative gamma, noise that is not over tokens, and, when asked for a batch, a source that is no label.
    """

    classifier: Classifier
    gamma: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.gamma < float("inf"):
            raise ValueError(f"gamma is {self.gamma}, expected 0 (not guided) or more")

    def __call__(self, denoiser: Denoiser) -> Denoiser:
        token_process(denoiser.process)
        return Unconditional(denoiser) if self.gamma == 0 else _ClassifierGuided(denoiser, self)

    def gain(self, classes: Classes, z: Tensor, noise: Tensor, after: Tensor) -> Gain:
        """What each substitution v at each position l of `z` (B, L) does to log p(y | z), up to a constant per position; `noise` is the
        level of z and `after` that of v, (B,) or (B, L)."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class Exact(ClassifierBased):
    """The classifier reads every substitution: up to L * V rows for each row of a step, so for small vocabularies."""

    def gain(self, classes: Classes, z: Tensor, noise: Tensor, after: Tensor) -> Gain:
        most = max(1, _TOKENS // z.shape[1])
        now, then = (per_token(level).expand(z.shape) for level in (noise, after))

        def at(where: Tensor, possible: Tensor) -> Tensor:
            row, column = where.nonzero(as_tuple=True)
            position, token = possible.nonzero(as_tuple=True)
            parts = zip(row[position].split(most), column[position].split(most), token.split(most), strict=True)
            found = [read(rows, columns, ids) for rows, columns, ids in parts]
            return torch.zeros(possible.shape, dtype=torch.float64, device=z.device).masked_scatter(possible, torch.cat(found))

        def read(rows: Tensor, columns: Tensor, ids: Tensor) -> Tensor:
            some, place = classes.rows(rows), columns[:, None]
            levels = now[rows].scatter(1, place, then[rows].gather(1, place))
            log_prob = self.classifier.log_prob(z[rows].scatter(1, place, ids[:, None]), levels, some.attend)
            return some.chosen(log_prob).double()

        return at


@dataclass(frozen=True, eq=False)
class FirstOrder(ClassifierBased):
    """log p(y | z with l := v) = log p(y | z) + g[l, v] - g[l, z_l] to first order, with g the gradient by the one-hot rows of z: one
    forward and one backward pass of the classifier for each row of a step, all at the level of zt."""

    def gain(self, classes: Classes, z: Tensor, noise: Tensor, after: Tensor) -> Gain:
        most = max(1, _ENTRIES // (z.shape[1] * self.classifier.states))
        index = torch.arange(len(z), device=z.device).split(most)
        slopes = torch.cat([self._slopes(classes.rows(rows), z[rows], noise[rows]) for rows in index])
        return lambda where, possible: slopes[where].double()

    @torch.enable_grad()
    def _slopes(self, classes: Classes, z: Tensor, noise: Tensor) -> Tensor:
        soft = F.one_hot(z, self.classifier.states).float().requires_grad_()
        chosen = classes.chosen(self.classifier.log_prob(soft, noise, classes.attend)).sum()
        return torch.autograd.grad(chosen, soft)[0]


@dataclass(frozen=True)
class ClassifierSteps(GuidedProcess):
    """Reverse steps weighed by a classifier."""

    guidance: ClassifierBased = field(kw_only=True)

    def law(self, pred: Prediction, xt: Tensor, t: Tensor, s: Tensor) -> Law:
        assert isinstance(pred, Asked)
        belief, told, gamma = pred.inner, pred.classes.told[:, None].expand(xt.shape), self.guidance.gamma
        gain = self.guidance.gain(pred.classes, xt, 1 - self.inner.alpha(t), 1 - self.inner.alpha(s))

        def at(where: Tensor) -> Tensor:
            table = self.inner.log_posterior(belief, xt, t, s, where).double()
            possible = ~table.isneginf()
            guided = table + gamma * gain(where, possible)
            return torch.where(possible & told[where][:, None], guided, table).log_softmax(-1)

        return at


class _ClassifierGuided(GuidedDenoiser):
    def __init__(self, inner: Denoiser, guidance: ClassifierBased) -> None:
        super().__init__(Unconditional(inner))
        self.guidance = guidance

    @property
    def process(self) -> Process:
        process = token_process(self.inner.process)
        return ClassifierSteps(process.schedule, inner=process, guidance=self.guidance)

    def predictor(self, batch: Batch) -> Predictor:
        if batch.source.shape[1] != 1:
            raise ValueError(f"the source is {tuple(batch.source.shape)}, expected one label per row for the classifier")
        classes = Classes(batch.source[:, 0], batch.source_attend[:, 0], batch.attend)
        return _AskingPredictor(self.inner.predictor(batch), classes, self.canvas(batch)[1])


@dataclass(frozen=True)
class _AskingPredictor:
    inner: Predictor
    classes: Classes
    target: Tensor  # (B, L) bool

    def __call__(self, xt: Tensor, t: Tensor, previous: Prediction | None = None) -> Asked:
        return Asked(self.inner(xt, t, previous), self.classes, self.target)

    def rows(self, index: Tensor) -> "_AskingPredictor":
        return _AskingPredictor(self.inner.rows(index), self.classes.rows(index), self.target[index])
