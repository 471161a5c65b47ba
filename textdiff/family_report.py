"""What a comparison of families ends with: every model measured on the same passages, raw numbers in files, tables and the page.

Raw numbers of what is finished are kept, so a report that was stopped goes on where it was, and the page can be made from them again.
"""

import json
import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from rich.console import Console
from transformers import PreTrainedTokenizerBase

from textdiff import plots
from textdiff.commands.compared_texts import compared_texts
from textdiff.commands.comparison_view import measuring, print_table
from textdiff.commands.contenders import file_name, opened
from textdiff.commands.frontier import Frontier
from textdiff.commands.report import Report
from textdiff.data.tokenizer import Encoder
from textdiff.data.windows import Windows, passages
from textdiff.evaluation import lines
from textdiff.evaluation.likelihood import EvaluationStopped
from textdiff.evaluation.measurement import Measurement
from textdiff.evaluation.measuring import Settings, Texts, measure
from textdiff.evaluation.profile import profile
from textdiff.family_runs import Run, paces
from textdiff.family_tables import budget_tables
from textdiff.report import print_labelled
from textdiff.training.session import on_main
from textdiff.training.signals import StopRequest

_PLACES = (0.1, 0.25, 0.4, 0.55, 0.7, 0.85, 1.0)  # shares of masks, or times, of the profile


@dataclass(frozen=True)
class Measuring:
    """How trained models are measured and shown."""

    passage: int = 240
    """Characters of a passage at most; one that still does not fit into a row is cut again, because latent models score whole rows."""
    limit: int = 400
    """Held-out passages at most, evenly spaced."""
    draws: int = 4
    """Draws for each passage's bound; an exact likelihood takes one."""
    batch_size: int = 32
    """Passages at a time."""
    profile_passages: int = 64
    """Of those for the loss and the calibration at each level of noise."""
    texts: int = 16
    """Texts that each sampler writes."""
    text_tokens: int = 64
    """Tokens of each."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < (least := 2 if name == "texts" else 1):
                raise ValueError(f"measuring.{name} is {value}, expected {least} or more")


class Trained(NamedTuple):
    """All runs of a comparison."""

    at_equal_tokens: Sequence[Run]
    at_equal_seconds: Sequence[Run]
    seconds: float  # the second budget
    parameters: Mapping[str, int]  # by family
    rival: str  # the family that scores what the others write

    @property
    def shown(self) -> list[Run]:
        """One run of each family, those of the first seed at equal tokens, which pictures show."""
        return [run for run in self.at_equal_tokens if run.seed == self.at_equal_tokens[0].seed]


class Place(NamedTuple):
    """Where a comparison is written, and on what."""

    out: Path
    data: str
    length: int  # tokens of a row

    @property
    def label(self) -> str:
        """The data's short name."""
        return file_name(Path(self.data.removeprefix("builtin:")).name)


class Measured(NamedTuple):
    """The likelihood of every run, and the passages."""

    texts: Texts
    runs: Mapping[Run, Measurement]
    machine: str  # what trained and measured
    device: torch.device


def measured(settings: Measuring, place: Place, trained: Trained, accelerator: Accelerator) -> Measured:
    """Measure every run that is not measured yet, on all processes; SystemExit 130 or 143 when stopped by a signal."""
    first = opened(str(trained.at_equal_tokens[0].folder))
    texts = _texts(settings, place, first.tokenizer)
    with StopRequest(accelerator, None) as stop:
        try:
            runs = _likelihoods(settings, place, texts, trained, accelerator, stop)
        except EvaluationStopped:
            raise SystemExit(stop.exit_code) from None
    threads = f"{torch.get_num_threads()} thread{'s' if torch.get_num_threads() > 1 else ''} of {os.cpu_count()} CPUs"
    machine = threads if accelerator.device.type == "cpu" else str(accelerator.device)
    processes = f", {accelerator.num_processes} processes" if accelerator.num_processes > 1 else ""
    return Measured(texts, runs, machine + processes, accelerator.device)


def _texts(settings: Measuring, place: Place, tokenizer: PreTrainedTokenizerBase) -> Texts:
    """Held-out passages that each fit into a row after its first token."""
    found, room = compared_texts(place.data, None, "validation", "none", settings.passage, settings.limit), place.length - 1
    texts, documents = [], []
    for text, document in zip(found.texts, found.documents, strict=True):
        parts = list(_fitting(str(text), tokenizer, room))
        texts += parts
        documents += [document] * len(parts)
    return found._replace(description=f"{found.description}, and {room} tokens", texts=texts, documents=documents)


def _fitting(text: str, tokenizer: PreTrainedTokenizerBase, room: int) -> Iterator[str]:
    """The text in halves of halves until each has so many tokens at most."""
    if len(text) < 2 or len(next(Encoder(tokenizer)([text])).ids) <= room:
        yield text
    else:
        for part in passages([text], -(-len(text) // 2)):
            yield from _fitting(part, tokenizer, room)


def _likelihoods(
    settings: Measuring, place: Place, texts: Texts, trained: Trained, accelerator: Accelerator, stop: StopRequest
) -> dict[Run, Measurement]:
    """Every run's likelihood, once where one stands for both budgets."""
    folder, found = place.out / "likelihood", {}
    folder.mkdir(exist_ok=True)
    how = Settings(place.length, draws=settings.draws, batch_size=settings.batch_size)
    by_folder: dict[Path, Measurement] = {}
    for run in (*trained.at_equal_tokens, *trained.at_equal_seconds):
        path = folder / f"{run.name}@{place.label}-at-{run.budget.replace(' ', '-')}.jsonl"
        if run.folder in by_folder:
            on_main(accelerator, lambda known=by_folder[run.folder], path=path: known.write(path))  # type: ignore[misc]
        else:
            model = opened(str(run.folder)).to(accelerator.device)  # type: ignore[arg-type]
            with measuring(f"{run.name} at {run.budget}", accelerator.is_main_process) as progress:
                by_folder[run.folder] = measure(model, run.name, texts, how, path, progress, stop.should_stop, training_seed=run.seed)
        found[run] = by_folder[run.folder]
    return found


def report(settings: Measuring, place: Place, trained: Trained, found: Measured) -> None:
    """Write and print curves, profile, samples and their quality, tables and page; one process alone does."""
    console, out = Console(highlight=False), place.out
    lines.write(out / "curves.jsonl", [line for run in trained.shown for line in _curve(run)])
    _profiled(settings, place, found, trained)
    rules = _rules(trained, found.machine)
    rivals = [run for run in trained.shown if run.family == trained.rival]
    if rivals:
        places = tuple(str(run.folder) for run in trained.shown)
        tokens, device = min(settings.text_tokens, place.length - 1), found.device.type
        Frontier(places, str(rivals[0].folder), (), settings.texts, tokens, place.data, "validation", out=out, device=device).run()
    else:
        rules.append(f"no sample quality: without {trained.rival} there is nothing to score the samples with")
    tables = budget_tables(place.label, trained.at_equal_tokens, trained.at_equal_seconds, trained.seconds, trained.parameters, found.runs)
    notes = {
        "title": f"Families of language models on {place.data}",
        "command": shlex.join(["python", *sys.argv]),
        "rules": rules,
        "tables": [table._asdict() for table in tables],
        "models": list(dict.fromkeys(run.name for run in (*trained.at_equal_tokens, *trained.at_equal_seconds))),
    }
    (out / "notes.json").write_text(json.dumps(notes, indent=2) + "\n", encoding="utf-8")
    console.print()
    for table in tables:
        print_table(console, table)
    print_labelled(console, "counted", *rules)
    Report(out).run()


def _rules(trained: Trained, machine: str) -> list[str]:
    """What is common to all rows, and what the seconds are seconds of."""
    sizes, seeds = trained.parameters.values(), sorted({run.seed for run in trained.at_equal_tokens})
    shared = {run.folder for run in trained.at_equal_tokens} & {run.folder for run in trained.at_equal_seconds}
    both = sorted({run.family for run in trained.at_equal_seconds if run.folder in shared})
    return [
        f"trained parameters, the running mean of an autoencoder not among them, differ by at most {max(sizes) / min(sizes) - 1:.1%}",
        "one tokenizer for all; of a seed the same rows in the same order; each budget has runs and learning-rate schedules of its own",
        "the highest learning rate is the same for all and was tuned for none",
        f"seconds are measured, of training steps alone ({machine}), means over seeds: a machine that does other work moves them",
        *([f"{', '.join(both)}: one run stands for both budgets, which differ by 5 % of its steps or less"] if both else []),
        f"training seeds: {', '.join(map(str, seeds))}; curves, calibration, samples and their quality are of seed {trained.shown[0].seed} "
        "at equal tokens",
    ]


def _curve(run: Run) -> Iterator[dict[str, Any]]:
    """A line of `curves.jsonl` for each evaluation of a run."""
    seconds = {pace.tokens: pace.seconds for pace in paces(run.folder / "log.jsonl")}
    for tokens, nats, error in plots.evaluations(run.folder / "log.jsonl"):
        yield {"run": run.name, "tokens": tokens, "seconds": seconds.get(tokens), "nats_per_token": nats, "error": error}


def _profiled(settings: Measuring, place: Place, found: Measured, trained: Trained) -> None:
    """`profile.jsonl`, of the models that are not in it yet."""
    path = place.out / "profile.jsonl"
    rows = lines.read(path, dict)
    texts = found.texts.texts
    count = min(settings.profile_passages, len(texts))
    chosen = [str(texts[i * len(texts) // count]) for i in range(count)]
    for run in trained.shown:
        if run.name not in {row.get("model") for row in rows}:
            model: Any = opened(str(run.folder)).to(found.device)  # type: ignore[arg-type]
            rows += profile(model, run.name, list(Windows(chosen, model.tokenizer, place.length)), _PLACES, draws=1, seed=0)
            lines.write(path, rows)
