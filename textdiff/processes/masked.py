"""Masked (absorbing) diffusion: MDLM (Sahoo et al. 2024), MD4 (Shi et al. 2024), RADD (Ou et al. 2024), LLaDA (Nie et al. 2025).

q(xt | x0) keeps a token with probability alpha_t and replaces it by [MASK] otherwise. A prediction never holds [MASK] and carries known
tokens over (SUBS), so every formula below reads it at masked positions only. In the clock u = 1 - alpha the bound is
E_u [ 1/u * sum over masked l of -log p(x0_l | xt) ]: schedules change its variance, not its value.
"""

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from textdiff.batch import Clean
from textdiff.prediction import Prediction
from textdiff.processes.base import Noised, Noising, Predict, Process, stratified
from textdiff.randomness import Rng
from textdiff.schedules import clamped
from textdiff.vocab import Vocab


def _per_token(t: Tensor) -> Tensor:
    return t if t.dim() == 2 else t[:, None]


@dataclass(frozen=True)
class Masked(Process):
    """Tokens become [MASK]; `mask_id` is filled in by `bind`."""

    mask_id: int = -1

    def bind(self, vocab: Vocab) -> Self:
        if vocab.mask_id is None:
            raise ValueError("masked diffusion needs a mask token and the tokenizer has none: call textdiff.vocab.add_mask_token first")
        return replace(self, mask_id=vocab.mask_id)

    def is_masked(self, xt: Tensor) -> Tensor:
        """(B, L) bool: the [MASK] positions."""
        return xt == self.mask_id

    def prior(self, like: Tensor, rng: Rng) -> Tensor:
        return torch.full_like(like, self.mask_id)

    def corrupt(self, x0: Tensor, t: Tensor, rng: Rng) -> Tensor:
        hidden = rng.uniform("corrupt", x0.shape[1:]) >= self.schedule.alpha(_per_token(t))
        return x0.masked_fill(hidden, self.mask_id)

    def rate(self, t: Tensor) -> Tensor:
        """-alpha' / (1 - alpha): the weight of the cross-entropy at time t; exactly 1/t for the log-linear schedule with eps = 0."""
        return -self.schedule.dalpha(t) / (1 - self.schedule.alpha(t))

    def nelbo_at(self, pred: Prediction, clean: Clean, xt: Tensor, t: Tensor, where: Tensor, s: Tensor | None = None) -> Tensor:
        """MDLM eq. 10 (continuous) and eq. 8 (bin); in the first bin s = 0 the weight is 1, so that bin is the reconstruction term too."""
        asked = where & self.is_masked(xt)
        log_prob = pred.log_prob(clean.tokens, asked)
        weight = self.rate(_per_token(t)) if s is None else self._reveal_probability(_per_token(t), _per_token(s))
        nats = torch.zeros(xt.shape, dtype=log_prob.dtype, device=xt.device)
        weight = weight.expand(xt.shape)[asked].to(log_prob.dtype)  # elsewhere it may be infinite: at t = 0 nothing is masked
        return nats.masked_scatter(asked, -log_prob * weight)

    def boundary(self, predict: Predict, clean: Clean, where: Tensor, rng: Rng, t_min: float) -> Tensor:
        """The bin (0, t_min), and, where alpha(1) > 0, the bin from the all-masked prior to alpha(1): two one-step KLs."""
        ends = clean.x.new_tensor([t_min, 1.0, 0.0], dtype=torch.float64)
        t_min_, one, zero = (end.expand(len(clean.x)) for end in ends)
        xt = self.corrupt(clean.x, t_min_, rng).where(where, clean.x)
        nats = self.nelbo_at(predict(xt, t_min_), clean, xt, t_min_, where, s=zero)
        left = float(self.schedule.alpha(ends[1]))
        if left > 0:
            x1 = self.prior(clean.x, rng).where(where, clean.x)
            asked = where & self.is_masked(x1)
            log_prob = predict(x1, one).log_prob(clean.tokens, asked)
            nats = nats + torch.zeros_like(nats).masked_scatter(asked, -left * log_prob)
        return nats

    def step(self, pred: Prediction, xt: Tensor, t: Tensor, s: Tensor, rng: Rng) -> Tensor:
        """Each [MASK] is revealed with probability (alpha_s - alpha_t) / (1 - alpha_t) and then drawn from the prediction: the exact
        posterior, without its (B, L, V) table. Known tokens stay."""
        revealed = self.changes(xt, t, s, rng)
        return xt.masked_scatter(revealed, pred.draw(revealed, rng)[0])

    def changes(self, xt: Tensor, t: Tensor, s: Tensor, rng: Rng) -> Tensor:
        chance = self._reveal_probability(_per_token(t), _per_token(s))
        return self.is_masked(xt) & (rng.uniform("reveal", xt.shape[1:]) < chance)

    def _reveal_probability(self, t: Tensor, s: Tensor) -> Tensor:
        alpha_t, alpha_s = self.schedule.alpha(t), self.schedule.alpha(s)
        alpha_t = torch.where(t >= 1, torch.zeros_like(alpha_t), alpha_t)  # the prior is all [MASK], whatever alpha(1) is
        alpha_s = torch.where(s <= 0, torch.ones_like(alpha_s), alpha_s)
        return (alpha_s - alpha_t) / (1 - alpha_t)


@dataclass(frozen=True)
class ExactCount(Noising):
    """Mask exactly k of a row's n target positions, k uniform on 1..n and stratified over the global batch, weight n / k.

    The same expectation as uniform time on the whole of [0, 1], with less variance and no cut at either end (LLaDA, appendix A).
    """

    def __call__(self, process: Process, x0: Tensor, target: Tensor, stratum: Tensor, rng: Rng) -> Noised:
        if not isinstance(process, Masked):
            raise ValueError(f"ExactCount counts [MASK] tokens and {type(process).__name__} has none: use UniformTime")
        n = target.sum(1)
        k = (stratified(rng, stratum) * n).floor().long().clamp(max=n - 1) + 1
        return self.with_count(process, x0, target, k, rng)

    @staticmethod
    def with_count(process: Masked, x0: Tensor, target: Tensor, k: Tensor, rng: Rng) -> Noised:
        """Mask `k` (B,) of each row's targets, chosen uniformly, at the time the network is to believe.

        Given k the noise level 1 - alpha of uniform time is Beta(k, n - k + 1), which is the law of the k-th smallest of n uniforms.
        """
        uniform = rng.uniform("corrupt", x0.shape[1:]).masked_fill(~target, 2.0)
        ordered, index = uniform.sort(1)
        chosen = torch.zeros_like(target).scatter(1, index, torch.arange(x0.shape[1], device=x0.device) < k[:, None])
        xt = x0.masked_fill(target & chosen, process.mask_id)
        level = ordered.gather(1, (k - 1).clamp_min(0)[:, None])[:, 0].masked_fill(k < 1, 0.5)  # a row without targets has no level
        n, k = target.sum(1).double(), k.double()
        t = process.schedule.inverse(clamped(1 - level))
        return Noised(xt, t, n / k.clamp_min(1) / process.rate(t))
