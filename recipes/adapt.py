"""Turn a causal language model into a diffusion model: any stock Hugging Face one, or one trained by another recipe.

    python recipes/adapt.py masked --model gpt2                          masked diffusion (DiffuGPT)
    python recipes/adapt.py uniform --model gpt2                         tokens become other tokens instead of [MASK]
    python recipes/adapt.py block --model gpt2                           block by block, left to right (BD3-LM)

    ... --layout.isolate                                                 attention stays inside each document of a row
    ... --gradient-checkpointing                                         less memory, more time
    ... --train.rates.mask-row 10 --train.rates.attention 0              parts learn faster, slower, or not at all
    ... --train.lora.rank 16                                             adapters instead (pip install textdiff[adapters])

Attention goes from causal to bidirectional over the first tenth of the run, entry by entry. Otherwise, as the last words:

    annealing:random-entries --annealing.part 0.2                        over another part of it
    annealing:whole-batch                                                step by step: no attention mask, so that flash kernels stay
    annealing:growing-blocks                                             block by block (NBDiff)
    annealing:none                                                       bidirectional from the first step (DiffuLLaMA, RND1)

`--model` is a folder, a run's folder or a hub id. The model keeps its tokenizer, to which [MASK] is added, and reads position l from
its output at l - 1, as it was trained to (`--no-shift`: at l). A stock model is saved as the stock folder that it was, adapters added
to its weights: transformers alone reads it too.
"""

from dataclasses import dataclass, field
from pathlib import Path

from textdiff import recipe
from textdiff.backbones.annealing import GrowingBlocks, RandomEntries, WholeBatch
from textdiff.backbones.transformer import TransformerConfig
from textdiff.cli import run_presets
from textdiff.data import pydocs
from textdiff.data.layout import Layout
from textdiff.models.discrete import Discrete
from textdiff.models.objective import Bound, CrossEntropy, Objective
from textdiff.processes.base import TokenProcess
from textdiff.processes.block import Block
from textdiff.processes.masked import Masked
from textdiff.processes.uniform import Uniform
from textdiff.recipe import Evaluation, Recipe
from textdiff.training.settings import Train

TRAIN = Train(steps=10_000, batch_size=32, learning_rate=1e-4, warmup=500, final_fraction=0.1, ema=0.999)


@dataclass(frozen=True)
class Adapt:
    """One adaptation; every field is a command-line flag."""

    model: str = "gpt2"
    """The causal language model to begin from: a run folder, a local folder or a hub id."""
    process: TokenProcess = Masked()
    """What the noise does to tokens."""
    objective: Objective = Bound()
    """What is differentiated."""
    annealing: RandomEntries | WholeBatch | GrowingBlocks | None = RandomEntries()
    """How attention goes from causal to bidirectional."""
    shift: bool = True
    """Read position l from the output at l - 1, where a model trained left to right predicts it."""
    gradient_checkpointing: bool = False
    """Compute each layer again for its gradient instead of keeping what it computed."""
    data: str = pydocs.NAME
    """builtin:pydocs, a file (text, jsonl, csv, parquet), a folder of them, or a hub id org/name[:config][@revision]."""
    out: Path | None = None
    """Folder of the run (default: a new one under runs/)."""
    layout: Layout = field(default_factory=Layout)
    """How text becomes rows."""
    train: Train = TRAIN
    """How the model is trained."""
    evaluation: Evaluation = field(default_factory=Evaluation)
    """How it is measured and shown."""

    def recipe(self) -> Recipe:
        """The run as every other."""
        trunk = TransformerConfig(gradient_checkpointing=self.gradient_checkpointing)  # all else of it is the model's own
        spec = Discrete(self.process, trunk, self.objective, annealing=self.annealing, shift=self.shift)
        return Recipe(spec, self.data, init=self.model, out=self.out, layout=self.layout, train=self.train, evaluation=self.evaluation)


def masked() -> Adapt:
    """Masked diffusion, trained on its bound; attention is opened pair by pair of positions, at random (DiffuGPT)."""
    return Adapt()


def uniform() -> Adapt:
    """Uniform noise (UDLM): tokens become random others, so that the model must also find out which ones are wrong."""
    return Adapt(process=Uniform(), objective=CrossEntropy())


def block() -> Adapt:
    """Block diffusion (BD3-LM): blocks are written left to right after a cache of those before; attention inside them is free at once."""
    return Adapt(process=Block(Masked(), size=16), objective=CrossEntropy(), annealing=None)


PRESETS = (masked, uniform, block)


def run(adapt: Adapt, name: str) -> Path:
    """Train, measure, sample and save."""
    return recipe.run(adapt.recipe(), name)


if __name__ == "__main__":
    run_presets({preset.__name__: preset for preset in PRESETS}, run, __doc__)
