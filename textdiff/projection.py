"""The projection from hidden states to the vocabulary, and what a loss needs of it, in bounded memory.

Nothing here keeps more than one (rows, V) buffer: the logits become their own gradient in place, and beyond a memory budget each chunk
is projected again in the backward pass.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

_BUDGET_BYTES = {"cpu": 256 * 2**20, "other": 2 * 2**30}  # logits held at once; chunking below this costs time and saves nothing
_LEAST_ROWS = 128
_FEW_ROWS = 8  # up to here a CPU multiplies (V, H) by (H, N) two to five times as fast as (N, H) by (H, V)
_SCRATCH_BYTES = {"cpu": 4 * 2**20, "other": 256 * 2**20}  # temporaries of one pass over logits; on a CPU they stay in the cache


def chunk_rows(vocabulary: int, device: torch.device) -> int:
    """How many rows of float32 logits fit the memory budget of a device, at least 128."""
    budget = _BUDGET_BYTES["cpu" if device.type == "cpu" else "other"]
    return max(_LEAST_ROWS, budget // (4 * vocabulary))


def pieces(logits: Tensor, first: int = 0) -> Iterator[tuple[slice, Tensor]]:
    """Row ranges, counted from `first`, of logits (N, V) so small that a temporary of their size stays in a CPU's cache; one as large as
    all the logits would double the peak memory, and the page faults of fresh memory cost more than the arithmetic."""
    scratch = _SCRATCH_BYTES["cpu" if logits.device.type == "cpu" else "other"]
    for piece in logits.split(max(1, scratch // (4 * logits.shape[-1]))):
        yield slice(first, first + len(piece)), piece
        first += len(piece)


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


class Tilt(NamedTuple):
    """A number added to one logit per row: `amount` to that of `tokens`, (N,) or (B, L) each."""

    tokens: Tensor
    amount: Tensor

    def at(self, where: Tensor) -> "Tilt":
        """The rows where (B, L) `where` is True."""
        return Tilt(self.tokens[where], self.amount[where])

    def add_to(self, logits: Tensor, rows: slice = slice(None)) -> Tensor:
        """The tilted logits (N, V), in place."""
        return logits.scatter_add_(-1, self.tokens[rows, None], self.amount[rows, None].to(logits.dtype))


class Terms(NamedTuple):
    """What losses read of N beliefs; every field carries gradients."""

    logits: Tensor  # (N, A) unnormalised log-probabilities of the tokens asked for
    normaliser: Tensor  # (N,) log of the sum of exp(logits) over the vocabulary
    blended: Tensor  # (N,) sum over the blended ids j of log(1 + exp(log_odds) p_j); zero when no odds were given

    @property
    def log_prob(self) -> Tensor:
        """Log-probabilities (N, A), nats."""
        return self.logits - self.normaliser[:, None]


class Blend(NamedTuple):
    """The sum over `ids` (None: all) of log(1 + exp(log_odds) p_j): what a law p loses to noise in a divergence between smoothed laws."""

    log_odds: Tensor  # (N,) or (B, L)
    ids: Tensor | None = None  # (K,) long

    def at(self, where: Tensor) -> "Blend":
        """The rows where (B, L) `where` is True."""
        return Blend(self.log_odds[where], self.ids)

    def of(self, log_prob: Tensor, rows: slice = slice(None)) -> Tensor:
        """The sum for log-probabilities (N, V), (N,)."""
        return F.softplus(self._shifted(log_prob, rows)).sum(-1)

    def gradient(self, log_prob: Tensor, rows: slice) -> Tensor:
        """Its derivative by each log-probability, (N, V)."""
        share = self._shifted(log_prob, rows).sigmoid_()
        return share if self.ids is None else torch.zeros_like(log_prob).index_copy_(-1, self.ids, share)

    def _shifted(self, log_prob: Tensor, rows: slice) -> Tensor:
        log_prob = log_prob if self.ids is None else log_prob.index_select(-1, self.ids)
        return log_prob + self.log_odds[rows, None].to(log_prob.dtype)


def terms_of(logits: Tensor, tokens: Tensor, blend: Blend | None, rows: slice = slice(None)) -> Terms:
    """`Terms` of logits (N, V) for `tokens` (N, A); `rows` says which rows of a larger `blend` these are."""
    normaliser = logits.logsumexp(-1) if torch.is_grad_enabled() else _log_sum(logits)
    blended = torch.zeros_like(normaliser) if blend is None else blend.of(logits - normaliser[:, None], rows)
    return Terms(logits.gather(-1, tokens), normaliser, blended)


def _log_sum(logits: Tensor) -> Tensor:
    """logsumexp of each row, without gradients."""
    top = logits.amax(-1, keepdim=True).clamp_min(torch.finfo(logits.dtype).min)  # a row of -inf stays -inf
    return _without_denormals(logits - top).exp_().sum(-1).log_() + top[:, 0]


def _without_denormals(log_prob: Tensor) -> Tensor:
    """In place -inf where exp would leave the range of normal numbers: a CPU takes ten times as long over those below it."""
    least = math.log(torch.finfo(log_prob.dtype).tiny)
    return torch.threshold_(log_prob, least, -torch.inf)


def linear_terms(hidden: Tensor, head: Head, tokens: Tensor, tilt: Tilt | None = None, blend: Blend | None = None) -> Terms:
    """`Terms` of hidden states (N, H) for `tokens` (N, A) with one (rows, V) buffer in forward and backward."""
    return Terms(*_LinearTerms.apply(hidden, head.weight, head.bias, head.banned, tokens, tilt, blend))


class _LinearTerms(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, banned: Tensor | None, tokens: Tensor, tilt: Any, blend: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.dtype, ctx.step, ctx.has_bias = _matmul_dtype(hidden), chunk_rows(len(weight), hidden.device), bias is not None
        ctx.tilt, ctx.blend = tilt, blend  # no gradients flow into these
        keep = len(hidden) <= ctx.step
        low, logits = weight.to(ctx.dtype), hidden.new_empty(0)
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        result = Terms(*(torch.empty(shape, dtype=dtype, device=hidden.device) for shape in (tokens.shape, len(hidden), len(hidden))))
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, len(hidden), ctx.step):
                rows = slice(start, start + ctx.step)
                logits = _project(hidden[rows], low, bias, banned, ctx.dtype, tilt, rows)
                for part, piece in pieces(logits, start):
                    for whole, value in zip(result, terms_of(piece, tokens[part], blend, part), strict=True):
                        whole[part] = value
        ctx.save_for_backward(hidden, weight, bias, banned, tokens, result.normaliser, logits if keep else None)
        return tuple(result)  # type: ignore[return-value]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, banned, tokens, normaliser, kept = ctx.saved_tensors
        dtype, low = ctx.dtype, weight.to(ctx.dtype)
        hidden_gradient = torch.empty_like(hidden)
        weight_gradient: Tensor | None = None
        bias_gradient = torch.zeros_like(bias) if ctx.has_bias else None
        for start in range(0, len(hidden), ctx.step):
            rows = slice(start, start + ctx.step)
            logits = kept if kept is not None else _project(hidden[rows], low, bias, banned, dtype, ctx.tilt, rows)
            for part, piece in pieces(logits, start):
                _to_gradient(piece, tokens[part], normaliser[part], Terms(*(g[part] for g in gradients)), ctx.blend, part)
            reduced = logits.to(dtype)
            hidden_gradient[rows] = (reduced @ low).to(hidden.dtype)
            piece_gradient = (reduced.T @ hidden[rows].to(dtype)).to(weight.dtype)
            weight_gradient = piece_gradient if weight_gradient is None else weight_gradient.add_(piece_gradient)
            if bias_gradient is not None:
                bias_gradient += logits.sum(0).to(bias.dtype)
        if weight_gradient is None:  # no row was asked for
            weight_gradient = torch.zeros_like(weight)
        return hidden_gradient, weight_gradient, bias_gradient, None, None, None, None


def _to_gradient(logits: Tensor, tokens: Tensor, normaliser: Tensor, gradient: Terms, blend: Blend | None, rows: slice) -> None:
    """Turn logits (N, V) into the gradient by them, in place."""
    log_prob = logits.sub_(normaliser[:, None])
    weight = gradient.normaliser
    share: Tensor | None = None
    if blend is not None:
        share = blend.gradient(log_prob, rows).mul_(gradient.blended[:, None])
        weight = weight - share.sum(-1)
    probability = _without_denormals(log_prob).exp_().mul_(weight[:, None])
    if share is not None:
        probability.add_(share)
    probability.scatter_add_(-1, tokens, gradient.logits.to(probability.dtype))


def _linear(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if hidden.device.type != "cpu" or hidden.dim() != 2 or len(hidden) > _FEW_ROWS:
        return F.linear(hidden, weight, bias)
    logits = (weight @ hidden.T).T.contiguous()
    return logits if bias is None else logits + bias


def _matmul_dtype(hidden: Tensor) -> torch.dtype:
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype


def _project(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, banned: Tensor | None, dtype: torch.dtype, tilt: Tilt | None, rows: slice
) -> Tensor:
    logits = hidden.to(dtype) @ weight.T
    logits = logits.float() if dtype in (torch.bfloat16, torch.float16) else logits
    if bias is not None:
        logits += bias
    if banned is not None:
        logits.index_fill_(-1, banned, -torch.inf)
    return logits if tilt is None else tilt.add_to(logits, rows)
