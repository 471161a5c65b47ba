"""What an autoregressive start is worth to a diffusion model: the same budget from its weights and from none, over several seeds."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from textdiff import plots
from textdiff import recipe as single
from textdiff.backbones import hub
from textdiff.backbones.annealing import RandomEntries
from textdiff.data import pydocs
from textdiff.data.layout import Layout
from textdiff.evaluation.seeds import Interval, interval
from textdiff.models.autoregressive import AutoregressiveLM
from textdiff.models.discrete import Discrete
from textdiff.models.loading import load
from textdiff.models.objective import CrossEntropy
from textdiff.recipe import Evaluation, Recipe
from textdiff.report import print_labelled
from textdiff.spec import to_plain
from textdiff.training.run import first_change, flat, untouched
from textdiff.training.settings import Train

SCRATCH = "from scratch"
_FREE_TO_CHANGE = {"run.train.resume", "run.train.steps", "run.out"}
_ARMS = {  # (shift, annealed) of the runs that begin with the model's weights
    "shift, annealed": (True, True),
    "shift": (True, False),
    "no shift, annealed": (False, True),
    "no shift": (False, False),
}


@dataclass(frozen=True)
class Adaptation:
    """Runs of masked diffusion from an autoregressive model, with and without shift and annealing, and from scratch, per seed."""

    model: str = "runs/quickstart-autoregressive"
    """The autoregressive model to begin from, of textdiff's own Transformer: a run folder or a checkpoint folder."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """One run of each kind per seed; intervals need two or more."""
    data: str = pydocs.NAME
    """builtin:pydocs, a file (text, jsonl, csv, parquet), a folder of them, or a hub id org/name[:config][@revision]."""
    layout: Layout = field(default_factory=Layout)
    """How text becomes rows."""
    train: Train = field(default_factory=Train)
    """How each run trains."""
    scratch_learning_rate: float = 3e-3
    """Highest learning rate of the runs from scratch, which bear a higher one."""
    annealing: RandomEntries = RandomEntries()
    """How attention goes from causal to bidirectional where it does not at once."""
    evaluation: Evaluation = field(default_factory=Evaluation)
    """How each run is measured."""
    out: Path | None = None
    """Folder of the runs (default: one under runs/); with --train.resume finished ones in it are kept."""

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds are {list(self.seeds)}, expected one or more different ones")
        self.train.lora.require_weights(None)  # of the runs from scratch


class Arm(NamedTuple):
    """The runs of one kind."""

    bounds: list[float]  # nats/token at the end, by seed
    curves: list[list[tuple[int, float, float]]]  # by seed: (training tokens, nats/token, standard error)


def run(adaptation: Adaptation, name: str) -> Path:
    """Train and measure every run, then compare them; returns the folder.

    Raises ValueError with one line for anything a user can mend.
    """
    out = Path("runs") / name if adaptation.out is None else adaptation.out
    if not adaptation.train.resume and (out / "results.json").exists():
        raise ValueError(f"{out} already holds runs: go on with --train.resume, or choose another folder with --out")
    recipes = dict(_recipes(adaptation, out))
    for folder, recipe in recipes.items():
        if not (adaptation.train.resume and _finished(folder, recipe)):
            single.run(recipe, folder.name)
    arms = {arm: _read([out / _folder(arm, seed) for seed in adaptation.seeds]) for arm in (*_ARMS, SCRATCH)}
    _report(Console(highlight=False), out, adaptation, arms)
    return out


def _folder(arm: str, seed: int) -> str:
    return f"{arm.replace(', ', '-').replace(' ', '-')}-{seed}"


def _recipes(adaptation: Adaptation, out: Path) -> Iterator[tuple[Path, Recipe]]:
    """Every run with its folder, seed by seed, so that what was stopped early has whole seeds."""
    source = load(adaptation.model)
    if not isinstance(source, AutoregressiveLM) or source.backbone.trunk is not None:
        kind = type(source).__name__ if source.backbone.trunk is None else type(source.backbone.trunk).__name__
        raise ValueError(
            f"{adaptation.model} is a {kind}: from scratch there is only textdiff's Transformer, so name an autoregressive model of it, "
            "such as a run of recipes/quickstart.py autoregressive"
        )
    base = Recipe(
        Discrete(backbone=source.spec.backbone, objective=CrossEntropy(), shift=True),
        data=adaptation.data,
        layout=adaptation.layout,
        evaluation=adaptation.evaluation,
    )
    for seed in adaptation.seeds:
        train = replace(adaptation.train, seed=seed)
        for arm, (shift, annealed) in _ARMS.items():
            folder = out / _folder(arm, seed)
            model = replace(base.model, shift=shift, annealing=adaptation.annealing if annealed else None)  # type: ignore[call-arg]
            yield folder, replace(base, model=model, init=adaptation.model, out=folder, train=train)
        folder, train = out / _folder(SCRATCH, seed), replace(train, learning_rate=adaptation.scratch_learning_rate)
        yield folder, replace(base, tokenizer=hub.resolve(adaptation.model), out=folder, train=train)


def _finished(folder: Path, recipe: Recipe) -> bool:
    """Whether the run was carried out to its last step; raises ValueError when it was a run of other settings."""
    try:
        steps = int(json.loads((folder / "results.json").read_text())["steps"])
        then = _kept(flat("run", yaml.safe_load((folder / "recipe.yaml").read_text())))
    except (OSError, ValueError, KeyError, TypeError):
        return False
    now = _kept(flat("run", to_plain(recipe)))
    name = first_change(then, now, untouched("run", recipe))
    if name is not None:
        raise ValueError(
            f"the run in {folder} was started with {name.removeprefix('run.')} = {then.get(name)}, now it is {now.get(name)}: "
            "give the old value to resume, or choose another folder"
        )
    return steps == recipe.train.steps


def _kept(record: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name not in _FREE_TO_CHANGE}


def _read(folders: Sequence[Path]) -> Arm:
    found = [json.loads((folder / "results.json").read_text())["validation"]["nats_per_token"] for folder in folders]
    return Arm(found, [plots.evaluations(folder / "log.jsonl") for folder in folders])


def differences(arms: Mapping[str, Arm]) -> dict[str, Interval]:
    """What each choice changes in nats/token, paired by seed, below 0 where it helps: an autoregressive start, the shift, annealing."""

    def paired(change: Callable[[int], float]) -> Interval:
        return interval([change(i) for i in range(len(arms[SCRATCH].bounds))])

    def at(arm: str, i: int) -> float:
        return arms[arm].bounds[i]

    found = {f"{arm} - {SCRATCH}": paired(lambda i, arm=arm: at(arm, i) - at(SCRATCH, i)) for arm in _ARMS}  # type: ignore[misc]
    shift = paired(lambda i: (at("shift, annealed", i) + at("shift", i) - at("no shift, annealed", i) - at("no shift", i)) / 2)
    annealing = paired(lambda i: (at("shift, annealed", i) - at("shift", i) + at("no shift, annealed", i) - at("no shift", i)) / 2)
    return found | {"shift - no shift": shift, "annealed - at once": annealing}


def _report(console: Console, out: Path, adaptation: Adaptation, arms: Mapping[str, Arm]) -> None:
    changes, train = differences(arms), adaptation.train
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in ("masked diffusion", "bound, nats/token"):
        table.add_column(column, no_wrap=True)
    for arm, found in sorted(arms.items(), key=lambda item: interval(item[1].bounds).mean):
        table.add_row(arm, str(interval(found.bounds)))
    table.add_section()
    for what, change in changes.items():
        table.add_row(what, str(change))
    console.print()
    console.print(table, soft_wrap=True)
    console.print()
    counted = f"{len(adaptation.seeds)} seeds, {train.steps:,} steps of {train.batch_size} rows each; ± is half a 95 % interval over seeds"
    print_labelled(console, "counted", counted, "differences are paired by seed: the same data order and noise")
    numbers: dict[str, Any] = {
        "model": adaptation.model,
        "seeds": list(adaptation.seeds),
        "steps": train.steps,
        "bounds": {arm: found.bounds for arm, found in arms.items()},
        "differences": {what: change._asdict() for what, change in changes.items()},
        "curves": {arm: found.curves for arm, found in arms.items()},
    }
    (out / "results.json").write_text(json.dumps(numbers, indent=2) + "\n")
    if plots.bands(out / "curves.png", {arm: found.curves for arm, found in arms.items()}):
        print_labelled(console, "curves", str(out / "curves.png"))
    print_labelled(console, "wrote", f"{out}/", "results.json and a folder for each run")
