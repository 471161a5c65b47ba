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
from textdiff.training.settings import Train
from textdiff.vocab import Vocab


@dataclass(frozen=True)
class Llama:
    """The sizes of a stock Llama."""

    width: int = 192
    layers: int = 16
    heads: int = 8
    max_length: int = 512

    def __post_init__(self) -> None:
        if min(vars(self).values()) < 1 or self.width % (2 * self.heads):
            raise ValueError(f"width {self.width} must be an even multiple of heads {self.heads}, and all sizes 1 or more")

    def require(self, folder: Path) -> None:
        """Raise ValueError when a folder holds a model of other sizes."""
        if not (folder / "config.json").is_file():
            return
        found = LlamaConfig.from_pretrained(folder)
        there = Llama(found.hidden_size, found.num_hidden_layers, found.num_attention_heads, found.max_position_embeddings)
        if there != self:
            raise ValueError(f"{folder} was begun as {there}, now it is {self}: give the old sizes to resume, or choose another folder")

    def save(self, folder: Path, tokenizer: PreTrainedTokenizerBase, seed: int) -> None:
        """A folder with fresh weights, as the hub has them."""
        vocab = Vocab.of(tokenizer)
        config = LlamaConfig(
            vocab_size=vocab.size,
            hidden_size=self.width,
            intermediate_size=8 * self.width // 3,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            max_position_embeddings=self.max_length,
            tie_word_embeddings=True,
            bos_token_id=vocab.bos_id,
            eos_token_id=vocab.eos_id,
            pad_token_id=vocab.pad_id,
        )
        torch.manual_seed(seed)
        LlamaForCausalLM(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)


class Training(NamedTuple):
    """What is trained on which text, how."""

    data: str
    layout: Layout
    tokenizer: PreTrainedTokenizerBase
    out: Path

    def begin(self, role: str) -> Path:
        """Where a Llama stands with fresh weights."""
        return self.out / "begin" / role

    def causal(self, role: str, sizes: Llama, train: Train) -> str:
        """The folder of a Llama trained from fresh weights."""
        begin = self.begin(role)
        if not (begin / "config.json").is_file():  # else of a run that is resumed
            self.tokenizer.save_pretrained(self.out / "tokenizer")
            sizes.save(begin, self.tokenizer, train.seed)
        return self._run(Recipe(AutoregressiveSpec(), self.data, init=str(begin)), role, train)

    def diffusion(self, role: str, model: ModelSpec, tokenizer: str, train: Train) -> str:
        """The folder of a diffusion model with the tokenizer of another."""
        return self._run(Recipe(model, self.data, tokenizer), role, train)

    def _run(self, asked: Recipe, role: str, train: Train) -> str:
        evaluation = Evaluation(draws=4, samples=0)  # the bound of the drafter is not what is compared
        return str(recipe.run(replace(asked, out=self.out / role, layout=self.layout, train=train, evaluation=evaluation), role))
