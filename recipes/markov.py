"""Is a trained model honest? A hidden Markov source has a known entropy, and no model can have a likelihood below it.

Trains a preset on fresh sequences of a random source (16 states, 64 positions, transition rows from a Dirichlet law of concentration 0.3)
and prints how far its likelihood, exact or bound, stands above the exact block entropy H(X_1..X_64)/64.

    python recipes/markov.py autoregressive
    python recipes/markov.py masked
    python recipes/markov.py uniform
    python recipes/markov.py hybrid
    python recipes/markov.py modern                           Gaussian noise on token vectors
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from transformers.utils import logging

from textdiff.backbones.transformer import TransformerConfig
from textdiff.batch import Example
from textdiff.cli import run_presets
from textdiff.data.collate import Examples
from textdiff.evaluation.likelihood import likelihood, sequence_nats
from textdiff.models import embedding_presets
from textdiff.models.autoregressive import AutoregressiveSpec
from textdiff.models.base import LanguageModel, ModelSpec
from textdiff.models.discrete import Discrete
from textdiff.models.objective import CrossEntropy
from textdiff.oracle import Markov
from textdiff.processes.hybrid import Hybrid
from textdiff.processes.uniform import Uniform
from textdiff.randomness import Rng
from textdiff.training.loop import train
from textdiff.training.session import session
from textdiff.training.settings import Train
from textdiff.vocab import Vocab


@dataclass(frozen=True)
class MarkovRun:
    """One model on one source."""

    model: ModelSpec
    """What is trained."""
    train: Train
    """How."""
    states: int = 16
    """States of the source."""
    length: int = 64
    """Positions of a sequence."""
    source_seed: int = 0
    """Which random source."""
    test_sequences: int = 1024
    """Sequences the likelihood is measured on."""
    draws: int = 16
    """Network calls per sequence for a bound."""
    out: Path | None = None
    """Folder of the run (default: runs/NAME-SEED)."""


class Sequences(Examples):
    """Sequences of a source as examples: BOS, then the states, which are the targets; kept as bytes."""

    def __init__(self, source: Markov, count: int, seed: int) -> None:
        rows = [source.sample(len(ids), Rng(seed, 1, ids)) for ids in torch.arange(count).split(20_000)]
        self.states = torch.cat([part.to(torch.uint8) for part in rows])  # (count, L)
        self.bos = source.states + 1

    def __len__(self) -> int:
        return len(self.states)

    def at(self, index: int) -> Example:
        states = self.states[index].tolist()
        return Example(tokens=[self.bos, *states], target=[False, *[True] * len(states)])


def run(recipe: MarkovRun, name: str) -> float:
    """Train, then print the gap to the entropy in percent of it; returns the gap."""
    logging.disable_progress_bar()
    source = Markov.random(recipe.states, recipe.length, seed=recipe.source_seed)
    vocab = Vocab(size=recipe.states + 2, tokens=recipe.states + 2, mask_id=recipe.states, bos_id=recipe.states + 1)
    torch.manual_seed(recipe.train.seed)
    model = recipe.model.build(vocab)
    test = Sequences(source, recipe.test_sequences, seed=1)
    out = Path("runs") / f"{name}-{recipe.source_seed}" if recipe.out is None else recipe.out
    out.mkdir(parents=True, exist_ok=True)

    def evaluate(trained: LanguageModel, should_stop: Callable[[], bool]) -> Mapping[str, float]:
        return {"nats_per_token": likelihood(trained, test[:256], draws=2, should_stop=should_stop).nats_per_token}

    def save(folder: Path, weights: dict[str, Tensor]) -> None:
        model.save_pretrained(folder, state_dict=weights)

    with session(recipe.train.bf16) as accelerator:
        fresh = Sequences(source, recipe.train.steps * recipe.train.batch_size, seed=0)
        train(accelerator, recipe.train, model, fresh, vocab.mask_id or 0, out, evaluate, save)
        gap = _gap(model, source, test, recipe.draws)
    entropy = source.entropy() / recipe.length
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{type(model).__name__}, {parameters:,} parameters, {recipe.train.steps} steps, source {recipe.source_seed}")
    print(f"exact block entropy    {entropy:.5f} nats/token")
    print(f"{'upper bound' if model.nll_is_bound else 'exact likelihood':<22} {entropy + gap[0]:.5f} nats/token")
    print(f"above the entropy      {100 * gap[0] / entropy:.3f} % ± {100 * gap[1] / entropy:.3f} % (1 s.e., {len(test)} sequences)")
    numbers = {"entropy": entropy, "gap": gap[0], "standard_error": gap[1], "parameters": parameters}
    (out / "results.json").write_text(json.dumps(numbers, indent=2) + "\n")
    return 100 * gap[0] / entropy


def _gap(model: LanguageModel, source: Markov, test: Sequences, draws: int) -> tuple[float, float]:
    """Mean of nll(x) + log p(x) per token, with its standard error: the entropy's own sampling noise cancels in the pair."""
    nats = sequence_nats(model, test, draws)
    excess = (nats + source.log_prob(test.states.long())) / source.length
    return float(excess.mean()), float(excess.std() / len(excess) ** 0.5)


TRUNK = TransformerConfig(width=128, layers=3, heads=4, max_length=128)
TIMED = replace(TRUNK, time_conditioning=True)


def _settings(learning_rate: float) -> Train:
    return Train(
        steps=700,
        batch_size=64,
        learning_rate=learning_rate,
        warmup=100,
        final_fraction=0.0,
        weight_decay=0.0,
        betas=(0.9, 0.99),
        ema=0.995,
        evaluate_every=350,
        checkpoint_every=350,
    )


def masked() -> MarkovRun:
    """Masked diffusion, 0.6 M parameters, trained on the unweighted cross-entropy, which is less noisy than the bound it is measured by."""
    return MarkovRun(Discrete(backbone=TRUNK, objective=CrossEntropy(), shift=True), _settings(2e-3))


def uniform() -> MarkovRun:
    """Uniform noise, 0.9 M parameters: the trunk is told the noise level."""
    return MarkovRun(Discrete(process=Uniform(), backbone=TIMED, objective=CrossEntropy(), shift=True, curriculum=0.3), _settings(2e-3))


def hybrid() -> MarkovRun:
    """Masks with some uniform noise, 0.9 M parameters."""
    return MarkovRun(Discrete(process=Hybrid(), backbone=TIMED, objective=CrossEntropy(), shift=True, curriculum=0.3), _settings(2e-3))


def modern() -> MarkovRun:
    """Gaussian noise on token vectors, 0.7 M parameters."""
    return MarkovRun(embedding_presets.modern(TRUNK, 16, curriculum=0.3), _settings(2e-3))


def autoregressive() -> MarkovRun:
    """The autoregressive twin, 0.6 M parameters."""
    return MarkovRun(AutoregressiveSpec(backbone=TRUNK), _settings(1.5e-3))


if __name__ == "__main__":
    run_presets({preset.__name__: preset for preset in (masked, uniform, hybrid, modern, autoregressive)}, run, __doc__)
