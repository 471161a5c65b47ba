"""What the layers of a trunk say of the tokens it reads: their hidden states, taken from the pass that is made anyway."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
import transformers  # its layers are reached when a function runs: importing them imports the auto classes (see textdiff/__init__.py)
from torch import Tensor, nn

from textdiff.backbones.base import Backbone
from textdiff.backbones.transformer import Transformer


class Heard:
    """The features of one pass."""

    def __init__(self) -> None:
        self.parts: dict[int, Tensor] = {}

    @property
    def features(self) -> Tensor | None:
        """(B, n, layers times H) of the tokens that were read, without gradients; None where nothing was."""
        return torch.cat([self.parts[layer] for layer in sorted(self.parts)], dim=-1) if self.parts else None


@contextmanager
def listening(sources: Mapping[int, nn.Module]) -> Iterator[Heard]:
    """What the layers of `sources_of` put out in a pass made inside the context."""
    heard, handles = Heard(), []
    for number, module in sources.items():

        def take(module: nn.Module, args: object, output: Tensor | tuple[Tensor, ...], number: int = number) -> None:
            heard.parts[number] = (output if isinstance(output, Tensor) else output[0]).detach()

        handles.append(module.register_forward_hook(take))
    try:
        yield heard
    finally:
        for handle in handles:
            handle.remove()


def sources_of(backbone: Backbone, layers: Sequence[int]) -> dict[int, nn.Module]:
    """The modules whose outputs `layers`, counted from 0, are; the last one counts after the final norm."""
    found = layers_of(backbone)
    return {number: backbone if number == len(found) - 1 else found[number] for number in layers}


def layers_of(backbone: Backbone) -> list[nn.Module]:
    """The layers of a trunk from the first to the last; raises ValueError for a stock architecture whose layers are not told apart."""
    if isinstance(backbone, Transformer):
        return list(backbone.blocks)
    found: list[nn.Module] = [module for module in backbone.trunk.modules() if isinstance(module, transformers.GradientCheckpointingLayer)]
    expected = backbone.trunk.config.get_text_config(decoder=True).num_hidden_layers
    if len(found) != expected:
        raise ValueError(f"{type(backbone.trunk).__name__} has {expected} layers, and {len(found)} are found in it: choose another target")
    return found


def embedding_of(backbone: Backbone) -> nn.Module:
    """What turns ids into vectors as wide as hidden states; raises ValueError for a stock architecture where they are not as wide."""
    if isinstance(backbone, Transformer):
        return backbone.embedding
    trunk, embedding = backbone.trunk, backbone.trunk.get_input_embeddings()
    found = {embedding.weight.shape[1], backbone.head().weight.shape[1], trunk.config.get_text_config(decoder=True).hidden_size}
    if len(found) > 1:
        raise ValueError(f"{type(trunk).__name__} has vectors of {sorted(found)} numbers, expected one width: choose another target")
    module: nn.Module = embedding
    return module


def spread(count: int, layers: int) -> tuple[int, ...]:
    """`count` of `layers` layers, evenly from the second to the last (or all, where there are no more)."""
    if count >= layers:
        return tuple(range(layers))
    return tuple(layers - 1 - i * (layers - 2) // max(count - 1, 1) for i in reversed(range(count)))
