"""Pre-training by denoising paragraphs: train, score and fill held-out spans, and leave a folder that recipes on pairs can start from."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from rich.console import Console
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from textdiff.batch import Example
from textdiff.data import pydocs
from textdiff.data.corpora import Corpus, resolve
from textdiff.data.denoising import Denoising, Spans
from textdiff.data.tokenizer import train_tokenizer
from textdiff.decoding import Decode, draw, has_encoder
from textdiff.evaluation.likelihood import EvaluationStopped, Likelihood, likelihood
from textdiff.evaluation.ngram import Unigram, nats_per_token
from textdiff.models.base import LanguageModel, ModelSpec
from textdiff.recipe import begin, given_tokenizer, on_main_first, run_folder, saver
from textdiff.report import print_labelled, printable, scoring
from textdiff.scores import parameters
from textdiff.training.loop import Evaluate, train
from textdiff.training.session import on_main, session
from textdiff.training.settings import Train
from textdiff.training.start import require_as_begun
from textdiff.vocab import Vocab

_SHOWN = 3  # filled spans printed
_RULES = "every target counts: the span, its EOS, and EOS to the end of a row that is filled; the rest of the paragraph is given"


@dataclass(frozen=True)
class HeldOut:
    """How held-out spans are scored and filled. Raises ValueError for counts that make no sense."""

    rows: int = 256
    """Validation paragraphs, evenly spaced, each without one span: the same at every evaluation and for every seed."""
    draws: int = 16
    """Draws for each one's final bound; some models make several network calls for each."""
    draws_while_training: int = 2
    """The same for the evaluations during training."""
    samples: int = 8
    """Spans filled at the end."""
    batch_size: int = 64
    """Rows at a time; results do not depend on it."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise ValueError(f"held_out.{name} is {value}, expected 1 or more")


@dataclass(frozen=True, kw_only=True)
class Denoise:
    """One run: an encoder-decoder model, the text, training and scoring; every field is a command-line flag."""

    model: ModelSpec
    """What is trained; its trunk has an encoder."""
    decode: Decode
    """How spans are filled."""
    data: str = pydocs.NAME
    """builtin:pydocs, a file (text, jsonl, csv, parquet), a folder of them, or a hub id org/name[:config][@revision]."""
    column: str | None = None
    """The text column of rows (default: text)."""
    tokenizer: str | None = None
    """Folder or hub id of a tokenizer with a mask token (default: a byte-level BPE trained on the data)."""
    vocab_size: int = 5_000
    """Size of a trained tokenizer, its special tokens included."""
    spans: Spans = field(default_factory=Spans)
    """Which paragraphs lose how much."""
    spans_drawn: int = 64
    """Spans of each training paragraph before any of them comes again."""
    train: Train = field(default_factory=Train)
    """How the model is trained."""
    held_out: HeldOut = field(default_factory=HeldOut)
    """How it is scored."""
    out: Path | None = None
    """Folder of the run (default: a new one under runs/)."""

    def __post_init__(self) -> None:
        if self.spans_drawn < 1:
            raise ValueError(f"spans_drawn is {self.spans_drawn}, expected 1 or more")


class Prepared(NamedTuple):
    """A run's data as rows."""

    train: Denoising
    held_out: Sequence[Example]
    description: str


def run(recipe: Denoise, name: str) -> Path:
    """Pre-train, score, fill and save; returns the run's folder. `name` is the folder's default name.

    Raises ValueError with one line for anything a user can mend, and SystemExit 130 or 143 when stopped by a signal.
    """
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with session(recipe.train.bf16) as accelerator:
        return _run(recipe, name, accelerator)


def _run(recipe: Denoise, name: str, accelerator: Accelerator) -> Path:
    began, main = time.perf_counter(), accelerator.is_main_process
    out = on_main(accelerator, lambda: run_folder(recipe, name))
    require_as_begun(out, recipe, ("data", "tokenizer", "column", "spans", "spans_drawn"))
    recipe.train.lora.require_weights(None)
    corpus = on_main_first(accelerator, lambda: resolve(recipe.data, None if recipe.column is None else (recipe.column,)))
    texts = corpus.texts().train
    tokenizer = given_tokenizer(recipe.tokenizer, recipe.train.resume, out)
    if tokenizer is None:
        tokenizer = on_main(accelerator, lambda: train_tokenizer(texts, recipe.vocab_size))
    torch.manual_seed(recipe.train.seed)
    model = recipe.model.build(Vocab.of(tokenizer))
    _prepare_to_fill(recipe, model)
    prepared = prepare(recipe, corpus, tokenizer, fill=model.nll_is_bound)
    model.tokenizer = tokenizer
    console = Console(quiet=not main, highlight=False)
    print_labelled(console, "data", *prepared.description.split("; "))
    print_labelled(console, "model", f"{type(model).__name__}, {parameters(model):,} parameters, {model.vocab.tokens:,} token ids")
    print_labelled(console, "run", str(out))
    on_main(accelerator, lambda: begin(out, recipe, tokenizer))
    pad_id, evaluate = model.vocab.pad_id or 0, _while_training(recipe, prepared)
    steps = train(accelerator, recipe.train, model, prepared.train, pad_id, out, evaluate, saver(model, recipe, out))
    model.to(accelerator.device)  # type: ignore[arg-type]
    with scoring(shown=main) as bar:
        found = likelihood(model, prepared.held_out, recipe.held_out.draws, recipe.held_out.batch_size, progress=bar)
    if main:
        _report(console, out, prepared, model, found, steps)
        _fill(console, out, recipe, prepared, model)
        seconds = time.perf_counter() - began
        print_labelled(console, "wrote", f"{out}/ in {seconds:.0f} s", "model/ samples.txt results.json log.jsonl recipe.yaml")
        print_labelled(console, "next", f"--start {out} in a recipe on pairs trains the same model further, with its tokenizer")
    return out


def _prepare_to_fill(recipe: Denoise, model: LanguageModel) -> None:
    """Raise ValueError before training for rows and samplers that do not suit the model; let it write as much as it is trained to."""
    spans = recipe.spans
    if not has_encoder(model):
        raise ValueError("paragraphs are read by an encoder and the model's trunk has none: set model.backbone.encoder_layers")
    if spans.source_length > model.backbone.max_length:
        lengths = f"sources have up to {spans.source_length} tokens and the encoder reads {model.backbone.max_length}"
        raise ValueError(f"{lengths}: shorten spans.length")
    if spans.fill + 1 > model.max_length:
        raise ValueError(f"spans have up to {spans.fill + 1} tokens, BOS and EOS included, and the model reads {model.max_length}: shorten")
    recipe.decode.check(model)
    denoiser: Any = model
    denoiser.generation_config = denoiser.generation_config.updated(max_new_tokens=spans.fill)


def prepare(recipe: Denoise, corpus: Corpus, tokenizer: PreTrainedTokenizerBase, fill: bool) -> Prepared:
    """Training paragraphs, whose spans follow the run's seed, and held-out ones, whose spans do not.

    Raises ValueError when there is no paragraph to train on, or none to score.
    """
    spans, (train_texts, validation, _) = recipe.spans, corpus.texts()
    rows = Denoising(train_texts, tokenizer, spans, fill, recipe.spans_drawn, recipe.train.seed)
    held_out = Denoising(validation, tokenizer, spans, fill)
    for part, found in (("training", rows), ("validation", held_out)):
        if not found:
            raise ValueError(f"{recipe.data} has no {part} text of {spans.shortest} tokens: lower spans.shortest, or give more text")
    count = min(recipe.held_out.rows, len(held_out))
    notes = [f"{len(rows.paragraphs):,} training and {len(held_out):,} held-out paragraphs of {spans.shortest} to {spans.length} tokens"]
    if left_out := rows.left_out + held_out.left_out:
        notes.append(f"{left_out:,} documents and ends of documents shorter than {spans.shortest} tokens left out")
    return Prepared(rows, [held_out[i * len(held_out) // count] for i in range(count)], "; ".join([corpus.description, *notes]))


def _while_training(recipe: Denoise, prepared: Prepared) -> Evaluate:
    settings = recipe.held_out

    def evaluate(model: LanguageModel, should_stop: Callable[[], bool]) -> Mapping[str, float]:
        try:
            found = likelihood(model, prepared.held_out, settings.draws_while_training, settings.batch_size, should_stop=should_stop)
        except EvaluationStopped:
            return {}
        # of a filled row every target counts, EOS to the end
        return {"nats_per_target": found.nats_per_token, "standard_error": found.standard_error, "bits_per_byte": found.bits_per_byte}

    return evaluate


def _report(console: Console, out: Path, prepared: Prepared, model: LanguageModel, found: Likelihood, steps: int) -> None:
    """The held-out numbers beside those of token frequencies alone."""
    once = prepared.train[: len(prepared.train.paragraphs)]
    unigram = nats_per_token(Unigram(once, model.vocab), prepared.held_out, model.vocab)
    held_out = found.as_dict() | {"rules": _RULES}
    numbers = {"data": prepared.description, "steps": steps, "baselines": {"unigram": unigram}, "held_out": held_out}
    (out / "results.json").write_text(json.dumps(numbers, indent=2) + "\n")
    scored = f"after {steps:,} steps: {found.nats_per_token:.4f} ± {found.standard_error:.4f} nats per target ({found.kind})"
    counted = f"{found.sequences:,} held-out spans, {found.tokens:,} targets with their EOS; ± is one standard error over spans"
    console.print()
    print_labelled(console, "scored", scored, f"token frequencies alone: {unigram:.4f}", counted)


def _fill(console: Console, out: Path, recipe: Denoise, prepared: Prepared, model: LanguageModel) -> None:
    """Some held-out spans as the model fills them: all in samples.txt, the first printed."""
    rows = prepared.held_out[: recipe.held_out.samples]
    blanks = [prepared.train.blank(row) for row in rows]
    written = draw(model, blanks, recipe.decode, batch_size=recipe.held_out.batch_size).texts
    shown = []
    for row, text in zip(rows, written, strict=True):
        wanted = model.tokenizer.decode([i for i in row.tokens[1:] if i != model.vocab.eos_id])
        lines = {"source": model.tokenizer.decode(list(row.source)), "wanted": wanted, "written": text}
        shown.append({label: " ".join(line.split()) for label, line in lines.items()})
    parts = ["".join(f"{label}\t{line}\n" for label, line in sample.items()) for sample in shown]
    (out / "samples.txt").write_text("\n".join(parts), encoding="utf-8")
    for sample in shown[:_SHOWN]:
        console.print()
        for label, line in sample.items():
            print_labelled(console, label, printable(line))
    console.print()
