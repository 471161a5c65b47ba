"""The key-value cache of a stock causal model, with rows that go on from places of their own."""

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer


class StockCache:
    """transformers' own cache of an architecture, in which rows end in the same column: shorter ones stand behind unread columns.

    So a row's tokens are neighbours, as sliding windows and relative positions count them. Raises ValueError for an architecture that
    keeps something else than keys and values, which no token can be taken out of.
    """

    def __init__(self, trunk: PreTrainedModel) -> None:
        self.layers = DynamicCache(config=trunk.config)
        self._kept = [layer for layer in self.layers.layers if isinstance(layer, DynamicLayer)]
        if len(self._kept) < len(self.layers.layers):
            raise ValueError(f"{type(trunk).__name__} keeps a state that no token can be taken out of: choose a target with attention only")
        self.layers.activate_past_recording()  # sliding layers would drop what a shorter row needs again
        self.length = 0  # columns
        self._unread: Tensor | None = None  # (B,) columns before each row, where rows differ

    def inputs(self, tokens: Tensor, positions: Tensor | None) -> dict[str, Any]:
        """What the stock forward is given to append `tokens` (B, n); `positions` (B, L): of whole rows, if the model takes them."""
        n, given = tokens.shape[1], {"past_key_values": self.layers, "use_cache": True}
        unread = tokens.new_zeros(len(tokens)) if self._unread is None else self._unread
        if positions is not None:
            # beside a longer draft a row may be given tokens beyond its end, after which nothing is predicted
            places = self.length - unread[:, None] + torch.arange(n, device=tokens.device)
            given["position_ids"] = positions.take_along_dim(places.clamp_max(positions.shape[1] - 1), 1)
        if self._unread is not None:
            given["attention_mask"] = (torch.arange(self.length + n, device=tokens.device) >= unread[:, None]).long()
        self.length += n
        return given

    def crop(self, count: Tensor) -> None:
        """Forget the last `count` (B,) tokens of each row."""
        least = int(count.min())
        further = count - least
        if bool(further.any()):
            for layer in self._kept:
                if layer.keys is not None and layer.values is not None:  # some layers share those of others
                    layer.keys, layer.values = _moved(layer.keys, further), _moved(layer.values, further)
            self._unread = further if self._unread is None else self._unread + further
        self.layers.crop(-least)  # also when it is 0: sliding layers then drop what lies behind their window
        self.length -= least


def _moved(part: Tensor, by: Tensor) -> Tensor:
    """(B, heads, S, width) with each row moved `by` (B,) columns to the right."""
    columns = (torch.arange(part.shape[2], device=part.device) - by[:, None]).clamp_min(0)
    return part.take_along_dim(columns[:, None, :, None], 2)
