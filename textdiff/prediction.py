"""The network's belief about the clean tokens, evaluated only where it is asked for.

The trunk's hidden states are computed once; `Head` projects them to the vocabulary at chosen positions, in chunks when that would
exceed a memory budget. No code path here materialises (B, L, V) unless the caller asks for it.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from textdiff.randomness import Rng

_BUDGET_BYTES = {"cpu": 256 * 2**20, "other": 2 * 2**30}  # logits held at once; chunking below this costs time and saves nothing
_LEAST_ROWS = 128
_FEW_ROWS = 8  # up to here a CPU multiplies (V, H) by (H, N) two to five times as fast as (N, H) by (H, V)
_SCRATCH_BYTES = {"cpu": 4 * 2**20, "other": 256 * 2**20}  # temporaries of one pass over logits; on a CPU they stay in the cache


def chunk_rows(vocabulary: int, device: torch.device) -> int:
    """How many rows of float32 logits fit the memory budget of a device, at least 128."""
    budget = _BUDGET_BYTES["cpu" if device.type == "cpu" else "other"]
    return max(_LEAST_ROWS, budget // (4 * vocabulary))


class Statistics(NamedTuple):
    """What confidence rules read, one number per asked position: probabilities in [0, 1], entropy in nats."""

    argmax: Tensor  # (N,) long
    top1: Tensor  # (N,)
    top2: Tensor  # (N,)
    entropy: Tensor  # (N,)


class Head(NamedTuple):
    """The projection from hidden states to logits: `weight` (V, H), `bias` (V,) or None, and the ids that can never be predicted."""

    weight: Tensor
    bias: Tensor | None = None
    banned: Tensor | None = None  # (K,) long

    def __call__(self, hidden: Tensor) -> Tensor:
        """Logits (N, V) float32 of hidden states (N, H); banned ids are -inf, so that the rest is normalised without them (SUBS)."""
        dtype = _matmul_dtype(hidden)
        logits = _linear(hidden.to(dtype), self.weight.to(dtype), None if self.bias is None else self.bias.to(dtype))
        logits = logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
        return logits if self.banned is None else logits.index_fill_(-1, self.banned, -torch.inf)  # in place: nothing else holds them


def _linear(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if hidden.device.type != "cpu" or hidden.dim() != 2 or len(hidden) > _FEW_ROWS:
        return torch.nn.functional.linear(hidden, weight, bias)
    logits = (weight @ hidden.T).T.contiguous()
    return logits if bias is None else logits + bias


def _matmul_dtype(hidden: Tensor) -> torch.dtype:
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype


class _LinearLogProb(torch.autograd.Function):
    """log softmax(hidden W^T + b)[token] with one (rows, V) buffer: the logits become their own gradient in place.

    Beyond the memory budget only the log-normaliser is kept and each chunk is projected again in the backward pass.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, banned: Tensor | None, tokens: Tensor) -> Tensor:
        dtype, step = _matmul_dtype(hidden), chunk_rows(len(weight), hidden.device)
        keep = len(hidden) <= step
        ctx.dtype, ctx.step, ctx.has_bias = dtype, step, bias is not None
        low, logits = weight.to(dtype), hidden.new_empty(0)
        result = torch.empty(len(hidden), dtype=torch.promote_types(hidden.dtype, torch.float32), device=hidden.device)
        normaliser = torch.empty_like(result)
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, len(hidden), step):
                rows = slice(start, start + step)
                logits = _project(hidden[rows], low, bias, banned, dtype)
                normaliser[rows] = _log_normaliser(logits)
                result[rows] = logits.gather(-1, tokens[rows, None])[:, 0] - normaliser[rows]
        ctx.save_for_backward(hidden, weight, bias, banned, tokens, normaliser, logits if keep else None)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        hidden, weight, bias, banned, tokens, normaliser, kept = ctx.saved_tensors
        dtype, low = ctx.dtype, weight.to(ctx.dtype)
        hidden_gradient = torch.empty_like(hidden)
        weight_gradient: Tensor | None = None
        bias_gradient = torch.zeros_like(bias) if ctx.has_bias else None
        for start in range(0, len(hidden), ctx.step):
            rows = slice(start, start + ctx.step)
            logits = kept if kept is not None else _project(hidden[rows], low, bias, banned, dtype)
            logits = logits.sub_(normaliser[rows, None]).exp_().mul_(-gradient[rows, None])
            logits.scatter_add_(-1, tokens[rows, None], gradient[rows, None].to(logits.dtype))
            reduced = logits.to(dtype)
            hidden_gradient[rows] = (reduced @ low).to(hidden.dtype)
            part = (reduced.T @ hidden[rows].to(dtype)).to(weight.dtype)
            weight_gradient = part if weight_gradient is None else weight_gradient.add_(part)
            if bias_gradient is not None:
                bias_gradient += logits.sum(0).to(bias.dtype)
        if weight_gradient is None:  # no row was asked for
            weight_gradient = torch.zeros_like(weight)
        return hidden_gradient, weight_gradient, bias_gradient, None, None


def _project(hidden: Tensor, weight: Tensor, bias: Tensor | None, banned: Tensor | None, dtype: torch.dtype) -> Tensor:
    logits = hidden.to(dtype) @ weight.T
    logits = logits.float() if dtype in (torch.bfloat16, torch.float16) else logits
    if bias is not None:
        logits += bias
    if banned is not None:
        logits.index_fill_(-1, banned, -torch.inf)
    return logits


def _log_normaliser(logits: Tensor) -> Tensor:
    return torch.cat([piece.logsumexp(-1) for _, piece in _pieces(logits)])


def _pieces(logits: Tensor, first: int = 0) -> Iterator[tuple[slice, Tensor]]:
    """Row ranges, counted from `first`, of logits (N, V) so small that a temporary of their size stays in a CPU's cache; one as large as
    all the logits would double the peak memory, and the page faults of fresh memory cost more than the arithmetic."""
    scratch = _SCRATCH_BYTES["cpu" if logits.device.type == "cpu" else "other"]
    for piece in logits.split(max(1, scratch // (4 * logits.shape[-1]))):
        yield slice(first, first + len(piece)), piece
        first += len(piece)


class Prediction:
    """A categorical belief about every clean token; `where` (B, L) bool selects N positions in row-major order.

    The ids are always x0-aligned: an AR shift is already undone. Subclasses give `shape` and `logits`.
    """

    shape: tuple[int, int]  # (B, L)
    device: torch.device

    def logits(self, where: Tensor | None = None) -> Tensor:
        """Unnormalised log-probabilities, (N, V) at the True positions, or (B, L, V)."""
        raise NotImplementedError

    def log_prob(self, tokens: Tensor, where: Tensor) -> Tensor:
        """Log-probability of `tokens` (B, L) at the positions asked for, (N,) nats."""
        wanted = tokens[where]
        parts = [logits.gather(-1, wanted[rows, None])[:, 0] - logits.logsumexp(-1) for rows, logits in self._chunks(where)]
        return torch.cat(parts)

    def draw(self, where: Tensor, rng: Rng) -> tuple[Tensor, Tensor]:
        """One token per asked position and its log-probability, (N,) each, from exact float64 inversion; `rng` has B rows."""
        uniform = rng.uniform("draw", (self.shape[1],))[where]
        drawn = [draw_categorical(logits, uniform[rows]) for rows, logits in self._chunks(where)]
        return torch.cat([tokens for tokens, _ in drawn]), torch.cat([log_prob for _, log_prob in drawn])

    def statistics(self, where: Tensor) -> Statistics:
        """Argmax, the two largest probabilities and the entropy at the positions asked for."""
        parts = [_statistics(logits) for _, logits in self._chunks(where)]
        return Statistics(*(torch.cat(column) for column in zip(*parts, strict=True)))

    def _chunks(self, where: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Row ranges of the N asked positions with their logits; nothing may modify them in place."""
        yield from _pieces(self.logits(where))


class HeadPrediction(Prediction):
    """A belief that is projected on demand: `hidden` (B, L, H) through `head`."""

    def __init__(self, hidden: Tensor, head: Head) -> None:
        self.hidden, self.head = hidden, head
        self.shape, self.device = (hidden.shape[0], hidden.shape[1]), hidden.device
        self._last: tuple[Tensor, Tensor] | None = None
        self._last_statistics: tuple[Tensor, Statistics] | None = None

    def logits(self, where: Tensor | None = None) -> Tensor:
        return self.head(self.hidden if where is None else self.hidden[where])

    def log_prob(self, tokens: Tensor, where: Tensor) -> Tensor:
        weight, bias, banned = self.head
        result: Tensor = _LinearLogProb.apply(self.hidden[where], weight, bias, banned, tokens[where])
        return result

    def statistics(self, where: Tensor) -> Statistics:
        if self._last_statistics is None or self._last_statistics[0] is not where:  # greedy rules score by them and draw from them
            self._last_statistics = (where, super().statistics(where))
        return self._last_statistics[1]

    def _chunks(self, where: Tensor) -> Iterator[tuple[slice, Tensor]]:
        hidden = self.hidden[where]
        step = chunk_rows(len(self.head.weight), hidden.device)
        if len(hidden) <= step:
            if self._last is None or self._last[0] is not where:  # a rule that draws and scores the same positions projects them once
                self._last = (where, self.head(hidden))
            yield from _pieces(self._last[1])
            return
        for start in range(0, len(hidden), step):
            yield from _pieces(self.head(hidden[start : start + step]), start)


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
        self.shape, self.device = inner.shape, inner.device

    def logits(self, where: Tensor | None = None) -> Tensor:
        return self.transform(self.inner.logits(where))

    def statistics(self, where: Tensor) -> Statistics:
        return self.inner.statistics(where)

    def _chunks(self, where: Tensor) -> Iterator[tuple[slice, Tensor]]:
        for rows, logits in self.inner._chunks(where):
            yield rows, self.transform(logits)


class MostProbable(TransformedPrediction):
    """All mass on the most probable token (temperature 0), drawn without writing that law down."""

    def __init__(self, inner: Prediction) -> None:
        super().__init__(inner, _on_the_best)

    def draw(self, where: Tensor, rng: Rng) -> tuple[Tensor, Tensor]:
        statistics = self.inner.statistics(where)
        return statistics.argmax, torch.zeros_like(statistics.top1)


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
