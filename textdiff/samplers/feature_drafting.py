"""Drafts from what a causal model itself says of the text (DFlash, arXiv 2602.06036): the features of the tokens that it has read come with
the passes that test drafts, and one call of a small drafter turns them into the next tokens."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from textdiff.batch import Batch
from textdiff.guidance.base import GuidedDenoiser
from textdiff.prediction import Prediction
from textdiff.processes.base import Denoiser
from textdiff.processes.next_block import NextBlock
from textdiff.randomness import Rng
from textdiff.samplers.drafting import Draft, Drafting, Drafts, Place, Rule, Spec, drawn


class Features(Protocol):
    """What was heard of a pass."""

    @property
    def features(self) -> Tensor | None:
        """(B, n, F), of each token that was read."""
        ...


@runtime_checkable
class Listener(Protocol):
    """A drafter of a causal model."""

    @property
    def most(self) -> int:
        """How many tokens it drafts at most."""
        ...

    def require_target(self, target: object) -> None:
        """Raise ValueError unless this is the model that it drafts for."""
        ...

    def listening(self) -> AbstractContextManager[Features]:
        """What a pass of its target is made in."""
        ...


class BlockPredictor(Protocol):
    """A drafter bound to one batch, which holds what it was told of the text of each row."""

    def __call__(self, xt: Tensor, t: Tensor, previous: Prediction | None = None) -> Prediction:
        """Belief about the tokens of blocks (B, n), of which the first is known and comes right after the text that it was told of."""
        ...

    def extend(self, tokens: Tensor) -> "BlockPredictor":
        """Itself, told the features (B, n, F) of further tokens of the text."""
        ...

    def crop(self, count: Tensor) -> None:
        """Forget the last `count` (B,) tokens of each row."""
        ...


@dataclass(frozen=True)
class FromFeatures(Drafting):
    """As many tokens as the drafter has blanks, or fewer, at once, from the target's features."""

    rule: ClassVar[Rule] = Spec()

    @property
    def reason(self) -> str:
        return "all tokens are drawn at once and independently, given features of the text before them, so that the law of each is known"

    def check(self, drafter: Denoiser) -> None:
        if not isinstance(drafter.process, NextBlock):
            found = type(drafter.process).__name__
            raise ValueError(f"FromFeatures drafts from a target's features and the drafter's process is {found}: use LeftToRightChunks()")

    def begin(self, target: Denoiser, drafter: Denoiser, batch: Batch) -> Drafts:
        listener = _unguided(drafter)
        assert isinstance(listener, Listener)
        listener.require_target(_unguided(target))
        predictor: BlockPredictor = drafter.predictor(batch)  # type: ignore[assignment]
        return _FeatureDrafts(listener, predictor)


def _unguided(denoiser: Denoiser) -> Denoiser:
    while isinstance(denoiser, GuidedDenoiser):
        denoiser = denoiser.inner
    return denoiser


class _FeatureDrafts:
    """A run; before the target has read anything there is nothing to draft from."""

    def __init__(self, listener: Listener, predictor: BlockPredictor) -> None:
        self.listener, self.predictor, self.most = listener, predictor, 0

    def __call__(self, place: Place, rng: Rng) -> Draft:
        last, target = place.x.gather(1, place.settled[:, None] - 1), place.targets()
        ahead = torch.arange(-1, self.most, device=last.device)  # all blanks, however few tokens are asked for: so it was trained
        columns = (place.settled[:, None] + ahead).clamp_max(place.x.shape[1] - 1)
        where = target.gather(1, columns) & (ahead >= 0) & (ahead < place.size[:, None])
        pred = self.predictor(last.expand(-1, len(ahead)), torch.ones(len(last), dtype=torch.float64, device=last.device))
        tokens, law = drawn(pred, where, rng)
        return Draft(place.x.masked_scatter(target, tokens), law, where.any(1).long() * pred.calls)

    @contextmanager
    def listening(self) -> Iterator[None]:
        with self.listener.listening() as heard:
            yield
        assert heard.features is not None
        self.predictor, self.most = self.predictor.extend(heard.features), self.listener.most

    def crop(self, count: Tensor) -> None:
        self.predictor.crop(count)
