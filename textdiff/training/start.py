"""Begin a run with the weights and the tokenizer of another run of the same model, such as its pre-training; go on with one as it began."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from textdiff.models.base import LanguageModel, ModelSpec
from textdiff.models.latent import LatentDiffusion
from textdiff.models.loading import load
from textdiff.spec import to_plain
from textdiff.training.run import flat

# these act in training alone and may change from one run to the next; all else must agree
_FREE_TO_CHANGE = {"model.backbone.dropout", "model.backbone.gradient_checkpointing", "model.curriculum", "model.label_dropout"}


def started(folder: Path, spec: ModelSpec) -> LanguageModel:
    """The model that `spec` asks for, with the weights and the tokenizer of a run's folder, or of a model's.

    Raises ValueError with one line when there is no such folder, or its model is none of ours, is another one, or has no tokenizer.
    """
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder} to start from: name that of a run, or of a model")
    source = load(str(folder))
    if isinstance(source.spec, LatentDiffusion):  # its first steps would train the autoencoder anew, under a denoiser of the old latents
        raise ValueError(f"{folder} holds a latent model, whose autoencoder would be trained anew: resume its run instead")
    there, here = flat("model", to_plain(source.spec)), flat("model", to_plain(spec))
    for name in {**here, **there}:
        if there.get(name) != here.get(name) and name not in _FREE_TO_CHANGE:
            raise ValueError(f"{folder} was trained with {name} = {there.get(name)}, here it is {here.get(name)}: make them agree")
    if source.tokenizer is None:
        raise ValueError(f"{folder} has no tokenizer files: start from a folder that holds its tokenizer")
    model = spec.build(source.vocab)
    model.load_state_dict(source.state_dict())
    model.tokenizer = source.tokenizer
    return model


def require_as_begun(out: Path, recipe: Any, names: Sequence[str]) -> None:
    """Raise ValueError when the run to be resumed in `out` was begun with another value of one of its recipe's fields `names`."""
    written = out / "recipe.yaml"
    if not (recipe.train.resume and written.is_file()):
        return
    then, now = yaml.safe_load(written.read_text()), to_plain(recipe)
    for name in names:
        if then.get(name) != now.get(name):
            raise ValueError(
                f"the run in {out} was started with {name} = {then.get(name)}, now it is {now.get(name)}: "
                "give the old value to resume, or choose another folder"
            )
