"""From causal to bidirectional attention while a model trained left to right becomes a diffusion model (DiffuGPT, arXiv 2410.17891)."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from textdiff.backbones import attention_masks
from textdiff.backbones.base import Backbone
from textdiff.randomness import Rng


@dataclass(frozen=True)
class Annealing:
    """What positions see of the future grows from nothing to everything over the first `part` of training."""

    part: float = 0.1
    by_entries: ClassVar[bool] = True  # sees parts of the future, which takes an explicit mask

    def __post_init__(self) -> None:
        if type(self) is Annealing:
            raise ValueError("Annealing does not say how: choose RandomEntries, WholeBatch or GrowingBlocks")
        if not 0 < self.part <= 1:
            raise ValueError(f"part is {self.part}, expected a part of training in (0, 1]: leave annealing out for none")

    def check(self, backbone: Backbone) -> None:
        """Raise ValueError when the trunk cannot be annealed so."""
        name, own = type(backbone if backbone.trunk is None else backbone.trunk).__name__, type(self).__name__
        if not backbone.turns_causal:
            raise ValueError(f"{name} cannot look back only, as annealing begins: set annealing to None, or begin from a causal LM")
        if self.by_entries and not backbone.opens_entries:
            raise ValueError(f"{name} takes no explicit attention mask, which {own} needs: set annealing to WholeBatch, or to None")

    def ahead(self, length: int, progress: float, rng: Rng) -> Tensor | bool:
        """What is seen of the future after `progress` of training: nothing, the True entries of (L, L), or everything.

        `rng` has a stream for each of `length` positions and knows only the step: all rows, micro-batches and processes see alike.
        """
        ratio = progress / self.part
        if ratio <= 0:
            return False
        return True if ratio >= 1 else self.between(length, ratio, rng)

    def between(self, length: int, ratio: float, rng: Rng) -> Tensor | bool:
        """The same at a `ratio` of the way, in (0, 1)."""
        raise NotImplementedError


@dataclass(frozen=True)
class RandomEntries(Annealing):
    """Each pair of positions is opened with probability ratio, anew in every step (DiffuGPT)."""

    def between(self, length: int, ratio: float, rng: Rng) -> Tensor | bool:
        return rng.uniform("annealing", (length,)) < ratio


@dataclass(frozen=True)
class WholeBatch(Annealing):
    """A whole step is bidirectional with probability ratio, else causal: no explicit mask, so that the fastest attention kernels stay."""

    by_entries = False

    def between(self, length: int, ratio: float, rng: Rng) -> Tensor | bool:
        return bool(rng.uniform("annealing", ())[0] < ratio)


@dataclass(frozen=True)
class GrowingBlocks(Annealing):
    """Blocks that see themselves and what is before them, each of largest^ratio tokens: one at first, which is causal (NBDiff)."""

    largest: int = 1024  # just before everything is seen; each doubling takes as long

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.largest < 2:
            raise ValueError(f"largest is {self.largest}, expected a block of 2 tokens or more")

    def between(self, length: int, ratio: float, rng: Rng) -> Tensor | bool:
        size = int(self.largest**ratio)
        return size > 1 and attention_masks.own_block(length, size, rng.key.device)
