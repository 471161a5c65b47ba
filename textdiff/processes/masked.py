"""Masked (absorbing) diffusion: MDLM (Sahoo et al. 2024), MD4 (Shi et al. 2024), RADD (Ou et al. 2024), LLaDA (Nie et al. 2025).

q(xt | x0) keeps a token with probability alpha_t and replaces it by [MASK] otherwise. A prediction never holds [MASK] and carries known
tokens over (SUBS), so every formula below reads it at masked positions only. In the clock u = 1 - alpha the bound is
E_u [ 1/u * sum over masked l of -log p(x0_l | xt) ]: schedules change its variance, not its value.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from textdiff.batch import Clean
from textdiff.prediction import Prediction, ScorePrediction
from textdiff.processes.base import Noising, Predict, TokenProcess, per_token
from textdiff.processes.exact_count import ExactCount
from textdiff.randomness import Rng
from textdiff.vocab import Vocab


@dataclass(frozen=True)
class Masked(TokenProcess):
    """Tokens become [MASK]; `mask_id` is filled in by `bind`."""

    measure: ClassVar[Noising] = ExactCount()
    mask_id: int = -1

    def bind(self, vocab: Vocab) -> Self:
        if vocab.mask_id is None:
            raise ValueError("masked diffusion needs a mask token and the tokenizer has none: call textdiff.vocab.add_mask_token first")
        return replace(self, mask_id=vocab.mask_id)

    def is_masked(self, xt: Tensor) -> Tensor:
        """(B, L) bool: the [MASK] positions."""
        return xt == self.mask_id

    def touch(self, x0: Tensor, touched: Tensor, t: Tensor, rng: Rng) -> Tensor:
        return x0.masked_fill(touched, self.mask_id)

    def corrupt(self, x0: Tensor, t: Tensor, rng: Rng) -> Tensor:
        """At t = 1 everything is masked, whatever alpha(1) is: the last bin reveals from there."""
        return super().corrupt(x0, t, rng).masked_fill(per_token(t) >= 1, self.mask_id)

    def rate(self, t: Tensor) -> Tensor:
        """-alpha' / (1 - alpha): the weight of the cross-entropy at time t; exactly 1/t for the log-linear schedule with eps = 0."""
        return -self.schedule.dalpha(t) / (1 - self.schedule.alpha(t))

    def nelbo_at(self, pred: Prediction, clean: Clean, xt: Tensor, t: Tensor, where: Tensor, s: Tensor | None = None) -> Tensor:
        """MDLM eq. 10 (continuous) and eq. 8 (bin); in the first bin s = 0 the weight is 1, so that bin is the reconstruction term too."""
        asked = where & self.is_masked(xt)
        log_prob = _log_prob(pred, clean.tokens, asked)
        weight = self.rate(per_token(t)) if s is None else self._reveal_probability(per_token(t), per_token(s))
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
            log_prob = _log_prob(predict(x1, one), clean.tokens, asked)
            nats = nats + torch.zeros_like(nats).masked_scatter(asked, -left * log_prob)
        return nats

    def step(self, pred: Prediction, xt: Tensor, t: Tensor, s: Tensor, rng: Rng) -> Tensor:
        """Each [MASK] is revealed with probability (alpha_s - alpha_t) / (1 - alpha_t) and then drawn from the prediction: the exact
        posterior, without its (B, L, V) table. Known tokens stay."""
        revealed = self.changes(xt, t, s, rng)
        return xt.masked_scatter(revealed, pred.draw(revealed, rng)[0])

    def changes(self, xt: Tensor, t: Tensor, s: Tensor, rng: Rng) -> Tensor:
        chance = self._reveal_probability(per_token(t), per_token(s))
        return self.is_masked(xt) & (rng.uniform("reveal", xt.shape[1:]) < chance)

    def settled(self, xt: Tensor) -> Tensor:
        return ~self.is_masked(xt)

    def cross_entropy(self, pred: Prediction, clean: Clean, xt: Tensor, t: Tensor, where: Tensor) -> Tensor:
        """That of the masked tokens, the others are known; of a score model the generalised one, log(1/y_x) + sum_j y_j - 1."""
        asked = where & self.is_masked(xt)
        log_prob = _log_prob(pred, clean.tokens, asked)
        return torch.zeros(xt.shape, dtype=log_prob.dtype, device=xt.device).masked_scatter(asked, -log_prob)

    def weight(self, clean: Clean, xt: Tensor, t: Tensor) -> Tensor:
        return torch.where(self.is_masked(xt), self.rate(per_token(t)), 0.0)

    def emission(self, xt: Tensor, t: Tensor, states: int) -> Tensor:
        same = xt[..., None] == torch.arange(states, device=xt.device)
        return (same | self.is_masked(xt)[..., None]).double()

    def surprise(self, xt: Tensor, t: Tensor) -> Tensor:
        return torch.zeros(xt.shape, dtype=torch.float64, device=xt.device)

    def log_posterior(self, pred: Prediction, xt: Tensor, t: Tensor, s: Tensor, where: Tensor) -> Tensor:
        chance = self._reveal_probability(per_token(t), per_token(s)).expand(xt.shape)[where][:, None]
        logits = pred.logits(where)
        revealed = logits.log_softmax(-1) + chance.log().to(logits.dtype)
        table = revealed.index_copy(-1, xt.new_tensor([self.mask_id]), (-chance).log1p().to(logits.dtype))
        known = torch.full_like(logits, -torch.inf).scatter_(-1, xt[where][:, None], 0.0)
        return table.where(self.is_masked(xt)[where][:, None], known)

    def log_ratio(self, pred: Prediction, xt: Tensor, t: Tensor, where: Tensor) -> Tensor:
        """log p_j + log(alpha / (1 - alpha)) at a [MASK]; a known token has no other past than itself: -inf."""
        alpha = self.schedule.alpha(per_token(t)).expand(xt.shape)[where][:, None]
        logits = pred.logits(where)
        log_y = logits - pred.offset if isinstance(pred, ScorePrediction) else logits.log_softmax(-1)
        scores = log_y + (alpha / (1 - alpha)).log()
        scores = scores.where(self.is_masked(xt)[where][:, None], -torch.inf)
        return scores.scatter(-1, xt[where][:, None], 0.0)

    def _reveal_probability(self, t: Tensor, s: Tensor) -> Tensor:
        alpha_t, alpha_s = self.schedule.alpha(t), self.schedule.alpha(s)
        alpha_t = torch.where(t >= 1, torch.zeros_like(alpha_t), alpha_t)  # the prior is all [MASK], whatever alpha(1) is
        alpha_s = torch.where(s <= 0, torch.ones_like(alpha_s), alpha_s)
        return (alpha_s - alpha_t) / (1 - alpha_t)


def _log_prob(pred: Prediction, tokens: Tensor, asked: Tensor) -> Tensor:
    """log p_x; of a score model log y_x + 1 - sum_j y_j, at most the log-probability of y normalised: with the scores
    s_j = y_j alpha / (1 - alpha) this makes the bound SEDD's score entropy."""
    if not isinstance(pred, ScorePrediction):
        return pred.log_prob(tokens, asked)
    log_y, log_total = pred.scores(tokens[..., None], asked)
    return log_y[:, 0] + 1 - log_total.exp()
