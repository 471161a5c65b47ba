"""A run from data to report: what a recipe script holds, and the one way it is carried out."""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
import yaml
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging
from transformers.utils.hub import cached_file

from textdiff import spec as plain
from textdiff.backbones import hub
from textdiff.data import pydocs
from textdiff.data.layout import Data, Layout, Opened
from textdiff.data.tokenizer import load_tokenizer, train_tokenizer
from textdiff.evaluation.likelihood import EvaluationStopped, likelihood
from textdiff.models.base import LanguageModel, ModelSpec
from textdiff.models.initialise import model_from
from textdiff.report import Report, scoring
from textdiff.training.checkpoint import list_checkpoints
from textdiff.training.loop import train
from textdiff.training.session import on_main, session
from textdiff.training.settings import Train
from textdiff.vocab import Vocab

_RECORD = "training.json"  # beside the weights: the recipe they were trained by


@dataclass(frozen=True)
class Evaluation:
    """How the held-out text is scored and shown."""

    draws: int = 16
    """Draws for each sequence's final bound; a draw is one network call, of vectors two or more."""
    draws_while_training: int = 2
    """The same for the evaluations during training."""
    rows_while_training: int = 128
    """Validation sequences scored during training."""
    batch_size: int = 64
    """Rows at a time; results do not depend on it."""
    samples: int = 3
    """Texts to sample at the end."""
    sample_tokens: int = 64
    """Tokens of each."""
    sample_steps: int = 64
    """Denoising steps of each, for diffusion models."""

    def __post_init__(self) -> None:
        for name in ("draws", "draws_while_training", "rows_while_training", "batch_size", "sample_tokens", "sample_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"evaluation.{name} = {getattr(self, name)}: expected at least 1")
        if self.samples < 0:
            raise ValueError(f"evaluation.samples = {self.samples}: expected 0 or more")


@dataclass(frozen=True)
class Recipe:
    """One run: data, tokenizer, model, training and evaluation; every field is a command-line flag."""

    model: ModelSpec
    """What is trained."""
    data: str = pydocs.NAME
    """builtin:pydocs, a file (text, jsonl, csv, parquet), a folder of them, or a hub id org/name[:config][@revision]."""
    tokenizer: str | None = None
    """Folder or hub id of a tokenizer (default: that of --init, else a byte-level BPE trained on the data)."""
    init: str | None = None
    """Start from the weights of this checkpoint: a run folder, a local folder or a hub id."""
    out: Path | None = None
    """Folder of the run (default: a new one under runs/)."""
    vocab_size: int = 2048
    """Size of a trained tokenizer, its special tokens included."""
    layout: Layout = field(default_factory=Layout)
    """How text becomes rows."""
    train: Train = field(default_factory=Train)
    """How the model is trained."""
    evaluation: Evaluation = field(default_factory=Evaluation)
    """How it is measured and shown."""


class Plan(Protocol):
    """What the folder of a run must know of a recipe, a frozen dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def out(self) -> Path | None: ...

    @property
    def train(self) -> Train: ...


def run(recipe: Recipe, name: str) -> Path:
    """Train, measure, sample and save; returns the run's folder. `name` is the folder's default name.

    Raises ValueError with one line for anything a user can mend, and SystemExit 130 or 143 when stopped by a signal.
    """
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with session(recipe.train.bf16) as accelerator:
        return _run(recipe, name, accelerator)


def _run(recipe: Recipe, name: str, accelerator: Accelerator) -> Path:
    began = time.perf_counter()
    out = on_main(accelerator, lambda: run_folder(recipe, name))
    opened = on_main_first(accelerator, lambda: recipe.layout.open(recipe.data))
    recipe.train.lora.require_weights(recipe.init)
    tokenizer = _tokenizer(recipe, opened, out, accelerator)
    torch.manual_seed(recipe.train.seed)
    model = recipe.model.build(Vocab.of(tokenizer)) if recipe.init is None else model_from(recipe.init, recipe.model, tokenizer)
    if opened.length > model.max_length:
        raise ValueError(f"layout.length is {opened.length} and the model reads {model.max_length} tokens: shorten the rows")
    data = opened.examples(tokenizer)
    report = Report(out, shown=accelerator.is_main_process)
    report.header(model, data)
    model.tokenizer = tokenizer
    on_main(accelerator, lambda: begin(out, recipe, tokenizer))
    steps = train(
        accelerator,
        recipe.train,
        model,
        data.train,
        pad_id=model.vocab.pad_id or 0,
        out=out,
        evaluate=while_training(recipe.evaluation, data),
        save=saver(model, recipe, out),
    )
    model.to(accelerator.device)  # type: ignore[arg-type]
    with scoring(shown=accelerator.is_main_process) as bar:
        result = likelihood(model, data.validation, recipe.evaluation.draws, recipe.evaluation.batch_size, progress=bar)
    if accelerator.is_main_process:
        report.likelihoods(model, data, result, steps)
        report.samples(model, data, recipe.evaluation.samples, recipe.evaluation.sample_tokens, recipe.evaluation.sample_steps)
        report.closing(time.perf_counter() - began)
    return out


def on_main_first(accelerator: Accelerator, work: Callable[[], Any]) -> Any:
    """The result of `work` on every process, computed by the main one first so that the others find its caches filled."""
    with accelerator.main_process_first():
        return work()


def run_folder(recipe: Plan, name: str) -> Path:
    """The folder of this run, not yet made: the one asked for, the newest of that name to resume, or a name not taken yet.

    Raises ValueError for a folder that cannot be one, or that holds a run which is not to be resumed.
    """
    if recipe.out is not None:
        if recipe.out.exists() and not recipe.out.is_dir():
            raise ValueError(f"{recipe.out} is a file: give the run a folder of its own with --out")
        if not recipe.train.resume and list_checkpoints(recipe.out / "checkpoints"):
            raise ValueError(f"{recipe.out} already holds a run: resume it with --train.resume, or choose another folder")
        return recipe.out
    root, number = Path("runs"), 1
    while (root / _numbered(name, number)).exists():
        number += 1
    return root / _numbered(name, number - 1 if recipe.train.resume and number > 1 else number)


def _numbered(name: str, number: int) -> str:
    return name if number == 1 else f"{name}-{number}"


def _tokenizer(recipe: Recipe, opened: Opened, out: Path, accelerator: Accelerator) -> PreTrainedTokenizerBase:
    if recipe.tokenizer is None and recipe.init is not None:
        return load_tokenizer(hub.resolve(recipe.init))
    given = given_tokenizer(recipe.tokenizer, recipe.train.resume, out)
    return on_main(accelerator, lambda: train_tokenizer(opened.texts(), recipe.vocab_size)) if given is None else given


def given_tokenizer(asked: str | None, resume: bool, out: Path) -> PreTrainedTokenizerBase | None:
    """The tokenizer asked for, or that of the run resumed; None when one is to be trained."""
    if asked is not None:
        inside = Path(asked) / "model"  # of a run's folder
        return load_tokenizer(str(inside) if (inside / "tokenizer.json").is_file() else asked)
    if resume and (out / "tokenizer" / "tokenizer.json").is_file():
        return load_tokenizer(str(out / "tokenizer"))
    return None


def begin(out: Path, recipe: Plan, tokenizer: PreTrainedTokenizerBase) -> None:
    """Make the folder; what a resumed run finds there stays as it is until the run has been found to fit."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        if not list_checkpoints(out / "checkpoints"):
            with _disk_errors():
                tokenizer.save_pretrained(out / "tokenizer")
            _write_recipe(out, recipe)
    except OSError as error:
        raise ValueError(f"cannot write to the output folder {out}: {error}; free some space, or choose another with --out") from error


def _write_recipe(out: Path, recipe: Plan) -> None:
    working = out / "recipe.tmp"
    working.write_text(yaml.safe_dump(plain.to_plain(plain.replaced(recipe, out=out)), sort_keys=False))
    working.rename(out / "recipe.yaml")


def saver(model: LanguageModel, recipe: Plan, out: Path) -> Callable[[Path, dict[str, Tensor]], None]:
    """What the training loop writes a model and its recipe with."""

    def save(folder: Path, weights: dict[str, Tensor]) -> None:
        with _disk_errors():
            model.save_pretrained(folder, state_dict=weights)
        (folder / _RECORD).write_text(json.dumps({"recipe": plain.to_plain(recipe)}, indent=2) + "\n")
        _write_recipe(out, recipe)

    return save


def recorded(name: str) -> dict[str, Any] | None:
    """The recipe that `saver` wrote beside the weights of a folder or hub id, as plain data; None where there is none.

    Raises ValueError for one that cannot be read, or not be asked for.
    """
    try:
        path = cached_file(hub.resolve(name), _RECORD, _raise_exceptions_for_missing_entries=False)
        recipe = None if path is None else json.loads(Path(path).read_text())["recipe"]
    except OSError as error:
        raise ValueError(f"{_RECORD} of {name}, which says how it was trained, cannot be had: go online, or name a local folder") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{_RECORD} of {name} does not say how it was trained ({error}): mend it") from error
    if not isinstance(recipe, dict | None):
        raise ValueError(f"{_RECORD} of {name} does not say how it was trained (its recipe is no mapping): mend it")
    return recipe


@contextmanager
def _disk_errors() -> Iterator[None]:
    """The Rust tokenizer raises a bare Exception where Python raises OSError: when a file cannot be written."""
    try:
        yield
    except Exception as error:
        if type(error) is Exception:
            raise OSError(str(error)) from error
        raise


def while_training(settings: Evaluation, data: Data) -> Callable[[LanguageModel, Callable[[], bool]], Mapping[str, float]]:
    """What the training loop measures the averaged model with."""
    count = min(settings.rows_while_training, len(data.validation))
    rows = [data.validation[i * len(data.validation) // count] for i in range(count)]  # evenly spaced over the split

    def evaluate(model: LanguageModel, should_stop: Callable[[], bool]) -> Mapping[str, float]:
        try:
            result = likelihood(model, rows, settings.draws_while_training, settings.batch_size, should_stop=should_stop)
        except EvaluationStopped:
            return {}
        return {"nats_per_token": result.nats_per_token, "standard_error": result.standard_error, "bits_per_byte": result.bits_per_byte}

    return evaluate
