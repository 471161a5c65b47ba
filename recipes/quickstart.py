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

TRUNK = TransformerConfig(width=256, layers=4, heads=4)
TRAIN = Train(
    steps=600,
    batch_size=32,
    learning_rate=2e-3,
    warmup=50,
    final_fraction=0.05,
    weight_decay=0.05,
    ema=0.99,
    evaluate_every=200,
    checkpoint_every=200,
)


def masked() -> Recipe:
    """Masked diffusion: tokens become [MASK] and are predicted from everything else; the likelihood is an upper bound."""
    return Recipe(model=Discrete(backbone=TRUNK), train=TRAIN)


def autoregressive() -> Recipe:
    """The rival: each token from those before it, the same trunk, data and budget; the likelihood is exact."""
    return Recipe(model=AutoregressiveSpec(backbone=TRUNK), train=TRAIN)


if __name__ == "__main__":
    run_presets({"masked": masked, "autoregressive": autoregressive}, run, __doc__)
