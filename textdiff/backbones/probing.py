"""Trying out at load what a stock model does: on a few ordinary tokens, as it is when nothing trains, equal up to rounding."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import PreTrainedModel


@contextmanager
def probing(trunk: PreTrainedModel) -> Iterator[None]:
    """The model in eval mode and without gradients while this lasts."""
    training = trunk.training
    trunk.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        trunk.train(training)


def ordinary_tokens(trunk: PreTrainedModel, count: int) -> Tensor:
    """(1, count) ids, none of them padding, which some models treat apart."""
    ids = [i for i in range(count + 1) if i != trunk.config.pad_token_id]
    return torch.tensor([ids[:count]], device=trunk.device)


def close(one: Tensor, two: Tensor, dtype: torch.dtype | None = None) -> bool:
    """Equal up to the rounding of the number format: 0.01 % of the largest value, 5 % in half precision."""
    tolerance = 0.05 if (dtype or one.dtype) in (torch.bfloat16, torch.float16) else 1e-4
    return bool((one - two).abs().max() <= tolerance * two.abs().max())
