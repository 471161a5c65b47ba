"""What a person reads of a run: the header, the table beside the baselines, samples, and what to do next; kept in the run's folder too."""

import json
import math
import textwrap
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from textdiff.batch import Example, collate
from textdiff.data.layout import Data
from textdiff.data.streaming import StreamBlocks
from textdiff.evaluation.likelihood import Likelihood
from textdiff.evaluation.ngram import Trigram, Unigram, nats_per_token
from textdiff.models.base import LanguageModel
from textdiff.plots import curves

_LABEL = 8  # columns of a line's label


class Report:
    """Writes to standard output, `results.json` and `samples.txt` in `out`; silent where `shown` is False."""

    def __init__(self, out: Path, shown: bool) -> None:
        self.out, self.shown = out, shown
        self.console = Console(quiet=not shown, highlight=False)

    def header(self, model: LanguageModel, data: Data) -> None:
        """What is trained on what."""
        parameters = sum(p.numel() for p in model.parameters())
        print_labelled(self.console, "data", *data.description.split("; "))
        print_labelled(self.console, "model", f"{type(model).__name__}, {parameters:,} parameters, {model.vocab.tokens:,} token ids")
        print_labelled(self.console, "run", str(self.out))

    def likelihoods(self, model: LanguageModel, data: Data, result: Likelihood, steps: int) -> None:
        """The validation table: baselines, then this run among its rivals; all count the same tokens."""
        baselines: dict[str, float] = {}
        if not isinstance(data.train, StreamBlocks):  # counting n-grams needs the whole text
            for name, kind in (("unigram", Unigram), ("trigram", Trigram)):
                baselines[name] = nats_per_token(kind(data.train, model.vocab), data.validation, model.vocab)
        table = _likelihood_table()
        for name, nats in baselines.items():
            bits = nats / result.nats_per_token * result.bits_per_byte
            table.add_row(name, f"{nats:.4f}", f"{math.exp(nats):.2f}", f"{bits:.4f}", "exact")
        own = Standing(self.out, result.as_dict())
        others = rivals(self.out, data.description, result)
        shown = names([own.folder, *(other.folder for other in others)])
        for standing in sorted([own, *others], key=lambda found: found.validation["nats_per_token"] or math.inf):
            table.add_row(shown[standing.folder], *standing.row, style="bold" if standing is own else "")
        self.console.print()
        for column in table.columns:  # a number that is cut short says something else
            column.min_width = max(len(str(cell)) for cell in [column.header, *column.cells])
        self.console.print(table, crop=False, soft_wrap=True)
        self.console.print()
        calls = f"{result.forwards_per_sequence} network call{'s' if result.forwards_per_sequence > 1 else ''} each"
        counted = f"{result.tokens:,} tokens, {result.text_bytes:,} bytes, {result.sequences:,} sequences, {calls}"
        print_labelled(self.console, "counted", f"after {steps:,} steps: {counted}; ± is one standard error over sequences")
        numbers: dict[str, Any] = {"data": data.description, "steps": steps, "baselines": baselines, "validation": result.as_dict()}
        (self.out / "results.json").write_text(json.dumps(numbers, indent=2) + "\n")
        if self.shown and curves(self.out / "curves.png", [own.folder, *(other.folder for other in others)], baselines):
            print_labelled(self.console, "curves", str(self.out / "curves.png"))

    def samples(self, model: LanguageModel, data: Data, count: int, tokens: int, steps: int) -> None:
        """Texts from the model's default sampler, each begun as a validation example is: with BOS, or with its prompt."""
        if count == 0:
            return
        generator: Any = model
        sampler = generator.default_sampler(steps) if model.nll_is_bound else generator.default_sampler()
        examples = [data.validation[i % len(data.validation)] for i in range(count)]
        given = [list(e.target).index(True) for e in examples]
        prompts = [Example(e.tokens[:n], e.target[:n]) for e, n in zip(examples, given, strict=True)]
        batch = collate(prompts, model.vocab.pad_id or 0).to(next(model.parameters()).device)
        new = min(tokens, max(sum(e.target) for e in examples), model.max_length - batch.tokens.shape[1])
        output = generator.generate(batch.tokens, batch.attend.long(), sampler=sampler, max_new_tokens=new, seed=0)
        hidden = {model.vocab.bos_id, model.vocab.eos_id, model.vocab.pad_id}
        texts = [model.tokenizer.decode([i for i in row.tolist() if i not in hidden]) for row in output.sequences]
        calls = output.nfe.double().mean().item()
        self.console.print(f"\nsamples of {new} tokens ({type(sampler).__name__}, law {sampler.law}, {calls:.0f} network calls each)")
        for number, text in enumerate(texts, 1):
            self.console.print()
            print_labelled(self.console, f"   {number}", *printable(text).strip("\n").expandtabs(4).split("\n"))
        (self.out / "samples.txt").write_text("\n\n".join(texts) + "\n", encoding="utf-8")

    def closing(self, seconds: float) -> None:
        """Where everything is, and what to do with it."""
        self.console.print()
        print_labelled(self.console, "wrote", f"{self.out}/ in {seconds:.0f} s", "model/ samples.txt results.json log.jsonl recipe.yaml")
        print_commands(self.console, "next", f"textdiff generate {self.out} --prompt 'The '", f"textdiff perplexity {self.out} --data FILE")


class Standing(NamedTuple):
    """One run's likelihood in a table of several."""

    folder: Path
    validation: dict[str, Any]  # Likelihood.as_dict()

    @property
    def row(self) -> tuple[str, ...]:
        """The numbers of the table."""
        found = {name: math.nan if value is None else value for name, value in self.validation.items()}
        nats = f"{found['nats_per_token']:.4f} ± {found['standard_error']:.4f}"
        bits = f"{found['bits_per_byte']:.4f} ± {found['bits_per_byte_error']:.4f}"
        return nats, f"{found['perplexity']:.2f}", bits, str(found["kind"])


def names(folders: Sequence[Path]) -> dict[Path, str]:
    """What to call each run: its folder's name, without what all of several names begin with."""
    found, start = [folder.resolve().name.split("-") for folder in folders], 0
    while len(found) > 1 and all(len(words) > start + 1 for words in found) and len({words[start] for words in found}) == 1:
        start += 1
    return {folder: "-".join(words[start:]) for folder, words in zip(folders, found, strict=True)}


def rivals(out: Path, data: str, result: Likelihood) -> list[Standing]:
    """Finished runs beside `out` that were scored on the same tokens of the same data by the same rules."""
    counted, found = ("tokens", "text_bytes", "sequences", "rules"), []
    for path in sorted(out.resolve().parent.glob("*/results.json")):
        try:
            recorded = json.loads(path.read_text())
            validation = recorded["validation"]
            same = recorded["data"] == data and all(validation[name] == getattr(result, name) for name in counted)
        except (OSError, ValueError, KeyError, TypeError):
            continue  # another kind of run, or one that was cut off
        if same and path.parent != out.resolve():
            found.append(Standing(path.parent, validation))
    return found


def _likelihood_table() -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True, show_edge=False)
    table.add_column("validation", no_wrap=True)
    for column in ("nats/token", "perplexity", "bits/byte", "kind"):
        table.add_column(column, justify="right" if column == "perplexity" else "left", no_wrap=True)
    return table


def print_labelled(console: Console, label: str, *lines: str) -> None:
    """Lines behind a label, each wrapped to the console and indented; words longer than a line, such as paths, stay whole."""
    for i, line in enumerate(lines):
        head = f"{label + ' ':<{_LABEL}}" if i == 0 else " " * _LABEL
        indent = line[: len(line) - len(line.lstrip())]
        wrapped = textwrap.wrap(line.strip(), max(console.width - _LABEL - len(indent), 20), break_long_words=False, break_on_hyphens=False)
        text = ("\n" + " " * _LABEL + indent).join(wrapped)
        console.print(f"{head}{indent}{text}".rstrip(), markup=False, highlight=False, soft_wrap=True)


def print_commands(console: Console, label: str, *commands: str) -> None:
    """Commands behind a label, each on one line however long, so that it can be copied."""
    for i, command in enumerate(commands):
        console.print(f"{label if i == 0 else '':<{_LABEL}}{command}", markup=False, highlight=False, soft_wrap=True)


def printable(text: str) -> str:
    """The text with control characters, which could steer a terminal, as U+FFFD; line ends and tabs stay."""
    return "".join("\ufffd" if unicodedata.category(c) == "Cc" and c not in "\n\t" else c for c in text.replace("\r\n", "\n"))


@contextmanager
def scoring(shown: bool = True) -> Iterator[Callable[[int, int], None]]:
    """A progress bar of an evaluation on standard error while the block lasts, in terminals only; yields what `likelihood` reports to."""
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not (shown and console.is_terminal)) as bar:
        task = bar.add_task("scoring", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def drawing(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar of rows being drawn, on standard error while the block lasts, in terminals only; yields what `draw` reports to."""
    console = Console(stderr=True, highlight=False)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=total)
        yield lambda rows: bar.advance(task, rows)
