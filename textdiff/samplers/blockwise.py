"""Block-by-block sampling of block diffusion (BD3-LM, Arriola et al. 2025) with the keys and values of finished blocks kept."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from textdiff.batch import Batch
from textdiff.processes.base import Denoiser, Predictor, Process
from textdiff.processes.block import Block
from textdiff.randomness import Rng
from textdiff.samplers.ancestral import Ancestral
from textdiff.samplers.base import Canvas, Sampler, start


@runtime_checkable
class Extensible(Predictor, Protocol):
    """A predictor that finished blocks can be put before."""

    def extend(self, tokens: Tensor) -> "Extensible":
        """The predictor of the block after `tokens` (B, n), finished, which follow those it was extended by before; the old one stays."""
        ...

    def rows(self, index: Tensor) -> "Extensible":
        """The same for a subset of rows."""
        ...


@dataclass(frozen=True)
class OneBlock:
    """A denoiser whose canvas is one block: all that the inner sampler sees."""

    process: Process
    predict: Predictor

    def predictor(self, batch: Batch) -> Predictor:
        """The block's predictor; it is bound to its rows already."""
        return self.predict

    def canvas(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The tokens are their own state."""
        return batch.tokens, batch.target

    def decode(self, x0: Tensor) -> Tensor:
        """The state is the tokens."""
        return x0


@dataclass(frozen=True)
class Blockwise(Sampler):
    """Run `inner`, any sampler of the inner process, on each block that holds targets; its law is that of `inner`.

    One more call writes the keys and values of what was finished since the last one, and is counted. `eos_id` >= 0 ends a row with the
    block in which its first end token was drawn: targets of later blocks are left as they were given. Finished rows leave the batch.
    """

    requires: ClassVar[type[Block]] = Block
    inner: Sampler = Ancestral()
    eos_id: int = -1

    def __post_init__(self) -> None:
        object.__setattr__(self, "law", self.inner.law)

    @torch.no_grad()
    def trajectory(self, denoiser: Denoiser, batch: Batch, rng: Rng) -> Iterator[Canvas]:
        self.check(denoiser)
        process = denoiser.process
        assert isinstance(process, Block)
        canvas, known, target = start(denoiser, batch, rng)
        yield canvas
        predictor, finished = denoiser.predictor(batch), 0
        if not isinstance(predictor, Extensible):
            raise ValueError(f"{type(predictor).__name__} cannot follow finished blocks: sample block diffusion without this guidance")
        alive, waiting = torch.arange(len(target), device=target.device), target
        columns = _columns(target, process.size)
        for left, here in zip(reversed(range(len(columns))), columns, strict=True):
            ended = (target & ~waiting & (canvas.x == self.eos_id)).any(1)
            goes_on = (waiting.any(1) & ~ended)[alive]
            predictor, alive = predictor.rows(goes_on.nonzero()[:, 0]), alive[goes_on]
            if not len(alive):
                break
            writes = target[alive, here].any(1)
            index = alive[writes]
            if not len(index):  # only rows that have ended had targets here
                continue
            predictor, finished = predictor.extend(canvas.x[alive, finished : here.start]), here.start
            view = OneBlock(process.inner, predictor.rows(writes.nonzero()[:, 0]))
            # a row counts the calls that it needs, however long its neighbours' prompts are
            before = canvas._replace(nfe=canvas.nfe.index_add(0, index, torch.full_like(index, int(finished > 0))))
            for inner in self.inner.trajectory(view, _part(batch, known, target, index, here), rng.rows(index).draw(finished)):
                canvas = _placed(inner, before, index, here)._replace(t=(left + inner.t) / len(columns))
                yield canvas
            waiting = waiting.clone()
            waiting[index, here] = False
        if bool(waiting.any()):  # rows that ended early
            yield Canvas(canvas.x.where(~waiting, known), 0.0, canvas.nfe, torch.ones_like(target))


def _columns(target: Tensor, size: int) -> list[slice]:
    """The columns of each block that holds a target in some row."""
    length = target.shape[1]
    blocks = [slice(start, min(start + size, length)) for start in range(0, length, size)]
    return [block for block in blocks if bool(target[:, block].any())]


def _part(batch: Batch, known: Tensor, target: Tensor, index: Tensor, here: slice) -> Batch:
    """Some columns of some rows as a batch of their own."""
    part = Batch.of(known[index, here], target[index, here], batch.attend[index, here], batch.document[index, here])
    return part._replace(sample_id=batch.sample_id[index])


def _placed(inner: Canvas, whole: Canvas, index: Tensor, here: slice) -> Canvas:
    """The canvas of some columns of some rows, put into that of all."""
    x, settled = whole.x.clone(), whole.settled.clone()
    x[index, here], settled[index, here] = inner.x, inner.settled
    return Canvas(x, inner.t, whole.nfe.index_add(0, index, inner.nfe), settled)
