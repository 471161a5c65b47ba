"""The first hour: train a small language model on the embedded English corpus, measure it, and sample from it. No network is needed.

    python recipes/quickstart.py masked                       masked diffusion
    python recipes/quickstart.py autoregressive               its autoregressive twin: same trunk, data and budget
    python recipes/quickstart.py block                        between the two: blocks from left to right, diffusion inside each
    python recipes/quickstart.py uniform                      tokens become other tokens
    python recipes/quickstart.py hybrid                       tokens become [MASK] or other tokens
    python recipes/quickstart.py score                        masked diffusion by ratios (SEDD)
    python recipes/quickstart.py modern                       Gaussian noise on token vectors (the CDCD / Plaid / LangFlow line)
    python recipes/quickstart.py diffusion_lm                 the same as it began (Diffusion-LM)

Each run's table also holds the runs beside it on the same data. The corpus is the documentation of the running Python
(`builtin:pydocs`, about 2 MB). Your own text:

    python recipes/quickstart.py masked --data notes.jsonl    text, jsonl, csv, parquet, a folder of them, or a hub id
    python recipes/quickstart.py masked --data pairs.jsonl    rows with prompt and response (or src and trg): the response is scored
    python recipes/quickstart.py masked --init gpt2           begin from any checkpoint's weights and tokenizer
"""

from dataclasses import replace

from textdiff.backbones.transformer import TransformerConfig
from textdiff.cli import run_presets
from textdiff.models import presets
from textdiff.models.base import ModelSpec
from textdiff.recipe import Recipe, run
from textdiff.training.settings import Train

TRUNK = TransformerConfig(width=128, layers=4, heads=4)
TRAIN = Train(
    steps=2_000,
    batch_size=8,
    learning_rate=3e-3,
    warmup=100,
    final_fraction=0.05,
    weight_decay=0.05,
    ema=0.99,
    evaluate_every=500,
    checkpoint_every=1_000,
)


def _recipe(model: ModelSpec) -> Recipe:
    return Recipe(model=model, train=TRAIN, vocab_size=1024)


def _longer(model: ModelSpec) -> Recipe:
    return replace(_recipe(model), train=replace(TRAIN, steps=3_000))


def masked() -> Recipe:
    """Masked diffusion: tokens become [MASK] and are predicted from everything else; the likelihood is an upper bound.

    Trained on plain cross-entropy, which is less noisy than the bound it is measured by. Like models adapted from autoregressive ones it
    reads position l from the trunk's output at l - 1, where the left neighbour is at hand: without (`--model.no-shift`) a model of this
    size stays near the unigram entropy for the whole of so short a run.
    """
    return _recipe(presets.masked(TRUNK))


def uniform() -> Recipe:
    """Uniform noise (UDLM): tokens become random others, so that the model must also find out which ones are wrong; an upper bound.

    The first two thirds of the run mask tokens instead: what neighbours say of a token is learnt where it is plain which of them to trust.
    The trunk is not told the noise level (`--model.backbone.time-conditioning` tells it).
    """
    return _longer(presets.uniform(TRUNK))


def hybrid() -> Recipe:
    """Masks with some uniform noise (GIDD, a tenth of all probability at the middle of the clock), after masks alone; an upper bound."""
    return _longer(presets.hybrid(TRUNK))


def block() -> Recipe:
    """Block diffusion (BD3-LM): blocks of 16 tokens from left to right, masked diffusion inside each; an upper bound."""
    return _recipe(presets.block(TRUNK))


def score() -> Recipe:
    """Masked diffusion by unnormalised ratios (SEDD's parameterisation, the same bound); an upper bound."""
    return _recipe(presets.score(TRUNK))


def modern() -> Recipe:
    """Gaussian noise on normalised token vectors, cross-entropy through the prediction; an upper bound.

    For the first two thirds of the run a token is either pure noise or nearly clean, as under masks.
    """
    return _recipe(presets.modern(TRUNK))


def diffusion_lm() -> Recipe:
    """Diffusion-LM: regressed vectors, mean squared error with rounding; its bound, made proper, is far above the others'."""
    return _recipe(presets.diffusion_lm(TRUNK))


def autoregressive() -> Recipe:
    """The rival: each token from those before it, the same trunk, data and budget; the likelihood is exact."""
    return _recipe(presets.autoregressive(TRUNK))


PRESETS = (masked, autoregressive, block, uniform, hybrid, score, modern, diffusion_lm)

if __name__ == "__main__":
    run_presets({preset.__name__: preset for preset in PRESETS}, run, __doc__)
