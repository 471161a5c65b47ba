"""Where a drafter of a causal model is asked in a row of training text: blocks that begin at random places, all in one pass."""

from typing import NamedTuple

import torch
from torch import Tensor

from textdiff.batch import Batch
from textdiff.randomness import Rng


class Anchors(NamedTuple):
    """Places of a row (B, L), A in each, and which of the K tokens after each are predicted from the text up to it."""

    place: Tensor  # (B, A) long, the token that a block begins with
    asked: Tensor  # (B, A, K) bool

    @property
    def positions(self) -> Tensor:
        """(B, A, K + 1) long: where the tokens of each block stand, those beyond a row's end as well."""
        return self.place[..., None] + torch.arange(self.asked.shape[2] + 1, device=self.place.device)

    def mask(self, batch: Batch) -> Tensor:
        """(B, 1, A (K + 1), L + A (K + 1)) bool: a block sees the text before it, of its own document, and itself."""
        rows, length, many, size = *batch.tokens.shape, *self.positions.shape[1:]
        own = batch.document.gather(1, self.place)[..., None] == batch.document[:, None]
        before = torch.arange(length, device=self.place.device) < self.place[..., None]
        text = (own & before & batch.attend[:, None]).repeat_interleave(size, dim=1)
        block = torch.arange(many * size, device=self.place.device) // size
        return torch.cat([text, (block[:, None] == block).expand(rows, -1, -1)], dim=2)[:, None]


def draw_anchors(batch: Batch, count: int, ahead: int, rng: Rng) -> Anchors:
    """Up to `count` places in each row, none twice, after which a target comes, and the targets among the `ahead` tokens after each."""
    length = batch.tokens.shape[1]
    possible = torch.zeros_like(batch.target)
    same = batch.document[:, 1:] == batch.document[:, :-1]
    possible[:, :-1] = batch.target[:, 1:] & batch.attend[:, :-1] & same
    order = rng.uniform("anchors", (length,)).masked_fill(~possible, 2.0)
    chosen, place = order.topk(min(count, length), largest=False)
    after = place[..., None] + torch.arange(1, ahead + 1, device=place.device)
    here = after.clamp_max(length - 1).flatten(1)
    target, document = (part.gather(1, here).view_as(after) for part in (batch.target, batch.document))
    own = document == batch.document.gather(1, place)[..., None]
    return Anchors(place, target & own & (after < length) & (chosen < 1)[..., None])
