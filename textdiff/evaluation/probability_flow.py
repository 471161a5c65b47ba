"""The likelihood of vectors by the probability-flow ODE (Song et al. 2021, appendix D; LangFlow): an estimate, not a bound.

With z ~ q(z | tokens) at the noise of t_min,  -log p(tokens) = -log p(tokens | z) + log q(z | tokens) - log p(z)  if all three are of one
model. p(z) comes from the ODE dx = v dphi, tan phi = s / a: log p(z) = log N(x at t = 1; 0, I) + integral of div v dphi, the divergence by
Hutchinson's estimator, u.(dv/dx) u with random signs u. Finite steps, one u, and a network that contradicts itself each bias it.
"""

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from textdiff.batch import Batch
from textdiff.models.base import LanguageModel
from textdiff.models.embedding import EmbeddingDiffusionLM
from textdiff.processes.base import Predictor, keep_known
from textdiff.processes.gaussian import Gaussian, states_of
from textdiff.randomness import Rng

_HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)


@dataclass(frozen=True)
class Flow:
    """The field of one batch; known positions stand still."""

    process: Gaussian
    predict: Predictor
    known: Tensor  # (B, L, D)
    target: Tensor  # (B, L) bool

    def velocity(self, x: Tensor, t: Tensor) -> Tensor:
        """dx / dphi (B, L, D) at times (B,), 0 off the targets."""
        pred = states_of(self.predict(keep_known(x, self.known, self.target), t))
        return self.process.velocity_of(pred.state(), x, t) * self.target[..., None]

    def slopes(self, x: Tensor, t: Tensor, signs: Tensor) -> tuple[Tensor, Tensor]:
        """The velocity and an unbiased draw (B,) of its divergence."""
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            velocity = self.velocity(x, t)
            (product,) = torch.autograd.grad((velocity * signs).sum(), x)
        return velocity.detach(), (product * signs).double().sum((1, 2))

    @torch.no_grad()
    def log_density(self, x: Tensor, steps: int, rng: Rng) -> Tensor:
        """log p of states at t_min, (B,) nats: Heun's rule over `steps` equal times, two calls each."""
        signs = torch.where(rng.uniform("signs", x.shape[1:]) < 0.5, -1.0, 1.0).to(x.dtype) * self.target[..., None]
        total = torch.zeros(len(x), dtype=torch.float64, device=x.device)
        times = torch.linspace(self.process.t_min, 1, steps + 1, dtype=torch.float64, device=x.device)
        for s, t in pairwise(times):
            slope, divergence = self.slopes(x, s.expand(len(x)), signs)
            turn = float(self._angle(t) - self._angle(s))
            after, bent = self.slopes(x + turn * slope, t.expand(len(x)), signs)
            x = x + turn * (slope + after) / 2
            total += turn * (divergence + bent) / 2
        return total + (_log_normal(x.double()) * self.target[..., None]).sum((1, 2))

    def _angle(self, t: Tensor) -> Tensor:
        a, s = self.process.levels(t[None])
        return torch.atan2(s, a).squeeze()


def _log_normal(x: Tensor) -> Tensor:
    return -0.5 * x.square() - _HALF_LOG_TWO_PI


@torch.no_grad()
def flow_nats(process: Gaussian, predict: Predictor, table: Tensor, batch: Batch, steps: int, rng: Rng) -> Tensor:
    """An estimate of -log p of the targets given the rest, (B,) nats; `table` (V, D) holds the vectors. 2 steps + 1 calls, all but one of
    them with gradients of the network's input."""
    where = batch.target
    known = F.embedding(batch.tokens, table)
    t = torch.full((len(known),), process.t_min, dtype=torch.float64, device=known.device)
    z = keep_known(process.corrupt(known, t, rng), known, where)
    pred = predict(z, t)
    read = pred.log_prob(batch.tokens, where)
    nats = read.new_zeros(where.shape).masked_scatter(where, -read).double().sum(1)
    a, s = process.levels(t)
    given = ((_log_normal((z - a * known) / s) - s.log()) * where[..., None]).sum((1, 2))
    return nats + given - Flow(process, predict, known, where).log_density(z, steps, rng)


@dataclass(frozen=True)
class FlowEstimate:
    """Mean nats of each sequence by the flow, in the place of a model's own bound; raises ValueError for other models than of embeddings
    and for less than one step."""

    steps: int = 32

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"the flow takes {self.steps} steps, expected 1 or more")

    def rules(self, model: LanguageModel) -> str:
        """How the flow is followed."""
        return f"by the probability-flow ODE in {self.steps} steps"

    def kind(self, model: LanguageModel) -> str:
        """Neither exact nor a bound."""
        self._vectors(model)
        return "estimate"

    def calls(self, model: LanguageModel, batch: Batch, draws: int) -> Tensor:
        """(B,) network calls."""
        twice = 2 if self._vectors(model).spec.self_conditioning else 1
        return batch.sample_id.new_full((len(batch.tokens),), draws * (2 * self.steps + 1) * twice)

    def __call__(self, model: LanguageModel, batch: Batch, seed: int, draws: int) -> Tensor:
        """(B, 1) nats."""
        model = self._vectors(model)
        process, table, predict = model.process.measured(), model.vectors(), model.predictor(batch)
        total = torch.zeros(len(batch.tokens), dtype=torch.float64, device=batch.tokens.device)
        for k in range(draws):
            total += flow_nats(process, predict.under(process), table, batch, self.steps, Rng(seed, k, batch.sample_id))
        return total[:, None] / draws

    @staticmethod
    def _vectors(model: LanguageModel) -> EmbeddingDiffusionLM:
        if not isinstance(model, EmbeddingDiffusionLM):
            raise ValueError(f"a flow runs through vectors of tokens and the model is a {type(model).__name__}: leave the flow out")
        return model
