"""Any stock Hugging Face causal or masked LM as a trunk: no copied modelling code, no remote code.

The stock model runs as it is. A hook on its output embedding takes the hidden states away and hands on zero positions, so its own
forward pays no vocabulary projection; the head is then evaluated only where it is asked for. A causal LM becomes bidirectional through
`config.is_causal`, which transformers saves with the checkpoint. What that does to an architecture is measured at load, never assumed.
"""

import inspect
import sys
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from textdiff.backbones import attention_masks, hub, leak
from textdiff.backbones.base import Backbone, BackboneConfig, Cache, FinishedCache, banned_ids
from textdiff.backbones.probing import close, ordinary_tokens, probing
from textdiff.backbones.stock_blocks import StockFinished, reads_blocks
from textdiff.backbones.stock_cache import StockCache
from textdiff.backbones.stock_context import MaskForm, PretrainedContext
from textdiff.batch import Batch
from textdiff.projection import Head
from textdiff.vocab import Vocab

_DTYPES = ("float32", "bfloat16", "float16", "auto")
_LARGE = 300.0  # logits that no model leaves uncapped by chance; exact enough in half precision


@dataclass(frozen=True)
class Pretrained(BackboneConfig):
    """A stock model by folder or hub id; "auto" keeps the number format its weights were saved in."""

    name: str
    dtype: str = "float32"
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        if self.dtype not in _DTYPES:
            raise ValueError(f"dtype {self.dtype!r} is not one of {', '.join(_DTYPES)}")

    def load(self, folder: str | None = None) -> PreTrainedModel:
        """The stock model with its weights, from `folder` instead of `name` when given; raises ValueError when it cannot be read whole."""
        return hub.load(self.name if folder is None else folder, self.dtype)

    def build(self, vocab: Vocab, causal: bool) -> "PretrainedBackbone":
        """The trunk with its pretrained weights and a row for every id of `vocab`; raises ValueError when it cannot serve so."""
        return self.wrap(self.load(), vocab, causal)

    def wrap(self, trunk: PreTrainedModel, vocab: Vocab, causal: bool) -> "PretrainedBackbone":
        """The same around a stock model that is loaded already."""
        backbone = PretrainedBackbone(trunk, causal)
        backbone.resize(vocab.size)
        if self.gradient_checkpointing:
            trunk.activation_checkpointing_enable()
        return backbone


class PretrainedBackbone(Backbone):
    """A loaded stock model behind the interface of a trunk.

    Raises ValueError when the model cannot look in the asked direction, or when its logits are not its head applied to hidden states.
    """

    def __init__(self, trunk: PreTrainedModel, causal: bool) -> None:
        super().__init__()
        if trunk.config.is_encoder_decoder:
            raise ValueError(f"{_title(trunk)} is an encoder-decoder model, whose decoder reads no text alone: take a causal LM")
        self.stock, self.causal = trunk, causal
        self._no_cache = leak.without_cache(trunk)
        self._positioned = "position_ids" in inspect.signature(trunk.forward).parameters
        self._scale = _logit_scale(trunk)
        with probing(trunk):
            tokens = ordinary_tokens(trunk, 5)
            leak.turn(trunk, causal, tokens[:, :3])
            self._check_head(tokens)
            self._offset = self._position_offset(tokens)
            self._packs = self._isolates(tokens)
        positions = getattr(trunk.config, "max_position_embeddings", None)  # without the field (or -1) positions are relative: no limit
        self.max_length = sys.maxsize if positions is None or positions < 0 else positions - (self._offset or 0)

    @property
    def trunk(self) -> PreTrainedModel:  # type: ignore[override]
        """The stock model: it saves itself, and `trunk.generate` is the stock one."""
        return self.stock

    @property
    def rows(self) -> int:
        """Rows of the embedding and of the head; those beyond the tokenizer are spare."""
        return int(self._output.weight.shape[0])

    @property
    def _output(self) -> nn.Linear:
        output = self.trunk.get_output_embeddings()
        if not isinstance(output, nn.Linear):
            raise ValueError(f"{_title(self.trunk)} has {type(output).__name__} as its head, expected a linear one: choose another")
        return output

    @cached_property
    def turns_causal(self) -> bool:  # type: ignore[override]
        with probing(self.trunk):
            return not self.causal and leak.turns_causal(self.trunk, ordinary_tokens(self.trunk, 3))

    @cached_property
    def opens_entries(self) -> bool:  # type: ignore[override]
        """Measured: a mask without any of the future does what looking back only does."""
        if not (self._packs and self.turns_causal):
            return False
        with probing(self.trunk):
            tokens = ordinary_tokens(self.trunk, 5)
            batch, closed = Batch.of(tokens), torch.zeros(5, 5, dtype=torch.bool, device=tokens.device)
            masked, turned = (self(tokens, self.context(batch, ahead)) for ahead in (closed, False))
            return close(masked, turned)

    @cached_property
    def reads_blocks(self) -> bool:  # type: ignore[override]
        """Measured with the second block as far from the first as rows can be: some models turn all positions otherwise in long rows."""
        if self.causal or self._offset is None or not self._packs:
            return False
        with probing(self.trunk):
            tokens = ordinary_tokens(self.trunk, 6)
            far = 0 if self.max_length == sys.maxsize else self.max_length - 6
            places = torch.tensor([[0, 1, 2, 3 + far, 4 + far, 5 + far]], device=tokens.device) + self._offset
            return reads_blocks(self, PretrainedContext({"position_ids": places}, MaskForm.of(self.trunk)), tokens)

    def context(self, batch: Batch, ahead: Tensor | bool = True) -> PretrainedContext:
        """Masks and positions of a batch; `ahead` is what a bidirectional trunk sees of the future: all, nothing, or True entries (L, L).

        Raises ValueError for a batch that is too long, has a source, or needs a mask that the stock model cannot take.
        """
        length = batch.tokens.shape[1]
        if length > self.max_length:
            raise ValueError(f"{length} tokens exceed the model's max_length of {self.max_length}: shorten the input")
        if batch.source.shape[1]:
            raise ValueError(f"{_title(self.trunk)} has no encoder: put the batch's source before its target as a prefix")
        inputs, form = dict[str, Any](), MaskForm.of(self.trunk)
        causal, entries = self.causal or ahead is False, ahead if isinstance(ahead, Tensor) else None
        if bool(batch.document.any()) or entries is not None:
            if not self._packs:
                raise ValueError(f"{_title(self.trunk)} cannot keep packed documents apart: pad them (one document per row) instead")
            inputs["attention_mask"] = form(partial(attention_masks.stock, batch.attend, batch.document, causal, ahead=entries))
        elif not bool(batch.attend.all()):
            inputs["attention_mask"] = batch.attend.long()
        if self._offset is not None:
            inputs["position_ids"] = attention_masks.positions(attention_masks.apart(batch.document, batch.attend)) + self._offset
        return PretrainedContext(inputs, form, turned=causal and not self.causal)

    def forward(
        self,
        tokens: Tensor,
        context: PretrainedContext,
        noise: Tensor | None = None,
        cache: Cache | None = None,
        previous: Tensor | None = None,
    ) -> Tensor:
        """Hidden states (B, L, H) as the output embedding reads them; stock trunks take no noise level.

        Raises ValueError for a cache that is not its own.
        """
        inputs, finished = {**self._no_cache, **context.inputs}, None
        if isinstance(cache, StockCache):
            inputs = cache.inputs(tokens, context.inputs.get("position_ids"))
        elif isinstance(cache, FinishedCache):
            finished = StockFinished(cache)
            inputs = {**context.inputs, "past_key_values": finished, "use_cache": True}
        elif cache is not None:
            raise ValueError(f"{_title(self.trunk)} keeps its own key-value cache: ask for it with `cache(length)`")
        taken: list[Tensor] = []

        def take(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            taken.append(args[0])
            return (args[0][:, :0],)

        handle = self._output.register_forward_pre_hook(take)
        try:
            with leak.turned_causal(self.trunk) if context.turned else nullcontext():
                self.trunk(input_ids=tokens, **inputs)
        finally:
            handle.remove()
        if len(taken) != 1 or taken[0].shape[:2] != tokens.shape:
            raise ValueError(f"{_title(self.trunk)} does not project one hidden state per token to its vocabulary: choose another model")
        if finished is not None:
            finished.read(_title(self.trunk), tokens.shape[1])
        return taken[0] if self._scale == 1 else taken[0] * self._scale

    def cache(self, length: int) -> StockCache:
        """An empty cache of the stock architecture; raises ValueError for one that does not keep keys and values alone."""
        return StockCache(self.trunk)

    def head(self, banned: tuple[int, ...] = ()) -> Head:
        weight, bias = self._output.weight, self._output.bias
        return Head(weight, bias if bias is None or self._scale == 1 else bias * self._scale, banned_ids(banned, weight))

    def init_weights(self, module: nn.Module) -> None:
        """Nothing: the trunk came with its weights."""

    def resize(self, rows: int) -> None:
        """Grow embedding and head to `rows`, new rows at the mean of the old, ties kept; raises ValueError when that would drop rows."""
        old = self.rows
        if rows < old:
            raise ValueError(f"the vocabulary has {rows} rows, {_title(self.trunk)} {old}: build it with Vocab.of(tokenizer, size={old})")
        if rows == old:
            return
        self.trunk.resize_token_embeddings(rows, mean_resizing=False)
        embedding = self.trunk.get_input_embeddings()
        weights = {id(weight): weight for weight in (embedding.weight, self._output.weight, self._output.bias) if weight is not None}
        with torch.no_grad():
            for weight in weights.values():
                assert isinstance(weight, Tensor)
                weight[old:] = weight[:old].float().mean(0).to(weight.dtype)

    def _check_head(self, tokens: Tensor) -> None:
        """Refuse a model whose logits are not `head(hidden)`: capped, or scaled by something unknown."""
        plain = self(tokens, PretrainedContext({}))
        gain = _LARGE / float(self.head()(plain).abs().max())  # a soft cap cannot hide among large logits
        handle = self._output.register_forward_pre_hook(lambda module, args: (args[0] * gain,))
        try:
            logits = self.trunk(input_ids=tokens, **self._no_cache).logits.float()
        finally:
            handle.remove()
        ours = self.head()(plain * gain)
        if close(logits, ours, self.trunk.dtype):
            return
        ratio = float((logits * ours).sum() / (ours * ours).sum())
        what = f"multiplies its logits by {ratio:.6g}" if close(logits, ours * ratio) else "bends its logits (a soft cap)"
        raise ValueError(f"{_title(self.trunk)} {what} after its output embedding, which textdiff does not reproduce: choose another model")

    def _position_offset(self, tokens: Tensor) -> int | None:
        """What `position_ids` start at (RoBERTa counts from its padding id on), or None when the model takes none."""
        if not self._positioned:
            return None
        plain = self(tokens, PretrainedContext({}))
        place = torch.arange(tokens.shape[1], device=tokens.device)[None]
        candidates = (0, (self.trunk.config.pad_token_id or 0) + 1)
        found = (offset for offset in candidates if close(plain, self(tokens, PretrainedContext({"position_ids": place + offset}))))
        return next(found, None)

    def _isolates(self, tokens: Tensor) -> bool:
        """Whether two documents in one row come out as they do alone, through the explicit mask and positions."""
        config = self.trunk.config.get_text_config(decoder=True)
        if not set(getattr(config, "layer_types", None) or ()) <= {"full_attention", "sliding_attention"}:
            return False
        document = torch.tensor([[1, 1, 2, 2, 2]], device=tokens.device)
        masks = partial(attention_masks.stock, torch.ones_like(document, dtype=torch.bool), document, self.causal)
        inputs: dict[str, Any] = {"attention_mask": MaskForm.of(self.trunk)(masks)}
        if self._offset is not None:
            inputs["position_ids"] = attention_masks.positions(document) + self._offset
        try:
            packed = self(tokens, PretrainedContext(inputs))
        except (ValueError, RuntimeError, TypeError, AttributeError, IndexError):  # whatever a model does that takes no such mask
            return False
        return all(close(packed[:, part], self(tokens[:, part], PretrainedContext({}))) for part in (slice(2), slice(2, 5)))


def _title(trunk: PreTrainedModel) -> str:
    return type(trunk).__name__


def _logit_scale(trunk: PreTrainedModel) -> float:
    """The factor between head and logits where the configuration names one (Cohere multiplies, Granite divides)."""
    fields = trunk.config.get_text_config(decoder=True).to_dict()
    return float(fields.get("logit_scale") or 1.0) / float(fields.get("logits_scaling") or 1.0)
