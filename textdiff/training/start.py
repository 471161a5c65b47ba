"""Begin a run with the weights and the tokenizer of another run of the same model, such as its pre-training; go on with one as it began."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from textdiff.models.base import LanguageModel, ModelSpec
from textdiff.models.latent import LatentDiffusion
from textdiff.models.loading import load
from textdiff.spec import to_plain
from textdiff.training.run import first_change, flat, untouched

# what is trained, on which noise, and what acts in training alone may change from one run to the next; all else must agree
_FREE_TO_CHANGE = (
    *("model.objective", "model.noising", "model.process.schedule", "model.self_conditioning", "model.curriculum", "model.label_dropout"),
    *("model.backbone.dropout", "model.backbone.gradient_checkpointing"),
)


def started(folder: Path, spec: ModelSpec) -> LanguageModel:
    """The model that `spec` asks for, with the weights and the tokenizer of a run's folder, or of a model's.

    The two may differ in their objective and their noise. Raises ValueError with one line when there is no such folder, or its model is
    none of ours, is another one, has other weights, or has no tokenizer.
    """
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder} to start from: name that of a run, or of a model")
    source = load(str(folder))
    if isinstance(source.spec, LatentDiffusion):  # its first steps would train the autoencoder anew, under a denoiser of the old latents
        raise ValueError(f"{folder} holds a latent model, whose autoencoder would be trained anew: resume its run instead")
    there, here = flat("model", to_plain(source.spec)), flat("model", to_plain(spec))
    for name in {**here, **there}:
        if there.get(name) != here.get(name) and not _is_free(name):
            raise ValueError(f"{folder} was trained with {name} = {there.get(name)}, here it is {here.get(name)}: make them agree")
    if source.tokenizer is None:
        raise ValueError(f"{folder} has no tokenizer files: start from a folder that holds its tokenizer")
    model = spec.build(source.vocab)
    _require_same_shapes(folder, source, model)
    model.load_state_dict(source.state_dict())
    model.tokenizer = source.tokenizer
    return model


def _is_free(name: str) -> bool:
    return any(name == free or name.startswith(f"{free}.") for free in _FREE_TO_CHANGE)


def _require_same_shapes(folder: Path, source: LanguageModel, model: LanguageModel) -> None:
    there, here = ({name: tuple(value.shape) for name, value in each.state_dict().items()} for each in (source, model))
    for name in {**here, **there}:
        if there.get(name) != here.get(name):
            sizes = [f"of shape {shape}" if shape is not None else "missing" for shape in (there.get(name), here.get(name))]
            raise ValueError(f"{folder} cannot lend its weights: {name} is {sizes[0]} there and {sizes[1]} here: make the two models agree")


def require_as_begun(out: Path, recipe: Any, names: Sequence[str]) -> None:
    """Raise ValueError when the run to be resumed in `out` was begun with another value of one of its recipe's fields `names`."""
    written = out / "recipe.yaml"
    if not (recipe.train.resume and written.is_file()):
        return
    then, now = (_flat(plain, names) for plain in (yaml.safe_load(written.read_text()), to_plain(recipe)))
    changed = first_change(then, now, untouched("", recipe))
    if changed is not None:
        raise ValueError(
            f"the run in {out} was started with {changed} = {then.get(changed)}, now it is {now.get(changed)}: "
            "give the old value to resume, or choose another folder"
        )


def _flat(plain: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {key: leaf for name in names if name in plain for key, leaf in flat(name, plain[name]).items()}
