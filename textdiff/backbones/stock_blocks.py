"""Block diffusion on a stock model: finished tokens handed to its own attention as a cache, and whether it reads blocks so at all."""

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from textdiff.backbones import attention_masks
from textdiff.backbones.base import Backbone, BlockContext, FinishedCache
from textdiff.backbones.probing import close


class StockFinished(DynamicCache):
    """A `FinishedCache` as stock attention knows caches; windowed layers keep every key, and the mask says which are seen."""

    def __init__(self, cache: FinishedCache) -> None:
        super().__init__()
        self.cache = cache

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        return self.cache.update(layer_idx, key_states, value_states)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.cache.length

    def read(self, title: str, n: int) -> None:
        """`n` tokens have been read; raises ValueError where `title` did not keep their keys and values."""
        self.cache.advance(n)
        kept = {keys.shape[2] for keys, _ in self.cache.layers}
        if kept != {self.cache.length}:
            raise ValueError(f"{title} kept no keys and values, as when it trains with gradient checkpointing: call eval() before sampling")


def reads_blocks(backbone: Backbone, context: BlockContext, tokens: Tensor) -> bool:
    """Whether two blocks come out under the masks of block diffusion as they do one by one: the first alone, as the model reads it
    without a mask, the second after the cached first; tried on `tokens` (1, L), L even, whose context is given."""
    length, device = tokens.shape[1], tokens.device
    size, columns, noisy = length // 2, torch.arange(length, device=device), tokens.flip(1)
    attend, document = torch.ones_like(tokens, dtype=torch.bool), torch.zeros_like(tokens)
    cache = FinishedCache()
    try:
        paired = context.at(columns.repeat(2), attention_masks.noisy_and_clean(attend, document, size))
        together = backbone(torch.cat([noisy, tokens], dim=1), paired)
        alone = backbone(noisy[:, :size], context.at(columns[:size], None))
        first = context.at(columns[:size], attention_masks.blockwise(attend[:, :size], document[:, :size], size))
        backbone(tokens[:, :size], first, cache=cache)
        second = context.at(columns[size:], attention_masks.blockwise(attend, document, size, size))
        one_by_one = torch.cat([alone, backbone(noisy[:, size:], second, cache=cache)], dim=1)
    except (ValueError, RuntimeError, TypeError, AttributeError, IndexError):  # whatever a model does that takes no such mask or cache
        return False
    return close(one_by_one, together[:, :length])
