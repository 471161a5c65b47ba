"""What a person reads of a run: the header, the table beside the baselines, samples, and what to do next; kept in the run's folder too."""

import json
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from textdiff.data.layout import Data
from textdiff.data.streaming import StreamBlocks
from textdiff.evaluation.likelihood import Likelihood
from textdiff.evaluation.ngram import Trigram, Unigram, nats_per_token
from textdiff.models.base import LanguageModel


class Report:
    """Writes to standard output, `results.json` and `samples.txt` in `out`; silent where `shown` is False."""

    def __init__(self, out: Path, shown: bool) -> None:
        self.out = out
        self.console = Console(quiet=not shown, highlight=False)

    def header(self, model: LanguageModel, data: Data) -> None:
        """What is trained on what."""
        parameters = sum(p.numel() for p in model.parameters())
        self.console.print(f"data   {data.description}", markup=False)
        self.console.print(f"model  {type(model).__name__}, {parameters:,} parameters, {model.vocab.tokens:,} token ids", markup=False)
        self.console.print(f"run    {self.out}", markup=False)

    def scoring(self, done: int, total: int) -> None:
        """Progress of the final evaluation."""
        if self.console.is_terminal:
            self.console.print(f"scoring {done}/{total}", end="\r" if done < total else "\n")

    def likelihoods(self, model: LanguageModel, data: Data, result: Likelihood, steps: int) -> None:
        """The validation table: baselines first, the model last; all count the same tokens."""
        table = Table(title=f"validation, {result.tokens:,} tokens, {result.text_bytes:,} bytes", title_justify="left")
        for column in ("model", "nats/token", "perplexity", "bits/byte", "kind"):
            table.add_column(column, justify="left" if column in ("model", "kind") else "right")
        baselines: dict[str, float] = {}
        if not isinstance(data.train, StreamBlocks):  # counting n-grams needs the whole text
            for name, kind in (("unigram", Unigram), ("trigram", Trigram)):
                baselines[name] = nats_per_token(kind(data.train, model.vocab), data.validation, model.vocab)
        for name, nats in baselines.items():
            bits = nats / result.nats_per_token * result.bits_per_byte
            table.add_row(name, f"{nats:.4f}", f"{torch.tensor(nats).exp():.2f}", f"{bits:.4f}", "exact")
        table.add_row(
            f"{type(model).__name__}, {steps} steps",
            f"{result.nats_per_token:.4f} ± {result.standard_error:.4f}",
            f"{result.perplexity:.2f}",
            f"{result.bits_per_byte:.4f} ± {result.bits_per_byte_error:.4f}",
            result.kind,
        )
        self.console.print(table)
        self.console.print(f"± is one standard error over {result.sequences} sequences, {result.forwards_per_sequence} call(s) each")
        numbers: dict[str, Any] = {"data": data.description, "steps": steps, "baselines": baselines, "validation": result.as_dict()}
        (self.out / "results.json").write_text(json.dumps(numbers, indent=2) + "\n")

    def samples(self, model: LanguageModel, count: int, tokens: int, steps: int) -> None:
        """Texts from the model's default sampler."""
        if count == 0:
            return
        generator: Any = model
        first = model.vocab.bos_id if model.vocab.bos_id is not None else model.vocab.eos_id
        if first is None:
            return
        sampler = generator.default_sampler(steps) if model.nll_is_bound else generator.default_sampler()
        prompt = torch.full((count, 1), first, device=next(model.parameters()).device)
        new = min(tokens, model.max_length - 1)
        output = generator.generate(prompt, sampler=sampler, max_new_tokens=new, seed=0)
        hidden = {model.vocab.bos_id, model.vocab.eos_id, model.vocab.pad_id}
        texts = [model.tokenizer.decode([i for i in row.tolist() if i not in hidden]) for row in output.sequences]
        calls = output.nfe.double().mean().item()
        self.console.print(f"\nsamples ({type(sampler).__name__}, law {sampler.law}, {calls:.0f} network calls each)")
        for text in texts:
            self.console.print(f"  | {text!r}", markup=False)
        (self.out / "samples.txt").write_text("\n\n".join(texts) + "\n")

    def closing(self, seconds: float) -> None:
        """Where everything is, and what to do with it."""
        files = "model/, results.json, samples.txt, log.jsonl, recipe.yaml"
        self.console.print(f"\nwrote  {self.out}/ ({files}) in {seconds:.0f} s", markup=False)
        self.console.print("next   ", f"textdiff generate {self.out} --prompt 'The '", markup=False)
        self.console.print("       ", f"textdiff perplexity {self.out} --data FILE", markup=False)
