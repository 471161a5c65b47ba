"""Which tokens of a sequence are dear, told by the other draws of the same sequence: a control variate for random masks of a given size.

With k of n targets masked, n/k * (sum of b_l over the masked) has the mean sum_l b_l over masks, whatever the numbers b_l: centred over
the targets they leave every mean as it is and take out of a draw what is due to which tokens it happened to mask.
"""

from typing import NamedTuple

import torch
from torch import Tensor

_SHRINK = 1.0  # draws that the mean of a token's kind counts for, and those that no difference counts for against that mean


class Costs(NamedTuple):
    """Nats of the masked tokens of all draws of a batch of sequences."""

    share: Tensor  # (B, K) k/n of each draw
    masked: Tensor  # (B, K, L) bool
    nats: Tensor  # (B, K, L) -log p of each masked token, zero elsewhere


def kinds(tokens: Tensor, target: Tensor) -> Tensor:
    """A number (B, L) for each distinct token of each row, other rows' and non-targets' apart: what is summed by it stays in a row."""
    row = torch.arange(len(tokens), device=tokens.device)[:, None]
    highest = int(tokens.max()) + 1
    return torch.unique((row * 2 + target) * highest + tokens, return_inverse=True)[1]


def explained_by_others(costs: Costs, target: Tensor, kind: Tensor, level: Tensor, slope: Tensor, centre: Tensor) -> Tensor:
    """n/k times the masked tokens' sum of b, (B, K), for each draw with a b of the other draws; of mean zero over that draw's masks.

    A token's b is its mean nats over the other draws that masked it, less 1/n of the line `level` + `slope` (k/n - `centre`), each (B, K),
    of the other draws too; shrunk towards the same mean over the tokens of its `kind` (B, L), and that towards zero.
    """
    share, masked, nats = costs
    n = target.sum(1, keepdim=True).clamp_min(1)
    seen = masked.double()
    sums = torch.stack([seen, seen * share[..., None], nats.double()])  # (3, B, K, L)
    total = sums.sum(2)
    explained = torch.zeros_like(share)
    for j in range(share.shape[1]):
        count, shares, cost = total - sums[:, :, j]
        at, rise, zero = level[:, j, None] / n, slope[:, j, None] / n, centre[:, j, None]
        excess = cost - (at - rise * zero) * count - rise * shares
        alike = _by_kind(excess, kind) / (_by_kind(count, kind) + _SHRINK)
        b = ((excess + _SHRINK * alike) / (count + _SHRINK)).where(target, 0.0)
        b = b - b.sum(1, keepdim=True) / n
        explained[:, j] = b.where(masked[:, j], 0.0).sum(1) / share[:, j]
    return explained


def _by_kind(values: Tensor, kind: Tensor) -> Tensor:
    """At each place the sum of `values` (B, L) over its kind."""
    sums = values.new_zeros(int(kind.max()) + 1).index_add(0, kind.flatten(), values.flatten())
    return sums[kind]
