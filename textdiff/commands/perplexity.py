"""`textdiff perplexity MODEL --data DATA`: the likelihood of a text, or of responses given their prompts, under any checkpoint, with its
error and its rules."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from textdiff.commands.device import device_named

if TYPE_CHECKING:
    from textdiff.data.collate import Pairs
    from textdiff.data.layout import Scored
    from textdiff.data.readers import Pair
    from textdiff.evaluation.likelihood import Estimator, Likelihood


@dataclass(frozen=True)
class Perplexity:
    """Nats per token, perplexity and bits per byte of a text, or of responses given their prompts, under any checkpoint; a stock causal LM
    is the AR side of a comparison."""

    model: tyro.conf.Positional[str]
    """Run folder, checkpoint folder, or hub id."""
    data: str = "builtin:pydocs"
    """builtin:pydocs, a file, a folder, or a hub id org/name[:config][@revision]; a model with an encoder needs pairs."""
    split: str | None = None
    """train, validation, test or all (default: all of a file or folder, else validation)."""
    columns: tuple[str, ...] | None = None
    """The text column, or prompt and response columns, of rows (default: recognised)."""
    length: int | None = None
    """Tokens per block, BOS included, or of a pair's row at most (default: 128, or the model's limit if that is less; a model that was
    trained on pairs reads rows as it was trained on them)."""
    draws: int = 16
    """Draws for each sequence's bound, which some models make several network calls for; an exact likelihood takes one."""
    batch_size: int = 32
    """Rows at a time; the result does not depend on it."""
    limit: int | None = None
    """Score only so many sequences, taken evenly from the whole."""
    seed: int = 0
    """Seed of the bound's noise."""
    flow_steps: int | None = None
    """Estimate by the probability-flow ODE in so many steps instead of bounding, for models of embeddings; few draws will do."""
    order: Literal["left-to-right", "random"] | None = None
    """Score by the chain rule in this order instead of bounding, for masked and block diffusion: a network call for each token."""
    orders: int = 1
    """Random orders of each sequence: of one the likelihood is exact, the mean over several is an upper bound."""
    device: str | None = None
    """cpu, cuda, ... (default: a GPU when there is one)."""
    json: Path | None = None
    """Also write the numbers here."""

    def run(self) -> None:
        """Print the table; write the numbers as json when asked."""
        from rich.console import Console
        from transformers.utils import logging

        logging.disable_progress_bar()
        from textdiff.data.collate import Pairs
        from textdiff.evaluation.likelihood import RULES, likelihood, pair_rules
        from textdiff.models.classifier import refuse_classifier
        from textdiff.models.feature_drafter import refuse_drafter
        from textdiff.models.loading import load
        from textdiff.report import scoring

        self._check()
        estimator = self._estimator()
        device = device_named(self.device)
        model = load(self.model)
        refuse_classifier(model, self.model)
        refuse_drafter(model, self.model)
        if model.tokenizer is None:
            raise ValueError(f"{self.model} has no tokenizer files: text cannot be turned into its ids")
        estimator.kind(model)  # refuses a model before its data is read
        scored = self._scored(model)
        model.to(device)  # type: ignore[arg-type]
        if isinstance(scored.rows, Pairs):
            rules, length, kind = pair_rules(scored.rows.fill), scored.rows.max_length, "prompts and rows of at most"
        else:
            rules, length, kind = RULES, scored.rows.packing.length, "blocks of"
        with scoring() as bar:
            result = likelihood(model, scored.examples, self.draws, self.batch_size, self.seed, bar, estimator=estimator, rules=rules)
        print_table(Console(highlight=False), self.model, result, f"{scored.description}; {kind} {length} tokens")
        if self.json is not None:
            record: dict[str, Any] = {"model": self.model, "data": scored.description, "length": length, **result.as_dict()}
            self.json.write_text(json.dumps(record, indent=2) + "\n")
            print(f"wrote {self.json}")

    def _estimator(self) -> "Estimator":
        from textdiff.evaluation.likelihood import OWN
        from textdiff.evaluation.probability_flow import FlowEstimate
        from textdiff.evaluation.reveal_orders import RandomOrders, ReadingOrder

        if self.order is not None and self.flow_steps is not None:
            raise ValueError("order and flow_steps were both given: an order is for masks, a flow for vectors")
        if self.order != "random" and self.orders != 1:
            raise ValueError(f"orders is {self.orders} and the order is not random: give --order random, or leave orders out")
        if self.flow_steps is not None:
            return FlowEstimate(self.flow_steps)
        if self.order is None:
            return OWN
        return ReadingOrder() if self.order == "left-to-right" else RandomOrders(self.orders)

    def _scored(self, model: Any) -> "Scored":
        from textdiff.data.corpora import resolve
        from textdiff.data.layout import scored_examples
        from textdiff.decoding import has_encoder

        encoder = has_encoder(model)
        reads = model.backbone.max_length if encoder else model.max_length
        length = min(128, reads) if self.length is None else self.length
        if length > reads:
            raise ValueError(f"length is {length} and {self.model} reads {reads} tokens: shorten the blocks")
        corpus = resolve(self.data, self.columns)
        if encoder and not corpus.holds_pairs:
            raise ValueError(f"{self.model} has an encoder and {self.data} no prompts for it: give pairs, such as rows with src and trg")
        return scored_examples(corpus, model.tokenizer, length, self.split, self.limit, partial(self._rows, model, length))

    def _rows(self, model: Any, length: int, pairs: "Sequence[Pair]") -> "Pairs":
        """Pairs as rows: those of the model's training, longer pairs left out; of a model that no run on pairs made, rows of `length`."""
        from textdiff.commands.pair_rows import PairReader

        reader = PairReader.of(model, self.model, self.length, usual=length)
        return reader.rows(reader.fitting(pairs))

    def _check(self) -> None:
        if self.json is not None and not self.json.parent.is_dir():
            raise ValueError(f"no folder {self.json.parent} to write {self.json.name} into: create it first")
        if self.json is not None and self.json.is_dir():
            raise ValueError(f"{self.json} is a folder: name the json file to write")
        for name, value in (("limit", self.limit), ("draws", self.draws), ("batch_size", self.batch_size)):
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}, expected 1 or more")
        if self.columns is not None and not 1 <= len(self.columns) <= 2:
            raise ValueError(f"columns are {list(self.columns)}, expected one text column, or a prompt and a response column")


def print_table(console: Any, name: str, result: "Likelihood", description: str) -> None:
    """One likelihood in lines, with what it was measured on and how."""
    from textdiff.report import print_labelled

    low, high = result.perplexity_interval
    print_labelled(console, "model", name)
    print_labelled(console, "data", *description.split("; "))
    console.print()
    console.print(f"nats/token   {result.nats_per_token:.4f} ± {result.standard_error:.4f}  ({result.kind})", soft_wrap=True)
    console.print(f"perplexity   {result.perplexity:.2f}  (95 % interval {low:.2f} to {high:.2f})", soft_wrap=True)
    if math.isfinite(result.order_spread):
        console.print(f"orders       {result.order_spread:.4f} nats/token, standard deviation of a sequence between orders", soft_wrap=True)
    if result.text_bytes:
        console.print(f"bits/byte    {result.bits_per_byte:.4f} ± {result.bits_per_byte_error:.4f}", soft_wrap=True)
    console.print()
    calls = f"{result.forwards_per_sequence:,.6g} network call{'s' if result.forwards_per_sequence > 1 else ''} each"
    counted = f"{result.tokens:,} tokens, {result.text_bytes:,} bytes, {result.sequences:,} sequences, {calls}"
    print_labelled(console, "counted", counted, *result.rules.split("; "), "± is one standard error over sequences")
