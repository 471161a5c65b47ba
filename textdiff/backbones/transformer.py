"""Our own trunk: a pre-norm transformer with rotary positions, optional time conditioning (adaLN of DiT, Peebles & Xie 2022) and an
optional encoder with cross-attention. Bidirectional for diffusion, causal for its autoregressive twin, with the same weights' shapes."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import initialization as init

from textdiff.backbones import attention_masks
from textdiff.backbones.base import Backbone, BackboneConfig, Cache, KeyValueCache, banned_ids
from textdiff.backbones.time_features import TIME_FEATURES, time_features
from textdiff.batch import Batch
from textdiff.projection import Head
from textdiff.vocab import Vocab


@dataclass(frozen=True)
class TransformerConfig(BackboneConfig):
    """Sizes and options of the trunk."""

    width: int = 256
    layers: int = 4
    heads: int = 4
    max_length: int = 1024
    mlp_ratio: float = 4.0
    layer_norm: bool = False  # LayerNorm without bias instead of RMSNorm
    time_conditioning: bool = False  # adaLN on the noise level; masked diffusion does without
    time_scale: float = 10.0  # largest angle of the noise level's features; DiT's 1000 makes neighbouring levels strangers to each other
    labels: int = 0  # > 0: `batch.source` (B, 1) is a class in [0, labels); where it is not attended to, or absent, the class is unknown
    self_conditioning: bool = False  # reads the previous prediction too (Chen et al. 2022)
    encoder_layers: int = 0  # > 0: `batch.source` is encoded and cross-attended to
    tied: bool = True  # the head is the embedding
    dropout: float = 0.0
    rope_base: float = 10_000.0
    place_embedding: bool = False  # a learnt vector for the n-th target and for the n-th other token: blank targets look alike without it
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        if min(self.width, self.layers, self.heads, self.max_length) < 1:
            sizes = f"width {self.width}, layers {self.layers}, heads {self.heads}, max_length {self.max_length}"
            raise ValueError(f"{sizes}: expected 1 or more of each")
        if self.width % self.heads or (self.width // self.heads) % 2:
            raise ValueError(f"width {self.width} must be an even multiple of heads {self.heads}: each head rotates pairs of numbers")
        if self.labels and self.encoder_layers:
            raise ValueError("the batch's source is either a label or text to encode: set labels or encoder_layers, not both")

    def build(self, vocab: Vocab, causal: bool) -> "Transformer":
        return Transformer(self, vocab, causal)


class TransformerContext(NamedTuple):
    """Per-batch inputs of every layer."""

    mask: Tensor | None  # (B, 1, L, L) bool
    rotation: tuple[Tensor, Tensor]  # cos, sin (B, 1, L, head width)
    memory: Tensor | None  # (B, S, H)
    memory_mask: Tensor | None  # (B, 1, 1, S) bool
    label: Tensor | None = None  # (B,) long
    place: Tensor | None = None  # (B, L) long, which place embedding each token has
    causal: bool = False  # where there is no mask

    def rows(self, index: Tensor) -> "TransformerContext":
        """The same for a subset of rows."""
        cos, sin = self.rotation
        parts = (self.mask, self.memory, self.memory_mask, self.label, self.place)
        mask, memory, memory_mask, label, place = (None if x is None else x[index] for x in parts)
        return TransformerContext(mask, (cos[index], sin[index]), memory, memory_mask, label, place, self.causal)

    def at(self, columns: Tensor, mask: Tensor | None) -> "TransformerContext":
        """The context of tokens at the positions `columns` (n,), or (B, n) where rows differ, under `mask` (B or 1, 1, n, keys) bool."""
        columns = columns if columns.dim() == 2 else columns[None]
        cos, sin = (part.take_along_dim(columns[:, None, :, None], 2) for part in self.rotation)
        place = None if self.place is None else self.place.take_along_dim(columns, 1)
        return self._replace(mask=mask, rotation=(cos, sin), place=place)


def _rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    first, second = x.chunk(2, dim=-1)  # the NeoX halves convention
    return x * rotation[0].to(x.dtype) + torch.cat([-second, first], dim=-1) * rotation[1].to(x.dtype)


class Attention(nn.Module):
    """Multi-head attention of `x` on itself, or on `memory`."""

    is_causal = False  # read by transformers' attention dispatch; the direction is always passed explicitly here

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query = nn.Linear(width, width, bias=False)
        self.key_value = nn.Linear(width, 2 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def _split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None,
        causal: bool,
        rotation: tuple[Tensor, Tensor] | None = None,
        memory: Tensor | None = None,
        cache: Cache | None = None,
        layer: int = 0,
    ) -> Tensor:
        """(B, L, H) -> (B, L, H)."""
        query = self._split(self.query(x))
        key, value = (self._split(part) for part in self.key_value(x if memory is None else memory).chunk(2, dim=-1))
        if rotation is not None:
            query, key = _rotate(query, rotation), _rotate(key, rotation)
        if cache is not None:
            key, value = cache.update(layer, key, value)
        one_direction = causal and mask is None and query.shape[2] > 1
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout, is_causal=one_direction)
        return self.out(mixed.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention, optional cross-attention, MLP; with time conditioning each branch is shifted, scaled and gated (adaLN of DiT). A fresh
    gate is 1, not DiT's 0: small models trained for minutes would spend them on opening it."""

    def __init__(self, config: TransformerConfig, cross: bool, timed: bool) -> None:
        super().__init__()
        width, hidden = config.width, int(config.width * config.mlp_ratio)
        self.attention_norm, self.mlp_norm = _norm(config), _norm(config)
        self.attention = Attention(width, config.heads, config.dropout)
        self.cross_norm = _norm(config) if cross else None
        self.cross = Attention(width, config.heads, config.dropout) if cross else None
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, width))
        self.modulation = nn.Linear(width, 6 * width) if timed else None
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, context: TransformerContext, time: Tensor | None, cache: Cache | None, layer: int) -> Tensor:
        """(B, L, H) -> (B, L, H); `time` (B, 1, H), or (B, L, H) where tokens differ, is the embedded noise level."""
        if self.modulation is None or time is None:
            x = x + self.dropout(self.attention(self.attention_norm(x), context.mask, context.causal, context.rotation, None, cache, layer))
            x = self._cross(x, context)
            return x + self.dropout(self.mlp(self.mlp_norm(x)))
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulation(time).chunk(6, dim=-1)
        h = self.attention_norm(x) * (1 + scale_a) + shift_a
        x = x + (1 + gate_a) * self.dropout(self.attention(h, context.mask, context.causal, context.rotation, None, cache, layer))
        x = self._cross(x, context)
        h = self.mlp_norm(x) * (1 + scale_m) + shift_m
        return x + (1 + gate_m) * self.dropout(self.mlp(h))

    def _cross(self, x: Tensor, context: TransformerContext) -> Tensor:
        if self.cross is None or self.cross_norm is None or context.memory is None:
            return x
        return x + self.dropout(self.cross(self.cross_norm(x), context.memory_mask, False, None, context.memory))


def _norm(config: TransformerConfig) -> nn.Module:
    return nn.LayerNorm(config.width, bias=False) if config.layer_norm else nn.RMSNorm(config.width, eps=1e-6)


class Transformer(Backbone):
    """The trunk; `head(...)` is the tied embedding or a projection of its own."""

    reads_blocks = turns_causal = opens_entries = True

    def __init__(self, config: TransformerConfig, vocab: Vocab, causal: bool) -> None:
        super().__init__()
        self.config, self.causal, self.max_length = config, causal, config.max_length
        self.self_conditioned, self.labels = config.self_conditioning, config.labels
        self.embedding: nn.Module = nn.Embedding(vocab.size, config.width)
        self.blocks = nn.ModuleList(Block(config, config.encoder_layers > 0, config.time_conditioning) for _ in range(config.layers))
        self.encoder = nn.ModuleList(Block(config, False, False) for _ in range(config.encoder_layers))
        self.final_norm = _norm(config)
        self.encoder_norm = _norm(config) if config.encoder_layers else None
        self.output = None if config.tied else nn.Linear(config.width, vocab.size, bias=False)
        self.label = nn.Embedding(config.labels + 1, config.width) if config.labels else None  # the last row: unknown
        self.place = nn.Embedding(2 * config.max_length, config.width) if config.place_embedding else None
        self.previous = nn.Linear(config.width, config.width, bias=False) if config.self_conditioning else None
        timed = config.time_conditioning
        self.time_mlp = (
            nn.Sequential(nn.Linear(TIME_FEATURES, config.width), nn.SiLU(), nn.Linear(config.width, config.width), nn.SiLU())
            if timed
            else None
        )

    def init_weights(self, module: nn.Module) -> None:
        """Normal weights of standard deviation 0.02, residual outputs scaled down by depth (GPT-2), modulations zero (DiT)."""
        if isinstance(module, (nn.Linear, nn.Embedding)):
            init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
            init.ones_(module.weight)
        elif isinstance(module, Block):
            scale = 0.02 / math.sqrt(2 * self.config.layers)
            init.normal_(module.attention.out.weight, std=scale)
            last = module.mlp[2]
            assert isinstance(last, nn.Linear)
            init.normal_(last.weight, std=scale)
            if module.modulation is not None:
                init.zeros_(module.modulation.weight)
                init.zeros_(module.modulation.bias)
        if module is self and self.previous is not None:
            init.zeros_(self.previous.weight)

    def _rotation(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        width = self.config.width // self.config.heads
        frequency = self.config.rope_base ** (-torch.arange(0, width, 2, device=positions.device, dtype=torch.float32) / width)
        angle = positions[:, None, :, None].float() * torch.cat([frequency, frequency])  # (B, 1, L, head width)
        return angle.cos(), angle.sin()

    def context(self, batch: Batch, ahead: Tensor | bool = True) -> TransformerContext:
        if batch.tokens.shape[1] > self.max_length:
            raise ValueError(f"{batch.tokens.shape[1]} tokens exceed the model's max_length of {self.max_length}: shorten the input")
        if batch.source.shape[1] and not len(self.encoder) and not self.config.labels:
            raise ValueError(
                "the batch has a source and the model nothing to read it: put it before the target, or set encoder_layers or labels"
            )
        causal, entries = self.causal or ahead is False, ahead if isinstance(ahead, Tensor) else None
        mask = attention_masks.combined(batch.attend, batch.document, causal, entries)
        rotation = self._rotation(attention_masks.positions(batch.document))
        memory, memory_mask = self._encode(batch) if len(self.encoder) else (None, None)
        place = self._place(batch.target, batch.document)
        return TransformerContext(mask, rotation, memory, memory_mask, self._labels(batch), place, causal)

    def _place(self, target: Tensor, document: Tensor) -> Tensor | None:
        """How many targets of its document stand before each target, and `max_length` more than how many others before each of those."""
        if self.place is None:
            return None
        targets, others = (attention_masks.places(kind, document) for kind in (target, ~target))
        return torch.where(target, targets, others + self.max_length)

    def _labels(self, batch: Batch) -> Tensor | None:
        """(B,) the class of each row, `labels` where it is unknown."""
        classes = self.config.labels
        if not classes:
            return None
        if batch.source.shape[1] == 0:
            return batch.tokens.new_full((len(batch.tokens),), classes)
        if batch.source.shape[1] > 1 or not 0 <= int(batch.source.min()) <= int(batch.source.max()) < classes:
            raise ValueError(f"the source is {tuple(batch.source.shape)}, expected one label per row in 0 .. {classes - 1}")
        return batch.source[:, 0].where(batch.source_attend[:, 0], classes)

    def _encode(self, batch: Batch) -> tuple[Tensor, Tensor]:
        source, attend = batch.source, batch.source_attend
        if source.shape[1] == 0:
            raise ValueError("the model has an encoder but the batch has no source: give `source` tokens or build without encoder_layers")
        if source.shape[1] > self.max_length:
            raise ValueError(f"a source of {source.shape[1]} tokens exceeds the model's max_length of {self.max_length}: shorten the input")
        none = torch.zeros_like(source)
        rotation = self._rotation(attention_masks.positions(none))
        context = TransformerContext(attention_masks.combined(attend, none, False), rotation, None, None)
        x = self.embedding(source)
        if self.place is not None:
            x = x + self.place(self._place(none.bool(), none))
        for layer, block in enumerate(self.encoder):
            x = block(x, context, None, None, layer)
        assert self.encoder_norm is not None
        return self.encoder_norm(x), attention_masks.padding(attend)

    def forward(
        self,
        tokens: Tensor,
        context: TransformerContext,
        noise: Tensor | None = None,
        cache: Cache | None = None,
        previous: Tensor | None = None,
    ) -> Tensor:
        time = None
        if self.time_mlp is not None:
            if noise is None:
                raise ValueError("the trunk is conditioned on time: pass the noise level")
            weight: Tensor = self.time_mlp[0].weight  # type: ignore[assignment]
            time = self.time_mlp(time_features(noise, self.config.time_scale).to(weight.dtype))
        if isinstance(cache, KeyValueCache):  # the context covers the whole row; take the columns being read
            context = context.at(*cache.places(tokens.shape[1], tokens.device))
        x = tokens if tokens.is_floating_point() else self.embedding(tokens)
        if self.place is not None:
            x = x + self.place(context.place)
        if self.label is not None:
            x = x + self.label(context.label)[:, None]
        if self.previous is not None and previous is not None:
            x = x + self.previous(previous)
        for layer, block in enumerate(self.blocks):
            if self.config.gradient_checkpointing and self.training and cache is None:
                x = checkpoint(block, x, context, time, None, layer, use_reentrant=False)
            else:
                x = block(x, context, time, cache, layer)
        if cache is not None:
            cache.advance(tokens.shape[1])
        return self.final_norm(x)

    def head(self, banned: tuple[int, ...] = ()) -> Head:
        owner = self.embedding if self.output is None else self.output
        weight: Tensor = owner.weight  # type: ignore[assignment]
        return Head(weight, None, banned_ids(banned, weight))
