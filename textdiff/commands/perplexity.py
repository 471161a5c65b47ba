"""`textdiff perplexity MODEL --data DATA`: the likelihood of a text under any checkpoint, with its error and its rules."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

if TYPE_CHECKING:
    from textdiff.evaluation.likelihood import Likelihood


@dataclass(frozen=True)
class Perplexity:
    """Nats per token, perplexity and bits per byte of a text under any checkpoint; a stock causal LM is the AR side of a comparison."""

    model: tyro.conf.Positional[str]
    """Run folder, checkpoint folder, or hub id."""
    data: str = "builtin:pydocs"
    """builtin:pydocs, a file, a folder, or a hub id org/name[:config][@revision]."""
    split: str | None = None
    """train, validation, test or all (default: all of a file or folder, else validation)."""
    columns: tuple[str, ...] | None = None
    """The text column, or prompt and response columns, of rows (default: recognised)."""
    length: int | None = None
    """Tokens per block, BOS included (default: 128, or the model's limit if that is less)."""
    draws: int = 16
    """Network calls per sequence for a bound; an exact likelihood takes one."""
    batch_size: int = 32
    """Rows at a time; the result does not depend on it."""
    limit: int | None = None
    """Score only so many sequences, taken evenly from the whole."""
    seed: int = 0
    """Seed of the bound's noise."""
    device: str | None = None
    """cpu, cuda, ... (default: a GPU when there is one)."""
    json: Path | None = None
    """Also write the numbers here."""

    def run(self) -> None:
        """Print the table; write the numbers as json when asked."""
        import torch
        from rich.console import Console
        from rich.progress import Progress
        from transformers.utils import logging

        logging.disable_progress_bar()
        from textdiff.data.layout import scored_examples
        from textdiff.evaluation.likelihood import likelihood
        from textdiff.models.loading import load

        if self.json is not None and not self.json.parent.is_dir():
            raise ValueError(f"no folder {self.json.parent} to write {self.json.name} into: create it first")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit is {self.limit}, expected 1 or more")
        model = load(self.model)
        if model.tokenizer is None:
            raise ValueError(f"{self.model} has no tokenizer files: text cannot be turned into its ids")
        model.to(torch.device(self.device or ("cuda" if torch.cuda.is_available() else "cpu")))  # type: ignore[arg-type]
        length = min(128, model.max_length) if self.length is None else self.length
        examples, description = scored_examples(self.data, model.tokenizer, length, self.split, self.columns, self.limit)
        with Progress(console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("scoring", total=len(examples))
            result = likelihood(
                model, examples, self.draws, self.batch_size, self.seed, lambda done, total: bar.update(task, completed=done, total=total)
            )
        print_table(Console(), self.model, result, f"{description}; blocks of {length} tokens")
        if self.json is not None:
            record: dict[str, Any] = {"model": self.model, "data": description, "length": length, **result.as_dict()}
            self.json.write_text(json.dumps(record, indent=2) + "\n")
            print(f"wrote {self.json}")


def print_table(console: Any, name: str, result: "Likelihood", description: str) -> None:
    """One likelihood as a table, with what it was measured on and how."""
    from rich.table import Table

    low, high = result.perplexity_interval
    table = Table("", result.kind, title=name, title_justify="left")
    table.add_row("nats/token", f"{result.nats_per_token:.4f} ± {result.standard_error:.4f}")
    table.add_row("perplexity", f"{result.perplexity:.2f}  (95 %: {low:.2f} to {high:.2f})")
    if result.text_bytes:
        table.add_row("bits/byte", f"{result.bits_per_byte:.4f} ± {result.bits_per_byte_error:.4f}")
    calls = f"{result.forwards_per_sequence} call{'s' if result.forwards_per_sequence > 1 else ''} each"
    table.add_row("counted", f"{result.tokens:,} tokens, {result.text_bytes:,} bytes, {result.sequences:,} sequences, {calls}")
    console.print(table)
    console.print(f"data: {description}\nrules: {result.rules}", highlight=False)
