"""The law of a sampling run of two dependent tokens, by enumeration of every state after every move.

A move is a table (V, V, V, 2): given both tokens seen (second and third axis), the law (first axis) of each token (last), which are drawn
independently. Each sampler's test writes its own tables from the formulas; posteriors come from `contracts.Enumeration`, by Bayes' rule.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from tests.contracts import Enumeration
from tests.processes.test_interpolating import SHARE, hybrid_noise, uniform_noise
from tests.samplers.watched import PAIR, pair_law
from textdiff.oracle import Oracle
from textdiff.processes.base import TokenProcess
from textdiff.processes.hybrid import Hybrid
from textdiff.processes.masked import Masked
from textdiff.processes.uniform import Uniform

MASK = 3


class Case(NamedTuple):
    """A process with what is true of it: b_t (4,) for three states and [MASK], and the forward rates of jumps into each, (4,)."""

    process: TokenProcess
    noise: Callable[[float], Tensor]
    truth: Enumeration

    @property
    def oracle(self) -> Oracle:
        return Oracle.of(PAIR, self.process)

    def rate(self, t: float) -> Tensor:
        """alpha d/dt (b / alpha), by central differences."""
        h = 1e-6 * (1 - t)
        late, early = (self.noise(time) / (1 - self.noise(time).sum()) for time in (t + h, t - h))
        return (1 - self.noise(t).sum()) * (late - early) / (2 * h)

    def belief(self, t: float) -> Tensor:
        """The leave-one-out prediction of each token, as a table."""
        x = torch.cartesian_prod(torch.arange(4), torch.arange(4))
        return self.truth.prediction(x, t).table.exp().nan_to_num(0.0).view(4, 4, 2, 4).permute(3, 0, 1, 2)

    def reverse(self, t: float, s: float) -> Tensor:
        """The posterior p(xs | xt), as a table."""
        return self.truth.reverse(t, s).nan_to_num(0.0)

    def smoothed(self, t: float) -> Tensor:
        """alpha p + b: the noisy law of each token given the other, as a table."""
        noise = self.noise(t)
        return (1 - noise.sum()) * self.belief(t) + noise[:, None, None, None]

    def noisy_law(self, t: float) -> Tensor:
        """The joint law of both noisy tokens, (4, 4)."""
        q = self.truth.forward(t)
        return q.T @ pair_law() @ q

    def prior(self) -> Tensor:
        """The joint law of pure noise, (4, 4)."""
        pure = self.noise(1.0) / self.noise(1.0).sum()
        return pure[:, None] * pure


def case(process: TokenProcess, noise: Callable[[float], Tensor]) -> Case:
    return Case(process, noise, Enumeration(noise, data=pair_law(), belief=pair_law()))


MASKED = case(Masked(), lambda t: t * torch.eye(4, dtype=torch.float64)[MASK])
UNIFORM = case(Uniform(), uniform_noise)
HYBRID = case(Hybrid(share=SHARE), hybrid_noise)
CASES = (MASKED, UNIFORM, HYBRID)


def stay() -> Tensor:
    """The table that changes nothing."""
    keep = torch.eye(4, dtype=torch.float64)
    return torch.stack([keep[:, :, None].expand(4, 4, 4), keep[:, None, :].expand(4, 4, 4)], -1)


def moved(law: Tensor, table: Tensor) -> Tensor:
    """The joint law (4, 4) after a move."""
    return torch.einsum("yz,ayz,byz->ab", law, table[..., 0], table[..., 1])


def run(law: Tensor, tables: Iterable[Tensor]) -> Tensor:
    """The joint law of both states at the end, (3, 3); nothing else may be left."""
    for table in tables:
        torch.testing.assert_close(table[:, law > 0].sum(0), torch.ones_like(table[0, law > 0]))
        law = moved(law, table)
    assert float(law[:3, :3].sum()) > 1 - 1e-9
    return law[:3, :3]
