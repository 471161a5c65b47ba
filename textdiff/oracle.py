"""The truth to check everything else against: Markov sources, whose entropy and whose exact denoiser are known.

With the exact denoiser every bound equals the entropy and every sampler whose law is exact reproduces the source; a denoiser that is
wrong on purpose (`mixed`) must be found out. Everything here is float64.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, TypeVar

import numpy
import torch
import torch.nn.functional as F
from torch import Tensor

from textdiff.batch import Batch
from textdiff.prediction import Prediction, TablePrediction
from textdiff.processes.base import TokenProcess
from textdiff.processes.gaussian import Gaussian
from textdiff.randomness import Rng
from textdiff.state_prediction import TabledState
from textdiff.vocab import Vocab


@dataclass(frozen=True, eq=False)
class Markov:
    """Sequences of `length` states: the first from `initial` (K,), each next from the row of `transition` (K, K) of the one before."""

    initial: Tensor
    transition: Tensor
    length: int

    @classmethod
    def random(cls, states: int, length: int, concentration: float = 0.3, seed: int = 0) -> "Markov":
        """A stationary source whose rows are drawn from a symmetric Dirichlet law; the smaller its concentration, the less entropy."""
        rows = numpy.random.default_rng(seed).dirichlet([concentration] * states, size=states)
        transition = torch.from_numpy(rows)
        balance = torch.eye(states, dtype=torch.float64) - transition.T + 1  # p (I - P + 11^T) = 1^T holds for the stationary law p alone
        return cls(torch.linalg.solve(balance, torch.ones(states, dtype=torch.float64)), transition, length)

    @property
    def states(self) -> int:
        """Number of states K; they are the ids 0 .. K - 1."""
        return len(self.initial)

    @property
    def vocab(self) -> Vocab:
        """The states and a mask, which is the last id."""
        return Vocab(size=self.states + 1, tokens=self.states + 1, mask_id=self.states)

    def sample(self, n: int, rng: Rng) -> Tensor:
        """`n` independent sequences (n, L) long; raises ValueError unless `rng` has a row for each."""
        if len(rng.key) != n:
            raise ValueError(f"{n} sequences need an Rng of {n} rows, got one of {len(rng.key)}")
        uniform = rng.uniform("source", (self.length,))
        last = self.states - 1  # the cumulative sums may end an ulp below 1
        state = torch.searchsorted(self.initial.cumsum(0), uniform[:, 0].contiguous(), right=True).clamp_max(last)
        path, cumulative = [state], self.transition.cumsum(1)
        for column in range(1, self.length):
            level = uniform[:, column, None].contiguous()
            state = torch.searchsorted(cumulative[state], level, right=True)[:, 0].clamp_max(last)
            path.append(state)
        return torch.stack(path, dim=1)

    def log_prob(self, x: Tensor) -> Tensor:
        """Exact log-probability of sequences (B, L) of at most `length` states, (B,) nats."""
        return self.initial.log()[x[:, 0]] + self.transition.log()[x[:, :-1], x[:, 1:]].sum(1)

    def laws(self) -> Tensor:
        """The law of the state at each position, (L, K)."""
        laws = [self.initial]
        for _ in range(self.length - 1):
            laws.append(laws[-1] @ self.transition)
        return torch.stack(laws)

    def entropy(self) -> float:
        """Block entropy H(X_1 .. X_L) in nats: H(X_1) plus the mean entropy of the row that each transition is drawn from."""
        row = torch.special.entr(self.transition).sum(1)
        return float(torch.special.entr(self.initial).sum() + (self.laws()[:-1] @ row).sum())

    def pair_law(self, distance: int) -> Tensor:
        """Joint law of two states `distance` positions apart, averaged over positions, (K, K)."""
        if not 0 < distance < self.length:
            raise ValueError(f"distance is {distance}, expected 1 to {self.length - 1}, one less than the length of the sequences")
        first = self.laws()[: self.length - distance].mean(0)
        later: Tensor = torch.linalg.matrix_power(self.transition, distance)
        return first[:, None] * later


@dataclass(frozen=True)
class Oracle:
    """The exact leave-one-out denoiser of a source under any token noise, made wrong on purpose in two ways: with `uniform` > 0 its
    beliefs are mixed with that much of the uniform law, and as a `posterior` it lets each noisy token speak for itself."""

    source: Markov
    process: TokenProcess
    uniform: float = 0.0
    posterior: bool = False

    @classmethod
    def of(cls, source: Markov, process: TokenProcess) -> "Oracle":
        """The oracle of a process that is not bound to a vocabulary yet."""
        return cls(source, process.bind(source.vocab))

    def predictor(self, batch: Batch) -> "OraclePredictor":
        """The oracle bound to a batch; padding says nothing about the rest of its row."""
        return OraclePredictor(self, batch.attend, batch.target)

    def canvas(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The tokens are their own state."""
        return batch.tokens, batch.target

    def decode(self, x0: Tensor) -> Tensor:
        """The state is the tokens."""
        return x0


@dataclass(frozen=True)
class OraclePredictor:
    """p(x0_l | xt without position l) by forward-backward (Baum et al. 1970).

    Leaving out the position's own likelihood is what the bounds of every token process ask for; at a [MASK] it changes nothing.
    """

    oracle: Oracle
    attend: Tensor  # (B, L) bool
    target: Tensor  # (B, L) bool, everything else is known

    def __call__(self, xt: Tensor, t: Tensor, previous: Prediction | None = None) -> TablePrediction:
        """Log-probabilities (B, L, K + 1) float64; [MASK] has none."""
        source, wrong = self.oracle.source, self.oracle.uniform
        likelihood = _evidence(self.oracle.process.emission(xt, t, source.states), xt, self.target, self.attend)
        belief = _leave_one_out(source, likelihood)
        if self.oracle.posterior:
            belief = _normalised(belief * likelihood)
        if wrong > 0:
            belief = (1 - wrong) * belief + wrong / source.states
        return TablePrediction(F.pad(belief.log(), (0, 1), value=-torch.inf))

    def rows(self, index: Tensor) -> "OraclePredictor":
        """The same for a subset of rows."""
        return replace(self, attend=self.attend[index], target=self.target[index])


@dataclass(frozen=True, eq=False)
class GaussianOracle:
    """The exact denoiser of a source whose states are rows of a table (K, D) under Gaussian noise; with `uniform` > 0 its beliefs are
    mixed with that much of the uniform law. The source must not rule any transition out, which noisy vectors may suggest."""

    source: Markov
    process: Gaussian
    table: Tensor
    uniform: float = 0.0
    weighs_tokens: ClassVar[bool] = True

    def predictor(self, batch: Batch) -> "GaussianOraclePredictor":
        """The oracle bound to a batch; padding says nothing about the rest of its row."""
        return GaussianOraclePredictor(self, batch.tokens, batch.attend, batch.target)

    def canvas(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The rows of the tokens, and the targets."""
        return F.embedding(batch.tokens, self.table), batch.target

    def decode(self, x0: Tensor) -> Tensor:
        """The state whose row is nearest, (B, L)."""
        return (self.table.square().sum(-1) - 2 * x0.to(self.table.dtype) @ self.table.T).argmin(-1)


@dataclass(frozen=True, eq=False)
class GaussianOraclePredictor:
    """p(x0_l | xt) by forward-backward; what position l says for itself is part of it, as the mean of x0 asks for."""

    oracle: GaussianOracle
    tokens: Tensor  # (B, L) long
    attend: Tensor  # (B, L) bool
    target: Tensor  # (B, L) bool, everything else is known

    def __call__(self, xt: Tensor, t: Tensor, previous: Prediction | None = None) -> TabledState:
        """Log-probabilities (B, L, K) of the rows of the table."""
        oracle, wrong = self.oracle, self.oracle.uniform
        a, sigma = oracle.process.levels(t)
        # log N(xt; a E_w, s^2 I) up to what all w share; the best is brought to 0, because at little noise all would underflow
        log_likelihood = (a * (xt.to(oracle.table.dtype) @ oracle.table.T) - a**2 * oracle.table.square().sum(-1) / 2) / sigma**2
        likelihood = (log_likelihood - log_likelihood.amax(-1, keepdim=True)).exp()
        likelihood = _evidence(likelihood, self.tokens, self.target, self.attend)
        belief = _normalised(_leave_one_out(oracle.source, likelihood) * likelihood)
        if wrong > 0:
            belief = (1 - wrong) * belief + wrong / oracle.source.states
        return TabledState(belief.log(), oracle.table)

    def rows(self, index: Tensor) -> "GaussianOraclePredictor":
        """The same for a subset of rows."""
        return replace(self, tokens=self.tokens[index], attend=self.attend[index], target=self.target[index])


def _evidence(emission: Tensor, tokens: Tensor, target: Tensor, attend: Tensor) -> Tensor:
    """The likelihoods (B, L, K) of every state: `emission` at the targets, certainty at known tokens, nothing at padding."""
    known = (tokens[..., None] == torch.arange(emission.shape[-1], device=tokens.device)).to(emission.dtype)
    return emission.where(target[..., None], known).masked_fill(~attend[..., None], 1.0)


def _leave_one_out(source: Markov, likelihood: Tensor) -> Tensor:
    """p(x_l | all likelihoods but that of l), (B, L, K), each message normalised so that none underflows."""
    initial, transition = source.initial.to(likelihood.device), source.transition.to(likelihood.device)
    rows, length, _ = likelihood.shape
    evidence = likelihood.transpose(0, 1).contiguous()  # (L, B, K), so that each message reads adjacent memory
    belief = torch.empty_like(evidence)
    message = initial.expand(rows, -1)
    for column in range(length):
        belief[column] = message
        message = _normalised(message * evidence[column]) @ transition
    message = torch.ones_like(evidence[0])
    for column in reversed(range(length)):
        belief[column] *= message
        message = _normalised((message * evidence[column]) @ transition.T)
    return _normalised(belief).transpose(0, 1)


def _normalised(weight: Tensor) -> Tensor:
    return weight / weight.sum(-1, keepdim=True)


AnyOracle = TypeVar("AnyOracle", Oracle, GaussianOracle)


def mixed(denoiser: AnyOracle, weight: float) -> AnyOracle:
    """A deliberately wrong denoiser: `weight` of the uniform law over the states in every belief."""
    if not 0 < weight <= 1:
        raise ValueError(f"weight is {weight}, expected a share of the belief in (0, 1]")
    return replace(denoiser, uniform=weight)


def total_variation(samples: Tensor, source: Markov, distance: int) -> float:
    """Half the L1 distance between the pair law of `samples` (B, L), pooled over positions, and the source's; raises ValueError for
    ids that are not states."""
    if bool((samples < 0).any() | (samples >= source.states).any()):
        raise ValueError(f"the samples hold ids outside the {source.states} states of the source: is a [MASK] left in them?")
    exact = source.pair_law(distance).flatten()
    code = samples[:, :-distance] * source.states + samples[:, distance:]
    count = torch.bincount(code.flatten(), minlength=len(exact)).double()
    return float((count / count.sum() - exact).abs().sum() / 2)
