"""A drafter that reads a causal model's features (DFlash), from the model's own text to a trial on held-out prompts.

A model's sliding window limits what its own layers see, in training as in use; the drafter looks at the features of all the text."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from transformers.utils import logging

from textdiff.backbones.drafter import DrafterConfig
from textdiff.batch import Example, collate
from textdiff.data import pydocs
from textdiff.data.layout import Data, Layout
from textdiff.guidance.filters import Filters
from textdiff.models.autoregressive import AutoregressiveLM
from textdiff.models.feature_drafter import Anchored, FeatureDrafter, FeatureDrafterSpec, Followed
from textdiff.models.loading import load
from textdiff.models.own_text import OwnText
from textdiff.randomness import Rng
from textdiff.recipe import begin, on_main_first, run_folder, saver
from textdiff.report import Report, print_commands, print_labelled
from textdiff.samplers.feature_drafting import FromFeatures
from textdiff.samplers.speculative import Counts, DraftLength, Speculative
from textdiff.training.loop import train
from textdiff.training.session import on_main, session
from textdiff.training.settings import Train
from textdiff.training.start import require_as_begun


@dataclass(frozen=True)
class Trial:
    """What is drafted at the end, from the beginnings of held-out rows."""

    prompts: int = 32
    """Rows to continue."""
    prompt: int = 32
    """Tokens of each that are given."""
    tokens: int = 64
    """Tokens to write, at most to the end of a row."""
    temperature: float = 0.0
    """Of the target and of the drafter."""
    rows_while_training: int = 64
    """Held-out rows that the loss is measured on during training."""

    def __post_init__(self) -> None:
        if min(self.prompts, self.prompt, self.tokens, self.rows_while_training) < 1:
            raise ValueError(f"{self}: expected 1 or more of each")
        Filters(self.temperature)


@dataclass(frozen=True)
class Drafter:
    """One drafter; every field is a command-line flag. Raises ValueError for a stream that the target is to continue."""

    target: str = ""
    """The causal model to draft for: a run folder, a local folder or a hub id."""
    data: str = pydocs.NAME
    """builtin:pydocs, a file (text, jsonl, csv, parquet), a folder of them, or a hub id org/name[:config][@revision]."""
    own: OwnText = OwnText()
    """What the target writes to learn from."""
    out: Path | None = None
    """Folder of the run (default: a new one under runs/)."""
    backbone: DrafterConfig = DrafterConfig()
    """Sizes of the drafter."""
    objective: Anchored = Anchored()
    """What it learns."""
    layout: Layout = field(default_factory=Layout)
    """How text becomes rows."""
    train: Train = Train(steps=2_000, batch_size=8, learning_rate=3e-3, warmup=100, final_fraction=0.05, ema=0.99, evaluate_every=500)
    """How it is trained."""
    trial: Trial = Trial()
    """How it is tried."""

    def __post_init__(self) -> None:
        Filters(self.own.temperature)
        if self.layout.streaming and self.own.rows:
            raise ValueError("a stream has no beginnings to choose from: leave layout.streaming off, or learn from the data (--own.rows 0)")


def run(recipe: Drafter, name: str) -> Path:
    """Draw the target's text, train, try and save; returns the run's folder. `name` is the folder's default name.

    Raises ValueError with one line for anything a user can mend, and SystemExit 130 or 143 when stopped by a signal.
    """
    if not recipe.target:
        raise ValueError("there is no model to draft for: name one with --target, a run folder, a local folder or a hub id")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with session(recipe.train.bf16) as accelerator:
        return _run(recipe, name, accelerator)


def _run(recipe: Drafter, name: str, accelerator: Accelerator) -> Path:
    began = time.perf_counter()
    out = on_main(accelerator, lambda: run_folder(recipe, name))
    require_as_begun(out, recipe, ("data", "layout", "own"))
    recipe.train.lora.require_weights(None)
    target = _target(recipe.target, accelerator)
    opened = on_main_first(accelerator, lambda: recipe.layout.open(recipe.data))
    if opened.length > target.max_length:
        raise ValueError(f"layout.length is {opened.length} and the target reads {target.max_length} tokens: shorten the rows")
    data = opened.examples(target.tokenizer)
    model = fresh(recipe, target)
    report = Report(out, shown=accelerator.is_main_process)
    report.header(model, data)
    on_main(accelerator, lambda: begin(out, recipe, target.tokenizer))
    rows, held_out = _rows(recipe, data, target, report)
    steps = train(
        accelerator,
        recipe.train,
        model,
        rows,
        pad_id=target.vocab.pad_id or 0,
        out=out,
        evaluate=lambda model, should_stop: _loss(model, held_out),
        save=saver(model, recipe, out),
    )
    model.to(accelerator.device).eval()  # type: ignore[arg-type]
    if accelerator.is_main_process:
        _try(recipe, model, data, out, steps, report)
        said = f"{out}/ in {time.perf_counter() - began:.0f} s"
        print_labelled(report.console, "wrote", said, "model/ results.json log.jsonl recipe.yaml")
        print_commands(report.console, "next", f"textdiff speculate --target {recipe.target} --drafter {out} --prompt 'The '")
    return out


def _target(name: str, accelerator: Accelerator) -> AutoregressiveLM:
    target: Any = on_main_first(accelerator, lambda: load(name))
    if not isinstance(target, AutoregressiveLM) or target.tokenizer is None:
        raise ValueError(f"{name} is a {type(target).__name__}: a drafter needs a causal model with its tokenizer as target")
    return target.to(accelerator.device)  # type: ignore[arg-type, return-value]


def fresh(recipe: Drafter, target: AutoregressiveLM) -> FeatureDrafter:
    """The drafter before it has learnt anything; raises ValueError for a target that it cannot read."""
    torch.manual_seed(recipe.train.seed)
    followed = Followed.of(target, recipe.target, recipe.backbone.features)
    model = FeatureDrafterSpec(followed, recipe.backbone, recipe.objective).build(target.vocab).attach(target)
    model.tokenizer = target.tokenizer
    return model


def _rows(recipe: Drafter, data: Data, target: AutoregressiveLM, report: Report) -> tuple[Any, Sequence[Example]]:
    """The rows to learn from, and held-out ones of the same kind."""
    count, own = min(recipe.trial.rows_while_training, len(data.validation)), recipe.own
    if not own.rows:
        return data.train, [data.validation[i * len(data.validation) // count] for i in range(count)]
    assert isinstance(data.train, Sequence)
    began = time.perf_counter()
    rows, held_out = own(target, data.train, recipe.train.seed), replace(own, rows=count)(target, data.validation, recipe.train.seed)
    print_labelled(report.console, "text", f"{len(rows):,} rows, written by the target in {time.perf_counter() - began:.0f} s")
    return rows, held_out


def _loss(model: Any, rows: Sequence[Example]) -> Mapping[str, float]:
    """Nats per token as they are weighted in training, and how many tokens of a draft would be accepted."""
    total = accepted = count = 0.0
    for start in range(0, len(rows), 16):
        part = range(start, min(start + 16, len(rows)))
        with torch.no_grad():
            loss = model(collate([rows[i] for i in part], model.vocab.pad_id or 0, list(part)).to(model.device), 0, 0)
        total, accepted = total + float(loss.total), accepted + float(loss.metrics["accepted"])
        count += float(loss.tokens)
    return {"loss": total / count, "accepted": accepted / count}


def _try(recipe: Drafter, model: FeatureDrafter, data: Data, out: Path, steps: int, report: Report) -> None:
    found = tried(recipe.trial, model, data.validation)
    passes, emitted = int(found.passes.sum()), int(found.emitted.sum())
    places = [a / n for a, n in zip(found.accepted.sum(0).tolist(), found.tested.sum(0).tolist(), strict=True) if n]
    print_labelled(
        report.console,
        "drafts",
        f"{emitted / passes:.2f} tokens per pass of the target, {emitted:,} tokens after {len(found.passes)} held-out prompts",
        f"accepted by place in the draft: {' '.join(f'{share:.2f}' for share in places)}",
    )
    numbers = {"data": data.description, "target": recipe.target, "steps": steps, "tokens": emitted, "passes": passes, "accepted": places}
    (out / "results.json").write_text(json.dumps(numbers, indent=2) + "\n")


def tried(trial: Trial, model: FeatureDrafter, rows: Sequence[Example]) -> Counts:
    """What drafts behind the beginnings of rows cost and bring."""
    count = min(trial.prompts, len(rows))
    chosen = [OwnText(prompt=trial.prompt).prompted(rows[i * len(rows) // count], trial.tokens) for i in range(count)]
    target, vocab, filters = model.target, model.vocab, Filters(trial.temperature)
    batch = collate(chosen, vocab.pad_id or 0).to(model.device)
    sampler = Speculative(FromFeatures(), DraftLength(model.most), -1 if vocab.eos_id is None else vocab.eos_id)
    *_, last = sampler.rounds(filters(target), filters(model), batch, Rng(0, 0, batch.sample_id))
    return last.counts
