"""Speculative decoding from text to table: a causal model, what may draft for it, what each way costs, and a look at the drafts."""

import json
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from textdiff.backbones.drafter import DrafterConfig, DrafterTrunk
from textdiff.data import pydocs
from textdiff.data.layout import Layout, Opened
from textdiff.data.tokenizer import train_tokenizer
from textdiff.drafter import Drafter, Trial, fresh
from textdiff.drafter import run as train_flash
from textdiff.models.autoregressive import AutoregressiveLM
from textdiff.models.base import ModelSpec
from textdiff.models.feature_drafter import Anchored, fingerprint
from textdiff.models.own_text import OwnText
from textdiff.recipe import given_tokenizer, run_folder
from textdiff.report import print_commands, print_labelled
from textdiff.speculation.models import Llama, Training
from textdiff.speculation.opening import assistant_of, causal, diffusion_of, flash_of, opened, require_rows
from textdiff.speculation.plan import Compare
from textdiff.speculation.report import report
from textdiff.training.checkpoint import find_checkpoint, list_checkpoints, read_state
from textdiff.training.settings import Train
from textdiff.vocab import Vocab


@dataclass(frozen=True, kw_only=True)
class Speculation:
    """Models, trained here or elsewhere, and their comparison; every field is a command-line flag."""

    target: str | None = None
    """The causal model: run folder, checkpoint folder or hub id (default: a stock Llama, trained)."""
    drafter: str | None = None
    """The diffusion model that drafts for it, with its token ids (default: trained)."""
    assistant: str | None = None
    """A small stock causal model that drafts left to right, in transformers' own way (default: trained with the target)."""
    flash: str | None = None
    """A drafter that reads the features of this target, as recipes/drafter.py trains it (default: trained)."""
    data: str = pydocs.NAME
    """builtin:pydocs, a file (text, jsonl, csv, parquet), a folder of them, or a hub id org/name[:config][@revision]."""
    target_size: Llama = Llama()
    """The target, where it is trained."""
    assistant_size: Llama = Llama(layers=1)
    """The assistant, where it is trained."""
    drafter_model: ModelSpec
    """The drafter, where it is trained."""
    flash_size: DrafterConfig = DrafterConfig(layers=1, mlp_ratio=8.0)
    """The drafter that reads features, where it is trained."""
    flash_objective: Anchored = Anchored()
    """What it learns."""
    flash_own: OwnText = OwnText(rows=2_048)
    """The text it learns from."""
    train: Train
    """How the target and the assistant are trained."""
    drafter_train: Train
    """How the drafter is trained."""
    flash_train: Train
    """How the drafter that reads features is trained."""
    vocab_size: int = 1024
    """Size of the trained tokenizer, its special tokens included."""
    layout: Layout = Layout()
    """How text becomes rows."""
    compare: Compare = Compare()
    """What is measured."""
    out: Path | None = None
    """Folder of the run (default: a new one under runs/)."""

    def __post_init__(self) -> None:
        for name, train in (("drafter_train", self.drafter_train), ("flash_train", self.flash_train)):
            if train.resume and not self.train.resume:
                raise ValueError(f"{name}.resume is set and train.resume is not, which resumes all that is trained here: set that one")
        if self.target is None and any(name is not None for name in (self.drafter, self.assistant, self.flash)):
            raise ValueError("a drafter is given and no target: what drafts has its target's token ids, so name that with --target")
        if self.compare.prompt_length > self.layout.length:
            given = f"prompts of {self.compare.prompt_length} tokens are the beginnings of rows of {self.layout.length}"
            raise ValueError(f"{given}: raise layout.length, or lower compare.prompt_length")
        if self.target is None:
            self.compare.check(min(self.target_size.max_length, self.assistant_size.max_length))
        if self.flash is None:
            self.flash_recipe("", Path())  # checks the rest

    def flash_recipe(self, target: str, folder: Path) -> Drafter:
        """How a drafter that reads the features of `target` is trained, in which folder."""
        settings = self.compare
        return Drafter(
            target=target,
            data=self.data,
            out=folder,
            own=self.flash_own,
            backbone=self.flash_size,
            objective=self.flash_objective,
            layout=self.layout,
            train=replace(self.flash_train, resume=self.train.resume),
            trial=Trial(settings.prompts, settings.prompt_length, settings.new),
        )


class Names(NamedTuple):
    """Folders or hub ids, as `opened` takes them."""

    target: str
    drafter: str
    assistant: str | None
    flash: str | None


def run(asked: Speculation, name: str) -> Path:
    """Train what is not given, compare, show and save; returns the run's folder. `name` is the folder's default name.

    Raises ValueError with one line for anything a user can mend, and SystemExit 130 or 143 when stopped by a signal.
    """
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("several models are trained here one after the other, in one process: start it without torchrun or accelerate")
    for train in (asked.train, asked.drafter_train, asked.flash_train):
        train.lora.require_weights(None)
    began, out = time.perf_counter(), run_folder(asked, name)
    _require_new(asked, out)
    names = _trained(asked, _ready(asked, out))
    _measured(asked, names, out, began)
    return out


def _roles(asked: Speculation) -> dict[str, Train]:
    """What is trained here, and how."""
    own = {"target": asked.train, "assistant": asked.train} if asked.target is None else {}
    drafter = {"drafter": asked.drafter_train} if asked.drafter is None else {}
    return own | drafter | ({"flash": asked.flash_train} if asked.flash is None else {})


def _require_new(asked: Speculation, out: Path) -> None:
    """Raise ValueError for a folder with models that were begun in it and are not to be resumed."""
    for role in () if asked.train.resume else _roles(asked):
        if list_checkpoints(out / role / "checkpoints"):
            raise ValueError(f"{out / role} already holds a run: resume it with --train.resume, or choose another folder")


def _cut(asked: Speculation, names: Names) -> list[str]:
    """What was trained here and stopped before its last step, in words."""
    found = []
    for role, train in _roles(asked).items():
        steps = _steps(Path(names._asdict()[role]))
        if steps < train.steps:
            found.append(f"the {role} is compared as it is after {steps:,} of {train.steps:,} steps: --train.resume trains it to the end")
    return found


def _steps(folder: Path) -> int:
    """How many steps a run has done that came to its end, or to that of its time."""
    return int(json.loads((folder / "results.json").read_text())["steps"])


def _flash_folder(target: str, out: Path) -> Path:
    """Where the drafter of a target that is trained here belongs: one that reads features is of use to the weights it was trained on alone,
    so a target that has been trained on has another."""
    first = out / "flash"
    begun = find_checkpoint(first / "checkpoints")
    if begun is None or read_state(begun)["settings"]["model.target.fingerprint"] == fingerprint(causal(target, "target")):
        return first
    return out / f"flash-{_steps(Path(target))}"


def _ready(asked: Speculation, out: Path) -> Training:
    """What the models are trained on; raises ValueError, before anything is trained, for what could not be compared afterwards."""
    target = None if asked.target is None else causal(asked.target, "target")
    text = asked.layout.open(asked.data)
    tokenizer = given_tokenizer(asked.target, asked.train.resume, out)
    if tokenizer is None:
        tokenizer = train_tokenizer(text.texts(), asked.vocab_size)
    training = Training(asked.data, asked.layout, tokenizer, out)
    _prompts(asked, text, tokenizer if target is None else target.tokenizer)
    if target is None:
        if asked.train.resume:
            asked.target_size.require(training.begin("target"))
            asked.assistant_size.require(training.begin("assistant"))
        DrafterTrunk(asked.flash_size, asked.target_size.width, 1, asked.target_size.max_length, 1.0)
        sizes = {"target": asked.target_size, "assistant": asked.assistant_size}
        reads = min(_require_length(text, role, size.max_length) for role, size in sizes.items())
    else:
        reads = _require_fitting(asked, target, text)
    if asked.drafter is None:
        model = asked.drafter_model.build(Vocab.of(tokenizer))
        require_rows(model, "the drafter's model")
        reads = min(reads, _require_length(text, "drafter", model.max_length))
    asked.compare.check(reads)
    return training


def _require_fitting(asked: Speculation, target: AutoregressiveLM, text: Opened) -> int:
    """How many tokens all of the models that are given read; raises ValueError where they do not speculate together."""
    assert asked.target is not None
    given = [target]
    if asked.drafter is not None:
        given.append(diffusion_of(target, asked.drafter))
    if asked.assistant is not None:
        given.append(assistant_of(target, asked.assistant))
    if asked.flash is None:
        _require_length(text, "target", target.max_length)
        fresh(asked.flash_recipe(asked.target, Path()), target)
    else:
        flash_of(target, asked.flash)
    return min(model.max_length for model in given)


def _require_length(text: Opened, role: str, reads: int) -> int:
    if text.length > reads:
        raise ValueError(f"layout.length is {text.length} and the {role} reads {reads} tokens: shorten the rows")
    return reads


def _trained(asked: Speculation, training: Training) -> Names:
    """All models by name, after training those that are not given."""
    target, drafts, assistant, flash = asked.target, asked.drafter, asked.assistant, asked.flash
    if target is None:
        target = training.causal("target", asked.target_size, asked.train)
        assistant = training.causal("assistant", asked.assistant_size, asked.train)
    if drafts is None:
        resumed = replace(asked.drafter_train, resume=asked.train.resume)
        drafts = training.diffusion("drafter", asked.drafter_model, target, resumed)
    if flash is None:
        folder = training.out / "flash" if asked.target is not None else _flash_folder(target, training.out)
        flash = str(train_flash(asked.flash_recipe(target, folder), "flash"))
    return Names(target, drafts, assistant, flash)


def _measured(asked: Speculation, names: Names, out: Path, began: float) -> None:
    console, settings = Console(highlight=False), asked.compare
    models = opened(*names).changed(lambda model: model.to(settings.device))
    prompts = _prompts(asked, asked.layout.open(asked.data), models.target.tokenizer)
    print_labelled(console, "cut", *_cut(asked, names))
    before = torch.get_num_threads()
    torch.set_num_threads(settings.threads)
    try:
        report(console, settings, models, [prompt.to(settings.device) for prompt in prompts], asked.data, out)
    finally:
        torch.set_num_threads(before)
    print_labelled(console, "wrote", f"{out}/ in {time.perf_counter() - began:.0f} s", "results.json")
    print_commands(console, "next", f"textdiff speculate --target {names.target} --drafter {names.flash} --prompt 'The '")


def _prompts(asked: Speculation, text: Opened, tokenizer: PreTrainedTokenizerBase) -> list[Tensor]:
    """The beginnings of held-out rows."""
    settings = asked.compare
    rows = [row.tokens for row in text.examples(tokenizer).validation]
    rows = [row[: settings.prompt_length] for row in rows if len(row) >= settings.prompt_length]
    if not rows:
        raise ValueError(f"{asked.data} has no held-out row of {settings.prompt_length} tokens: lower compare.prompt_length")
    count = min(settings.prompts, len(rows))
    return [torch.tensor(rows[i * len(rows) // count]) for i in range(count)]
