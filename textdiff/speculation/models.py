"""The models of a comparison: opened, or trained one after the other on the same text."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from textdiff import recipe
from textdiff.data.layout import Layout
from textdiff.data.tokenizer import train_tokenizer
from textdiff.decoding import has_encoder
from textdiff.models.autoregressive import AutoregressiveLM, AutoregressiveSpec
from textdiff.models.base import LanguageModel, ModelSpec
from textdiff.models.classifier import refuse_classifier
from textdiff.models.feature_drafter import FeatureDrafter, refuse_drafter
from textdiff.models.loading import load
from textdiff.models.speculation import require_same_ids
from textdiff.recipe import Evaluation, Recipe
from textdiff.training.settings import Train
from textdiff.vocab import Vocab


@dataclass(frozen=True)
class Llama:
    """The sizes of a stock Llama."""

    width: int = 256
    layers: int = 8
    heads: int = 8
    max_length: int = 512

    def __post_init__(self) -> None:
        if min(vars(self).values()) < 1 or self.width % (2 * self.heads):
            raise ValueError(f"width {self.width} must be an even multiple of heads {self.heads}, and all sizes 1 or more")

    def require(self, folder: Path) -> None:
        """Raise ValueError when the model of a folder has other sizes."""
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


class Models(NamedTuple):
    """Who writes and who drafts."""

    target: AutoregressiveLM
    drafter: Any  # a LanguageModel that is a Denoiser
    assistant: AutoregressiveLM | None  # a stock model that drafts left to right
    flash: FeatureDrafter | None = None  # attached to the target

    def changed(self, change: Callable[[Any], Any]) -> "Models":
        """`change` of each."""
        target, drafter = change(self.target), change(self.drafter)
        assistant = None if self.assistant is None else change(self.assistant)
        return Models(target, drafter, assistant, None if self.flash is None else change(self.flash).attach(target))


def opened(target: str, drafter: str, assistant: str | None, flash: str | None = None) -> Models:
    """Checkpoints by folder or hub id; raises ValueError where they cannot speculate together."""
    writes, drafts = causal(target, "target"), _opened(drafter)
    helps = None if assistant is None else causal(assistant, "assistant")
    if isinstance(drafts, AutoregressiveLM):
        raise ValueError(f"{drafter} is a causal model: name a diffusion model as drafter")
    for model in (drafts, helps):
        if model is not None:
            require_same_ids(writes, model)
    if helps is not None and None in (writes.backbone.trunk, helps.backbone.trunk):
        raise ValueError("an assistant is transformers' own way, for stock models only: leave it out, or give two stock models")
    return Models(writes, drafts, helps, None if flash is None else attached(flash, writes))


def attached(name: str, target: AutoregressiveLM) -> FeatureDrafter:
    """A drafter that reads features, attached to its target; raises ValueError where it is none, or belongs to another model."""
    model = load(name)
    if not isinstance(model, FeatureDrafter):
        raise ValueError(f"{name} is a {type(model).__name__}, which reads no target: name a run of recipes/drafter.py as flash")
    return model.attach(target)


def causal(name: str, role: str) -> AutoregressiveLM:
    """A causal model by folder or hub id; raises ValueError where it is none."""
    model = _opened(name)
    if not isinstance(model, AutoregressiveLM):
        raise ValueError(f"{name} is a diffusion model: name a causal model as {role}")
    return model


def _opened(name: str) -> LanguageModel:
    model = load(name)
    refuse_classifier(model, name)
    refuse_drafter(model, name)
    if model.tokenizer is None:
        raise ValueError(f"{name} has no tokenizer files: text cannot be turned into its ids")
    if has_encoder(model):
        raise ValueError(f"{name} has an encoder, and drafts continue a row: name a model that reads one row")
    return model


class Training(NamedTuple):
    """What is trained on which text, how."""

    data: str
    layout: Layout
    vocab_size: int
    out: Path

    def causal(self, role: str, sizes: Llama, train: Train) -> str:
        """The folder of a Llama trained from fresh weights; the first one trains the tokenizer too."""
        begin = self.out / "begin" / role
        self._begin(begin, sizes, train.seed)
        return self._run(Recipe(AutoregressiveSpec(), self.data, init=str(begin)), role, train)

    def diffusion(self, role: str, model: ModelSpec, tokenizer: str, train: Train) -> str:
        """The folder of a diffusion model with the tokenizer of another."""
        return self._run(Recipe(model, self.data, tokenizer), role, train)

    def _begin(self, folder: Path, sizes: Llama, seed: int) -> None:
        if (folder / "config.json").is_file():  # of a run that is resumed
            sizes.require(folder)
            return
        trained = recipe.given_tokenizer(str(self.out / "tokenizer"), False, self.out) if (self.out / "tokenizer").is_dir() else None
        tokenizer = train_tokenizer(self.layout.open(self.data).texts(), self.vocab_size) if trained is None else trained
        tokenizer.save_pretrained(self.out / "tokenizer")
        sizes.save(folder, tokenizer, seed)

    def _run(self, asked: Recipe, role: str, train: Train) -> str:
        evaluation = Evaluation(draws=4, samples=0)  # the bound of the drafter is not what is compared
        return str(recipe.run(replace(asked, out=self.out / role, layout=self.layout, train=train, evaluation=evaluation), role))
