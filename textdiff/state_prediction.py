"""The network's belief about a clean vector beside its belief about the token that the vector stands for."""

from collections.abc import Callable

import torch
from torch import Tensor

from textdiff.prediction import HeadPrediction, Prediction
from textdiff.projection import Head, chunk_rows


class StatePrediction(Prediction):
    """A belief about x0 as vectors (B, L, D) and, where they stand for tokens, about those."""

    def state(self, where: Tensor | None = None) -> Tensor:
        """The mean of x0: (N, D) at the True positions of `where` (B, L), or (B, L, D)."""
        raise NotImplementedError

    def landing(self) -> Tensor:
        """The clean state (B, L, D) to end on: where vectors stand for tokens that of the likeliest token, because the mean of two tokens
        may lie nearest to a third; else the mean."""
        return self.state()

    def weighed(self, change: Callable[[Tensor], Tensor]) -> Tensor:
        """The mean of x0 (B, L, D) when `change` is made to the logits (N, V) that weigh it; raises ValueError where none do."""
        raise ValueError(f"{type(self).__name__} is not weighed by logits, which temperature, top-k and top-p act on: leave them out")


class Regressed(HeadPrediction, StatePrediction):
    """A regressed x0 (B, L, D); tokens, whose vectors are the rows of `table` (V, D), are read from it by a rounding head."""

    def __init__(self, x0: Tensor, head: Head, table: Tensor) -> None:
        super().__init__(x0, head)
        self.table = table

    def landing(self) -> Tensor:
        return _likeliest(self, self.table)

    def state(self, where: Tensor | None = None) -> Tensor:
        return self.hidden if where is None else self.hidden[where]

    def rounded(self, x: Tensor) -> HeadPrediction:
        """What the rounding head reads from any vectors (B, L, D)."""
        return HeadPrediction(x, self.head)


class Interpolated(HeadPrediction, StatePrediction):
    """Logits whose softmax weighs the rows of an embedding table (V, D): x0hat = softmax(logits) E (score interpolation, CDCD)."""

    def __init__(self, hidden: Tensor, head: Head, table: Tensor) -> None:
        super().__init__(hidden, head)
        self.table = table
        self._mean: Tensor | None = None

    def state(self, where: Tensor | None = None) -> Tensor:
        if where is not None and self._mean is None:
            return self._weighed(self.hidden[where])
        if self._mean is None:
            self._mean = self._weighed(self.hidden.flatten(0, 1)).unflatten(0, self.shape)
        return self._mean if where is None else self._mean[where]

    def landing(self) -> Tensor:
        return _likeliest(self, self.table)

    def weighed(self, change: Callable[[Tensor], Tensor]) -> Tensor:
        return self._weighed(self.hidden.flatten(0, 1), change).unflatten(0, self.shape)

    def _weighed(self, hidden: Tensor, change: Callable[[Tensor], Tensor] = lambda logits: logits) -> Tensor:
        parts = hidden.split(chunk_rows(len(self.head.weight), hidden.device))
        return torch.cat([change(self.head(part)).softmax(-1).to(self.table.dtype) @ self.table for part in parts])


class Moved(StatePrediction):
    """A belief whose vectors were moved to `x0` (B, L, D), by guidance for example. What it says of tokens stays, and so does where to
    land: at the end there is next to no noise left for anything to be moved through."""

    def __init__(self, inner: StatePrediction, x0: Tensor, calls: int) -> None:
        self.inner, self.x0 = inner, x0
        self.shape, self.device, self.calls = inner.shape, inner.device, calls

    def state(self, where: Tensor | None = None) -> Tensor:
        return self.x0 if where is None else self.x0[where]

    def landing(self) -> Tensor:
        return self.inner.landing()

    def logits(self, where: Tensor | None = None) -> Tensor:
        return self.inner.logits(where)


class TabledState(StatePrediction):
    """A belief given as log-probabilities (B, L, V) over the rows of an embedding table (V, D): the oracle's, or a test's."""

    def __init__(self, log_prob: Tensor, table: Tensor) -> None:
        self.table, self.log_probs = table, log_prob
        self.shape, self.device = (log_prob.shape[0], log_prob.shape[1]), log_prob.device

    def state(self, where: Tensor | None = None) -> Tensor:
        return self.logits(where).softmax(-1) @ self.table

    def weighed(self, change: Callable[[Tensor], Tensor]) -> Tensor:
        return change(self.logits().flatten(0, 1)).softmax(-1).unflatten(0, self.shape) @ self.table

    def landing(self) -> Tensor:
        return _likeliest(self, self.table)

    def logits(self, where: Tensor | None = None) -> Tensor:
        return self.log_probs if where is None else self.log_probs[where]


def _likeliest(pred: Prediction, table: Tensor) -> Tensor:
    everywhere = torch.ones(pred.shape, dtype=torch.bool, device=pred.device)
    return table[pred.statistics(everywhere).argmax].unflatten(0, pred.shape)
