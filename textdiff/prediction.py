"""The network's belief about the clean tokens, evaluated only where it is asked for.

The trunk's hidden states are computed once; a head projects them to the vocabulary at chosen positions, in chunks when that would
exceed a memory budget. No code path here materialises (B, L, V) unless the caller asks for it.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from textdiff.projection import Blend, Head, Terms, Tilt, chunk_rows, linear_terms, pieces, terms_of
from textdiff.randomness import Rng


class Statistics(NamedTuple):
    """What confidence rules read, one number per asked position: probabilities in [0, 1], entropy in nats."""

    argmax: Tensor  # (N,) long
    top1: Tensor  # (N,)
    top2: Tensor  # (N,)
    entropy: Tensor  # (N,)


class Prediction:
    """A categorical belief about every clean token; `where` (B, L) bool selects N positions in row-major order.

    The ids are always x0-aligned: an AR shift is already undone. Subclasses give `shape` and `logits`.
    """

    shape: tuple[int, int]  # (B, L)
    device: torch.device
    calls: int = 1  # network calls that each of its rows took: what samplers count

    def logits(self, where: Tensor | None = None) -> Tensor:
        """Unnormalised log-probabilities, (N, V) at the True positions, or (B, L, V)."""
        raise NotImplementedError

    def log_prob(self, tokens: Tensor, where: Tensor) -> Tensor:
        """Log-probability of `tokens` (B, L) at the positions asked for, (N,) nats."""
        return self.terms(tokens[..., None], where).log_prob[:, 0]

    def terms(self, tokens: Tensor, where: Tensor, log_odds: Tensor | None = None, ids: Tensor | None = None) -> Terms:
        """What losses read at the positions asked for: the log-probabilities of `tokens` (B, L, A), and with `log_odds` (B, L) the sum
        over `ids` (None: all) of log(1 + exp(log_odds) p)."""
        wanted, blend = tokens[where], None if log_odds is None else Blend(log_odds[where], ids)
        parts = [terms_of(logits, wanted[rows], blend, rows) for rows, logits in self._chunks(where)]
        return Terms(*(torch.cat(column) for column in zip(*parts, strict=True)))

    def draw(self, where: Tensor, rng: Rng) -> tuple[Tensor, Tensor]:
        """One token per asked position and its log-probability, (N,) each, from exact float64 inversion; `rng` has B rows."""
        uniform = rng.uniform("draw", (self.shape[1],))[where]
        drawn = [draw_categorical(logits, uniform[rows]) for rows, logits in self._chunks(where)]
        return torch.cat([tokens for tokens, _ in drawn]), torch.cat([log_prob for _, log_prob in drawn])

    def best(self, where: Tensor) -> Tensor:
        """The most probable token at the positions asked for, the first of equals, (N,)."""
        return torch.cat([logits.argmax(-1) for _, logits in self._chunks(where)])

    def statistics(self, where: Tensor) -> Statistics:
        """Argmax, the two largest probabilities and the entropy at the positions asked for."""
        parts = [_statistics(logits) for _, logits in self._chunks(where)]
        return Statistics(*(torch.cat(column) for column in zip(*parts, strict=True)))

    def mean(self, embedding: Tensor) -> Tensor:
        """The expected row of `embedding` (V, D) at every position, (B, L, D)."""
        everywhere = torch.ones(self.shape, dtype=torch.bool, device=self.device)
        parts = [logits.softmax(-1).to(embedding.dtype) @ embedding for _, logits in self._chunks(everywhere)]
        return torch.cat(parts).unflatten(0, self.shape)

    def _chunks(self, where: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Row ranges of the N asked positions with their logits; nothing may modify them in place."""
        yield from pieces(self.logits(where))


class HeadPrediction(Prediction):
    """A belief that is projected on demand: `hidden` (B, L, H) through `head`, with one logit of each position tilted."""

    def __init__(self, hidden: Tensor, head: Head, tilt: Tilt | None = None) -> None:
        self.hidden, self.head, self.tilt = hidden, head, tilt
        self.shape, self.device = (hidden.shape[0], hidden.shape[1]), hidden.device
        self._last: tuple[Tensor, Tensor] | None = None
        self._last_statistics: tuple[Tensor, Statistics] | None = None

    def logits(self, where: Tensor | None = None) -> Tensor:
        if where is None:
            everywhere = torch.ones(self.shape, dtype=torch.bool, device=self.device)
            return self.logits(everywhere).unflatten(0, self.shape)
        logits = self.head(self.hidden[where])
        return logits if self.tilt is None else self.tilt.at(where).add_to(logits)

    def terms(self, tokens: Tensor, where: Tensor, log_odds: Tensor | None = None, ids: Tensor | None = None) -> Terms:
        if not torch.is_grad_enabled():  # what is drawn next at the same positions need not be projected again
            return super().terms(tokens, where, log_odds, ids)
        tilt, blend = None if self.tilt is None else self.tilt.at(where), None if log_odds is None else Blend(log_odds[where], ids)
        return linear_terms(self.hidden[where], self.head, tokens[where], tilt, blend)

    def best(self, where: Tensor) -> Tensor:
        scored = self._last_statistics is not None and self._last_statistics[0] is where
        return self.statistics(where).argmax if scored else super().best(where)

    def statistics(self, where: Tensor) -> Statistics:
        if self._last_statistics is None or self._last_statistics[0] is not where:  # greedy rules score by them and draw from them
            self._last_statistics = (where, super().statistics(where))
        return self._last_statistics[1]

    def _chunks(self, where: Tensor) -> Iterator[tuple[slice, Tensor]]:
        if self._last is not None and self._last[0] is not where and not bool((where & ~self._last[0]).any()):
            yield from pieces(self._last[1][where[self._last[0]]])  # some of the positions projected last
            return
        hidden, tilt = self.hidden[where], None if self.tilt is None else self.tilt.at(where)
        step = chunk_rows(len(self.head.weight), hidden.device)
        if len(hidden) <= step:
            if self._last is None or self._last[0] is not where:  # a rule that draws and scores the same positions projects them once
                self._last = (where, self._projected(hidden, tilt))
            yield from pieces(self._last[1])
            return
        for start in range(0, len(hidden), step):
            rows = slice(start, start + step)
            yield from pieces(self._projected(hidden[rows], tilt, rows), start)

    def _projected(self, hidden: Tensor, tilt: Tilt | None, rows: slice = slice(None)) -> Tensor:
        logits = self.head(hidden)
        return logits if tilt is None else tilt.add_to(logits, rows)


class ScorePrediction(HeadPrediction):
    """An unnormalised belief y_j = exp(logit_j - offset): its draws are normalised, its losses are not (SEDD, Lou et al. 2024)."""

    def __init__(self, hidden: Tensor, head: Head, offset: float) -> None:
        super().__init__(hidden, head)
        self.offset = offset  # log of the number of ids: fresh weights sum to about one

    def terms(self, tokens: Tensor, where: Tensor, log_odds: Tensor | None = None, ids: Tensor | None = None) -> Terms:
        raise ValueError("a score model has no normalised probabilities: sample it by rates (Euler, TauLeaping, Analytic) or by draws")

    def scores(self, tokens: Tensor, where: Tensor) -> tuple[Tensor, Tensor]:
        """log y of `tokens` (B, L, A) at the positions asked for, (N, A), and the log of its sum over the vocabulary, (N,)."""
        terms = linear_terms(self.hidden[where], self.head, tokens[where])
        return terms.logits - self.offset, terms.normaliser - self.offset

    def total(self, ids: Tensor, where: Tensor) -> Tensor:
        """The sum of log y over `ids` (K,), (N,): linear in the hidden state, so no vocabulary is projected; float32 or better."""
        weight, bias, _ = self.head
        with torch.autocast(self.device.type, enabled=False):
            hidden, weight = self.hidden[where], weight[ids]
            dtype = torch.promote_types(hidden.dtype, torch.float32)
            total = hidden.to(dtype) @ weight.to(dtype).sum(0)
            return total + (0.0 if bias is None else bias[ids].to(dtype).sum()) - len(ids) * self.offset


class TablePrediction(Prediction):
    """A belief given as a table of logits or log-probabilities (B, L, V): the oracle's, or a test's."""

    def __init__(self, table: Tensor) -> None:
        self.table = table
        self.shape, self.device = (table.shape[0], table.shape[1]), table.device

    def logits(self, where: Tensor | None = None) -> Tensor:
        return self.table if where is None else self.table[where]


class TransformedPrediction(Prediction):
    """Another belief whose logits (N, V) pass through `transform` before anything is drawn; its statistics stay those of the original.

    Temperature, top-k and top-p are such transforms: they change what is drawn, not how sure the network is (LLaDA, Dream).
    """

    def __init__(self, inner: Prediction, transform: Callable[[Tensor], Tensor]) -> None:
        self.inner, self.transform = inner, transform
        self.shape, self.device, self.calls = inner.shape, inner.device, inner.calls

    def logits(self, where: Tensor | None = None) -> Tensor:
        return self.transform(self.inner.logits(where))

    def statistics(self, where: Tensor) -> Statistics:
        return self.inner.statistics(where)

    def _chunks(self, where: Tensor) -> Iterator[tuple[slice, Tensor]]:
        for rows, logits in self.inner._chunks(where):
            yield rows, self.transform(logits)


class Withheld(TransformedPrediction):
    """A belief whose mean is told in the rows where `told` (B,) is True and is zero in the others."""

    def __init__(self, inner: Prediction, told: Tensor) -> None:
        super().__init__(inner, lambda logits: logits)
        self.told = told

    def mean(self, embedding: Tensor) -> Tensor:
        return self.inner.mean(embedding) * self.told[:, None, None]


class MostProbable(TransformedPrediction):
    """All mass on the most probable token (temperature 0), drawn without writing that law down."""

    def __init__(self, inner: Prediction) -> None:
        super().__init__(inner, _on_the_best)

    def draw(self, where: Tensor, rng: Rng) -> tuple[Tensor, Tensor]:
        tokens = self.inner.best(where)
        return tokens, torch.zeros(len(tokens), device=tokens.device)


def _on_the_best(logits: Tensor) -> Tensor:
    best = logits.argmax(-1, keepdim=True)
    return torch.full_like(logits, -torch.inf).scatter(-1, best, 0.0)


def _statistics(logits: Tensor) -> Statistics:
    top, index = logits.max(-1, keepdim=True)  # unlike `topk`, the first of equals, as every `argmax`
    below = (logits - top).clamp_min_(-1e30)
    weight = below.exp()
    total = weight.sum(-1)
    entropy = total.log() - below.mul_(weight).sum(-1) / total
    second = weight.scatter_(-1, index, 0.0).amax(-1) / total
    return Statistics(index[:, 0], total.reciprocal(), second, entropy)


def draw_categorical(logits: Tensor, uniform: Tensor, block: int = 256) -> tuple[Tensor, Tensor]:
    """Invert the cumulative law of `logits` (N, V) at `uniform` (N,) float64; returns tokens and log-probabilities, (N,) each.

    Two levels (sums over blocks of 256, then one block) make one pass over V; float64 sums keep tails that a float32 race would lose.
    """
    rows, vocabulary = logits.shape
    top = logits.amax(-1, keepdim=True)
    weight = (logits - top).exp_()
    weight = torch.nn.functional.pad(weight, (0, -vocabulary % block)).unflatten(-1, (-1, block))
    coarse = weight.sum(-1, dtype=torch.float64).cumsum(-1)  # (N, V / block)
    total = coarse[:, -1]
    if not bool(total.isfinite().all()):
        raise ValueError("the model's predictions are not numbers: have the weights diverged, or is the checkpoint damaged?")
    chosen = _first_above(coarse, uniform * total)
    before = torch.where(chosen > 0, coarse.gather(1, (chosen - 1).clamp_min(0)[:, None])[:, 0], 0.0)
    fine = weight[torch.arange(rows, device=logits.device), chosen].double().cumsum(-1)  # (N, block)
    token = chosen * block + _first_above(fine, uniform * total - before)
    return token, (logits.gather(1, token[:, None])[:, 0].double() - top[:, 0] - total.log()).to(logits.dtype)


def _first_above(cumulative: Tensor, level: Tensor) -> Tensor:
    """Index of the first entry above `level`, never past the last entry that carries mass."""
    last = (cumulative < cumulative[:, -1:]).sum(-1)
    return torch.minimum((cumulative <= level[:, None]).sum(-1), last)
