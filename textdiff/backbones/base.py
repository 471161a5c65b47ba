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
    """Keys and values of the tokens a causal trunk has read: one pair of (B, heads, capacity, width) buffers per layer."""

    def __init__(self, capacity: int) -> None:
        self.capacity, self.length = capacity, 0
        self._layers: list[tuple[Tensor, Tensor]] = []

    def update(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        if layer == len(self._layers):
            shape = (*key.shape[:2], self.capacity, key.shape[3])
            self._layers.append((key.new_empty(shape), value.new_empty(shape)))
        end = self.length + key.shape[2]
        for buffer, new in zip(self._layers[layer], (key, value), strict=True):
            buffer[:, :, self.length : end] = new
        keys, values = self._layers[layer]
        return keys[:, :, :end], values[:, :, :end]

    def advance(self, n: int) -> None:
        self.length += n


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
    trunk: Any = None  # the stock PreTrainedModel inside, for trunks that wrap one

    def init_weights(self, module: nn.Module) -> None:
        """Fresh values for the parameters of one submodule; called on every one by transformers' `post_init`."""

    def context(self, batch: Batch) -> Any:
        """Masks, positions and encoder memory of a batch, computed once however often the trunk is then called."""
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
