"""A diffusion model drafts for a causal one, whose text comes out token for token as it would alone, in fewer passes. No network is needed.

    python recipes/speculative.py masked                                 trains three models, then compares
    python recipes/speculative.py masked --target T --drafter D          compares two that were trained before, with one tokenizer
    ... --assistant A                                                    and a small stock causal model that drafts left to right
    ... --flash F                                                        and a drafter that reads T's features (recipes/drafter.py)
    ... --compare.lengths 4 8 16 --compare.steps 1 2 4                   drafts of other lengths, in other numbers of calls

The target is a stock Llama of transformers, so that its own `generate` can be compared to: alone, with an assistant that drafts left to
right, and by prompt lookup. Its rivals are drafts of several lengths, all at once or in chunks from left to right, and of a length that
follows what was accepted. What each writes at temperature 0 is compared token for token, in float32 and in float64; speed is a ratio
to the faster of the two plain ways, as all take turns. At the end a row is shown as it is written, in a terminal as it grows.

The text is the documentation of the running Python (`builtin:pydocs`); `--data` names your own. Prompts are held out.
"""

from textdiff.backbones.transformer import TransformerConfig
from textdiff.cli import run_presets
from textdiff.models.discrete import Discrete
from textdiff.models.objective import CrossEntropy
from textdiff.speculation.demo import Speculation, run
from textdiff.training.settings import Train

DRAFTER = Discrete(backbone=TransformerConfig(width=128, layers=2, heads=4), objective=CrossEntropy(), shift=True)
TRAIN = Train(
    steps=2_000,
    batch_size=8,
    learning_rate=1e-3,
    warmup=100,
    final_fraction=0.05,
    weight_decay=0.05,
    ema=0.99,
    evaluate_every=500,
    checkpoint_every=1_000,
)
DRAFTER_TRAIN = Train(
    steps=4_000,
    batch_size=8,
    learning_rate=3e-3,
    warmup=100,
    final_fraction=0.05,
    weight_decay=0.05,
    ema=0.99,
    evaluate_every=1_000,
    checkpoint_every=1_000,
)


def masked() -> Speculation:
    """A masked diffusion model drafts: tokens all at once, or in chunks from left to right."""
    return Speculation(drafter_model=DRAFTER, train=TRAIN, drafter_train=DRAFTER_TRAIN)


PRESETS = (masked,)

if __name__ == "__main__":
    run_presets({preset.__name__: preset for preset in PRESETS}, run, __doc__)
