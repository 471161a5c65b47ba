"""Which weights a run trains, and how fast each part of them learns: [MASK]'s row, attention, the rest."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from textdiff.models.base import LanguageModel


@dataclass(frozen=True)
class Rates:
    """Multipliers of the learning rate; 0 freezes. Raises ValueError for numbers that make no sense."""

    mask_row: float = 1.0
    """The embedding of [MASK], which a model trained left to right has never met: one row of a table."""
    attention: float = 1.0
    """Weights inside attention layers."""
    rest: float = 1.0
    """All others."""

    def __post_init__(self) -> None:
        if min(astuple(self)) < 0 or max(astuple(self)) == 0:
            raise ValueError(f"rates are {astuple(self)}: expected multipliers of the learning rate, none below 0 and not all 0")


class Row:
    """A row of a table that does not learn as the rest of it does.

    AdamW's update is linear in the learning rate, weight decay included: the row's part of it is multiplied by `factor`. Without one
    the row is trained alone, and the gradient of the rest is zero.
    """

    def __init__(self, table: nn.Parameter, index: int, factor: float | None) -> None:
        self.table, self.index, self.factor = table, index, factor
        self._before = table.detach()[index].clone()
        self._handles: list[Any] = []

    def watch(self, optimizer: torch.optim.Optimizer) -> None:
        """Act on the table's gradient and on every step of `optimizer` from here on."""
        if self.factor is None or self.factor == 0:
            self._handles.append(self.table.register_hook(self._masked))
        if self.factor is not None:
            handles = (optimizer.register_step_pre_hook(self._remember), optimizer.register_step_post_hook(self._scale))
            self._handles.extend(handles)

    def release(self) -> None:
        """The table is as any other again."""
        for handle in self._handles:
            handle.remove()

    def _masked(self, gradient: Tensor) -> Tensor:
        alone = self.factor is None
        kept = torch.zeros_like(gradient) if alone else gradient.clone()
        kept[self.index] = gradient[self.index] if alone else 0
        return kept

    def _remember(self, *step: Any) -> None:
        self._before = self.table.detach()[self.index].clone()

    @torch.no_grad()
    def _scale(self, *step: Any) -> None:
        assert self.factor is not None
        self.table[self.index] = self._before + self.factor * (self.table[self.index] - self._before)


class Parts(NamedTuple):
    """What is trained of a model, where not everything alike."""

    rates: dict[str, float]  # of trainable parameters, by name; what is not named has 1
    row: Row | None = None

    @property
    def lone(self) -> list[nn.Parameter]:
        """The table of which the row alone is trained."""
        return [self.row.table] if self.row is not None and self.row.factor is None else []


@contextmanager
def divided(model: LanguageModel, rates: Rates, adapters: bool) -> Iterator[Parts]:
    """Freeze what is not trained, until the context ends; of a model with `adapters` [MASK]'s row is, whatever else they froze.

    Raises ValueError when the model has no part that `rates` tells apart, or when nothing is left to train.
    """
    if rates == Rates() and not adapters:
        yield Parts({})
        return
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    parts = Parts({})
    try:
        parts = _parts(model, rates, adapters)
        yield parts
    finally:
        if parts.row is not None:
            parts.row.release()
        for parameter, trained in before:
            parameter.requires_grad_(trained)


def _parts(model: LanguageModel, rates: Rates, adapters: bool) -> Parts:
    attention = attention_weights(model)
    if rates.attention != rates.rest and not attention:
        raise ValueError(f"no layer of {type(model).__name__} is an attention: leave rates.attention at rates.rest, {rates.rest}")
    named = {name: rates.attention if name in attention else rates.rest for name, one in model.named_parameters() if one.requires_grad}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(named.get(name, 0.0) > 0)
    table, index = token_table(model), model.vocab.mask_id
    row = None
    if table is not None and index is not None:
        if not table.requires_grad and rates.mask_row and (adapters or rates.rest == 0):
            table.requires_grad_()
            row = Row(table, index, None)
            named[next(name for name, parameter in model.named_parameters() if parameter is table)] = rates.mask_row
        elif table.requires_grad and rates.mask_row != rates.rest:
            row = Row(table, index, rates.mask_row / rates.rest)
    elif rates.mask_row != 1:
        raise ValueError(f"{type(model).__name__} has no embedding of [MASK] to learn at a rate of its own: leave rates.mask_row out")
    trained = {name: rate for name, rate in named.items() if rate > 0}
    if not trained:
        raise ValueError(f"rates are {astuple(rates)} and nothing of {type(model).__name__} is left to train: raise one of them")
    return Parts(trained, row)


def attention_weights(model: nn.Module) -> set[str]:
    """Names of the parameters inside attention layers: what transformers, and we, call an attention in the name of its class."""
    layers = [(name, layer) for name, layer in model.named_modules() if "Attention" in type(layer).__name__]
    return {f"{name}.{inner}" for name, layer in layers for inner, _ in layer.named_parameters()}


def token_table(model: LanguageModel) -> nn.Parameter | None:
    """The embedding that tokens are read through, where there is one; a tied head is the same parameter."""
    trunk = model.backbone.trunk
    table = dict(model.backbone.named_children()).get("embedding") if trunk is None else trunk.get_input_embeddings()
    weight = table.weight if isinstance(table, nn.Embedding) else None
    return weight if isinstance(weight, nn.Parameter) else None
