"""Low-rank adapters (LoRA, Hu et al. 2022) by the `peft` package: what a run trains in place of a model's own weights."""

import importlib.util
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from textdiff.models.base import LanguageModel
from textdiff.training.rates import token_table

if TYPE_CHECKING:
    from peft.tuners.lora import Linear

_NAME = "default"  # PEFT's own for a model's only adapter


@dataclass(frozen=True)
class Lora:
    """Adapters beside linear layers; everything else is frozen, but [MASK]'s row. What is saved is the sum, a model without adapters.

    Raises ValueError for numbers that make no sense, and where `peft` is not installed.
    """

    rank: int = 0
    """Rank of the adapters; 0: none, all weights are trained."""
    alpha: int = 32
    """The product of an adapter's two matrices is multiplied by alpha / rank."""
    targets: tuple[str, ...] | None = None
    """Linear layers by name or by how their names end, such as q_proj (default: all but the head)."""
    embedding: bool = False
    """Train the whole embedding too, not [MASK]'s row alone (DiffuLLaMA)."""

    def __post_init__(self) -> None:
        if self.rank < 0 or self.alpha < 1:
            raise ValueError(f"lora.rank is {self.rank} and lora.alpha {self.alpha}: expected a rank of 0 or more, and 1 or more")
        if self.targets is not None and not self.targets:
            raise ValueError("lora.targets names no layer: name some, or leave it out for all linear layers but the head")
        if self.rank and importlib.util.find_spec("peft") is None:
            raise ValueError("LoRA is done by the peft package, which is not installed: install textdiff[adapters], or set lora.rank to 0")

    def require_weights(self, where: str | None) -> None:
        """Raise ValueError when there are adapters and nothing to adapt: `where` is the option that names a model to begin from, if one was
        given."""
        if self.rank and where is None:
            raise ValueError("train.lora adapts weights that are there, and here they are fresh: begin with a model's, or train without")

    @contextmanager
    def applied(self, model: LanguageModel, seed: int) -> Iterator[None]:
        """Fresh adapters are in the model inside the context and all else of its trunk is frozen; after it they are part of the weights.

        Raises ValueError for targets that the trunk does not have.
        """
        if not self.rank:
            yield
            return
        before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
        try:
            self._attach(model, seed)
            yield
        finally:
            _fold(model)
            for parameter, trained in before:
                parameter.requires_grad_(trained)

    def _attach(self, model: LanguageModel, seed: int) -> None:
        from peft import LoraConfig, inject_adapter_in_model

        linear = _linear(_inside(model), model.backbone.head().weight)
        targets = [name for name in linear if self.targets is None or any(f".{name}".endswith(f".{end}") for end in self.targets)]
        idle = [end for end in self.targets or () if not any(f".{name}".endswith(f".{end}") for name in linear)]
        if idle:
            known = ", ".join(sorted({name.rpartition(".")[2] for name in linear}))
            raise ValueError(f"lora.targets names {idle[0]!r}, which no linear layer of the trunk is called; they are called {known}")
        transposed = any(isinstance(linear[name], Conv1D) for name in targets)
        config = LoraConfig(r=self.rank, lora_alpha=self.alpha, target_modules=targets, fan_in_fan_out=transposed)
        model.requires_grad_(False)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            inject_adapter_in_model(config, _inside(model), adapter_name=_NAME)
        table = token_table(model)
        if self.embedding and table is not None:
            table.requires_grad_()

    def merged(self, model: LanguageModel, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`weights`, a whole state of `model` in which the adapters are, as one of the model without them."""
        if not self.rank:
            return dict(weights)
        layers = _adapted(model)
        plain = {name: tensor for name, tensor in weights.items() if not any(name.startswith(f"{layer}.") for layer in layers)}
        for name, layer in layers.items():
            base = {inner: weights[f"{name}.base_layer.{inner}"] for inner in layer.get_base_layer().state_dict()}
            plain |= {f"{name}.{inner}": tensor for inner, tensor in base.items()}
            plain[f"{name}.weight"] = base["weight"] + layer.get_delta_weight(_NAME).detach().to(base["weight"])
        return plain

    def save(self, model: LanguageModel, weights: Mapping[str, Tensor], folder: Path) -> None:
        """Write the adapters of `weights` in PEFT's own format, with the embedding, in which [MASK]'s row is.

        They fit the stock model that the run began from, once it has a row for every id and looks both ways; other trunks have none.
        """
        if not self.rank or model.backbone.trunk is None:
            return
        trunk = model.backbone.trunk
        prefix = next(name for name, module in model.named_modules() if module is trunk)
        trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        names = {name: name.replace(f"{prefix}.", "base_model.model.", 1).replace(f".{_NAME}.", ".") for name in trained}
        folder.mkdir()
        save_file({names[name]: weights[name].contiguous() for name in trained}, folder / "adapter_model.safetensors")
        trunk.peft_config[_NAME].save_pretrained(folder)


def _inside(model: LanguageModel) -> nn.Module:
    """What adapters are put into and named in."""
    return model.backbone if model.backbone.trunk is None else model.backbone.trunk


def _linear(trunk: nn.Module, head: Tensor) -> dict[str, nn.Module]:
    """The linear layers of the trunk by name, without its head."""
    layers = ((name, layer) for name, layer in trunk.named_modules() if isinstance(layer, (nn.Linear, Conv1D)))
    return {name: layer for name, layer in layers if layer.weight is not head}


def _adapted(model: LanguageModel) -> "dict[str, Linear]":
    """The layers with adapters, by name."""
    from peft.tuners.lora import Linear

    return {name: layer for name, layer in model.named_modules() if isinstance(layer, Linear)}


@torch.no_grad()
def _fold(model: LanguageModel) -> None:
    """Add the adapters to the weights and take them away."""
    for name, layer in _adapted(model).items():
        plain = layer.get_base_layer()
        plain.get_parameter("weight").add_(layer.get_delta_weight(_NAME))
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, plain)
    inside: Any = _inside(model)
    vars(inside).pop("peft_config", None)  # or PEFT would take a second run's for further adapters
