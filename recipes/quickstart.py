"""The first hour: train a small language model on the embedded English corpus, measure it, and sample from it. No network is needed.

    python recipes/quickstart.py masked                       masked diffusion
    python recipes/quickstart.py autoregressive               its autoregressive twin: same trunk, data and budget

The corpus is the documentation of the running Python (`builtin:pydocs`, about 2 MB). Your own text:

    python recipes/quickstart.py masked --data notes.jsonl    text, jsonl, csv, parquet, a folder of them, or a hub id
    python recipes/quickstart.py masked --data pairs.jsonl    rows with prompt and response (or src and trg): the response is scored
    python recipes/quickstart.py masked --init gpt2           begin from any checkpoint's weights and tokenizer
"""

from textdiff.backbones.transformer import TransformerConfig
from textdiff.cli import run_presets
from textdiff.models.autoregressive import AutoregressiveSpec
from textdiff.models.discrete import Discrete
from textdiff.recipe import Recipe, run
from textdiff.training.settings import Train

TRUNK = TransformerConfig(width=128, layers=4, heads=4)
TRAIN = Train(
    steps=1_000,
    batch_size=16,
    learning_rate=3e-3,
    warmup=50,
    final_fraction=0.05,
    weight_decay=0.05,
    ema=0.99,
    evaluate_every=250,
    checkpoint_every=500,
)


def masked() -> Recipe:
    """Masked diffusion: tokens become [MASK] and are predicted from everything else; the likelihood is an upper bound.

    Like models adapted from autoregressive ones it reads position l from the trunk's output at l - 1, where the left neighbour is at hand:
    without (`--model.no-shift`) a model of this size stays near the unigram entropy for the whole of so short a run.
    """
    return Recipe(model=Discrete(backbone=TRUNK, shift=True), train=TRAIN, vocab_size=1024)


def autoregressive() -> Recipe:
    """The rival: each token from those before it, the same trunk, data and budget; the likelihood is exact."""
    return Recipe(model=AutoregressiveSpec(backbone=TRUNK), train=TRAIN, vocab_size=1024)


if __name__ == "__main__":
    run_presets({"masked": masked, "autoregressive": autoregressive}, run, __doc__)
