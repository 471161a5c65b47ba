"""What a person reads of a run on pairs: the table of responses scored beside the rivals and the copied prompt, and the responses."""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from textdiff.evaluation.generation import GenerationQuality, generation_quality
from textdiff.models.base import LanguageModel
from textdiff.report import names, print_commands, print_labelled, printable

_SHOWN = 3  # responses printed


class Case(NamedTuple):
    """A prompt of the test set."""

    prompt: str
    references: tuple[str, ...]


class Score(NamedTuple):
    """A number of the table; nan where there is none."""

    value: float
    error: float = math.nan  # one standard error over sentences

    def __str__(self) -> str:
        if math.isnan(self.value):
            return ""
        return f"{self.value:.2f}" + ("" if math.isnan(self.error) else f" ± {self.error:.2f}")


Measure = Callable[[GenerationQuality, Sequence[Case], Sequence[str]], Mapping[str, Score]]
"""The columns of a task's table, for one text for each case and what is known of their quality; the first column ranks the table."""


class Row(NamedTuple):
    """One way of answering, and how good and how dear it was."""

    decoding: str
    texts: list[str]
    nfe: float | None = None  # network calls for each response; None where there is no network
    seconds: float | None = None  # for a hundred responses
    candidates: Sequence[Sequence[str]] = ()  # of each case, where the text was chosen among several

    def as_dict(self, test: Sequence[Case], measure: Measure) -> dict[str, Any]:
        """Plain numbers for json, without the texts: the table's columns as [value, error], and everything about quality."""
        quality, scores = measured(test, self.texts, measure, self.candidates)
        plain = {name: [None if math.isnan(number) else number for number in score] for name, score in scores.items()}
        costs = {"nfe": self.nfe, "seconds_per_100": self.seconds}
        return {"decoding": self.decoding, "columns": plain, **costs, "quality": quality.as_dict()}


def measured(
    test: Sequence[Case], texts: Sequence[str], measure: Measure, candidates: Sequence[Sequence[str]] = (), resamples: int = 1_000
) -> tuple[GenerationQuality, Mapping[str, Score]]:
    """The quality of one text for each case, and the columns of the table."""
    quality = generation_quality(texts, [case.references for case in test], candidates, resamples)
    return quality, measure(quality, test, texts)


class Outcome(NamedTuple):
    """All that a run has found."""

    data: str
    parameters: int  # that are trained
    steps: int
    seconds: float  # of training
    test: list[Case]
    rows: list[Row]


class Scores:
    """Writes to standard output, `results.json` and `samples.txt` in `out`; silent where `shown` is False."""

    def __init__(self, out: Path, shown: bool) -> None:
        self.out, self.shown = out, shown
        self.console = Console(quiet=not shown, highlight=False)

    def header(self, model: LanguageModel, data: str, prompts: int) -> None:
        """What is trained on what."""
        print_labelled(self.console, "data", *data.split("; "), f"{prompts:,} test prompts are answered")
        print_labelled(self.console, "model", f"{type(model).__name__}, {parameters(model):,} parameters, {model.vocab.tokens:,} token ids")
        print_labelled(self.console, "run", str(self.out))

    @contextmanager
    def drawing(self, total: int) -> Iterator[Callable[[int], None]]:
        """A progress bar of the responses on standard error while the block lasts, in terminals only."""
        console = Console(stderr=True)
        with Progress(console=console, transient=True, disable=not (self.shown and console.is_terminal)) as bar:
            task = bar.add_task("answering", total=total)
            yield lambda done: bar.advance(task, done)

    def table(self, outcome: Outcome, measure: Measure) -> None:
        """The test table, best first: this run, its rivals, and the copied prompt; then some responses."""
        copied = Row("copied prompt", [case.prompt for case in outcome.test])
        numbers = {
            "data": outcome.data,
            "test": fingerprint(outcome.test),
            "prompts": len(outcome.test),
            "parameters": outcome.parameters,
            "steps": outcome.steps,
            "training_seconds": outcome.seconds,
            "baselines": [copied.as_dict(outcome.test, measure)],
            "rows": [row.as_dict(outcome.test, measure) for row in outcome.rows],
        }
        (self.out / "results.json").write_text(json.dumps(numbers, indent=2) + "\n")
        (self.out / "samples.txt").write_text(_written(outcome), encoding="utf-8")
        self._print_table(numbers)
        calls = "±: one standard error over prompts; NFE: network calls for each response; s/100: seconds for a hundred of them"
        print_labelled(self.console, "scored", f"{len(outcome.test):,} prompts after {outcome.steps:,} steps; {calls}")
        for case, text in list(zip(outcome.test, outcome.rows[0].texts, strict=True))[:_SHOWN]:
            self.console.print()
            print_labelled(self.console, "prompt", printable(case.prompt))
            print_labelled(self.console, "wanted", printable(case.references[0]))
            print_labelled(self.console, "written", printable(text))

    def _print_table(self, numbers: Mapping[str, Any]) -> None:
        others = rivals(self.out, numbers)
        shown = names([self.out, *others])
        columns = list(numbers["rows"][0]["columns"])
        rows = [(found["decoding"], "", "", found) for found in numbers["baselines"]]
        for folder, found in {self.out: numbers, **others}.items():
            size = f"{found['parameters'] / 1e6:.2f}M" if "parameters" in found else ""
            rows += [(shown[folder], size, row["decoding"], row) for row in found["rows"]]
        table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True, show_edge=False)
        for header in ("test", "params", "decoding"):
            table.add_column(header, no_wrap=True)
        for header in (*columns, "NFE", "s/100"):
            table.add_column(header, justify="right", no_wrap=True)
        for name, size, decoding, row in sorted(rows, key=lambda found: -found[-1]["columns"][columns[0]][0]):
            costs = ("" if row[key] is None else f"{row[key]:.{digits}f}" for key, digits in (("nfe", 0), ("seconds_per_100", 1)))
            scores = [Score(*(math.nan if number is None else number for number in score)) for score in row["columns"].values()]
            cells = (name, size, decoding, *map(str, scores), *costs)
            table.add_row(*cells, style="bold" if name == shown[self.out] else "")
        self.console.print()
        for column in table.columns:  # a number that is cut short says something else
            column.min_width = max(len(str(cell)) for cell in [column.header, *column.cells])
        self.console.print(table, crop=False, soft_wrap=True)
        self.console.print()

    def closing(self, seconds: float, asking: str) -> None:
        """Where everything is, and how to ask the model; `asking` are options of `textdiff generate`."""
        self.console.print()
        print_labelled(self.console, "wrote", f"{self.out}/ in {seconds:.0f} s", "model/ samples.txt results.json log.jsonl recipe.yaml")
        print_commands(self.console, "next", f"textdiff generate {self.out} {asking}")


def parameters(model: LanguageModel) -> int:
    """How many numbers are trained; what only averages or freezes them is not counted again."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def fingerprint(test: Sequence[Case]) -> str:
    """A hash of the prompts and references that numbers were measured on."""
    return hashlib.sha256(json.dumps(test).encode()).hexdigest()[:16]


def rivals(out: Path, numbers: Mapping[str, Any]) -> dict[Path, dict[str, Any]]:
    """What finished runs beside `out` found on the same data, test prompts and measures."""
    columns, found = list(numbers["rows"][0]["columns"]), {}
    for path in sorted(out.resolve().parent.glob("*/results.json")):
        try:
            recorded = json.loads(path.read_text())
            same = all(recorded[key] == numbers[key] for key in ("data", "test", "prompts"))
            same = same and all(list(row["columns"]) == columns for row in recorded["rows"])
        except (OSError, ValueError, KeyError, TypeError):
            continue  # another kind of run, or one that was cut off
        if same and path.parent != out.resolve():
            found[path.parent] = recorded
    return found


def _written(outcome: Outcome) -> str:
    """Every prompt with its references and what was written for it."""
    parts = []
    for number, case in enumerate(outcome.test):
        lines = [("prompt", case.prompt), *(("wanted", text) for text in case.references)]
        lines += [(row.decoding, row.texts[number]) for row in outcome.rows]
        parts.append("\n".join(f"{label}\t{' '.join(text.split())}" for label, text in lines))
    return "\n\n".join(parts) + "\n"
