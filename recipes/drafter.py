"""Train a drafter for a causal model (DFlash, arXiv 2602.06036): a few layers that read the features of the text the model has read, and
say its next tokens in one call. The model tests them in one pass, and what is written is its own text.

    python recipes/drafter.py flash --target runs/quickstart-autoregressive        one of ours
    python recipes/drafter.py flash --target gpt2                                  any stock causal model: a folder or a hub id
    python recipes/drafter.py corpus --target gpt2                                 learn from the data, not from what the target writes

`flash` learns from text that the target writes itself from the beginnings of the data's rows, because that is what it will be asked about;
`--own.temperature 1` for a target that is sampled. At the end it is shown how many tokens of held-out prompts a pass of the target brings:

    textdiff speculate --target gpt2 --drafter runs/drafter-flash --prompt 'The '

What it brings beside other drafts is in recipes/speculative.py.
"""

from textdiff.cli import run_presets
from textdiff.drafter import Drafter, run
from textdiff.models.own_text import OwnText


def flash() -> Drafter:
    """Two layers, blocks of 8, learnt from what the target writes at temperature 0."""
    return Drafter()


def corpus() -> Drafter:
    """The same, learnt from the data: the target's chances of each of its tokens."""
    return Drafter(own=OwnText(rows=0))


PRESETS = (flash, corpus)

if __name__ == "__main__":
    run_presets({preset.__name__: preset for preset in PRESETS}, run, __doc__)
