"""A diffusion model drafts for a causal one, whose text comes out token for token as it would alone, in fewer passes. No network is needed.

    python recipes/speculative.py                                        trains four models, then compares
    python recipes/speculative.py --target T --drafter D --flash F       compares models trained before, and trains what is not named
    ... --assistant A                                                    and a small stock causal model that drafts left to right
    ... --compare.lengths 4 8 16 --compare.steps 1 2 4                   drafts of other lengths, in other numbers of calls

The target is a stock Llama of transformers, so that its own `generate` can be compared to: alone, with an assistant that drafts left to
right, and by prompt lookup. Its rivals are drafts of several lengths, all at once or in chunks from left to right, and of a length that
follows what was accepted. What each writes at temperature 0 is compared token for token, in float32 and in float64; speed is a ratio
to the faster of the two plain ways, as all take turns. At the end a row is shown as it is written, in a terminal as it grows.

The text is the documentation of the running Python (`builtin:pydocs`); `--data` names your own. Prompts are held out. Training all four
takes about an hour of one core under `ACCELERATE_MIXED_PRECISION=bf16`, most of it the target's and the reading drafter's: `--train.steps`
and `--flash-train.steps` shorten it. A target of 20 layers of width 128 reaches 3.343 ± 0.023 nats/token in 1,500 steps (the assistant of
one layer 3.850).

Measured on one CPU core (OMP_NUM_THREADS=1), greedy, 8 prompts of 32 tokens, 64 new ones each, 3 rounds in turns (CPU time, median and
quartiles). One token of the target costs 9.2 calls of F, which reads features, and 4.8 of D, the masked drafter; all rows were the same
in float32 and in float64:

    recipes/speculative.py                                            under bf16: trains T, D and A, the folders in its own
    recipes/drafter.py flash --target T --backbone.layers 1 --backbone.mlp-ratio 8 --own.rows 2048 --objective.anchors 32 --out F
        --train.steps 3000, and once more with --train.steps 5000 --train.resume, under bf16
    recipes/speculative.py --target T --drafter D --assistant A --flash F --compare.prompts 8 --compare.rounds 3
        --compare.lengths 4 7 --compare.steps 1                       prints, without bf16:

                                    tokens per pass    speed
    7 from features                 2.74               1.69 (1.64-1.71)
    4 from features                 2.65               1.63 (1.60-1.69)
    prompt lookup (transformers)    1.65               1.33 (1.32-1.34)
    AR drafter (transformers)       1.66               1.08 (1.05-1.12)
    left to right (ours)            1.00               1.00
    left to right (transformers)    1.00               0.97
    4 at once (masked)              1.16               0.74
    7 at once (masked)              1.16               0.71

At temperature 1 the same command prints 1.55 tokens and 1.10 times the speed (1.10-1.14) for 4 from features, 1.58 and 0.96 (0.87-0.97) for
7, which learnt from what the target writes at 0 (`--own.temperature 1` is there for such a target); AR drafter 1.65 and 1.04, 7 at once
1.41 and 0.82, prompt lookup 1.02 and 0.91.

F brings 2.53 tokens per pass on 32 prompts, of which it accepts 0.70, 0.63, 0.59, 0.52, 0.47, 0.50 and 0.71 at each place of a draft that
is reached; after 1,000 steps on half the text it brought 2.13, and 1.26 times the speed. So small a masked drafter loses: it reads the row
anew for every draft, and knows less of the next token than the target's features do.
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
