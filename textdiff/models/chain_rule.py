"""The exact likelihood of a masked model in one order: sum over i of -log p(x_o(i) | x_o(1) .. x_o(i-1)), a network call for each token.

One token revealed after another is a law that sums to one, so that this is no bound. Its mean over all orders is the any-order bound that
`nll` estimates (Uria et al. 2014; Hoogeboom et al. 2022), which no order need attain. In block diffusion blocks go from left to right and
the order is that inside each of them; since a block sees clean blocks only, all of them are asked at once, in as many calls as a block has
tokens. A network that reads the time is told that k of n masks are left at noise k / (n + 1), the mean of it under the bound.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from textdiff.batch import Batch
from textdiff.processes.base import Denoiser, Process, spread
from textdiff.processes.block import Block
from textdiff.processes.masked import Masked
from textdiff.randomness import Rng
from textdiff.schedules import inside


def left_to_right(batch: Batch) -> Tensor:
    """The rank (B, L) of each position in the order of reading."""
    return torch.arange(batch.tokens.shape[1], device=batch.tokens.device).expand(batch.tokens.shape)


def random_order(batch: Batch, rng: Rng) -> Tensor:
    """Ranks (B, L) of one order for each row, all orders equally likely, a function of the row's key."""
    return rng.uniform("order", (batch.tokens.shape[1],))


@torch.no_grad()
def chain_rule_nll(model: Denoiser, batch: Batch, rank: Tensor, rows_at_once: int = 32) -> Tensor:
    """(B, L) nats of each target given the targets of lower `rank` (B, L) and all that is no target; zero elsewhere.

    Targets of equal rank go from left to right. `rows_at_once` steps, of whichever sequences, make one network call.

    Raises ValueError for ranks of another shape, and when the model's process is not masked diffusion.
    """
    process, mask_id = model.process, _mask_id(model.process)
    if rank.shape != batch.tokens.shape:
        raise ValueError(f"ranks are {tuple(rank.shape)} for tokens {tuple(batch.tokens.shape)}: give each position a rank")
    length = batch.tokens.shape[1]
    size = process.span(length)
    place, count = _places(rank, batch.target, size)  # (B, L), (B, spans)
    row, step = (torch.arange(int(count.max()), device=count.device) < count.amax(1)[:, None]).nonzero(as_tuple=True)
    predict, nats = model.predictor(batch), torch.zeros(batch.tokens.shape, dtype=torch.float64, device=rank.device)
    for start in range(0, len(row), rows_at_once):
        index, now = row[start : start + rows_at_once], step[start : start + rows_at_once, None]
        hidden = batch.target[index] & (place[index] >= now)
        asked = batch.target[index] & (place[index] == now)
        noise = (count[index] - now).clamp_min(0).double() / (count[index] + 1)
        t = spread(inside(process.time_of(1 - noise)), length, size)
        pred = predict.rows(index)(batch.tokens[index].masked_fill(hidden, mask_id), t)
        which, position = asked.nonzero(as_tuple=True)
        nats[index[which], position] = -pred.log_prob(batch.tokens[index], asked).double()
    return nats


def chain_rule_calls(model: Denoiser, batch: Batch) -> Tensor:
    """(B,) long: the steps of one order, each a network call for a trunk that reads no previous belief; raises ValueError as the rule."""
    _mask_id(model.process)
    return _in_spans(batch.target, model.process.span(batch.tokens.shape[1]), False).sum(2).amax(1)


def nll_by_order(model: Denoiser, batch: Batch, rng: Rng, orders: int, rows_at_once: int = 32) -> Tensor:
    """(B, orders) nats of each row in so many random orders; their mean is an unbiased estimate of the any-order bound."""
    found = [chain_rule_nll(model, batch, random_order(batch, rng.draw(i)), rows_at_once).sum(1) for i in range(orders)]
    return torch.stack(found, dim=1)


def _mask_id(process: Process) -> int:
    inner: Process = process.inner if isinstance(process, Block) else process
    if not isinstance(inner, Masked):
        raise ValueError(f"the chain rule reveals masked tokens one by one and {type(inner).__name__} noise has no masks: use nll")
    return inner.mask_id


def _places(rank: Tensor, target: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The place (B, L) of each target among its span's, from 0, and how many each span has (B, spans)."""
    length = rank.shape[1]
    key = rank.double().masked_fill(~target, torch.inf)
    key = _in_spans(key, size, torch.inf)
    place = key.argsort(dim=2, stable=True).argsort(dim=2)
    return place.flatten(1)[:, :length], key.isfinite().sum(2)


def _in_spans(values: Tensor, size: int, fill: float) -> Tensor:
    """(B, L) as (B, spans, size), the last span filled up."""
    return F.pad(values, (0, -values.shape[1] % size), value=fill).unflatten(1, (-1, size))
