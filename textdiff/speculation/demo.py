"""Speculative decoding from text to table: a causal model, what may draft for it, what each way costs, and a look at the drafts."""

import copy
import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor
from transformers.utils import logging

from textdiff.bench.base import Bench, ratios
from textdiff.data import pydocs
from textdiff.data.layout import Layout
from textdiff.guidance.filters import Filters
from textdiff.models.base import ModelSpec
from textdiff.randomness import Rng
from textdiff.recipe import run_folder
from textdiff.report import print_commands, print_labelled
from textdiff.samplers.drafting import LeftToRightChunks
from textdiff.samplers.feature_drafting import FromFeatures
from textdiff.samplers.speculative import Adaptive, DraftLength
from textdiff.scores import parameters
from textdiff.speculation.comparison import compared, same, table
from textdiff.speculation.models import Llama, Models, Training, attached, causal, opened
from textdiff.speculation.view import show
from textdiff.speculation.ways import Alone, Drafted, Stock, StockDrafted, Way, blank
from textdiff.training.settings import Train

_PLAIN = ("left to right", "left to right (transformers)")


@dataclass(frozen=True)
class Compare:
    """What is compared on which prompts. Raises ValueError for numbers that make no sense."""

    prompts: int = 16
    """Held-out prompts, evenly spaced."""
    prompt_length: int = 32
    """Tokens of each."""
    new: int = 64
    """Tokens written after each; end tokens are written like any other."""
    lengths: tuple[int, ...] = (4, 8)
    """Tokens drafted at a time."""
    steps: tuple[int, ...] = (1, 2)
    """Calls of the drafter for one draft."""
    temperatures: tuple[float, ...] = (0.0, 1.0)
    """0 takes the most probable token; a table for each."""
    rounds: int = 5
    """Times that every way writes everything, in turns."""
    threads: int = 1
    """Of the processor; more are noisier on a machine with other users."""
    device: str = "cpu"
    """cpu or cuda."""

    def __post_init__(self) -> None:
        for name in ("prompts", "prompt_length", "new", "rounds", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"compare.{name} is {getattr(self, name)}, expected 1 or more")
        for name in ("lengths", "steps"):
            if not getattr(self, name) or min(getattr(self, name)) < 1:
                raise ValueError(f"compare.{name} are {list(getattr(self, name))}, expected numbers of 1 or more")
        if self.device not in ("cpu", "cuda"):
            raise ValueError(f"compare.device is {self.device!r}, expected cpu or cuda")
        for temperature in self.temperatures:
            Filters(temperature)
        self.bench()  # checks the rest

    def check(self, limit: int) -> None:
        """Raise ValueError where models that read up to `limit` tokens cannot write what is asked for."""
        if self.prompt_length + self.new > limit:
            asked = f"prompts of {self.prompt_length} tokens and {self.new} new ones"
            raise ValueError(f"{asked} exceed the {limit} that the models read: shorten one")

    def bench(self) -> Bench:
        """What takes the times."""
        return Bench(self.rounds, self.device, self.threads)

    def ways(self, models: Models, temperature: float) -> dict[str, Way]:
        """Every way that these models allow, by name; the first is plain."""
        target, filters, longest = models.target, Filters(temperature), max(self.lengths)
        common = (target, filters, self.new)
        found: dict[str, Way] = {_PLAIN[0]: Alone(*common)}
        if target.backbone.trunk is not None:
            found[_PLAIN[1]] = Stock(*common)
            if models.assistant is not None:
                network = models.assistant.backbone.trunk
                found["AR drafter (transformers)"] = Stock(*common, (("assistant_model", network),), network)
            found["prompt lookup (transformers)"] = Stock(*common, (("prompt_lookup_num_tokens", longest),))
            options = {"denoiser": models.drafter, "drafting": LeftToRightChunks(), "longest": longest}
            found[f"{longest} at once (transformers)"] = StockDrafted(*common, drafter=models.drafter.backbone, **options)
        for length in self.lengths:
            for steps in (steps for steps in self.steps if steps <= length):
                name = f"{length} at once" if steps == 1 else f"{length} in {steps} chunks"
                found[name] = Drafted(*common, models.drafter, LeftToRightChunks(steps), DraftLength(length))
        if models.flash is not None:
            for length in sorted({min(length, models.flash.most) for length in self.lengths}):
                found[f"{length} from features"] = Drafted(*common, models.flash, FromFeatures(), DraftLength(length))
        found[f"up to {2 * longest} at once"] = Drafted(*common, models.drafter, LeftToRightChunks(), Adaptive(2 * longest))
        return found


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
    """A drafter that reads the features of this target (recipes/drafter.py), to be compared too."""
    data: str = pydocs.NAME
    """builtin:pydocs, a file (text, jsonl, csv, parquet), a folder of them, or a hub id org/name[:config][@revision]."""
    target_size: Llama = Llama()
    """The target, where it is trained."""
    assistant_size: Llama = Llama(width=128, layers=1, heads=4)
    """The assistant, where it is trained."""
    drafter_model: ModelSpec
    """The drafter, where it is trained."""
    train: Train
    """How the target and the assistant are trained."""
    drafter_train: Train
    """How the drafter is trained."""
    vocab_size: int = 1024
    """Size of the trained tokenizer, its special tokens included."""
    layout: Layout = Layout()
    """How text becomes rows."""
    compare: Compare = Compare()
    """What is measured."""
    out: Path | None = None
    """Folder of the run (default: a new one under runs/)."""

    def __post_init__(self) -> None:
        if self.target is None and any(name is not None for name in (self.drafter, self.assistant, self.flash)):
            raise ValueError("a drafter is given and no target: what drafts has its target's token ids, so name that with --target")
        if self.compare.prompt_length > self.layout.length:
            given = f"prompts of {self.compare.prompt_length} tokens are the beginnings of rows of {self.layout.length}"
            raise ValueError(f"{given}: raise layout.length, or lower compare.prompt_length")
        if self.target is None:
            self.compare.check(min(self.target_size.max_length, self.assistant_size.max_length))


def run(asked: Speculation, name: str) -> Path:
    """Train what is not given, compare, show and save; returns the run's folder. `name` is the folder's default name.

    Raises ValueError with one line for anything a user can mend, and SystemExit 130 or 143 when stopped by a signal.
    """
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("several models are trained here one after the other, in one process: start it without torchrun or accelerate")
    asked.train.lora.require_weights(None)
    asked.drafter_train.lora.require_weights(None)
    began, out = time.perf_counter(), run_folder(asked, name)
    opened_first = {}
    for role, given in (("target", asked.target), ("assistant", asked.assistant)):
        if given is not None:
            opened_first[role] = causal(given, role)  # before anything is trained for it
    if asked.flash is not None:
        attached(asked.flash, opened_first["target"])
    names = _trained(asked, out)
    _measured(asked, names, out, began)
    return out


def _measured(asked: Speculation, names: tuple[str, str, str | None], out: Path, began: float) -> None:
    console, settings = Console(highlight=False), asked.compare
    models = opened(*names, asked.flash)
    settings.check(min(model.max_length for model in models if model is not None))
    models = models.changed(lambda model: model.to(settings.device))
    prompts, before = _prompts(asked, models), torch.get_num_threads()
    torch.set_num_threads(settings.threads)
    try:
        _report(console, asked, models, prompts, out)
    finally:
        torch.set_num_threads(before)
    print_labelled(console, "wrote", f"{out}/ in {time.perf_counter() - began:.0f} s", "results.json")
    print_commands(console, "next", f"textdiff speculate --target {names[0]} --drafter {names[1]} --prompt 'The '")


def _trained(asked: Speculation, out: Path) -> tuple[str, str, str | None]:
    """The names of target, drafter and assistant, after training those that are not given."""
    training = Training(asked.data, asked.layout, asked.vocab_size, out)
    target, drafter, assistant = asked.target, asked.drafter, asked.assistant
    if target is None:
        target = training.causal("target", asked.target_size, asked.train)
        assistant = training.causal("assistant", asked.assistant_size, asked.train)
    if drafter is None:
        resumed = replace(asked.drafter_train, resume=asked.train.resume)
        drafter = training.diffusion("drafter", asked.drafter_model, target, resumed)
    return target, drafter, assistant


def _prompts(asked: Speculation, models: Models) -> list[Tensor]:
    """The beginnings of held-out rows."""
    settings = asked.compare
    rows = [row.tokens for row in asked.layout.open(asked.data).examples(models.target.tokenizer).validation]
    rows = [row[: settings.prompt_length] for row in rows if len(row) >= settings.prompt_length]
    if not rows:
        raise ValueError(f"{asked.data} has no held-out row of {settings.prompt_length} tokens: lower compare.prompt_length")
    count = min(settings.prompts, len(rows))
    return [torch.tensor(rows[i * len(rows) // count], device=settings.device) for i in range(count)]


def _report(console: Console, asked: Speculation, models: Models, prompts: Sequence[Tensor], out: Path) -> None:
    """The sizes, a table for each temperature, and one row as it is written."""
    settings, bench = asked.compare, asked.compare.bench()
    for label, model in zip(("target", "drafter", "rival", "flash"), models, strict=True):
        if model is not None:
            print_labelled(console, label, f"{type(model).__name__}, {parameters(model):,} parameters")
    cost = _cost(bench, settings, models, prompts[0])
    print_labelled(console, "cost", f"one token of the target takes as long as {cost:.1f} calls of the drafter")
    print_labelled(console, "rule", LeftToRightChunks().reason)
    if models.target.backbone.trunk is None:
        print_labelled(console, "without", "transformers' own generate, assistant and prompt lookup: the target is no stock model")
    numbers = {}
    for temperature in settings.temperatures:
        ways = settings.ways(models, temperature)
        plain = [name for name in _PLAIN if name in ways]
        lines = compared(bench, ways, plain, models.target, prompts, chance=temperature > 0)
        caption = _caption(bench, settings, temperature, len(prompts))
        if temperature == 0:
            caption += f"\nin float64: {_exact(settings, models, prompts)}"
        numbers[f"temperature {temperature}"] = [asdict(line) for line in lines]
        console.print()
        console.print(table(lines, caption), crop=False, soft_wrap=True)
    out.mkdir(parents=True, exist_ok=True)
    sizes = {role: None if model is None else parameters(model) for role, model in zip(Models._fields, models, strict=True)}
    (out / "results.json").write_text(json.dumps({"parameters": sizes, "cost": cost, "data": asked.data} | numbers, indent=2) + "\n")
    way = Drafted(models.target, Filters(0.0), settings.new, models.drafter, LeftToRightChunks(), DraftLength(max(settings.lengths)))
    console.print()
    show(console, way, prompts[0], 0, models.target.tokenizer)


def _caption(bench: Bench, settings: Compare, temperature: float, prompts: int) -> str:
    clock = "CPU time" if bench.device == "cpu" and bench.threads == 1 else "wall time"
    size = f"{prompts} held-out prompts of {settings.prompt_length} tokens, {settings.new} new ones each, temperature {temperature:g}"
    way = "per pass: tokens written per pass of the target; speed: in tokens per second of the faster plain way"
    return f"{size}\n{way}\n{bench.device}, {bench.threads} thread(s), float32, {bench.rounds} rounds in turns, {clock}"


def _exact(settings: Compare, models: Models, prompts: Sequence[Tensor]) -> str:
    """How many rows every way writes as the plain one does when weights and sums are float64, in words."""
    doubled = models.changed(lambda model: copy.deepcopy(model).double())
    ways = settings.ways(doubled, 0.0)
    rows = {name: [way(prompt, 0) for prompt in prompts] for name, way in ways.items()}
    first = next(iter(rows.values()))
    found = {name: same(doubled.target, prompts, first, other) for name, other in rows.items()}
    different = [f"{name} {one}" for name, one in found.items() if one.rows < one.of]
    return "; ".join(different) if different else f"all {len(prompts)} rows are the same, token for token, whichever way they are written"


@torch.no_grad()
def _cost(bench: Bench, settings: Compare, models: Models, prompt: Tensor) -> float:
    """How many drafts in one call take as long as one token of the target alone, at the middle of a row."""
    longest, alone = max(settings.lengths), Alone(models.target, Filters(0.0), settings.new)
    middle = blank(torch.cat([prompt, prompt.new_zeros(settings.new // 2)]), longest)

    def draft(i: int) -> None:
        for _ in range(settings.new):
            LeftToRightChunks()(models.drafter, middle, Rng(0, i, middle.sample_id))

    times = bench.interleaved({"target": lambda i: alone(prompt, i), "drafter": draft})
    return ratios(times["target"], times["drafter"])[1]
