"""The models of a comparison that are trained here, one after the other on the same text."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from textdiff import recipe
from textdiff.data.layout import Layout
from textdiff.models.autoregressive import AutoregressiveSpec
from textdiff.models.base import ModelSpec
from textdiff.recipe import Evaluation, Recipe
from textdiff.training.checkpoint import replace_folder
from textdiff.training.settings import Train
from textdiff.vocab import Vocab


@dataclass(frozen=True)
class Llama:
    """The sizes of a stock Llama."""

    width: int = 128
    layers: int = 20
    heads: int = 4
    max_length: int = 512

    def __post_init__(self) -> None:
        if min(vars(self).values()) < 1 or self.width % (2 * self.heads):
            raise ValueError(f"width {self.width} must be an even multiple of heads {self.heads}, and all sizes 1 or more")

    def require(self, folder: Path) -> None:
        """Raise ValueError when a folder holds a model of other sizes."""
        if not is_whole(folder):
            return
        found = LlamaConfig.from_pretrained(folder)
        there = Llama(found.hidden_size, found.num_hidden_layers, found.num_attention_heads, found.max_position_embeddings)
        if there != self:
            raise ValueError(f"{folder} was begun as {there}, now it is {self}: give the old sizes to resume, or choose another folder")

    def save(self, folder: Path, tokenizer: PreTrainedTokenizerBase, seed: int) -> None:
        """A folder with fresh weights, as the hub has them.

        Their deviation is width^-0.5, and (2 layers)^-0.5 of that where a layer adds to the stream (Radford et al. 2019): with 0.02
        throughout, as transformers has it, a deep and narrow stack learns far more slowly.
        """
        vocab = Vocab.of(tokenizer)
        config = LlamaConfig(
            vocab_size=vocab.size,
            hidden_size=self.width,
            intermediate_size=8 * self.width // 3,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            max_position_embeddings=self.max_length,
            tie_word_embeddings=True,
            initializer_range=self.width**-0.5,
            bos_token_id=vocab.bos_id,
            eos_token_id=vocab.eos_id,
            pad_token_id=vocab.pad_id,
        )
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
        for layer in model.model.layers:
            for linear in (layer.self_attn.o_proj, layer.mlp.down_proj):
                linear.weight.data.mul_((2 * self.layers) ** -0.5)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def is_whole(folder: Path) -> bool:
    """Whether `Llama.save` came to its end in a folder: the tokenizer is written last."""
    return all((folder / name).is_file() for name in ("config.json", "model.safetensors", "tokenizer.json"))


class Training(NamedTuple):
    """What is trained on which text, how."""

    data: str
    layout: Layout
    tokenizer: PreTrainedTokenizerBase
    out: Path

    def begin(self, role: str) -> Path:
        """Where a Llama stands with fresh weights, once it `is_whole`."""
        return self.out / "begin" / role

    def causal(self, role: str, sizes: Llama, train: Train) -> str:
        """The folder of a Llama trained from fresh weights."""
        begin = self.begin(role)
        if not (train.resume and is_whole(begin)):
            replace_folder(self.out / "tokenizer", self._write_tokenizer)
            replace_folder(begin, lambda folder: sizes.save(folder, self.tokenizer, train.seed))
        return self._run(Recipe(AutoregressiveSpec(), self.data, init=str(begin)), role, train)

    def diffusion(self, role: str, model: ModelSpec, tokenizer: str, train: Train) -> str:
        """The folder of a diffusion model with the tokenizer of another."""
        return self._run(Recipe(model, self.data, tokenizer), role, train)

    def _write_tokenizer(self, folder: Path) -> None:
        self.tokenizer.save_pretrained(folder)

    def _run(self, asked: Recipe, role: str, train: Train) -> str:
        evaluation = Evaluation(draws=4, samples=0)  # the bound of the drafter is not what is compared
        return str(recipe.run(replace(asked, out=self.out / role, layout=self.layout, train=train, evaluation=evaluation), role))
