"""The trunk of a drafter that reads a causal model's features (DFlash, arXiv 2602.06036): a block of blanks looks at keys and values made
of the features of the text before it, in every layer, and at itself, in both directions."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init

from textdiff.backbones.base import Backbone, Cache


@dataclass(frozen=True)
class DrafterConfig:
    """Sizes of a drafter; it is as wide as its target."""

    layers: int = 2
    """Layers of the drafter."""
    heads: int = 4
    """Heads of each."""
    block: int = 8
    """Tokens it looks at at a time: the last of the text, and one more than it drafts at most."""
    features: int = 3
    """How many of the target's layers it reads, evenly from the second to the last."""
    mlp_ratio: float = 4.0
    """Width of the MLPs in widths of the drafter."""
    rope_base: float = 10_000.0
    """Slowest wavelength of the rotary positions."""

    def __post_init__(self) -> None:
        if min(self.layers, self.heads, self.features) < 1 or self.block < 2:
            sizes = f"layers {self.layers}, heads {self.heads}, features {self.features}, block {self.block}"
            raise ValueError(f"{sizes}: expected 1 or more of each, and a block of 2 tokens or more")


Rotation = tuple[Tensor, Tensor]


class BlockPlace(NamedTuple):
    """Where the tokens of a call stand and what they see."""

    rotation: Rotation  # cos, sin (B or 1, 1, n, head width)
    mask: Tensor | None  # (B or 1, 1, n or 1, keys) bool


def _rotate(x: Tensor, rotation: Rotation) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * rotation[0] + torch.cat([-second, first], dim=-1) * rotation[1]


class DraftLayer(nn.Module):
    """Attention on the context and on the block, then an MLP; the context has keys and values only."""

    def __init__(self, config: DrafterConfig, width: int) -> None:
        super().__init__()
        self.heads, hidden = config.heads, int(config.mlp_ratio * width)
        self.attention_norm, self.mlp_norm = nn.RMSNorm(width, eps=1e-6), nn.RMSNorm(width, eps=1e-6)
        self.query = nn.Linear(width, width, bias=False)
        self.key_value = nn.Linear(width, 2 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, width))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def keys_values(self, x: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor]:
        """Of what is looked at, (B, n, H): (B, heads, n, head width) each."""
        key, value = self.key_value(x).chunk(2, dim=-1)
        return _rotate(self._split(key), rotation), self._split(value)

    def forward(self, x: Tensor, place: BlockPlace, cache: Cache, layer: int) -> Tensor:
        """(B, n, H) -> (B, n, H)."""
        h = self.attention_norm(x)
        key, value = cache.update(layer, *self.keys_values(h, place.rotation))
        query = _rotate(self._split(self.query(h)), place.rotation)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=place.mask)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.mlp(self.mlp_norm(x))


class DrafterTrunk(Backbone):
    """The layers, what reads the features, and the vectors of blanks; `width` is the target's, `features` how many of its layers are read,
    `scale` the size of what its head reads."""

    causal = False

    def __init__(self, config: DrafterConfig, width: int, features: int, max_length: int, scale: float) -> None:
        super().__init__()
        if width % config.heads or (width // config.heads) % 2:
            raise ValueError(f"the target's width {width} must be an even multiple of heads {config.heads}: choose another number of heads")
        self.config, self.width, self.features, self.max_length, self.scale = config, width, features, max_length, scale
        self.blanks = nn.Parameter(torch.empty(config.block - 1, width))
        self.read = nn.Linear(features * width, width, bias=False)
        self.read_norm, self.final_norm = nn.RMSNorm(width, eps=1e-6), nn.RMSNorm(width, eps=1e-6)
        self.layers = nn.ModuleList(DraftLayer(config, width) for _ in range(config.layers))

    def init_weights(self, module: nn.Module) -> None:
        """Normal weights of standard deviation 1 / sqrt(inputs), residual outputs smaller by depth."""
        if isinstance(module, nn.Linear):
            init.normal_(module.weight, std=module.in_features**-0.5)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.RMSNorm):
            init.ones_(module.weight)
        elif isinstance(module, DraftLayer):
            last: Any = module.mlp[2]
            for linear in (module.out, last):
                init.normal_(linear.weight, std=(2 * self.config.layers * linear.in_features) ** -0.5)
        elif module is self:
            init.normal_(self.blanks)

    def rotation(self, places: Tensor) -> Rotation:
        """cos and sin (B, 1, n, head width) of positions (B, n)."""
        width = self.width // self.config.heads
        step = torch.arange(0, width, 2, device=places.device, dtype=torch.float64) * (-math.log(self.config.rope_base) / width)
        angle = places[:, None, :, None].double() * torch.cat([step, step]).exp()
        return angle.cos().to(self.blanks.dtype), angle.sin().to(self.blanks.dtype)

    def keys_values(self, features: Tensor, places: Tensor) -> list[tuple[Tensor, Tensor]]:
        """For each layer the keys and values of text with `features` (B, n, features times H) at positions (B, n)."""
        # layers differ in scale, and a few numbers of a stock model's residual stream in size from the rest
        even = F.rms_norm(features.to(self.blanks.dtype).unflatten(-1, (self.features, self.width)), (self.width,), eps=1e-6)
        context, rotation = self.read_norm(self.read(even.flatten(-2))), self.rotation(places)
        layers: Sequence[Any] = list(self.layers)
        return [layer.keys_values(context, rotation) for layer in layers]

    def block(self, first: Tensor) -> Tensor:
        """Vectors (..., block, H): `first` (..., H), those of the last tokens of the text, at the size of the others, and the blanks."""
        first = F.rms_norm(first.to(self.blanks.dtype), (self.width,), eps=1e-6)
        return torch.cat([first[..., None, :], self.blanks.expand(*first.shape[:-1], -1, -1)], dim=-2)

    def forward(
        self, tokens: Tensor, context: BlockPlace, noise: Tensor | None = None, cache: Cache | None = None, previous: Tensor | None = None
    ) -> Tensor:
        """Hidden states (B, n, H) of the vectors `tokens` (B, n, H) of blocks, after the context that `cache` holds."""
        assert cache is not None
        for number, layer in enumerate(self.layers):
            tokens = layer(tokens, context, cache, number)
        return self.final_norm(tokens) * self.scale
