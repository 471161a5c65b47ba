"""How a diffusion model drafts tokens that a causal model then tests, and which test leaves the causal model's law alone.

A drafted token x_i passes the test against p_i with chance min(1, p_i(x_i) / q_i(x_i)), and is else replaced by a draw from the rest of
p_i above q_i (Leviathan et al. 2023; Chen et al. 2023). What is written then follows p_i if q_i is the law of x_i given all that its test
has seen: the text before it, x_1 .. x_{i-1}, and whatever q_i was made from. Many ways of unmasking know no such q_i: where x_k was drawn
after x_i although it stands before it, or where positions were chosen by what was drawn there. Their tokens are tested against a draw
from p_i instead, which asks nothing of them.
"""

import sys
from collections import deque
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from textdiff.batch import Batch
from textdiff.prediction import MostProbable, Prediction, draw_categorical
from textdiff.processes.base import Denoiser, TokenProcess
from textdiff.processes.block import Block
from textdiff.processes.masked import Masked
from textdiff.processes.next_block import NextBlock
from textdiff.randomness import Rng
from textdiff.samplers.base import Sampler, require_steps, start, written


class Draft(NamedTuple):
    """Tokens at the targets of rows; what they are elsewhere means nothing."""

    tokens: Tensor  # (B, L) long
    # (N, V) float64, what each of the N targets was drawn from, in row-major order; None where that is not known, or all on the token
    law: Tensor | None
    calls: Tensor  # (B,) long, network calls of each row


@dataclass(frozen=True)
class Rule:
    """One test of drafted tokens; p and q are laws as drawn from, after temperature and filters."""

    def chance(self, p: Tensor, q: Tensor | None) -> Tensor:
        """The chance of a token to be accepted, from its probability under the target and in the draft."""
        raise NotImplementedError

    def rest(self, p: Tensor, q: Tensor | None, token: Tensor) -> Tensor:
        """What a refused `token` (B,) is replaced from, (B, V) and not normalised, from the laws (B, V)."""
        raise NotImplementedError


@dataclass(frozen=True)
class Match(Rule):
    """A draw from p is written, and accepted while it is the token: exact for any draft. It is `Spec` for a q all on the token."""

    def chance(self, p: Tensor, q: Tensor | None) -> Tensor:
        return p

    def rest(self, p: Tensor, q: Tensor | None, token: Tensor) -> Tensor:
        return p.scatter(-1, token[:, None], 0.0)


@dataclass(frozen=True)
class Spec(Match):
    """min(1, p / q), and what p has above q: exact where q is the law that the token was drawn from; None is all on the token."""

    def chance(self, p: Tensor, q: Tensor | None) -> Tensor:
        return super().chance(p, q) if q is None else (p / q).clamp_max(1.0)

    def rest(self, p: Tensor, q: Tensor | None, token: Tensor) -> Tensor:
        if q is None:
            return super().rest(p, q, token)
        above = (p - q).clamp_min(0.0)
        return above.where(above.sum(-1, keepdim=True) > 0, p)  # rounding may refuse where p = q


class Place(NamedTuple):
    """What rows hold when a draft is asked for."""

    x: Tensor  # (B, L) long
    settled: Tensor  # (B,) long, tokens that are final
    wanted: Tensor  # (B, L) bool, what is to be written; the rest is given
    size: Tensor  # (B,) long, how many tokens to draft behind those, the given ones among them

    def targets(self) -> Tensor:
        """(B, L) bool: what a draft is to write."""
        column = torch.arange(self.x.shape[1], device=self.x.device)
        behind = (column >= self.settled[:, None]) & (column < (self.settled + self.size)[:, None])
        return behind & self.wanted


class Drafts(Protocol):
    """A drafter in the run of one batch."""

    most: int  # tokens that it can draft now

    def __call__(self, place: Place, rng: Rng) -> Draft:
        """A draft of at least one token."""
        ...

    def listening(self) -> AbstractContextManager[object]:
        """What a pass of the target is made in."""
        ...

    def crop(self, count: Tensor) -> None:
        """The target forgets the last `count` (B,) tokens of each row that it read."""
        ...


@dataclass(frozen=True)
class Drafting:
    """A way of drafting; `rule` is the test that it allows and `reason` says why."""

    rule: ClassVar[Rule] = Match()

    @property
    def reason(self) -> str:
        """Why its tokens are tested by its rule."""
        raise NotImplementedError

    def check(self, drafter: Denoiser) -> None:
        """Raise ValueError when the drafter cannot draft so."""
        raise NotImplementedError

    def begin(self, target: Denoiser, drafter: Denoiser, batch: Batch) -> Drafts:
        """A run over the rows of `batch`; raises ValueError when the two do not fit."""
        raise NotImplementedError


@dataclass(frozen=True)
class FromText(Drafting):
    """A way of unmasking the tokens behind a text that is read anew for each draft."""

    def begin(self, target: Denoiser, drafter: Denoiser, batch: Batch) -> Drafts:
        return _Redrafts(self, drafter, batch)

    def check(self, drafter: Denoiser) -> None:
        process = drafter.process
        if not isinstance(process, TokenProcess) or isinstance(process, Block):
            kind, found = type(self).__name__, type(process).__name__
            other = "FromFeatures()" if isinstance(process, NextBlock) else "AnyOrder(sampler)"
            raise ValueError(f"{kind} drafts with noise over the tokens of whole rows and the drafter's is {found}: use {other}")

    def __call__(self, drafter: Denoiser, batch: Batch, rng: Rng) -> Draft:
        """A token for every target of the batch; each of its rows has one."""
        raise NotImplementedError


@dataclass(frozen=True)
class LeftToRightChunks(FromText):
    """`steps` chunks of each row's targets from left to right, the tokens of one drawn independently from one call; 1: all at once."""

    rule: ClassVar[Rule] = Spec()
    steps: int = 1

    def __post_init__(self) -> None:
        require_steps(self.steps)

    @property
    def reason(self) -> str:
        if self.steps == 1:
            return "all tokens are drawn at once and independently, so that the law of each is known"
        return "chunks are drawn from left to right, so that the law of each token given those before it is known"

    def __call__(self, drafter: Denoiser, batch: Batch, rng: Rng) -> Draft:
        canvas, _, target = start(drafter, batch, rng.draw(0))
        predictor, process, x = drafter.predictor(batch), drafter.process, canvas.x
        total = target.sum(1, keepdim=True)
        chunk = ((target.cumsum(1) - 1) * self.steps // total).masked_fill(~target, -1)
        calls, law = torch.zeros_like(total[:, 0]), None
        for step in range(self.steps):
            here, left = chunk == step, (chunk >= step).sum(1) / total[:, 0].double()
            index = here.any(1).nonzero()[:, 0]
            if len(index):  # a row of fewer targets than steps is written in fewer
                pred = predictor.rows(index)(x[index], process.time_of(1 - left[index]))
                tokens, drawn_from = drawn(pred, here[index], rng.rows(index))
                x, calls = x.masked_scatter(here, tokens), calls.index_add(0, index, torch.full_like(index, pred.calls))
                if drawn_from is not None:
                    law = drawn_from.new_zeros(int(target.sum()), drawn_from.shape[1]) if law is None else law
                    law[here[target]] = drawn_from
        return Draft(written(drafter, batch, x), law, calls)


@dataclass(frozen=True)
class Redrawn(FromText):
    """The text that `hint`, any sampler of the drafter's process, comes to, and then every token drawn anew, independently, from one call
    that reads this text at time `t`: for noise that replaces tokens, where a network still says something about the tokens it sees."""

    rule: ClassVar[Rule] = Spec()
    hint: Sampler
    t: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.t <= 1:
            raise ValueError(f"t is {self.t}, expected a time in [0, 1]")

    @property
    def reason(self) -> str:
        return "all tokens are drawn anew at once and independently, given a hint, so that the law of each is known"

    def check(self, drafter: Denoiser) -> None:
        super().check(drafter)
        if isinstance(drafter.process, Masked):
            raise ValueError("Redrawn asks about tokens that are seen, about which a masked drafter says nothing: use LeftToRightChunks")
        self.hint.check(drafter)

    def __call__(self, drafter: Denoiser, batch: Batch, rng: Rng) -> Draft:
        canvas = deque(self.hint.trajectory(drafter, batch, rng.draw(0)), maxlen=1).pop()
        times = torch.full((len(canvas.x),), self.t, dtype=torch.float64, device=canvas.x.device)
        pred = drafter.predictor(batch)(canvas.x, times)
        _, target = drafter.canvas(batch)
        tokens, law = drawn(pred, target, rng.draw(1))  # numbers that the hint has not met
        return Draft(written(drafter, batch, canvas.x.masked_scatter(target, tokens)), law, canvas.nfe + pred.calls)


@dataclass(frozen=True)
class AnyOrder(FromText):
    """Any sampler of the drafter's process."""

    sampler: Sampler

    @property
    def reason(self) -> str:
        name = type(self.sampler).__name__
        return f"{name} writes tokens in an order of its own, so that the law of one given those before it is not known"

    def check(self, drafter: Denoiser) -> None:
        self.sampler.check(drafter)

    def __call__(self, drafter: Denoiser, batch: Batch, rng: Rng) -> Draft:
        canvas = deque(self.sampler.trajectory(drafter, batch, rng), maxlen=1).pop()
        return Draft(written(drafter, batch, canvas.x), None, canvas.nfe)


class _Redrafts:
    """Drafts that know nothing of each other."""

    most = sys.maxsize

    def __init__(self, drafting: FromText, drafter: Denoiser, batch: Batch) -> None:
        self.drafting, self.drafter, self.batch = drafting, drafter, batch

    def __call__(self, place: Place, rng: Rng) -> Draft:
        width, batch = int((place.settled + place.size).max()), self.batch
        target = place.targets()
        index = target.any(1).nonzero()[:, 0]
        attend = torch.arange(width, device=index.device) < (place.settled + place.size)[:, None]
        tokens = place.x[:, :width].masked_fill(~attend, 0)
        source = {"source": batch.source, "source_attend": batch.source_attend}
        part = Batch.of(tokens, target[:, :width], attend, sample_id=batch.sample_id, **source).rows(index)
        draft = self.drafting(self.drafter, part, rng.rows(index))
        x, calls = place.x.clone(), torch.zeros_like(place.size)
        x[index, :width], calls[index] = draft.tokens, draft.calls
        return Draft(x, draft.law, calls)

    def listening(self) -> AbstractContextManager[object]:
        return nullcontext()

    def crop(self, count: Tensor) -> None:
        pass


def drawn(pred: Prediction, where: Tensor, rng: Rng) -> tuple[Tensor, Tensor | None]:
    """A token at each True position of `where` (B, L), (N,), and the laws they are drawn from, (N, V) float64; None: all is on them."""
    if isinstance(pred, MostProbable):
        return pred.draw(where, rng)[0], None
    logits = pred.logits(where).double()
    tokens, _ = draw_categorical(logits, rng.uniform("draw", (where.shape[1],))[where])
    return tokens, logits.softmax(-1)
