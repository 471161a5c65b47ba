"""Controlled generation from data to table: a labelled diffusion model, the classifiers that guide it, and a judge that guides nothing."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from transformers.utils import logging

from textdiff.batch import Example
from textdiff.data import pydocs
from textdiff.data.collate import Examples
from textdiff.data.labelled import Labelled, Texts, texts_by_kind
from textdiff.data.token_classes import Tagged, TokenClasses
from textdiff.data.tokenizer import train_tokenizer
from textdiff.evaluation.control import Table, Trial, draw, judged, sampled
from textdiff.evaluation.likelihood import likelihood
from textdiff.guidance.base import Guidance
from textdiff.guidance.classifier_free import ClassifierFree
from textdiff.models.base import LanguageModel, ModelSpec
from textdiff.models.classifier import ClassifierSpec, NoisyClassifier
from textdiff.plots import can_draw
from textdiff.samplers.ancestral import Ancestral
from textdiff.spec import replaced
from textdiff.training.loop import Evaluate, train
from textdiff.training.run import Save
from textdiff.training.session import on_main, session
from textdiff.training.settings import Train
from textdiff.vocab import Vocab

_CURVES = ("classifier-free", "classifier", "gradient")
_NO_PLOT = "no plot: matplotlib is not installed (pip install textdiff[plots])"


def are_strengths(numbers: Sequence[float]) -> bool:
    """Whether each is a finite number of 0 or more."""
    return all(0 <= number < float("inf") for number in numbers)


class Trained(NamedTuple):
    """What sampling needs."""

    kinds: list[str]
    vocab: Vocab
    classes: TokenClasses
    rows: Labelled
    real: list[Example]  # held out, `samples` of each kind
    model: Any  # a LanguageModel that is a Denoiser
    guides: dict[str, NoisyClassifier]
    judge: NoisyClassifier

    @property
    def shapes(self) -> list[Example]:
        """Real rows, the kinds taking turns; the shape of a row must not tell its kind."""
        kinds = len(self.kinds)
        return [self.real[i - i % kinds]._replace(source=[i % kinds]) for i in range(len(self.real))]


@dataclass(frozen=True)
class Controlled:
    """One labelled diffusion model, its guidance and its judge."""

    model: ModelSpec
    """The diffusion model; its number of labels comes from the data."""
    train: Train
    """How it is trained."""
    judge: ClassifierSpec
    """What judges."""
    classifier_train: Train
    """How classifiers are trained; the judge's seed is one higher."""
    data: str = pydocs.NAME
    """builtin:pydocs, or a file of E2E rows."""
    attribute: str = "food"
    """The attribute of E2E rows that is to be controlled."""
    length: int = 64
    """Tokens of a row."""
    vocab_size: int = 1024
    """Size of the trained tokenizer, its special tokens included."""
    gammas: tuple[float, ...] = (0.0, 1.0, 1.5, 2.0, 3.0)
    """Strengths of guidance."""
    samples: int = 64
    """Texts of each kind at each strength."""
    sampling_steps: int = 32
    """Denoising steps of each."""
    out: Path | None = None
    """Folder of the run (default: runs/NAME)."""

    def __post_init__(self) -> None:
        if not self.gammas or not are_strengths(self.gammas):
            raise ValueError(f"gammas are {list(self.gammas)}, expected strengths of 0 or more")
        if min(self.samples, self.sampling_steps, self.length - 3) < 1:
            given = f"samples {self.samples}, sampling_steps {self.sampling_steps}, length {self.length}"
            raise ValueError(f"{given}: expected 1 or more samples and steps, and 4 tokens or more")
        if self.data == pydocs.NAME and self.attribute != Controlled.attribute:
            raise ValueError(f"attribute is {self.attribute!r} and {self.data} has none: give data with attributes, or leave it out")

    def guides(self, model: Any, labels: int) -> dict[str, ClassifierSpec]:
        """The classifiers that guide `model`."""
        return {}

    def trials(self, trained: Trained) -> Iterator[Trial]:
        """Texts of each guidance and strength."""
        for gamma in sorted(self.gammas):
            yield self.judged("classifier-free" if gamma else "none", gamma, trained, ClassifierFree(gamma))

    def written(self, trained: Trained, guidance: Guidance, shapes: Sequence[Example]) -> list[Example]:
        """A text for each shape."""
        return sampled(guidance(trained.model), Ancestral(self.sampling_steps), shapes, trained.vocab, trained.model.device)

    def judged(self, name: str, gamma: float, trained: Trained, guidance: Guidance) -> Trial:
        """Texts of wanted kinds."""
        found = self.written(trained, guidance, trained.shapes)
        return name, gamma, found, judged(trained.judge, found)


def run(recipe: Controlled, name: str) -> None:
    """Train the models, sample at each strength, print and save the table."""
    logging.disable_progress_bar()
    began = time.perf_counter()
    out = Path("runs") / name if recipe.out is None else recipe.out
    recipe.train.lora.require_weights(None)
    texts = texts_by_kind(recipe.data, recipe.attribute)
    with session(recipe.train.bf16) as accelerator:
        trained = _trained(recipe, texts, out, accelerator)
        on_main(accelerator, lambda: _measure(recipe, trained, out, began))


def _measure(recipe: Controlled, trained: Trained, out: Path, began: float) -> None:
    print(f"{recipe.data}: {' / '.join(trained.kinds)}, {recipe.samples} texts of each kind in every row of the table")
    table = Table([row for rows in trained.rows.rows for row in rows], trained.vocab)
    table.add("real text", None, trained.real, judged(trained.judge, trained.real))
    for trial in recipe.trials(trained):
        table.add(*trial)
    numbers = {"data": recipe.data, "kinds": trained.kinds, "samples": len(trained.real), "rows": [row._asdict() for row in table.rows]}
    (out / "results.json").write_text(json.dumps(numbers, indent=2) + "\n")
    drawn = draw(out / "control.png", table.rows, _CURVES) if can_draw() else _NO_PLOT
    print(f"wrote {out}/ in {time.perf_counter() - began:.0f} s: model/ results.json {drawn}")


def _trained(recipe: Controlled, texts: Texts, out: Path, accelerator: Accelerator) -> Trained:
    tokenizer = on_main(accelerator, lambda: train_tokenizer([text for part in texts.train for text in part], recipe.vocab_size))
    vocab, labels = Vocab.of(tokenizer), len(texts.kinds)
    classes = TokenClasses.read(tokenizer, vocab.size)

    def rows(parts: Sequence[Sequence[str]]) -> Labelled:
        return Labelled(parts, texts.packed, tokenizer, recipe.length)

    def build(spec: ModelSpec, seed: int) -> Any:
        torch.manual_seed(seed)
        model = spec.build(vocab)
        model.tokenizer = tokenizer
        return model

    plain: Any = recipe.model
    halves = [rows([part[half::2] for part in texts.train]) for half in (0, 1)]
    everything, real = rows(texts.train), rows(texts.held_out).spread(recipe.samples)
    settings = replace(recipe.classifier_train, resume=recipe.train.resume)
    model = build(replaced(plain, backbone=replace(plain.backbone, labels=labels)), recipe.train.seed)
    judge = build(replace(recipe.judge, labels=labels), settings.seed + 1)
    _train(accelerator, "diffusion model", recipe.train, model, everything, out, _bound(real))
    guides = {name: build(spec, settings.seed) for name, spec in recipe.guides(model.to(accelerator.device), labels).items()}
    for name, guide in guides.items():
        if guide.spec.width:
            guide.to(accelerator.device).take_vectors(model)
        learned: Examples = Tagged(halves[0], classes) if guide.spec.each else halves[0]
        held_out: Sequence[Example] = Tagged(real, classes) if guide.spec.each else real
        _train(accelerator, f"guiding {name}", settings, guide, learned, out / name, _accuracy(held_out))
    _train(accelerator, "judge", replace(settings, seed=settings.seed + 1), judge, halves[1], out / "judge", _accuracy(real))
    for part in (model, judge, *guides.values()):
        part.to(accelerator.device).eval()
    return Trained(texts.kinds, vocab, classes, everything, real, model, guides, judge)


def _train(
    accelerator: Accelerator, what: str, settings: Train, model: LanguageModel, rows: Examples, out: Path, evaluate: Evaluate
) -> None:
    if accelerator.is_main_process:
        print(f"{what}: {sum(p.numel() for p in model.parameters()):,} parameters, {settings.steps:,} steps", flush=True)
    out.mkdir(parents=True, exist_ok=True)
    train(accelerator, settings, model, rows, model.vocab.pad_id or 0, out, evaluate, _save(model))


def _save(model: LanguageModel) -> Save:
    return lambda folder, weights: model.save_pretrained(folder, state_dict=weights)


def _bound(real: list[Example]) -> Evaluate:
    return lambda model, should_stop: {"nats_per_token": likelihood(model, real, draws=2).nats_per_token}


def _accuracy(real: Sequence[Example]) -> Evaluate:
    def measure(model: Any, should_stop: Any) -> Mapping[str, float]:
        return {"accuracy": float(judged(model, real).double().mean())}

    return measure
