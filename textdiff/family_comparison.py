"""Every family of language model at equal parameters, data and budget: trained, measured and written up by one command.

There are two budgets, with runs and learning-rate schedules of their own. At equal tokens all families take the same steps; at equal
seconds each takes as many as it has time for, by the pace of its run at equal tokens.
"""

import difflib
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
import yaml
from accelerate import Accelerator
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from textdiff.backbones.transformer import TransformerConfig
from textdiff.data import pydocs
from textdiff.data.corpora import resolve
from textdiff.data.layout import Data, Layout
from textdiff.data.tokenizer import train_tokenizer
from textdiff.family_report import Measuring, Place, Trained, measured, report
from textdiff.family_runs import Run, at_equal_seconds, at_equal_tokens, paces
from textdiff.models import presets
from textdiff.models.base import ModelSpec
from textdiff.models.sizes import Around, of_size, trained_parameters
from textdiff.recipe import Evaluation, Recipe, begin, given_tokenizer, run_folder, saver, while_training
from textdiff.spec import to_plain
from textdiff.training.loop import train
from textdiff.training.run import first_change, flat, untouched
from textdiff.training.session import on_main, session
from textdiff.training.settings import Train
from textdiff.vocab import Vocab

RIVAL = presets.autoregressive.__name__
_KINDS: tuple[Around, ...] = (
    presets.autoregressive,
    presets.masked,
    presets.block,
    presets.uniform,
    presets.hybrid,
    presets.score,
    presets.modern,
    presets.diffusion_lm,
)
_LATENT = presets.latent.__name__  # which is built for a length
FAMILIES = (*(kind.__name__ for kind in _KINDS), _LATENT)
_FREE_TO_CHANGE = {"run.out", "run.seeds", "run.train.resume", "run.train.max_seconds"}


@dataclass(frozen=True)
class FamilyComparison:
    """One model of each family and seed at equal tokens and one at equal seconds, all of about the autoregressive model's parameters."""

    trunk: TransformerConfig
    """The autoregressive model's trunk; the others' is as near to it as equal parameters allow."""
    train: Train
    """How each run trains; steps are those at equal tokens."""
    families: tuple[str, ...] = FAMILIES
    """What is compared, by name."""
    seeds: tuple[int, ...] = (0,)
    """Training seeds; a claim about families needs three or more, and some may be added to a folder that is gone on with."""
    seconds: float | None = None
    """Training time of each run at equal seconds (default: what the autoregressive model, else the first family, took for its steps)."""
    data: str = pydocs.NAME
    """builtin:pydocs, a file of texts (text, jsonl, csv, parquet), a folder of them, or a hub id org/name[:config][@revision]."""
    length: int = 128
    """Tokens of a row."""
    vocab_size: int = 1024
    """Size of the trained tokenizer, which all share, its special tokens included."""
    evaluation: Evaluation = Evaluation(draws_while_training=2, rows_while_training=64)
    """How each run is scored while it trains."""
    measuring: Measuring = Measuring()
    """How the trained models are measured and shown."""
    out: Path | None = None
    """Folder of it all (default: a new one under runs/); with --train.resume what is finished in it is kept."""

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds are {list(self.seeds)}, expected one or more different ones")
        for family in self.families:
            if family not in FAMILIES:
                close = difflib.get_close_matches(family, FAMILIES, n=1)
                raise ValueError(f"there is no family {family!r}: {f'did you mean {close[0]!r}?' if close else ', '.join(FAMILIES)}")
        if not self.families or len(set(self.families)) != len(self.families):
            raise ValueError(f"families are {list(self.families)}, expected one or more different ones")
        if self.seconds is not None and not 0 < self.seconds < float("inf"):
            raise ValueError(f"seconds is {self.seconds}, expected a time above 0")
        if not 3 <= self.length <= self.trunk.max_length:
            raise ValueError(f"length is {self.length}, expected 3 tokens or more, and trunk.max_length, {self.trunk.max_length}, at most")
        self.train.lora.require_weights(None)

    def around(self, family: str) -> Around:
        """The family's model around any trunk."""
        kinds = {kind.__name__: kind for kind in _KINDS}
        return partial(presets.latent, length=self.length - 1) if family == _LATENT else kinds[family]


def run(comparison: FamilyComparison, name: str) -> Path:
    """Train every run of both budgets, measure all, then print and write the tables and the page; returns the folder.

    Raises ValueError with one line for anything a user can mend, and SystemExit 130 or 143 when stopped by a signal: the same command with
    `--train.resume` goes on.
    """
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    began = time.perf_counter()
    with session(comparison.train.bf16) as accelerator:
        out, is_main = on_main(accelerator, lambda: run_folder(comparison, name)), accelerator.is_main_process
        on_main(accelerator, lambda: _check(comparison, out))
        place = Place(out, comparison.data, comparison.length)
        trained = _trained(comparison, out, accelerator)
        found = measured(comparison.measuring, place, trained, accelerator)
    if is_main:
        report(comparison.measuring, place, trained, found)
        print(f"wrote {out}/ in {time.perf_counter() - began:,.0f} s")
    return out


def _trained(comparison: FamilyComparison, out: Path, accelerator: Accelerator) -> Trained:
    """Both budgets, the second by the paces of the first."""
    course = _course(comparison, out, accelerator)
    first = at_equal_tokens(out, comparison.families, comparison.seeds, comparison.train.steps)
    for i, one in enumerate(first, 1):
        course.train(one, f"{i} of {len(first)}")
    seconds, folders = _seconds(comparison, first), {one.folder for one in first}
    second = at_equal_seconds(out, first, seconds)
    others = [one for one in second if one.folder not in folders]
    for i, one in enumerate(others, 1):
        course.train(one, f"{i} of {len(others)}")
    return Trained(first, second, seconds, course.parameters, RIVAL)


def _seconds(comparison: FamilyComparison, runs: Sequence[Run]) -> float:
    """The budget at equal seconds; it must not depend on which seeds are added later."""
    if comparison.seconds is not None:
        return comparison.seconds
    model = next((one for one in runs if one.family == RIVAL), runs[0])
    return paces(model.folder / "log.jsonl")[-1].seconds


class Course(NamedTuple):
    """What all runs share."""

    comparison: FamilyComparison
    accelerator: Accelerator
    out: Path
    tokenizer: PreTrainedTokenizerBase
    data: Data
    models: dict[str, ModelSpec]
    parameters: dict[str, int]

    def train(self, run: Run, which: str) -> None:
        """Carry a run out, or to its end."""
        comparison, accelerator = self.comparison, self.accelerator
        recipe = Recipe(
            self.models[run.family],
            data=comparison.data,
            tokenizer=str(self.out / "tokenizer"),
            out=run.folder,
            vocab_size=comparison.vocab_size,
            layout=Layout(length=comparison.length),
            train=replace(comparison.train, steps=run.steps, seed=run.seed, resume=True),
            evaluation=comparison.evaluation,
        )
        if accelerator.is_main_process:
            print(f"{run.budget}, {which}: {run.family}, seed {run.seed}, {run.steps:,} steps", flush=True)
        torch.manual_seed(run.seed)
        model = recipe.model.build(Vocab.of(self.tokenizer))
        model.tokenizer = self.tokenizer
        on_main(accelerator, lambda: begin(run.folder, recipe, self.tokenizer))
        evaluate, save = while_training(recipe.evaluation, self.data), saver(model, recipe, run.folder)
        steps = train(accelerator, recipe.train, model, self.data.train, model.vocab.pad_id or 0, run.folder, evaluate, save)
        accelerator.free_memory()
        if steps < run.steps:
            raise ValueError(
                f"the time limit stopped {run.family} at step {steps:,} of {run.steps:,}, and runs of unequal length are no comparison: "
                "go on with --train.resume and a higher limit, or none"
            )


def _course(comparison: FamilyComparison, out: Path, accelerator: Accelerator) -> Course:
    """The tokenizer, the rows and the models of equal size; makes the folder."""
    if resolve(comparison.data).holds_pairs:
        raise ValueError(f"{comparison.data} holds prompts with responses, and families are compared on texts: give texts")
    opened = Layout(length=comparison.length).open(comparison.data)
    given = given_tokenizer(None, comparison.train.resume, out)
    tokenizer = on_main(accelerator, lambda: train_tokenizer(opened.texts(), comparison.vocab_size)) if given is None else given
    data, vocab = opened.examples(tokenizer), Vocab.of(tokenizer)
    size = trained_parameters(presets.autoregressive(comparison.trunk).build(vocab))
    models = {family: of_size(comparison.around(family), comparison.trunk, vocab, size) for family in comparison.families}
    parameters = {family: trained_parameters(model.build(vocab)) for family, model in models.items()}
    if accelerator.is_main_process:
        print(f"{data.description}\n{len(models)} families of about {size:,} trained parameters, {vocab.tokens:,} token ids", flush=True)
    on_main(accelerator, lambda: begin(out, comparison, tokenizer))
    return Course(comparison, accelerator, out, tokenizer, data, models, parameters)


def _check(comparison: FamilyComparison, out: Path) -> None:
    """Raise ValueError for a folder that holds runs which are not to be gone on with, or began otherwise."""
    written = out / "recipe.yaml"
    if not written.is_file():
        return
    if not comparison.train.resume:
        raise ValueError(f"{out} already holds runs: go on with --train.resume, or choose another folder with --out")
    try:
        then, now = flat("run", yaml.safe_load(written.read_text())), flat("run", to_plain(comparison))
        seeds = then["run.seeds"][0], comparison.seeds[0]
    except (yaml.YAMLError, KeyError, TypeError, IndexError) as error:
        raise ValueError(f"{written} does not say how the runs began ({error}): choose another folder with --out") from error
    old, new = ({name: value for name, value in record.items() if name not in _FREE_TO_CHANGE} for record in (then, now))
    changed = first_change(old, new, untouched("run", comparison))
    changes = [] if changed is None else [(changed, then.get(changed), now.get(changed))]
    for name, before, after in [*changes, ("run.seeds' first", *seeds)]:
        if before != after:
            raise ValueError(
                f"the comparison in {out} was started with {name.removeprefix('run.')} = {before}, now it is {after}: "
                "give the old value to resume, or choose another folder"
            )
