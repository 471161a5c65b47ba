"""The next tokens of a text, all at once. The process of drafters that read a target's features, so that draftings can require it."""

from dataclasses import dataclass
from typing import Self

from textdiff.processes.base import Process
from textdiff.vocab import Vocab


@dataclass(frozen=True)
class NextBlock(Process):
    """One step from blanks to tokens; it has no time, and is not for whole rows."""

    def bind(self, vocab: Vocab) -> Self:
        return self
