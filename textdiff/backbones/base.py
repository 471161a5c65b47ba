"""What a model needs of a trunk: hidden states for noisy tokens, and the head that reads them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn

from textdiff.batch import Batch
from textdiff.projection import Head
from textdiff.vocab import Vocab


class Context(Protocol):
    """What a trunk computes once per batch: masks, positions, encoder memory."""

    def rows(self, index: Tensor) -> Self:
        """The same for a subset of rows."""
        ...


class BlockContext(Context, Protocol):
    """A context from which any columns of its rows can be read, under any mask: what block diffusion asks of a trunk."""

    def at(self, columns: Tensor, mask: Tensor | None) -> Self:
        """The context of tokens at the positions `columns` (n,) of each row, under `mask` (B, 1, n, keys) bool."""
        ...


class Cache(Protocol):
    """Keys and values of tokens that are read no more, of which `length` come before those of a call."""

    length: int

    def update(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Append a call's own (B, heads, n, width) and return everything read so far; the layer count is advanced by `advance`."""
        ...

    def advance(self, n: int) -> None:
        """All layers have appended `n` tokens."""
        ...


class KeyValueCache:
    """Keys and values of the tokens a causal trunk has read: one pair of (B, heads, capacity, width) buffers per layer, in which column l
    is position l of its row. Rows that were cropped go on from places of their own."""

    def __init__(self, capacity: int) -> None:
        self.capacity, self.length = capacity, 0  # length: of the longest row
        self._lengths: Tensor | None = None  # (B,) where rows differ
        self._layers: list[tuple[Tensor, Tensor]] = []

    def places(self, n: int, device: torch.device) -> tuple[Tensor, Tensor | None]:
        """The positions of the next n tokens, (n,) or (B, n), and the keys that each sees, (B or 1, 1, n, keys) bool, or None where the
        order of the call's own tokens says it."""
        places = self._positions(n, device)
        if self._lengths is None and (n == 1 or self.length == 0):
            return places, None
        keys = torch.arange(min(self.length + n, self.capacity), device=device)
        return places, (keys <= places.view(-1, 1, n, 1))

    def update(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        n = key.shape[2]
        if layer == len(self._layers):
            shape = (*key.shape[:2], self.capacity, key.shape[3])
            # zeros: what a row has not written yet is masked, and 0 times a number that is none would still be none
            self._layers.append((key.new_zeros(shape), value.new_zeros(shape)))
        end = min(self.length + n, self.capacity)
        for buffer, new in zip(self._layers[layer], (key, value), strict=True):
            if self._lengths is None:
                buffer[:, :, self.length : end] = new[:, :, : end - self.length]
            else:
                places = self._positions(n, key.device)[:, None, :, None]
                buffer.scatter_(2, places.expand_as(new), new.to(buffer.dtype))
        keys, values = self._layers[layer]
        return keys[:, :, :end], values[:, :, :end]

    def advance(self, n: int) -> None:
        self.length += n
        if self._lengths is not None:
            self._lengths = self._lengths + n

    def crop(self, count: Tensor) -> None:
        """Forget the last `count` (B,) tokens of each row."""
        lengths = (self.length if self._lengths is None else self._lengths) - count
        self.length = int(lengths.max())
        self._lengths = None if bool((lengths == self.length).all()) else lengths

    def _positions(self, n: int, device: torch.device) -> Tensor:
        if self._lengths is None:
            return torch.arange(self.length, self.length + n, device=device).clamp_max(self.capacity - 1)
        # beside a longer draft a row may be given tokens beyond its end: they go to the last column, after which nothing is predicted
        return (self._lengths[:, None] + torch.arange(n, device=device)).clamp_max(self.capacity - 1)


class FinishedCache:
    """Keys and values of finished tokens, one pair of (B, heads, n, width) per layer, for one call: what is given stays as it was, so that
    the same tokens can be followed by one draft after another."""

    def __init__(self, layers: Sequence[tuple[Tensor, Tensor]] = ()) -> None:
        self.layers = list(layers)
        self.length = self.layers[0][0].shape[2] if self.layers else 0

    def update(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        if layer == len(self.layers):
            self.layers.append((key, value))
        else:
            keys, values = self.layers[layer]
            self.layers[layer] = torch.cat([keys, key], dim=2), torch.cat([values, value], dim=2)
        return self.layers[layer]

    def advance(self, n: int) -> None:
        self.length += n


class Backbone(nn.Module):
    """Tokens (B, L) to hidden states (B, L, H); `causal` says whether position l sees only positions up to l."""

    causal: bool
    max_length: int
    self_conditioned: bool = False  # reads `previous`
    labels: int = 0  # classes that `batch.source` may name
    reads_blocks: bool = False  # its contexts are `BlockContext`s, and it takes a cache of any direction
    turns_causal: bool = False  # when bidirectional, can be asked to look back only
    opens_entries: bool = False  # when bidirectional, can be asked to look ahead at some positions only
    trunk: Any = None  # the stock PreTrainedModel inside, for trunks that wrap one

    def init_weights(self, module: nn.Module) -> None:
        """Fresh values for the parameters of one submodule; called on every one by transformers' `post_init`."""

    def context(self, batch: Batch, ahead: Tensor | bool = True) -> Any:
        """Masks, positions and encoder memory of a batch, computed once however often the trunk is then called.

        `ahead` is what a bidirectional trunk sees of the future: everything, nothing, or the True entries of (L, L)."""
        raise NotImplementedError

    def forward(
        self,
        tokens: Tensor,
        context: Any,
        noise: Tensor | None = None,
        cache: Cache | None = None,
        previous: Tensor | None = None,
    ) -> Tensor:
        """Hidden states (B, L, H) of ids (B, L), or of the vectors (B, L, H) float that stand for them, for trunks that take those.

        `noise` (B,) or (B, L) in [0, 1] is the noise level, and `previous` (B, L, H) the mean embedding of the prediction before, for
        trunks that take them."""
        raise NotImplementedError

    def cache(self, length: int) -> Any:
        """An empty cache for rows of `length` tokens, for trunks that read left to right: `forward` takes it, and `crop(count)` makes each
        row forget its last `count` (B,) tokens."""
        return KeyValueCache(length)

    def head(self, banned: tuple[int, ...] = ()) -> Head:
        """The projection to the vocabulary with `banned` ids at -inf."""
        raise NotImplementedError


@dataclass(frozen=True)
class BackboneConfig:
    """A trunk without its weights."""

    def build(self, vocab: Vocab, causal: bool) -> Backbone:
        """The trunk with fresh weights; raises ValueError when it cannot be built so."""
        raise NotImplementedError


def banned_ids(banned: tuple[int, ...], weight: Tensor) -> Tensor | None:
    """The ids as a tensor beside the head's weight, or None when there are none."""
    return torch.tensor(banned, device=weight.device) if banned else None
