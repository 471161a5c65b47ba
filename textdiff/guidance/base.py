"""Guidance wraps a denoiser in a denoiser, so that no sampler knows it exists.

What changes the belief about x0 leaves the process alone (`GuidedDenoiser`), and every sampler goes on working. What changes the law of a
reverse step itself brings a process of its own (`GuidedProcess`), for samplers that step by step through it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from textdiff.batch import Batch
from textdiff.prediction import Prediction, draw_categorical
from textdiff.processes.base import Denoiser, Predictor, Process, TokenProcess, Wrapped
from textdiff.processes.block import Block
from textdiff.processes.masked import Masked
from textdiff.randomness import Rng

_POSITIONS = 256  # rows of a table (N, V) float64 held at once; several of that size exist at a time


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

    def extend(self, tokens: Tensor) -> "GuidedPredictor":
        """The same after finished blocks, for predictors that go block by block."""
        return GuidedPredictor(self.inner.extend(tokens), self.change)  # type: ignore[attr-defined]

    def read(self, tokens: Tensor) -> Prediction:
        """The changed belief about the next token, for predictors that read left to right."""
        return self.change(self.inner.read(tokens))  # type: ignore[attr-defined]

    def read_each(self, tokens: Tensor) -> Prediction:
        """The changed belief about the token after each, for predictors that read left to right."""
        return self.change(self.inner.read_each(tokens))  # type: ignore[attr-defined]

    def crop(self, count: Tensor) -> None:
        """The wrapped predictor forgets the last tokens of each row, for predictors that read left to right."""
        self.inner.crop(count)  # type: ignore[attr-defined]


class GuidedDenoiser:
    """A denoiser with the canvas of another; a subclass gives its predictions, and its process where that is another too."""

    def __init__(self, inner: Denoiser, change: Callable[[Prediction], Prediction] = lambda pred: pred) -> None:
        self.inner, self.change = inner, change

    @property
    def process(self) -> Process:
        """The process of the wrapped denoiser."""
        return self.inner.process

    def predictor(self, batch: Batch) -> Predictor:
        """The wrapped predictor of a batch."""
        return GuidedPredictor(self.inner.predictor(batch), self.change)

    def canvas(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The canvas of the wrapped denoiser."""
        return self.inner.canvas(batch)

    def decode(self, x0: Tensor) -> Tensor:
        """The ids of the wrapped denoiser."""
        return self.inner.decode(x0)


class Unconditional(GuidedDenoiser):
    """A denoiser that is not told the condition, a label; for a batch whose source is text it raises ValueError."""

    def predictor(self, batch: Batch) -> Predictor:
        if batch.source.shape[1] > 1:
            raise ValueError(f"the source is {tuple(batch.source.shape)}, expected one label per row: guidance takes no text to encode")
        return self.inner.predictor(batch._replace(source=batch.source[:, :0], source_attend=batch.source_attend[:, :0]))


class Guided(Prediction):
    """A belief that carries what a `GuidedProcess` must know of its batch; its logits are what the guidance believes of x0."""

    target: Tensor  # (B, L) bool, the positions that are generated

    def each(self, change: Callable[[Prediction], Prediction]) -> "Guided":
        """The same with each of the beliefs that it is made of changed."""
        raise NotImplementedError


def each(pred: Prediction, change: Callable[[Prediction], Prediction]) -> Prediction:
    """A belief changed, or where it is `Guided` all that it is made of."""
    return pred.each(change) if isinstance(pred, Guided) else change(pred)


Law = Callable[[Tensor], Tensor]  # where (B, L) bool -> log p(xs | xt) there, (N, V), normalised


@dataclass(frozen=True)
class GuidedProcess(Wrapped):
    """The noise of `inner`, with reverse steps drawn from the table of a guided `law`, which a subclass gives.

    It reads the predictions of the guided denoiser it belongs to, raising ValueError for any other. It has no bound: guided samples follow
    no model's law.
    """

    inner: TokenProcess = field(default=Masked(), kw_only=True)

    def law(self, pred: Prediction, xt: Tensor, t: Tensor, s: Tensor) -> Law:
        """The guided law of one reverse step, asked for in parts."""
        raise NotImplementedError

    def changes(self, xt: Tensor, t: Tensor, s: Tensor, rng: Rng) -> Tensor:
        """Every position that is not settled: guidance decides how likely a change is."""
        return ~self.inner.settled(xt)

    def step(self, pred: Prediction, xt: Tensor, t: Tensor, s: Tensor, rng: Rng) -> Tensor:
        """One draw per position from its guided law; what is known stays."""
        if not isinstance(pred, Guided):
            raise ValueError("guidance of reverse steps must be the outermost but for Filters: put other guidance inside of it")
        law, uniform, xs = self.law(pred, xt, t, s), rng.uniform("draw", (xt.shape[1],)), xt
        for where in _portions(pred.target & self.changes(xt, t, s, rng)):
            xs = xs.masked_scatter(where, draw_categorical(law(where), uniform[where])[0])
        return xs

    def log_posterior(self, pred: Prediction, xt: Tensor, t: Tensor, s: Tensor, where: Tensor) -> Tensor:
        return self.law(pred, xt, t, s)(where)

    def log_ratio(self, pred: Prediction, xt: Tensor, t: Tensor, where: Tensor) -> Tensor:
        raise ValueError("this guidance changes reverse steps, not the rates of jumps: sample with Ancestral")


def _portions(where: Tensor) -> Iterator[Tensor]:
    """`where` (B, L) bool in parts of few positions each, in row-major order."""
    for part in where.flatten().nonzero()[:, 0].split(_POSITIONS):
        yield torch.zeros_like(where.flatten()).index_fill(0, part, True).view_as(where)


def token_process(process: Process) -> TokenProcess:
    """The process of a token diffusion model; raises ValueError for any other."""
    if not isinstance(process, TokenProcess) or isinstance(process, Block):  # whole rows would be taken for finished blocks
        raise ValueError(f"this guidance steers noise over tokens of whole rows and the model's process is {type(process).__name__}")
    return process
