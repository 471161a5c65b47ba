"""The likelihood of a masked model in orders that are chosen before the text is seen (models.chain_rule), in the place of its bound.

Writing a text in one such order is a law that sums to one, so its nats are exact. The mean over several orders o is a bound again, on the
model that draws one of them and then writes in it: -log (mean of p_o) <= mean of -log p_o, by Jensen's inequality.
"""

from dataclasses import dataclass

from torch import Tensor

from textdiff.batch import Batch
from textdiff.models.base import LanguageModel
from textdiff.models.chain_rule import chain_rule_calls, chain_rule_nll, left_to_right, nll_by_order
from textdiff.models.discrete import DiscreteDiffusionLM
from textdiff.processes.block import Block
from textdiff.processes.masked import Masked
from textdiff.randomness import Rng


@dataclass(frozen=True)
class _Revealed:
    """What all orders have in common."""

    @property
    def orders(self) -> int:
        """How many each sequence is scored in."""
        raise NotImplementedError

    def nats(self, model: DiscreteDiffusionLM, batch: Batch, seed: int) -> Tensor:
        """(B, orders)."""
        raise NotImplementedError

    def kind(self, model: LanguageModel) -> str:
        """Of one order exact, of the mean over several an upper bound; raises ValueError for models that reveal no masks."""
        self._masked(model)
        return "exact" if self.orders == 1 else "upper bound"

    def calls(self, model: LanguageModel, batch: Batch, draws: int) -> Tensor:
        """(B,): one for each token and order, in block diffusion for each token of the fullest block; twice that for trunks that read
        their own first belief."""
        model = self._masked(model)
        return chain_rule_calls(model, batch) * self.orders * model.calls(1)

    def __call__(self, model: LanguageModel, batch: Batch, seed: int, draws: int) -> Tensor:
        """(B, orders) nats; the bound's `draws` have no part in it."""
        return self.nats(self._masked(model), batch, seed)

    @staticmethod
    def _masked(model: LanguageModel) -> DiscreteDiffusionLM:
        if not model.nll_is_bound:
            raise ValueError("an order was given and the model has one of its own, in which its likelihood is exact: leave the order out")
        if isinstance(model, DiscreteDiffusionLM):
            process = model.process.inner if isinstance(model.process, Block) else model.process
            if isinstance(process, Masked):
                return model
            raise ValueError(f"an order was given and {type(process).__name__} noise has no masks to reveal in it: leave the order out")
        raise ValueError(f"an order was given and a {type(model).__name__} has no masks to reveal in it: leave the order out")


@dataclass(frozen=True)
class ReadingOrder(_Revealed):
    """From left to right."""

    @property
    def orders(self) -> int:
        return 1

    def rules(self, model: LanguageModel) -> str:
        """The order by its name."""
        return "each token given those to its left, in the order of reading"

    def nats(self, model: DiscreteDiffusionLM, batch: Batch, seed: int) -> Tensor:
        return chain_rule_nll(model, batch, left_to_right(batch)).sum(1, keepdim=True)


@dataclass(frozen=True)
class RandomOrders(_Revealed):
    """Each sequence in random orders of its own, functions of the seed and its number; raises ValueError for fewer than one."""

    count: int = 1

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"orders is {self.count}, expected 1 or more")

    @property
    def orders(self) -> int:
        return self.count

    def rules(self, model: LanguageModel) -> str:
        """How orders are chosen, and what is bounded by their mean."""
        inside = " inside each block" if isinstance(self._masked(model).process, Block) else ""
        if self.count == 1:
            return f"each sequence in one random order of its own{inside}, drawn before its text is seen"
        mean = f"the mean over {self.count} random orders of each sequence{inside}"
        return f"{mean}, which bounds the nats of a model that draws one of them (Jensen)"

    def nats(self, model: DiscreteDiffusionLM, batch: Batch, seed: int) -> Tensor:
        return nll_by_order(model, batch, Rng(seed, 0, batch.sample_id), self.count)
