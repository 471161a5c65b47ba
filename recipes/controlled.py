"""Text of a wanted kind: control success against guidance strength, with fluency beside it.

    python recipes/controlled.py masked                       masked diffusion; uniform and hybrid noise: the presets of that name
    python recipes/controlled.py masked --data e2e.jsonl --attribute food       E2E restaurants: rows with src (the attributes) and trg

The embedded corpus has two kinds of text: the language reference and the docstrings of the library. Three models are trained: a diffusion
model that is told the kind (and not, now and then), a classifier of its noisy texts, and a judge: a classifier of clean texts that guides
nothing, of another size and seed, on the other half of the training documents. Each kind is then asked for by classifier-free and by
classifier guidance of each strength gamma; at 0 the model is not told. `success` is how often the judge finds the kind that was asked for,
`trigram` nats/token of the samples under a trigram of the training text, `distinct-2` the share of different pairs of tokens.

`masked` as it stands, 6.2 minutes of one core in all, CPython 3.11.7, 128 texts in every row (held-out text: 79.7 ± 3.6, 3.741, 0.590):

    gamma                           0             1           1.5             2             3
    classifier-free, %     46.9 ± 4.4    93.8 ± 2.1    97.7 ± 1.3   100.0 ± 0.0   100.0 ± 0.0
    trigram, distinct-2  7.105, 0.881  7.088, 0.888  7.064, 0.878  7.082, 0.874  7.118, 0.836
    classifier, %          46.9 ± 4.4    50.0 ± 4.4    58.6 ± 4.4    68.0 ± 4.1    57.0 ± 4.4
    trigram, distinct-2  7.105, 0.881  7.125, 0.893  7.069, 0.878  7.094, 0.875  7.126, 0.880

So short a run learns which words belong to a kind long before it learns to write: samples are easier to judge than text, and not fluent.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers.utils import logging

from textdiff.backbones.transformer import TransformerConfig
from textdiff.batch import Example, collate
from textdiff.cli import run_presets
from textdiff.data import pydocs
from textdiff.data.labelled import Labelled, Texts, texts_by_kind
from textdiff.data.tokenizer import train_tokenizer
from textdiff.evaluation.likelihood import likelihood
from textdiff.evaluation.ngram import Trigram, nats_per_token
from textdiff.guidance.base import Guidance
from textdiff.guidance.classifier import FirstOrder
from textdiff.guidance.classifier_free import ClassifierFree
from textdiff.models.base import LanguageModel
from textdiff.models.classifier import ClassifierSpec, NoisyClassifier
from textdiff.models.discrete import Discrete, DiscreteDiffusionLM
from textdiff.models.objective import CrossEntropy
from textdiff.plots import can_draw
from textdiff.processes.hybrid import Hybrid
from textdiff.processes.uniform import Uniform
from textdiff.randomness import Rng
from textdiff.samplers.ancestral import Ancestral
from textdiff.training.loop import Evaluate, train
from textdiff.training.run import Save
from textdiff.training.session import on_main, session
from textdiff.training.settings import Train
from textdiff.vocab import Vocab

_ROWS = 64  # sampled and judged at a time


@dataclass(frozen=True)
class Controlled:
    """One labelled diffusion model, its guidance and its judge."""

    model: Discrete
    """The diffusion model; its number of labels comes from the data."""
    train: Train
    """How it is trained."""
    classifier: ClassifierSpec
    """What guides; its noise is the model's."""
    judge: ClassifierSpec
    """What judges."""
    classifier_train: Train
    """How both classifiers are trained; the judge's seed is one higher."""
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
        if not self.gammas or min(self.gammas) < 0:
            raise ValueError(f"gammas are {list(self.gammas)}, expected strengths of 0 or more")
        if min(self.samples, self.sampling_steps, self.length - 3) < 1:
            given = f"samples {self.samples}, sampling_steps {self.sampling_steps}, length {self.length}"
            raise ValueError(f"{given}: expected 1 or more samples and steps, and 4 tokens or more")


class Trained(NamedTuple):
    """What sampling needs."""

    kinds: list[str]
    vocab: Vocab
    rows: Labelled
    real: list[Example]  # held out, `samples` of each kind
    model: DiscreteDiffusionLM
    classifier: NoisyClassifier
    judge: NoisyClassifier


class Measured(NamedTuple):
    """One row of the table."""

    guidance: str
    gamma: float | None
    success: float  # percent
    standard_error: float
    trigram: float  # nats/token
    distinct: float


def run(recipe: Controlled, name: str) -> None:
    """Train the three models, sample at each strength, print and save the table."""
    logging.disable_progress_bar()
    began = time.perf_counter()
    out = Path("runs") / name if recipe.out is None else recipe.out
    texts = texts_by_kind(recipe.data, recipe.attribute)
    with session(recipe.train.bf16) as accelerator:
        trained = _trained(recipe, texts, out, accelerator)
        on_main(accelerator, lambda: _measure(recipe, trained, out, began))


def _measure(recipe: Controlled, trained: Trained, out: Path, began: float) -> None:
    print(f"{recipe.data}: {' / '.join(trained.kinds)}, {recipe.samples} texts of each kind in every row of the table")
    table = _table(recipe, trained)
    numbers = {"data": recipe.data, "kinds": trained.kinds, "samples": len(trained.real), "rows": [row._asdict() for row in table]}
    (out / "results.json").write_text(json.dumps(numbers, indent=2) + "\n")
    drawn = _draw(out / "control.png", table) if can_draw() else "no plot: matplotlib is not installed (pip install textdiff[plots])"
    print(f"wrote {out}/ in {time.perf_counter() - began:.0f} s: model/ results.json {drawn}")


def _trained(recipe: Controlled, texts: Texts, out: Path, accelerator: Accelerator) -> Trained:
    tokenizer = on_main(accelerator, lambda: train_tokenizer([text for part in texts.train for text in part], recipe.vocab_size))
    vocab, labels, noise = Vocab.of(tokenizer), len(texts.kinds), recipe.model.process

    def rows(parts: Sequence[Sequence[str]]) -> Labelled:
        return Labelled(parts, texts.packed, tokenizer, recipe.length)

    def build(spec: Any, seed: int) -> Any:
        torch.manual_seed(seed)
        model = spec.build(vocab)
        model.tokenizer = tokenizer
        return model

    backbone: Any = replace(recipe.model.backbone, labels=labels)  # type: ignore[call-arg]
    halves = [rows([part[half::2] for part in texts.train]) for half in (0, 1)]
    everything, real = rows(texts.train), rows(texts.held_out).spread(recipe.samples)
    settings = replace(recipe.classifier_train, resume=recipe.train.resume)
    model = build(replace(recipe.model, backbone=backbone), recipe.train.seed)
    classifier = build(replace(recipe.classifier, process=noise, labels=labels), settings.seed)
    judge = build(replace(recipe.judge, labels=labels), settings.seed + 1)
    _train(accelerator, "diffusion model", recipe.train, model, everything, out, _bound(real))
    _train(accelerator, "guiding classifier", settings, classifier, halves[0], out / "classifier", _accuracy(real))
    _train(accelerator, "judge", replace(settings, seed=settings.seed + 1), judge, halves[1], out / "judge", _accuracy(real))
    return Trained(texts.kinds, vocab, everything, real, *(part.to(accelerator.device).eval() for part in (model, classifier, judge)))


def _train(
    accelerator: Accelerator, what: str, settings: Train, model: LanguageModel, rows: Labelled, out: Path, evaluate: Evaluate
) -> None:
    if accelerator.is_main_process:
        print(f"{what}: {sum(p.numel() for p in model.parameters()):,} parameters, {settings.steps:,} steps", flush=True)
    out.mkdir(parents=True, exist_ok=True)
    train(accelerator, settings, model, rows, model.vocab.pad_id or 0, out, evaluate, _save(model))


def _save(model: LanguageModel) -> Save:
    return lambda folder, weights: model.save_pretrained(folder, state_dict=weights)


def _bound(real: list[Example]) -> Evaluate:
    return lambda model, should_stop: {"nats_per_token": likelihood(model, real, draws=2).nats_per_token}


def _accuracy(real: list[Example]) -> Evaluate:
    return lambda model, should_stop: {"accuracy": float(_judged(model, real).double().mean())}


def _judged(judge: Any, examples: Sequence[Example]) -> Tensor:
    """Whether the judge finds the kind of each text, (N,) bool."""
    device, parts = next(judge.parameters()).device, []
    for start in range(0, len(examples), _ROWS):
        batch = collate(examples[start : start + _ROWS], judge.vocab.pad_id or 0).to(device)
        parts.append(judge.judge(batch) == batch.source[:, 0])
    return torch.cat(parts).cpu()


def _table(recipe: Controlled, trained: Trained) -> list[Measured]:
    """Real text first, then every guidance at every strength; each row is printed as soon as it is measured."""
    trigram = Trigram([row for rows in trained.rows.rows for row in rows], trained.vocab)
    print(f"\n{'guidance':<16}{'gamma':>6}{'success %':>16}{'trigram':>10}{'distinct-2':>12}")
    table: list[Measured] = []

    def measure(guidance: str, gamma: float | None, examples: list[Example]) -> None:
        right = _judged(trained.judge, examples).double()
        share, error = 100 * float(right.mean()), 100 * float((right.var(correction=0) / len(right)).sqrt())
        row = Measured(guidance, gamma, share, error, nats_per_token(trigram, examples, trained.vocab), _distinct(examples))
        shown = "" if gamma is None else f"{gamma:g}"
        print(f"{guidance:<16}{shown:>6}{f'{share:.1f} ± {error:.1f}':>16}{row.trigram:>10.3f}{row.distinct:>12.3f}", flush=True)
        table.append(row)

    measure("real text", None, trained.real)
    for gamma in sorted(recipe.gammas):
        measure("classifier-free" if gamma else "none", gamma, _sampled(recipe, trained, ClassifierFree(gamma)))
    for gamma in sorted(gamma for gamma in recipe.gammas if gamma > 0):  # without strength they are the same
        measure("classifier", gamma, _sampled(recipe, trained, FirstOrder(trained.classifier, gamma)))
    return table


def _sampled(recipe: Controlled, trained: Trained, guidance: Guidance) -> list[Example]:
    """Texts as long as the real ones, the kinds taking turns; the same noise for every guidance."""
    denoiser, found = guidance(trained.model), list[Example]()
    kinds, device = len(trained.kinds), trained.model.device
    for start in range(0, len(trained.real), _ROWS):
        index = list(range(start, min(start + _ROWS, len(trained.real))))
        shapes = [trained.real[i - i % kinds]._replace(source=[i % kinds]) for i in index]  # the length must not tell the kind
        batch = collate(shapes, trained.vocab.pad_id or 0, sample_id=index).to(device)
        tokens = Ancestral(recipe.sampling_steps).sample(denoiser, batch, Rng(0, 0, batch.sample_id)).cpu()
        found += [shape._replace(tokens=row[: len(shape.tokens)].tolist()) for shape, row in zip(shapes, tokens, strict=True)]
    return found


def _distinct(examples: list[Example]) -> float:
    """Different pairs of neighbouring tokens, as a share of all pairs."""
    pairs = [pair for row in examples for pair in zip(row.tokens[1:], row.tokens[2:], strict=False)]
    return len(set(pairs)) / max(1, len(pairs))


def _draw(path: Path, table: list[Measured]) -> str:
    """Success and fluency against gamma; returns the picture's name."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    success, fluency = figure.subplots(1, 2)
    real, none = table[0], [row for row in table if row.guidance == "none"]
    for guidance in dict.fromkeys(row.guidance for row in table if row.gamma):
        rows = [*none, *(row for row in table if row.guidance == guidance)]
        gammas = [row.gamma for row in rows]
        success.errorbar(gammas, [row.success for row in rows], [row.standard_error for row in rows], marker="o", capsize=2, label=guidance)
        fluency.plot(gammas, [row.trigram for row in rows], marker="o", label=guidance)
    labels = ("control success, % (bars: 1 s.e.)", "trigram nats/token")
    for axes, level, label in zip((success, fluency), (real.success, real.trigram), labels, strict=True):
        axes.axhline(level, color="0.5", linestyle="--", linewidth=0.8)
        place: dict[str, Any] = {"xytext": (-2, 3), "textcoords": "offset points", "xycoords": ("axes fraction", "data")}
        axes.annotate("held-out text", (1, level), color="0.4", ha="right", **place)
        axes.set_xlabel("guidance strength gamma")
        axes.set_ylabel(label)
        axes.spines[["top", "right"]].set_visible(False)
    success.legend(frameon=False)
    figure.savefig(path, dpi=120)
    return path.name


TRUNK = TransformerConfig(width=128, layers=3, heads=4, max_length=128)
TIMED = replace(TRUNK, time_conditioning=True)
TRAIN = Train(
    steps=1_500, batch_size=16, learning_rate=3e-3, warmup=50, final_fraction=0.05, ema=0.99, evaluate_every=500, checkpoint_every=500
)
CLASSIFIER = ClassifierSpec(backbone=TransformerConfig(width=64, layers=2, heads=2, max_length=128, time_conditioning=True))
JUDGE = ClassifierSpec(backbone=TransformerConfig(width=96, layers=2, heads=4, max_length=128))
CLASSIFIER_TRAIN = replace(TRAIN, steps=400, batch_size=32, learning_rate=1e-3, weight_decay=0.1, evaluate_every=200, checkpoint_every=400)


def _preset(model: Discrete) -> Controlled:
    return Controlled(model=model, train=TRAIN, classifier=CLASSIFIER, judge=JUDGE, classifier_train=CLASSIFIER_TRAIN)


def masked() -> Controlled:
    """Masked diffusion, on the cross-entropy and read one position to the right, without which so short a run learns little."""
    return _preset(Discrete(backbone=TRUNK, objective=CrossEntropy(), shift=True, label_dropout=0.15))


def uniform() -> Controlled:
    """Uniform noise; the network is told the level."""
    return _preset(Discrete(process=Uniform(), backbone=TIMED, label_dropout=0.15))


def hybrid() -> Controlled:
    """Masks and uniform noise together; the network is told the level."""
    return _preset(Discrete(process=Hybrid(), backbone=TIMED, label_dropout=0.15))


if __name__ == "__main__":
    run_presets({"masked": masked, "uniform": uniform, "hybrid": hybrid}, run, __doc__)
