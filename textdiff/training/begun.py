"""The weights that a run with adapters begins from and never changes: checkpoints leave them out, and a resumed run must have the same."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

from textdiff.models.base import LanguageModel
from textdiff.training import weights
from textdiff.training.rates import Parts, token_table


class Begun:
    """What is frozen of `model`: whole parameters, and the table of which one row alone is trained.

    Raises ValueError, when tensors are put back, where they are of another model.
    """

    def __init__(self, model: LanguageModel, parts: Parts) -> None:
        named = dict(model.named_parameters())
        self.frozen = {name: parameter for name, parameter in named.items() if not parameter.requires_grad}
        self.row = parts.row if parts.lone else None
        self._table = next((name for name, one in named.items() if self.row is not None and one is self.row.table), "")
        self.digest = ""
        self.identify(model)

    def identify(self, model: LanguageModel) -> None:
        """Take the SHA-256 of what is frozen but for tables with a row for each id: their new rows' last bit is the machine's own."""
        head = model.backbone.head()
        tables = {id(one) for one in (token_table(model), head.weight, head.bias)}
        digest = hashlib.sha256()
        for name, parameter in self.frozen.items():
            if id(parameter) not in tables:
                digest.update(f"{name} {tuple(parameter.shape)}".encode())
                digest.update(weights.whole(parameter.detach()).cpu().flatten().view(torch.uint8).numpy().tobytes())
        self.digest = digest.hexdigest()

    def without(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Of tensors by name, or by `moment/name`, what training changes."""
        kept = {name: tensor for name, tensor in tensors.items() if name not in self.frozen}
        return {name: tensor[self._rows] if self._is_table(name, tensor) else tensor for name, tensor in kept.items()}

    def completed(self, saved: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`saved`, as `without` left it, with the other rows of the table as they are in `like`, or zero where it has no such name."""
        found = dict(saved)
        for name, tensor in saved.items():
            if self._is_table(name, tensor) and len(tensor) == 1:
                assert self.row is not None
                there = like.get(name)
                shape = (len(self.row.table), *tensor.shape[1:])
                whole = tensor.new_zeros(shape) if there is None else weights.whole(there.detach()).cpu().clone()
                whole[self._rows] = tensor.to(whole.dtype)
                found[name] = whole
        return found

    def changing(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Those of `tensors` that are not frozen."""
        return {name: tensor for name, tensor in tensors.items() if name not in self.frozen}

    @property
    def _rows(self) -> slice:
        assert self.row is not None
        return slice(self.row.index, self.row.index + 1)

    def _is_table(self, name: str, tensor: Tensor) -> bool:
        return self.row is not None and name.rpartition("/")[2] == self._table and tensor.dim() > 1
