"""A target and what drafts for it, opened by folder or hub id, and refused where they do not fit."""

from collections.abc import Callable
from typing import Any, NamedTuple

from textdiff.decoding import has_encoder
from textdiff.models.autoregressive import AutoregressiveLM
from textdiff.models.base import LanguageModel
from textdiff.models.classifier import refuse_classifier
from textdiff.models.feature_drafter import FeatureDrafter, refuse_drafter
from textdiff.models.loading import load
from textdiff.models.speculation import require_same_ids


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


def causal(name: str, role: str) -> AutoregressiveLM:
    """A causal model; raises ValueError where it is none."""
    model = _reader_of_rows(name)
    refuse_drafter(model, name)
    if not isinstance(model, AutoregressiveLM):
        raise ValueError(f"{name} is a diffusion model: name a causal model as {role}")
    return model


def drafter_of(target: AutoregressiveLM, name: str) -> Any:
    """A diffusion model with the target's ids, or a drafter that reads its features, attached to it; raises ValueError for any other."""
    model = _reader_of_rows(name)
    if isinstance(model, AutoregressiveLM):
        raise ValueError(f"{name} is a causal model: name a diffusion model as drafter")
    require_same_ids(target, model)
    return model.attach(target) if isinstance(model, FeatureDrafter) else model


def diffusion_of(target: AutoregressiveLM, name: str) -> Any:
    """A diffusion model with the target's ids; raises ValueError for any other."""
    model = drafter_of(target, name)
    if isinstance(model, FeatureDrafter):
        raise ValueError(f"{name} reads its target's features: name it with --flash, and a diffusion model as drafter")
    return model


def flash_of(target: AutoregressiveLM, name: str) -> FeatureDrafter:
    """A drafter that reads features, attached to its target; raises ValueError where it is none, or belongs to another model."""
    model = load(name)
    if not isinstance(model, FeatureDrafter):
        raise ValueError(f"{name} is a {type(model).__name__}, which reads no target: name a run of recipes/drafter.py as flash")
    return model.attach(target)


def assistant_of(target: AutoregressiveLM, name: str) -> AutoregressiveLM:
    """A stock causal model with the ids of a target that is one too; raises ValueError for any other."""
    model = causal(name, "assistant")
    require_same_ids(target, model)
    if None in (target.backbone.trunk, model.backbone.trunk):
        raise ValueError("an assistant is transformers' own way, for stock models only: leave it out, or give two stock models")
    return model


def opened(target: str, drafter: str, assistant: str | None = None, flash: str | None = None) -> Models:
    """All of them; raises ValueError where they cannot speculate together."""
    writes = causal(target, "target")
    drafts = diffusion_of(writes, drafter)
    helps = None if assistant is None else assistant_of(writes, assistant)
    return Models(writes, drafts, helps, None if flash is None else flash_of(writes, flash))


def _reader_of_rows(name: str) -> LanguageModel:
    model = load(name)
    refuse_classifier(model, name)
    if model.tokenizer is None:
        raise ValueError(f"{name} has no tokenizer files: text cannot be turned into its ids")
    require_rows(model, name)
    return model


def require_rows(model: LanguageModel, name: str) -> None:
    """Raise ValueError for a model that reads its prompts by an encoder."""
    if has_encoder(model):
        raise ValueError(f"{name} has an encoder, and drafts continue a row: name a model that reads one row")
