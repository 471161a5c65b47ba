"""`textdiff choose MODEL --data FILE`: multiple-choice accuracy of any checkpoint."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from textdiff.commands.device import device_named

if TYPE_CHECKING:
    from textdiff.batch import Example
    from textdiff.commands.pair_rows import PairReader
    from textdiff.evaluation.choices import Continued, Question


@dataclass(frozen=True)
class Choose:
    """Multiple-choice accuracy: how often a model gives the right answer fewer nats than the wrong ones."""

    model: tyro.conf.Positional[str]
    """Run folder, checkpoint folder, or hub id."""
    data: Path
    """A jsonl file of rows with context (or prompt, or question), choices, and answer: its number from 0, its text or its letter."""
    draws: int = 16
    """Draws for each choice's bound; an exact likelihood takes one."""
    batch_size: int = 32
    """Rows at a time; the result does not depend on it."""
    limit: int | None = None
    """Answer only so many questions, the first ones."""
    seed: int = 0
    """Seed of the bound's noise."""
    device: str | None = None
    """cpu, cuda, ... (default: a GPU when there is one)."""
    json: Path | None = None
    """Also write the numbers here."""

    def run(self) -> None:
        """Print the accuracies; write them as json when asked."""
        from rich.console import Console
        from transformers.utils import logging

        from textdiff.commands.contenders import opened
        from textdiff.evaluation.choices import Continued, read_questions, scored
        from textdiff.report import print_labelled, scoring

        logging.disable_progress_bar()
        self._check()
        questions = read_questions(self.data)[: self.limit]
        device = device_named(self.device)
        model = opened(self.model)
        reader = self._reader(model)
        rows = Continued(model) if reader is None else partial(self._pairs, reader)
        model.to(device)  # type: ignore[arg-type]
        with scoring() as bar:
            found = scored(model, questions, rows, self.draws, self.batch_size, self.seed, bar)
        console = Console(highlight=False)
        print_labelled(console, "model", self.model)
        print_labelled(
            console, "data", f"{self.data}, {found.questions:,} question{'s' * (found.questions > 1)}, {100 * found.chance:.1f} % by chance"
        )
        by_unit = {
            "nats of a choice (acc)": found.total,
            "nats per character (acc_norm)": found.per_character,
            "nats per token": found.per_token,
        }
        for by, share in by_unit.items():
            console.print(f"right   {100 * share.value:5.1f} ± {100 * share.error:.1f} %  by {by}", soft_wrap=True)
        rules = self._rules(found.kind, rows if isinstance(rows, Continued) else None, reader)
        print_labelled(console, "counted", *rules)
        if self.json is not None:
            settings = {"draws": self.draws if found.kind != "exact" else 1, "seed": self.seed, "rules": rules}
            record = {"model": self.model, "data": str(self.data), **settings, **found.as_dict()}
            self.json.write_text(json.dumps(record, indent=2) + "\n")
            print(f"wrote {self.json}")

    def _rules(self, kind: str, continued: "Continued | None", reader: "PairReader | None") -> list[str]:
        """How it was counted, by either of the two ways of making rows."""
        exact = kind == "exact"
        noise = [] if exact else [f"{self.draws} draws, the same noise for all choices of a question"]
        if continued is not None:
            how = f"no EOS; {continued.shortened} rows lost the beginning of their context"
        elif reader is not None and reader.shape is not None:
            how = "rows as in the model's training, EOS included"
        else:
            how = "the encoder reads the context, EOS included"
        likelihoods = f"each likelihood is {'exact' if exact else f'an {kind}'}"
        return [likelihoods, *noise, how, "of equal costs the first choice", "± is one standard error over questions"]

    def _check(self) -> None:
        for name, value in (("limit", self.limit), ("draws", self.draws), ("batch_size", self.batch_size)):
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}, expected 1 or more")
        if self.json is not None and not self.json.parent.is_dir():
            raise ValueError(f"no folder {self.json.parent} to write {self.json.name} into: create it first")
        if self.json is not None and self.json.is_dir():
            raise ValueError(f"{self.json} is a folder: name the json file to write")

    def _reader(self, model: Any) -> "PairReader | None":
        """How a model that was trained on pairs, or has an encoder, reads them; None for another."""
        from textdiff.commands.pair_rows import PairReader

        reader = PairReader.of(model, self.model, None, usual=model.backbone.max_length)
        return reader if reader.shape is not None or reader.encoder else None

    def _pairs(self, reader: "PairReader", question: "Question") -> "Sequence[Example]":
        """The rows of a question; raises ValueError for one that they have no room for."""
        from textdiff.data.readers import Pair

        pairs = [Pair(question.context, choice) for choice in question.choices]
        if reader.shape is not None and len(reader.fitting(pairs)) < len(pairs):
            raise ValueError(f"the question {question.context[:40]!r} or a choice of it is longer than what {self.model} was trained on")
        long = reader.too_long(pairs) if reader.shape is None else None
        if long is not None:
            raise ValueError(
                f"the question {question.context[:40]!r} is too long for {self.model} ({long[1]}, {reader.length} fit): shorten it"
            )
        return list(reader.rows(pairs))
