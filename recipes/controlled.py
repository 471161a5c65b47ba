"""Text of a wanted kind: control success against guidance strength, with fluency beside it.

    python recipes/controlled.py masked                       masked diffusion; uniform and hybrid noise: the presets of that name
    python recipes/controlled.py diffusion_lm                 vectors of tokens; latent: vectors of whole texts
    python recipes/controlled.py masked --data e2e.jsonl --attribute food       E2E restaurants: rows with src (the attributes) and trg

The embedded corpus has two kinds of text: the language reference and the docstrings of the library. A diffusion model is trained that is
told the kind (and not, now and then), a classifier of its noisy texts, and a judge: a classifier of clean texts that guides nothing, of
another size and seed, on the other half of the training documents. Each kind is then asked for by each guidance at each strength gamma; at
0 the model is not told. `success` is how often the judge finds the kind that was asked for; fluency: textdiff/evaluation/control.py.

`diffusion_lm` adds plug-and-play control (gamma is the size of an update), and asks for more: the classes of a real row's tokens, told by
their letters (success: the share that has them), an end (the share of texts that end there), and a gap (the share of its tokens found).

`masked` as it stands, 6.2 minutes of one core in all, CPython 3.11.7, 128 texts in every row (held-out text: 79.7 ± 3.6, 3.741, 0.590):

    gamma                           0             1           1.5             2             3
    classifier-free, %     46.9 ± 4.4    93.8 ± 2.1    97.7 ± 1.3   100.0 ± 0.0   100.0 ± 0.0
    trigram, distinct-2  7.105, 0.881  7.088, 0.888  7.064, 0.878  7.082, 0.874  7.118, 0.836
    classifier, %          46.9 ± 4.4    50.0 ± 4.4    58.6 ± 4.4    68.0 ± 4.1    57.0 ± 4.4
    trigram, distinct-2  7.105, 0.881  7.125, 0.893  7.069, 0.878  7.094, 0.875  7.126, 0.880

`diffusion_lm --samples 32`, 6.9 minutes of a shared core, 64 texts in a row (held-out text: 81.2 ± 4.9, 3.744, 0.694; classes: 64 rows'
tokens; plug-and-play at 0.1). The classifier's gradient acts on the mean of x0 and wants a large gamma; `end` is 0.0 ± 0.0 when not asked
for and 100.0 ± 0.0 when it is, and a gap's tokens are found in 0.5 ± 0.2 % of its places, with its context as without:

                        none     classifier-free 2   gradient 2    gradient 10   gradient 40   plug-and-play
    success, %       54.7 ± 6.2     78.1 ± 5.2       65.6 ± 5.9    71.9 ± 5.6    78.1 ± 5.2    100.0 ± 0.0
    trigram             7.462          7.462            7.467         7.481         7.482         6.641
    distinct-2          0.963          0.962            0.963         0.963         0.965         0.611
    classes, %       25.0 ± 0.8                      54.3 ± 0.9    69.9 ± 0.8    79.0 ± 0.7    85.2 ± 0.8
    trigram             7.462                           7.209         6.908         6.728         6.515

`latent --samples 32` is not controlled after so short a run, 7.3 minutes of a shared core: 48.4 ± 6.2 % when not told, 51.6 ± 6.2 at
gamma 2, 56.2 ± 6.2 at 3 (trigram 7.49, 7.48, 7.48). A run of minutes learns which words belong to a kind long before it learns to write:
samples are not fluent, and may be easier to judge than text.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from textdiff.backbones.transformer import TransformerConfig
from textdiff.cli import run_presets
from textdiff.controlled import Controlled, Trained, are_strengths, run
from textdiff.data.token_classes import NAMES
from textdiff.evaluation.control import Trial, class_trials, end_trials, gap_trials
from textdiff.guidance.base import Guidance
from textdiff.guidance.classifier import FirstOrder
from textdiff.guidance.classifier_free import ClassifierFree
from textdiff.guidance.control import Attribute, Control, Gradient, Pattern, PlugAndPlay
from textdiff.log_snr import Sqrt
from textdiff.models.autoencoder import AutoencoderConfig
from textdiff.models.classifier import ClassifierSpec
from textdiff.models.discrete import Discrete
from textdiff.models.embedding import EmbeddingDiffusion
from textdiff.models.embedding_objective import DiffusionLM
from textdiff.models.embedding_table import Free
from textdiff.models.latent import LatentDiffusion
from textdiff.models.objective import CrossEntropy
from textdiff.models.reading import Regression
from textdiff.processes.gaussian import Gaussian
from textdiff.processes.hybrid import Hybrid
from textdiff.processes.uniform import Uniform
from textdiff.training.settings import Train


@dataclass(frozen=True, kw_only=True)
class ControlledTokens(Controlled):
    """Diffusion of tokens: classifier-free beside first-order classifier guidance."""

    classifier: ClassifierSpec
    """What guides; its noise is the model's."""

    def guides(self, model: Any, labels: int) -> dict[str, ClassifierSpec]:
        return {"classifier": replace(self.classifier, process=model.process, labels=labels)}

    def trials(self, trained: Trained) -> Iterator[Trial]:
        yield from super().trials(trained)
        for gamma in sorted(gamma for gamma in self.gammas if gamma > 0):  # without strength they are the same
            yield self.judged("classifier", gamma, trained, FirstOrder(trained.guides["classifier"], gamma))


@dataclass(frozen=True, kw_only=True)
class ControlledVectors(Controlled):
    """Diffusion of token vectors: classifiers of noisy vectors as well, and control of classes of tokens, of the end and of a gap."""

    classifier: ClassifierSpec
    """What guides; its noise and its vectors are the model's."""
    tagger: ClassifierSpec
    """What guides the classes of tokens."""
    gradients: tuple[float, ...] = (2.0, 10.0, 40.0)
    """Strengths of guidance by the classifier's gradient."""
    rates: tuple[float, ...] = (0.1,)
    """Sizes of a plug-and-play update."""
    updates: int = 3
    """Plug-and-play updates after each step."""
    fluency: float = 1e-4
    """How much they are held at the mean of the step; Diffusion-LM's 0.01 leaves attributes where they were here."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.updates < 1 or not are_strengths([*self.gradients, *self.rates, self.fluency]):
            given = f"gradients {list(self.gradients)}, rates {list(self.rates)}, updates {self.updates}, fluency {self.fluency}"
            raise ValueError(f"{given}: expected numbers of 0 or more, and 1 update or more")

    def guides(self, model: Any, labels: int) -> dict[str, ClassifierSpec]:
        known: dict[str, Any] = {"process": model.process, "width": model.spec.width}
        tagger = replace(self.tagger, labels=len(NAMES), each=True, **known)
        return {"classifier": replace(self.classifier, labels=labels, **known), "tagger": tagger}

    def trials(self, trained: Trained) -> Iterator[Trial]:
        yield from super().trials(trained)
        for name, gamma, guidance in self.steering(Attribute(trained.guides["classifier"])):
            yield self.judged(name, gamma, trained, guidance)
        shapes, write = trained.real, partial(self.written, trained)  # each row once: the errors take texts for independent
        free = write(ClassifierFree(0.0), shapes)
        yield from class_trials(write, self.steering(Pattern(trained.guides["tagger"])), shapes, free, trained.classes)
        if trained.vocab.eos_id is not None:
            yield from end_trials(write, shapes, free, trained.vocab.eos_id)
        yield from gap_trials(write, shapes, free)

    def steering(self, control: Control) -> list[tuple[str, float, Guidance]]:
        """Both ways to follow a classifier, at each strength."""
        gradients = [("gradient", gamma, Gradient(control, gamma)) for gamma in self.gradients]
        return [*gradients, *(("plug-and-play", rate, PlugAndPlay(control, self.updates, rate, self.fluency)) for rate in self.rates)]


TRUNK = TransformerConfig(width=128, layers=3, heads=4, max_length=128)
TIMED = replace(TRUNK, time_conditioning=True)
TRAIN = Train(
    steps=1_500, batch_size=16, learning_rate=3e-3, warmup=50, final_fraction=0.05, ema=0.99, evaluate_every=500, checkpoint_every=500
)
CLASSIFIER = ClassifierSpec(backbone=TransformerConfig(width=64, layers=2, heads=2, max_length=128, time_conditioning=True))
JUDGE = ClassifierSpec(backbone=TransformerConfig(width=96, layers=2, heads=4, max_length=128))
CLASSIFIER_TRAIN = replace(TRAIN, steps=400, batch_size=32, learning_rate=1e-3, weight_decay=0.1, evaluate_every=200, checkpoint_every=400)


def _preset(model: Discrete) -> ControlledTokens:
    return ControlledTokens(model=model, train=TRAIN, classifier=CLASSIFIER, judge=JUDGE, classifier_train=CLASSIFIER_TRAIN)


def masked() -> ControlledTokens:
    """Masked diffusion, on the cross-entropy and read one position to the right, without which so short a run learns little."""
    return _preset(Discrete(backbone=TRUNK, objective=CrossEntropy(), shift=True, label_dropout=0.15))


def uniform() -> ControlledTokens:
    """Uniform noise; the network is told the level."""
    return _preset(Discrete(process=Uniform(), backbone=TIMED, label_dropout=0.15))


def hybrid() -> ControlledTokens:
    """Masks and uniform noise together; the network is told the level."""
    return _preset(Discrete(process=Hybrid(), backbone=TIMED, label_dropout=0.15))


def diffusion_lm() -> ControlledVectors:
    """Diffusion-LM: vectors of tokens that are regressed and rounded, with the anchor that keeps them apart in a short run."""
    noise = Gaussian(schedule=Sqrt(), t_min=1e-3)
    objective = DiffusionLM(anchor=1.0)
    return ControlledVectors(
        model=EmbeddingDiffusion(noise, TRUNK, table=Free(), reading=Regression(), objective=objective, label_dropout=0.15),
        train=replace(TRAIN, steps=1_200),
        classifier=CLASSIFIER,
        tagger=CLASSIFIER,
        judge=JUDGE,
        classifier_train=CLASSIFIER_TRAIN,
    )


def latent() -> Controlled:
    """Latent diffusion: an autoencoder of whole texts, and diffusion of what it makes of them; no classifier guides that."""
    model = LatentDiffusion(AutoencoderConfig(latents=24), backbone=TRUNK, label_dropout=0.15)
    return Controlled(model=model, train=TRAIN, judge=JUDGE, classifier_train=CLASSIFIER_TRAIN, sampling_steps=50)


if __name__ == "__main__":
    presets = {"masked": masked, "uniform": uniform, "hybrid": hybrid, "diffusion_lm": diffusion_lm, "latent": latent}
    run_presets(presets, run, __doc__)
