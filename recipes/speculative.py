"""A diffusion model drafts for a causal one, whose text comes out token for token as it would alone, in fewer passes. No network is needed.

    python recipes/speculative.py                                        trains four models, then compares
    python recipes/speculative.py --target T --drafter D --flash F       compares models trained before, and trains what is not named
    ... --assistant A                                                    and a small stock causal model that drafts left to right
    ... --compare.lengths 4 8 16 --compare.steps 1 2 4                   drafts of other lengths, in other numbers of calls

The target is a stock Llama of transformers, so that its own `generate` can be compared to: alone, with an assistant that drafts left to
right, and by prompt lookup. Its rivals are drafts of several lengths, all at once or in chunks from left to right, and of a length that
follows what was accepted. What each writes at temperature 0 is compared token for token, in float32 and in float64; speed is a ratio
to the faster of the two plain ways, as all take turns. At the end a row is shown as it is written, in a terminal as it grows.

The text is the documentation of the running Python (`builtin:pydocs`); `--data` names your own. Prompts are held out. A training step of
the target costs 1.0 to 1.3 CPU seconds in float32 (3 steps timed), one of the assistant 0.06: `--train.steps` shortens.

Measured on one CPU core (OMP_NUM_THREADS=1), greedy, 8 prompts of 32 tokens, 64 new ones each, 2 rounds in turns (CPU time, median and
quartiles): a target of 16 layers of width 192 and drafters of one layer, all trained under ACCELERATE_MIXED_PRECISION=bf16, F longer than
here (1,000 steps on 1,024 rows of the target's own text, of which 32 other prompts accept 2.84 tokens per pass):

    recipes/speculative.py                                                        trains T, A and D, the folders in its own
    recipes/drafter.py flash --target T --train.steps 1000 --backbone.layers 1 --own.rows 1024 --objective.anchors 16 --out F
    recipes/speculative.py --target T --drafter D --assistant A --flash F --compare.prompts 8 --compare.rounds 2
        --compare.lengths 4 7 --compare.steps 1                                   prints, without bf16:

                                    tokens per pass    speed
    7 from features                 2.56               1.46 (1.45-1.47)
    4 from features                 2.43               1.44 (1.43-1.46)
    prompt lookup (transformers)    1.78               1.40 (1.35-1.46)
    left to right (transformers)    1.00               1.00
    AR drafter (transformers)       1.37               0.98 (0.97-0.98)
    left to right (ours)            1.00               0.95
    7 at once (masked)              1.34               0.77
    4 at once (masked)              1.33               0.78

At temperature 1 the same command prints for 7 from features 1.91 and 1.28 (1.27-1.30), 7 at once 1.94 and 1.27 (1.24-1.29), AR drafter
1.64 and 1.17 (1.16-1.18), prompt lookup 1.02 and 0.96 (0.94-0.98).

At temperature 0 all rows were the same in float32 and in float64. One token of the target costs 6.9 calls of F and 4.8 of D. So small a
masked drafter loses, which reads the row anew for every draft; features of the target win, and are as sure at the last place of a draft
as at the first. The target is undertrained (4.40 nats/token where the assistant of one layer has 4.01), so that its text repeats itself
more than a good model's would, which flatters prompt lookup too.
"""

import sys
from dataclasses import replace

from textdiff.backbones.transformer import TransformerConfig
from textdiff.cli import run_presets
from textdiff.models.discrete import Discrete
from textdiff.models.objective import CrossEntropy
from textdiff.speculation.demo import Speculation, run
from textdiff.training.settings import Train

DRAFTER = Discrete(backbone=TransformerConfig(width=128, layers=1, heads=4), objective=CrossEntropy(), shift=True)
TRAIN = Train(
    steps=1_500,
    batch_size=8,
    learning_rate=2e-3,
    warmup=100,
    final_fraction=0.05,
    weight_decay=0.05,
    ema=0.99,
    evaluate_every=500,
    checkpoint_every=250,
)
DRAFTER_TRAIN = replace(TRAIN, steps=1_000, learning_rate=3e-3)
FLASH_TRAIN = replace(TRAIN, steps=5_000, learning_rate=3e-3, weight_decay=0.01)


def masked() -> Speculation:
    """A masked diffusion model and a drafter that reads features draft for a deep and narrow Llama."""
    return Speculation(drafter_model=DRAFTER, train=TRAIN, drafter_train=DRAFTER_TRAIN, flash_train=FLASH_TRAIN)


PRESETS = (masked,)

if __name__ == "__main__":
    if not sys.argv[1:] or sys.argv[1].startswith("-"):  # there is one preset, so that it need not be named
        sys.argv.insert(1, masked.__name__)
    run_presets({preset.__name__: preset for preset in PRESETS}, run, __doc__)
