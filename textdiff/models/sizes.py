"""Models of equal size: a family whose extra parts would make it larger gets a narrower trunk, one that lacks parts wider MLPs."""

from collections.abc import Callable
from dataclasses import replace

import torch

from textdiff.backbones.transformer import TransformerConfig
from textdiff.models.base import LanguageModel, ModelSpec
from textdiff.vocab import Vocab

Around = Callable[[TransformerConfig], ModelSpec]  # a family's model around any trunk


def trained_parameters(model: LanguageModel) -> int:
    """How many numbers training changes; a running mean of weights, which a latent model keeps, is none of them."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def of_size(around: Around, trunk: TransformerConfig, vocab: Vocab, parameters: int) -> ModelSpec:
    """A family's model with about so many trained parameters, as near to `trunk` as can be.

    Its trunk is the widest, up to the given one, with which it is not too large; the MLPs of that are then widened to the number asked
    for. Where even the narrowest trunk is too large the model has that.
    """

    def count(asked: TransformerConfig) -> int:
        state = torch.random.get_rng_state()
        found = trained_parameters(around(asked).build(vocab))
        torch.random.set_rng_state(state)  # to be measured must not change what is built next
        return found

    step = 2 * trunk.heads
    for width in range(trunk.width, 0, -step):
        narrow = replace(trunk, width=width)
        if count(narrow) <= parameters:
            break
    else:
        return around(replace(trunk, width=step))
    hidden, spare = int(narrow.mlp_ratio * width), parameters - count(narrow)
    wider = spare // (count(_with_hidden(narrow, hidden + 1)) - count(narrow))
    return around(_with_hidden(narrow, hidden + wider) if wider else narrow)


def _with_hidden(trunk: TransformerConfig, hidden: int) -> TransformerConfig:
    """With MLPs of so many hidden units, whatever rounding the ratio meets."""
    return replace(trunk, mlp_ratio=(hidden + 0.5) / trunk.width)
