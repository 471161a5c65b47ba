"""No noise at all: each token is predicted from those before it. The process of autoregressive models, so that samplers can require it."""

from dataclasses import dataclass
from typing import Self

from textdiff.processes.base import Process
from textdiff.vocab import Vocab


@dataclass(frozen=True)
class LeftToRight(Process):
    """The chain rule; it has no corruption and no time."""

    def bind(self, vocab: Vocab) -> Self:
        return self
