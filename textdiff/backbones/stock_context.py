"""What a stock forward is given beside the tokens, in the conventions of its architecture."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from textdiff.backbones import attention_masks


class MaskForm(NamedTuple):
    """How an architecture takes an explicit mask."""

    windows: int | dict[str, int | None] | None = None  # sliding window of all layers, or of each type, which has its own mask
    added: torch.dtype | None = None  # eager attention adds the mask to its scores, in this format; None: as it is

    @classmethod
    def of(cls, trunk: PreTrainedModel) -> "MaskForm":
        """As the configuration says, in the number format that the weights have now."""
        config = trunk.config.get_text_config(decoder=True)
        window: int | None = getattr(config, "sliding_window", None)  # a field of the architectures that have one, as is layer_types
        kinds = getattr(config, "layer_types", None)
        windows = window if kinds is None else {kind: window if kind == "sliding_attention" else None for kind in sorted(set(kinds))}
        return cls(windows, trunk.dtype if config._attn_implementation == "eager" else None)

    def __call__(self, build: Callable[[int | None], Tensor]) -> Tensor | dict[str, Tensor]:
        """The masks (B, 1, n, keys) bool that `build` makes for each window, as the model is given them."""
        if isinstance(self.windows, dict):
            return {kind: self._given(build(window)) for kind, window in self.windows.items()}
        return self._given(build(self.windows))

    def _given(self, mask: Tensor) -> Tensor:
        return mask if self.added is None else attention_masks.additive(mask, self.added)


class PretrainedContext(NamedTuple):
    """What the stock forward is given beside the tokens: `attention_mask` (one, or one per layer type) and `position_ids`."""

    inputs: dict[str, Any]
    form: MaskForm = MaskForm()
    turned: bool = False  # a bidirectional trunk is to look back only

    def rows(self, index: Tensor) -> "PretrainedContext":
        """The same for a subset of rows."""
        return self._replace(inputs={name: _rows(value, index) for name, value in self.inputs.items()})

    def at(self, columns: Tensor, mask: Tensor | None) -> "PretrainedContext":
        """The context of tokens at the positions `columns` (n,) of each row, under `mask` (B, 1, n, keys) bool.

        Keys that are more than the tokens come before them and are the first of the row, as sliding windows must know.
        """
        inputs: dict[str, Any] = {}
        if "position_ids" in self.inputs:
            inputs["position_ids"] = self.inputs["position_ids"][:, columns]
        if mask is not None:
            inputs["attention_mask"] = self.form(lambda window: attention_masks.windowed(mask, columns, window))
        return self._replace(inputs=inputs)


def _rows(value: Any, index: Tensor) -> Any:
    return {name: item[index] for name, item in value.items()} if isinstance(value, dict) else value[index]
