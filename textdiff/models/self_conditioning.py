"""Self-conditioning: a trunk that reads a belief it held before (Analog Bits, Chen et al. 2022)."""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from textdiff.backbones.base import Backbone
from textdiff.prediction import Prediction
from textdiff.projection import Head

Belief = TypeVar("Belief", bound=Prediction)


def conditioned(backbone: Backbone, head: Head, previous: Prediction | None, read: Callable[[Tensor | None], Prediction]) -> Prediction:
    """A belief read with the mean embedding (B, L, H) of a previous one, where the trunk takes that: of its own first belief when there is
    none, which is a second network call. No gradient flows back through it (Chen et al. 2022)."""
    if not backbone.self_conditioned:
        return read(None)
    return read_after(previous, read, lambda pred: pred.mean(head.weight))


def read_after(previous: Prediction | None, read: Callable[[Tensor | None], Belief], mean: Callable[[Prediction], Tensor]) -> Belief:
    """A belief read with the `mean` of a previous one, or of its own first when there is none: two network calls then."""
    with torch.no_grad():
        told = mean(read(None) if previous is None else previous)
    belief = read(told)
    belief.calls = 2 if previous is None else 1
    return belief
