"""`textdiff compare MODEL... --data NAME...`: any set of models on one footing, with intervals, and what may be said of each pair."""

import itertools
import json
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from textdiff.commands.device import device_named

if TYPE_CHECKING:
    from accelerate import Accelerator

    from textdiff.commands.contenders import Contender
    from textdiff.commands.pair_rows import PairReader
    from textdiff.evaluation.measurement import Measurement
    from textdiff.evaluation.measuring import Settings, Texts
    from textdiff.training.signals import StopRequest

_USUAL_LENGTH = 128


@dataclass(frozen=True)
class Compare:
    """Nats per token, perplexity, bits per byte and character, and word perplexity of any models on the same texts, and for each pair of
    models their difference with its interval, its p-value and what it allows to say."""

    models: tyro.conf.Positional[tuple[str, ...]]
    """Run folders, checkpoint folders, or hub ids."""
    data: tuple[str, ...] = ("builtin:pydocs",)
    """builtin:pydocs, files, folders, or hub ids org/name[:config][@revision]; of pairs the responses are scored."""
    split: str | None = None
    """train, validation, test or all (default: all of a file or folder, else validation)."""
    columns: tuple[str, ...] | None = None
    """The text column, or prompt and response columns, of rows (default: recognised)."""
    detokenizer: str = "none"
    """What to do to the data's own tokenisation, as published tables did."""
    passage: int = 1000
    """Cut documents into passages of at most so many characters, the texts that errors are over; 0 leaves them whole."""
    limit: int | None = None
    """Score only so many texts, taken evenly from the whole."""
    length: int | None = None
    """Tokens of a window, its context included, the same for all models (default: 128, or the least that one of them reads)."""
    stride: int | None = None
    """Counted tokens of a text's windows after its first (default: half the length)."""
    end: bool = False
    """Count EOS after each text."""
    draws: int = 16
    """Draws for each window's bound; an exact likelihood takes one."""
    target_se: float | None = None
    """Score texts in random order, and draw bounds again, until the standard error of nats per token is so small."""
    batch_size: int = 32
    """Windows at a time."""
    seed: int = 0
    """Of the bound's noise, which is the same for all models."""
    seeds: bool = False
    """Compare families, not runs: runs whose recipes differ in the training seed alone are one; a claim needs three of each."""
    out: Path | None = None
    """Folder of the comparison (default: a new one under runs/, or the one that this command left unfinished); what has been measured in
    it already is used again."""
    device: str | None = None
    """cpu, cuda, ... (default: a GPU when there is one)."""
    json: Path | None = None
    """Also write the numbers here."""

    def run(self) -> None:
        """Measure, then write and print the tables."""
        from transformers.utils import logging

        logging.disable_progress_bar()
        from textdiff.training.session import session

        self._check()
        with session() as accelerator:
            self._run(accelerator)

    def _run(self, accelerator: "Accelerator") -> None:
        from textdiff.commands.contenders import families, short_names
        from textdiff.commands.pair_rows import readable
        from textdiff.evaluation.collective import from_first

        device = accelerator.device if self.device is None else device_named(self.device)
        names = short_names(self.models)
        labels = short_names([name.removeprefix("builtin:") for name in self.data])
        sets = {label: self._texts(source) for label, source in zip(labels, self.data, strict=True)}
        contenders, readers = self._looked_at(names, sets)
        settings, groups = self._settings(contenders, sets), families(contenders) if self.seeds else None
        for label, data in sets.items():
            if data.unit == "response":
                sets[label] = readable(data, list(readers.values()), self.length is not None)
        out = from_first(self._folder)
        begun = time.perf_counter()
        measured = self._measured(accelerator, device, contenders, readers, sets, settings, out)
        from_first(lambda: self._report(contenders, groups, measured, out, time.perf_counter() - begun))

    def _texts(self, source: str) -> "Texts":
        from textdiff.commands.compared_texts import compared_texts

        return compared_texts(source, self.columns, self.split, self.detokenizer, self.passage, self.limit)

    def _looked_at(self, names: Sequence[str], sets: "Mapping[str, Texts]") -> "tuple[list[Contender], dict[str, PairReader]]":
        """Every model opened once, before any time is spent on measuring; where there are pairs, how each reads them, by its name."""
        from textdiff.commands.contenders import contender, opened
        from textdiff.commands.pair_rows import PairReader

        contenders, readers = [], {}
        texts = [label for label, data in sets.items() if data.unit != "response"]
        for place, name in zip(self.models, names, strict=True):
            model = opened(place)
            found = contender(model, place, name)
            if found.encoder and texts:
                raise ValueError(f"{place} has an encoder and {texts[0]} no prompts for it: give pairs, such as rows with src and trg")
            if len(texts) < len(sets):
                readers[name] = PairReader.of(model, place, self.length, usual=found.reads)
            contenders.append(found)
        return contenders, readers

    def _settings(self, contenders: "Sequence[Contender]", sets: "Mapping[str, Texts]") -> "Settings":
        """One length for all; raises ValueError for one that a model cannot read, and for windows that cannot be made."""
        from textdiff.data.windows import Windows
        from textdiff.evaluation.measuring import Settings

        if (self.stride is not None or self.end) and all(data.unit == "response" for data in sets.values()):
            raise ValueError("stride and end are of windows of text, and all data are pairs, which are read whole: leave them out")
        shortest = min(contenders, key=lambda found: found.reads)
        length = min(_USUAL_LENGTH, shortest.reads) if self.length is None else self.length
        if length > shortest.reads:
            raise ValueError(
                f"length is {length} and {shortest.name} reads {shortest.reads} tokens, and all models are measured with one length: "
                f"give {shortest.reads} or less, or leave {shortest.name} out"
            )
        for found in contenders:
            Windows([], found.tokenizer, length, self.stride, self.end)
        return Settings(length, self.stride, self.end, self.draws, self.batch_size, self.seed, self.target_se)

    def _folder(self) -> Path:
        """The folder of the comparison, made where it is not there yet."""
        out = self.out
        if out is None:
            numbered = (Path("runs") / (f"compare-{number}" if number > 1 else "compare") for number in itertools.count(1))
            out = next(folder for folder in numbered if not folder.exists() or _unfinished(folder, self._command()))
        if out.exists() and not out.is_dir():
            raise ValueError(f"{out} is a file: give the comparison a folder of its own with --out")
        try:
            (out / "likelihood").mkdir(parents=True, exist_ok=True)
            if not (out / "notes.json").exists():  # what a finished comparison says stays until there is something else to say
                _write(out / "notes.json", {"title": self._title(), "command": self._command(), "rules": [], "tables": []})
        except OSError as error:
            raise ValueError(f"cannot write to the output folder {out}: {error}; choose another with --out") from error
        return out

    def _measured(
        self,
        accelerator: "Accelerator",
        device: Any,
        contenders: "Sequence[Contender]",
        readers: "Mapping[str, PairReader]",
        sets: "dict[str, Texts]",
        settings: "Settings",
        out: Path,
    ) -> "dict[str, list[Measurement]]":
        """By data set, in the order of the models; raises SystemExit when it is stopped."""
        from textdiff.evaluation.likelihood import EvaluationStopped
        from textdiff.training.signals import StopRequest

        with StopRequest(accelerator, None) as stop:
            try:
                found = [self._scored(one, readers.get(one.name), accelerator, device, sets, settings, out, stop) for one in contenders]
            except EvaluationStopped:
                if accelerator.is_main_process:
                    print(f"stopped: the same command goes on in {out}", file=sys.stderr)
                raise SystemExit(stop.exit_code) from None
        return {label: [of_model[label] for of_model in found] for label in sets}

    def _scored(
        self,
        found: "Contender",
        reader: "PairReader | None",
        accelerator: "Accelerator",
        device: Any,
        sets: "dict[str, Texts]",
        settings: "Settings",
        out: Path,
        stop: "StopRequest",
    ) -> "dict[str, Measurement]":
        """One model on every data set; its weights are let go before the next one's are opened."""
        from textdiff.commands.comparison_view import measuring
        from textdiff.commands.contenders import file_name, opened
        from textdiff.evaluation.measuring import measure

        model, results = opened(found.place).to(device), {}
        for label, data in sets.items():
            path = out / "likelihood" / f"{file_name(found.name)}@{file_name(label)}.jsonl"
            rows = None if reader is None or data.unit != "response" else reader.rows
            with measuring(f"{found.name} on {label}", accelerator.is_main_process) as progress:
                results[label] = measure(model, found.name, data, settings, path, progress, stop.should_stop, rows, found.seed)
        return results

    def _report(
        self,
        contenders: "Sequence[Contender]",
        groups: Mapping[str, Sequence[str]] | None,
        measured: "dict[str, list[Measurement]]",
        out: Path,
        seconds: float,
    ) -> None:
        from rich.console import Console

        from textdiff.commands.comparison_view import print_table
        from textdiff.evaluation.comparison_tables import compared
        from textdiff.report import print_commands, print_labelled

        console = Console(highlight=False)
        found = [compared(label, those, groups) for label, those in measured.items()]
        shortest = min(contenders, key=lambda one: one.reads)
        windows = any(m.rules.unit != "response" for those in measured.values() for m in those)
        if self.length is None and windows and shortest.reads < _USUAL_LENGTH:
            found[-1].rules.append(f"windows have {shortest.reads} tokens because {shortest.name} reads no more")
        for one in found:
            console.print()
            for table in one.tables:
                print_table(console, table)
            print_labelled(console, "counted", *one.rules)
        tables = [table._asdict() for one in found for table in one.tables]
        rules = [line for one in found for line in one.rules]
        models = [one.name for one in contenders]
        notes = {"title": self._title(), "command": self._command(), "models": models, "rules": rules, "tables": tables}
        _write(out / "notes.json", notes)
        console.print()
        print_labelled(console, "wrote", f"{out}/ in {seconds:.0f} s", "notes.json likelihood/")
        print_commands(console, "next", f"textdiff report {out}")
        if self.json is not None:
            _write(self.json, [one.numbers for one in found])
            print_labelled(console, "numbers", str(self.json))

    def _title(self) -> str:
        return f"{', '.join(self.models)} on {', '.join(self.data)}"

    def _command(self) -> str:
        """What a person types for this comparison, without what does not change it."""
        words = ["textdiff", "compare", *self.models]
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in ("models", "out", "device", "json") or value == field.default:
                continue
            flag = f"--{field.name.replace('_', '-')}"
            words += [flag] if value is True else [flag, *(str(part) for part in (value if isinstance(value, tuple) else (value,)))]
        return shlex.join(words)

    def _check(self) -> None:
        if not self.models or not self.data:
            raise ValueError(f"no {'data' if self.models else 'model'} is named: give files, folders or hub ids")
        if self.json is not None and not self.json.parent.is_dir():
            raise ValueError(f"no folder {self.json.parent} to write {self.json.name} into: create it first")
        if self.json is not None and self.json.is_dir():
            raise ValueError(f"{self.json} is a folder: name the json file to write")
        if self.passage < 0:
            raise ValueError(f"passage is {self.passage}, expected a number of characters, or 0 for whole documents")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit is {self.limit}, expected 1 or more")
        if self.columns is not None and not 1 <= len(self.columns) <= 2:
            raise ValueError(f"columns are {list(self.columns)}, expected one text column, or a prompt and a response column")


def _unfinished(folder: Path, command: str) -> bool:
    """Whether a folder holds what this command began and did not end."""
    try:
        notes = json.loads((folder / "notes.json").read_text())
        return bool(notes["command"] == command and not notes["tables"])
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _write(path: Path, value: Any) -> None:
    working = path.with_name(path.name + ".tmp")
    working.write_text(json.dumps(value, indent=2) + "\n")
    working.rename(path)
