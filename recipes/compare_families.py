"""Every family of language model at equal parameters on the same text: autoregressive, masked, block, uniform, hybrid, score, modern,
diffusion_lm and latent, once at equal training tokens and once at equal training seconds.

    python recipes/compare_families.py quickstart                         the quickstart's size and corpus, one seed
    python recipes/compare_families.py quickstart --seeds 0 1 2           three seeds, which a claim about families needs
    python recipes/compare_families.py quickstart --data notes.txt        your own text: a file, a folder of them, or a hub id
    python recipes/compare_families.py quickstart --families autoregressive masked block --train.steps 2000

All have the autoregressive model's number of trained parameters, one tokenizer, the same rows in the same order of a seed, and a learning
rate schedule for each budget. It ends with a table for each budget, sorted, and writes `report.html` and `report.md`; `textdiff report`
makes those again from the raw numbers beside them. Stopped, it goes on with the same command and `--train.resume`.

Seconds are those of training steps alone, as this machine was while each run went: leave the machine to it, or they compare little.
"""

from textdiff.backbones.transformer import TransformerConfig
from textdiff.cli import run_presets
from textdiff.family_comparison import FamilyComparison, run
from textdiff.training.settings import Train

TRUNK = TransformerConfig(width=128, layers=4, heads=4)
TRAIN = Train(
    steps=800,
    batch_size=8,
    learning_rate=3e-3,
    warmup=50,
    final_fraction=0.05,
    weight_decay=0.05,
    ema=0.99,
    evaluate_every=200,
    checkpoint_every=400,
    keep=1,
)


def quickstart() -> FamilyComparison:
    """Nine families of 0.9 million parameters."""
    return FamilyComparison(trunk=TRUNK, train=TRAIN)


if __name__ == "__main__":
    run_presets({"quickstart": quickstart}, run, __doc__)
