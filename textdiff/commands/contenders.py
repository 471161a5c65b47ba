"""The models of a comparison: their short names, what each of them is and can read, and which runs differ in their training seed alone."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from textdiff.models.base import LanguageModel

# Of a recipe, what does not make another model of it.
_FREE = re.compile(
    r"recipe\.(out|train\.(seed|resume|keep|log_every|checkpoint_every|evaluate_every|accumulation)|(evaluation|scoring)\..*)"
)

# At the end of a name, the number of a run or of its seed, parted from a name that may end in a number of its own: gpt2-0, gpt2/seed1.
_RUN_NUMBER = re.compile(r"[-_ /]+(seed|s)?[-_. ]?\d+$")


@dataclass(frozen=True)
class Contender:
    """A model that has been looked at; its weights are opened when it is measured."""

    name: str
    """In tables and in names of files."""
    place: str
    """Run folder, checkpoint folder, or hub id."""
    reads: int
    """Tokens of the longest row."""
    encoder: bool
    """Whether it reads prompts by an encoder, and nothing without one."""
    seed: int | None
    """Of its training, where that is recorded."""
    family: str
    """The same for runs that differ in their training seed alone; the name where no recipe is recorded."""
    tokenizer: Any


def opened(place: str) -> "LanguageModel":
    """The model; raises ValueError for one that does not score texts, or cannot read them."""
    from textdiff.models.classifier import refuse_classifier
    from textdiff.models.feature_drafter import refuse_drafter
    from textdiff.models.loading import load

    model = load(place)
    refuse_classifier(model, place)
    refuse_drafter(model, place)
    if model.tokenizer is None:
        raise ValueError(f"{place} has no tokenizer files: text cannot be turned into its ids")
    return model


def contender(model: "LanguageModel", place: str, name: str) -> Contender:
    """What the opened model of a folder or hub id is; raises ValueError when its record cannot be read."""
    from textdiff.decoding import has_encoder
    from textdiff.recipe import recorded
    from textdiff.training.run import flat

    trunk = model.backbone.trunk
    ours = trunk is None or "textdiff" in trunk.config.to_dict()  # a stock model has no record to be asked for
    recipe = (recorded(place) if ours else None) or {}
    settings = {key: value for key, value in flat("recipe", recipe).items() if not _FREE.fullmatch(key)}
    encoder = has_encoder(model)
    reads = model.backbone.max_length if encoder else model.max_length
    family = json.dumps(settings, sort_keys=True) if recipe else name
    return Contender(name, place, reads, encoder, recipe.get("train", {}).get("seed"), family, model.tokenizer)


def short_names(places: Sequence[str]) -> list[str]:
    """The end of each path or id, of one part, or of as many as tell all apart; raises ValueError for one that is given twice."""
    parts = [_parts(place) for place in places]
    for i, place in enumerate(places):
        if parts[i] in parts[:i]:
            raise ValueError(f"{place} is given twice: name each once")
    longest = max(map(len, parts))
    for count in range(1, longest + 1):
        found = ["/".join(part[-count:]) for part in parts]
        if len(set(found)) == len(found):
            break
    return found


def _parts(place: str) -> tuple[str, ...]:
    """Of an absolute path where there is one; `model` inside a run's folder is the run."""
    path = Path(place).expanduser()
    if not path.exists():
        return tuple(place.split("/"))
    path = path.absolute()
    if path.name == "model" and (path.parent / "recipe.yaml").is_file():
        path = path.parent
    return path.parts[1:]


def file_name(name: str) -> str:
    """A name as part of the name of a file."""
    return re.sub(r"[^\w.+-]+", "-", name.replace("/", "--"))


def families(contenders: Sequence[Contender]) -> dict[str, list[str]]:
    """The names of the runs of each family, under those names without the numbers of runs; a single run keeps its own.

    Raises ValueError for two runs of one recipe and one training seed, which are not independent.
    """
    found: dict[str, list[str]] = {}
    known: dict[tuple[str, int | None], str] = {}
    for one in contenders:
        twin = known.setdefault((one.family, one.seed), one.name)
        if twin != one.name:
            raise ValueError(f"{twin} and {one.name} have the same recipe and training seed {one.seed}: name one of them")
        found.setdefault(one.family, []).append(one.name)
    result: dict[str, list[str]] = {}
    for runs in found.values():
        shared = {runs[0]} if len(runs) == 1 else {_RUN_NUMBER.sub("", run) for run in runs}
        name = shared.pop()
        result[f"{min(runs)} ..." if shared or name in result else name] = runs
    return result
