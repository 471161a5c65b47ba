"""Noise by an explicit transition matrix: D3PM (Austin et al. 2021), for small vocabularies.

A `Kernel` gives rates R, and q(xt | x0) is the row x0 of expm(sigma_t R), sigma_t = -log alpha_t: any two times have a transition matrix,
so that bounds exist in bins and in continuous time. Rates are scaled such that what noise forgets last decays as alpha; absorbing and
uniform matrices are then `Masked` and `Uniform`. At t = 1 the state is stationary noise whatever alpha(1) is, at t = 0 it is clean.

A prediction p is read leave-one-out, as everywhere; D3PM's own reverse law, (Q_ts e_z) * (p Qbar_s) at the token z seen, is exact for it.
"""

from dataclasses import dataclass, field, replace
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from textdiff.batch import Clean
from textdiff.prediction import Prediction, draw_categorical
from textdiff.processes.base import Bins, Noising, Predict, TokenProcess, per_token
from textdiff.processes.kernels import Flow, Kernel, UniformKernel, flow_of
from textdiff.randomness import Rng
from textdiff.schedules import inside
from textdiff.vocab import Vocab

_TINY = 1e-150  # stands for the probability of what cannot happen, where a ratio or a logarithm is taken; its square is still a number


@dataclass(frozen=True)
class Matrix(TokenProcess):
    """Tokens jump at the rates of a kernel; `vocab` is filled in by `bind`. All arithmetic is float64 over the whole vocabulary."""

    clean_costs: ClassVar[bool] = True
    measure: ClassVar[Noising] = Bins()
    kernel: Kernel = UniformKernel()
    vocab: Vocab = field(default=Vocab(size=1, tokens=1), init=False)

    def bind(self, vocab: Vocab) -> Self:
        bound = replace(self)
        object.__setattr__(bound, "vocab", vocab)
        flow_of(self.kernel, vocab, torch.device("cpu"))  # so that what does not fit is refused now
        return bound

    def flow(self, device: torch.device) -> Flow:
        """The kernel's semigroup."""
        return flow_of(self.kernel, self.vocab, device)

    def sigma(self, t: Tensor) -> Tensor:
        """-log alpha, 0 at t = 0 and infinite at t = 1, whatever the schedule leaves there."""
        sigma = -self.schedule.alpha(t).log()
        return sigma.masked_fill(t <= 0, 0.0).masked_fill(t >= 1, torch.inf)

    def _sigma_at(self, t: Tensor, where: Tensor) -> Tensor:
        return self.sigma(per_token(t)).expand(where.shape)[where]

    def _one_hot(self, tokens: Tensor) -> Tensor:
        return F.one_hot(tokens, self.vocab.size).double()

    def touch(self, x0: Tensor, touched: Tensor, t: Tensor, rng: Rng) -> Tensor:
        raise ValueError("matrix noise moves tokens by degrees, so that none is touched or untouched: use UniformTime")

    def prior(self, like: Tensor, rng: Rng) -> Tensor:
        law = self.flow(like.device).stationary.expand(like.numel(), -1)
        return draw_categorical(law.log(), rng.uniform("corrupt", like.shape[1:]).flatten())[0].view(like.shape)

    def corrupt(self, x0: Tensor, t: Tensor, rng: Rng) -> Tensor:
        sigma = self.sigma(per_token(t)).expand(x0.shape).flatten()
        law = self.flow(x0.device).forward(self._one_hot(x0.flatten()), sigma)
        return draw_categorical(law.log(), rng.uniform("corrupt", x0.shape[1:]).flatten())[0].view(x0.shape)

    def nelbo_at(self, pred: Prediction, clean: Clean, xt: Tensor, t: Tensor, where: Tensor, s: Tensor | None = None) -> Tensor:
        """sigma' * sum over j != z of R[j, z] B(r_j, s_j), r and s the ratios of the true and the predicted law at j and at z; or KL of the
        bin (D3PM eq. 1)."""
        if s is not None:
            nats = self._bin(pred, clean, xt, self._sigma_at(t, where), self._sigma_at(s, where), where)
        else:
            flow, z = self.flow(xt.device), xt[where]
            t = inside(per_token(t))
            speed = (-self.schedule.dalpha(t) / self.schedule.alpha(t)).expand(xt.shape)[where]
            true, model = self._laws(pred, clean, self._sigma_at(t, where), where)
            true, model = (law / law.gather(-1, z[:, None]).clamp_min(_TINY) for law in (true, model))
            nats = speed * (flow.rates.T[z] * _bregman(true, model)).sum(-1)
        return torch.zeros(xt.shape, dtype=torch.float64, device=xt.device).masked_scatter(where, nats)

    def _laws(self, pred: Prediction, clean: Clean, sigma: Tensor, where: Tensor) -> tuple[Tensor, Tensor]:
        """The clean token and the belief after noise of sigma (N,), (N, V) each."""
        start = torch.cat([self._one_hot(clean.tokens[where]), pred.logits(where).double().softmax(-1)])
        true, model = self.flow(sigma.device).forward(start, sigma.repeat(2)).chunk(2)
        return true, model

    def _bin(self, pred: Prediction, clean: Clean, xt: Tensor, sigma_t: Tensor, sigma_s: Tensor, where: Tensor) -> Tensor:
        kept = self._kept(xt[where], sigma_t - sigma_s)
        true, model = (_normalised(kept * law.clamp_min(_TINY)) for law in self._laws(pred, clean, sigma_s, where))
        return _bregman(true, model).sum(-1)

    def _kept(self, z: Tensor, sigma: Tensor) -> Tensor:
        """The probability that each token (N, V) becomes z (N,) under noise of sigma (N,); a z that noise cannot make was z before."""
        one_hot = self._one_hot(z)
        return self.flow(z.device).backward(one_hot, sigma) + _TINY * one_hot

    def boundary(self, predict: Predict, clean: Clean, where: Tensor, rng: Rng, t_min: float) -> Tensor:
        """The bin (0, t_min), and where alpha(1) > 0 the bin from pure noise to alpha(1)."""
        first, one, zero = (clean.x.new_full((len(clean.x),), time, dtype=torch.float64) for time in (t_min, 1.0, 0.0))
        xt = self.corrupt(clean.x, first, rng).where(where, clean.x)
        nats = self.nelbo_at(predict(xt, first), clean, xt, first, where, s=zero)
        left = -self.schedule.alpha(one).log()
        if bool(left.isfinite().all()):
            x1 = self.prior(clean.x, rng.draw(0)).where(where, clean.x)
            left = left[:, None].expand(where.shape)[where]
            last = self._bin(predict(x1, one), clean, x1, torch.full_like(left, torch.inf), left, where)
            nats = nats + torch.zeros_like(nats).masked_scatter(where, last)
        return nats

    def step(self, pred: Prediction, xt: Tensor, t: Tensor, s: Tensor, rng: Rng) -> Tensor:
        """Drawn from the whole table of the reverse law."""
        log = self.log_posterior(pred, xt, t, s, torch.ones_like(xt, dtype=torch.bool))
        return draw_categorical(log, rng.uniform("draw", xt.shape[1:]).flatten())[0].view(xt.shape)

    def cross_entropy(self, pred: Prediction, clean: Clean, xt: Tensor, t: Tensor, where: Tensor) -> Tensor:
        seen = self._kept(xt[where], self._sigma_at(t, where))
        joint = (seen * pred.logits(where).double().softmax(-1)).clamp_min(_TINY)
        nats = joint.sum(-1).log() - joint.gather(-1, clean.tokens[where][:, None])[:, 0].log()
        return torch.zeros(xt.shape, dtype=torch.float64, device=xt.device).masked_scatter(where, nats)

    def emission(self, xt: Tensor, t: Tensor, states: int) -> Tensor:
        sigma = self.sigma(per_token(t)).expand(xt.shape).flatten()
        return self.flow(xt.device).backward(self._one_hot(xt.flatten()), sigma)[:, :states].view(*xt.shape, states)

    def weight(self, clean: Clean, xt: Tensor, t: Tensor) -> Tensor:
        raise ValueError("the bound of matrix noise weighs every jump by itself, with no weight of a token to clip or replace: use Bound")

    def surprise(self, xt: Tensor, t: Tensor) -> Tensor:
        raise ValueError("under matrix noise a token speaks for its neighbours too, which no single number takes back: use LeaveOneOut")

    def log_ratio(self, pred: Prediction, xt: Tensor, t: Tensor, where: Tensor) -> Tensor:
        law = self.flow(xt.device).forward(pred.logits(where).double().softmax(-1), self._sigma_at(t, where)).log()
        return law - law.gather(-1, xt[where][:, None])

    def log_posterior(self, pred: Prediction, xt: Tensor, t: Tensor, s: Tensor, where: Tensor) -> Tensor:
        sigma_s = self._sigma_at(s, where)
        kept = self._kept(xt[where], self._sigma_at(t, where) - sigma_s)
        law = self.flow(xt.device).forward(pred.logits(where).double().softmax(-1), sigma_s)
        return _normalised(kept * law.clamp_min(_TINY)).log()


def _normalised(weight: Tensor) -> Tensor:
    return weight / weight.sum(-1, keepdim=True)


def _bregman(r: Tensor, s: Tensor) -> Tensor:
    """r log(r / s) - r + s, which is never negative; near r = s without the cancellation."""
    log = r.clamp_min(_TINY).log() - s.clamp_min(_TINY).log()
    near = log.clamp(-1, 1)
    return torch.where(log.abs() < 1, r * (near + torch.expm1(-near)), r * log - r + s)
