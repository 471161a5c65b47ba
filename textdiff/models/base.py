"""What trainer and evaluator know of a language model, and the Hugging Face border: config, save, load."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from textdiff import spec as plain
from textdiff.backbones.base import Backbone
from textdiff.batch import Batch
from textdiff.randomness import Rng
from textdiff.vocab import Vocab

PILOT_DRAWS = 4  # network calls of a pilot for each of its rows
PILOT = 2**31 - 1  # the step of its noise, which is nobody else's


class Loss(NamedTuple):
    """Sums and counts of one micro-batch; the trainer divides, once, by the global token count."""

    total: Tensor  # () what is differentiated, summed over the scored tokens
    tokens: Tensor  # () long, how many were scored: batch.target.sum()
    nelbo: Tensor  # () nats, detached: the bound (or the exact likelihood) summed over the same tokens
    metrics: dict[str, Tensor]  # further sums over the same tokens


class TextDiffConfig(PreTrainedConfig):
    """`config.json` of our own architectures: the model's dataclass tree and its vocabulary as plain data."""

    spec: dict[str, Any] | None = None
    vocab: dict[str, Any] | None = None


@dataclass(frozen=True)
class ModelSpec:
    """A model without its weights; a recipe holds one."""

    def build(self, vocab: Vocab) -> "LanguageModel":
        """The model with fresh weights."""
        raise NotImplementedError


class LanguageModel(PreTrainedModel):
    """All that trainer and evaluator know. A subclass declares `spec_class` and builds its parts from `self.spec` and `self.vocab`."""

    config: TextDiffConfig
    base_model_prefix = "backbone"
    supports_gradient_checkpointing = False
    _supports_sdpa = True
    nll_is_bound: ClassVar[bool]
    backbone: Backbone
    tokenizer: Any = None  # set by `textdiff.load`; saved beside the weights

    def __init__(self, config: TextDiffConfig, trusted: tuple[str, ...] = ("textdiff",)) -> None:
        super().__init__(config)
        self.spec: Any = plain.from_plain(config.spec, trusted)
        self.vocab: Vocab = plain.from_plain(config.vocab, trusted)

    def _init_weights(self, module: nn.Module) -> None:
        self.backbone.init_weights(module)

    def init_weights(self) -> None:
        """Fresh weights for our own trunk; a stock trunk arrives with its own."""
        if self.backbone.trunk is None:
            super().init_weights()

    @property
    def max_length(self) -> int:  # type: ignore[override]
        """The longest row the trunk can read."""
        return self.backbone.max_length

    def forward(self, batch: Batch, seed: int, step: int, progress: float = 1.0) -> Loss:
        """The training loss; noise is a function of (seed, step, batch.sample_id)."""
        raise NotImplementedError

    def nll(self, batch: Batch, rng: Rng, draw: int = 0, draws: int = 1) -> Tensor:
        """(B,) nats over the target tokens: exact, or one draw of an upper bound when `nll_is_bound`, unbiased whatever the batch.

        Of several draws of the same sequences the one numbered `draw` comes from the `draw`-th of `draws` equal strata of time.
        """
        raise NotImplementedError

    def calls(self, draws: int) -> int:
        """Network calls that `mean_nll` makes for each sequence."""
        return draws if self.nll_is_bound else 1

    def pilot(self, batch: Batch, seed: int, draws: int) -> Any:
        """What `mean_nll` of so many draws is told of the model beforehand, from `PILOT_DRAWS` calls for each row on noise that no score
        uses; None where there is nothing to tell. It changes the spread of a bound, never its mean."""
        return None

    def mean_nll(self, batch: Batch, seed: int, draws: int, pilot: Any = None) -> Tensor:
        """(B,) nats over the target tokens: the mean of `draws` stratified draws, each keyed by (seed, draw, sample)."""
        total = torch.zeros(len(batch.tokens), dtype=torch.float64, device=batch.tokens.device)
        for k in range(draws):
            total += self.nll(batch, Rng(seed, k, batch.sample_id), k, draws)
        return total / draws

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:  # type: ignore[override]
        """Write config.json, model.safetensors, generation_config.json and the tokenizer.

        A stock trunk is saved as the stock folder it came from, readable by transformers alone, with a `textdiff` block in config.json.
        """
        trunk = self.backbone.trunk
        if trunk is None:
            super().save_pretrained(save_directory, **kwargs)
        else:
            block = {"model_type": self.config.model_type, "spec": self.config.spec, "vocab": self.config.vocab}
            trunk.config.textdiff = {**block, "generation": self.generation_config.to_diff_dict()}
            if "state_dict" in kwargs:  # given with this model's names
                prefix = next(name for name, module in self.named_modules() if module is trunk) + "."
                kwargs["state_dict"] = {name.removeprefix(prefix): value for name, value in kwargs["state_dict"].items()}
            trunk.save_pretrained(save_directory, **kwargs)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(save_directory)
