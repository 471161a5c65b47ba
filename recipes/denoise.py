"""GENIE's pre-training, continuous paragraph denoise: what is missing from a paragraph? Recipes on pairs start from what it has learnt.

    python recipes/denoise.py genie --out runs/pretrained
    python recipes/translation.py genie --data FOLDER --start runs/pretrained

From each paragraph one contiguous span, 30 % of its tokens at a random place, is replaced by one [MASK]; an encoder reads the rest, and
the diffusion writes the span (Lin et al. 2023). The data are `builtin:pydocs`, or your own: `--data` takes a text, jsonl, csv or parquet
file, a folder of them, or a hub id. Paragraphs have 16 to 128 tokens (GENIE's 512: `--spans.length 512 --model.backbone.max-length 512`).

The presets are genie, modern (which draw vectors), masked, uniform (tokens) and autoregressive (the rival), each with one layer of encoder
and two of decoder. `genie` is the very model of recipes/translation.py's preset; for that of recipes/dates.py give both recipes the same
`--model.backbone.width` and `--model.backbone.max-length`, and for the other presets give the recipe on pairs `--encoder
--model.backbone.layers 2 --model.backbone.encoder-layers 1`. A run that does not fit is refused, and the refusal names what differs.

None of the presets has a finished run yet.
"""

from dataclasses import replace

from textdiff import families
from textdiff.backbones.transformer import TransformerConfig
from textdiff.cli import run_presets
from textdiff.denoise import Denoise, run
from textdiff.families import Family
from textdiff.training.settings import Train

TRUNK = TransformerConfig(width=192, layers=3, heads=4, max_length=256, place_embedding=True)  # of recipes/translation.py
PARTED = replace(TRUNK, layers=2, encoder_layers=1)
TRAIN = Train(
    steps=10_000,
    batch_size=32,
    learning_rate=1.5e-3,
    warmup=400,
    final_fraction=0.05,
    weight_decay=0.05,
    ema=0.999,
    evaluate_every=1_000,
    checkpoint_every=1_000,
)


def _recipe(family: Family) -> Denoise:
    return Denoise(model=family.model, decode=family.single, train=TRAIN)


def genie() -> Denoise:
    """GENIE: regressed vectors of the span."""
    return _recipe(families.genie(TRUNK))


def modern() -> Denoise:
    """The modern embedding model."""
    return _recipe(families.modern(PARTED))


def masked() -> Denoise:
    """Masked diffusion on plain cross-entropy."""
    return _recipe(families.masked(PARTED))


def uniform() -> Denoise:
    """Uniform noise on plain cross-entropy, after masks alone for the first two thirds of training."""
    return _recipe(families.uniform(PARTED))


def autoregressive() -> Denoise:
    """The rival: the span token by token."""
    return _recipe(families.autoregressive(PARTED))


if __name__ == "__main__":
    run_presets({preset.__name__: preset for preset in (genie, modern, masked, uniform, autoregressive)}, run, __doc__)
