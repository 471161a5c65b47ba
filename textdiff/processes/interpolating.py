"""Noise that replaces tokens by others: the whole family q_t(. | x) = alpha_t e_x + b_t, with b_t constant over the noise ids and, in
hybrids, another constant at [MASK] (GIDD, von Rütte et al. 2025; UDLM, Schiff et al. 2024).

A prediction p is read leave-one-out: p = p(x0_l | xt without position l). With it the reverse law of the process is exact (the plug-in
forms below are tight); a network trained to predict p(x0_l | xt) is converted by `surprise` before it comes here.

Every bound is made of one divergence. With q = q_t(. | x), r = alpha_t p + b_t and the ratios d_j = log(q_j / r_j),
    KL(q || r) = q_x d_x - sum over noise ids j != x of b_j log(1 + alpha p_j / b_j)
needs one sum over the vocabulary and two gathered entries; no one-hots, and every term is small where the divergence is.
"""

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import ClassVar, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from textdiff.batch import Clean
from textdiff.prediction import Prediction
from textdiff.processes.base import Noising, Predict, TokenProcess, per_token
from textdiff.processes.exact_count import ExactCount
from textdiff.randomness import Rng
from textdiff.schedules import inside
from textdiff.vocab import Vocab

_TINY = 1e-300
_CLEAN = 1e-9


class Levels(NamedTuple):
    """The process at times of any shape, float64."""

    alpha: Tensor  # signal
    noise: Tensor  # b at each noise id
    mask: Tensor  # b at [MASK]
    noise_rate: Tensor  # rate of jumps into each noise id, b' - (alpha'/alpha) b
    mask_rate: Tensor  # the same for [MASK]


class Divergence(NamedTuple):
    """The smoothed laws q and r at N positions, float64."""

    kl: Tensor  # KL(q || r)
    log_ratio: Tensor  # log q(z) / r(z) at the token z seen
    seen: Tensor  # q(z)


@dataclass(frozen=True)
class Interpolating(TokenProcess):
    """A subclass gives `levels`; `bind` fills in the vocabulary.

    `ids` are the ids that noise draws from (empty: every real token, neither [MASK] nor [PAD] nor spare rows; for published uniform
    models `every_id` takes all of them).
    """

    clean_costs: ClassVar[bool] = True
    measure: ClassVar[Noising] = ExactCount()
    ids: tuple[int, ...] = ()
    every_id: bool = False
    mask_id: int = field(default=-1, init=False)
    rows: int = field(default=0, init=False)
    covers: bool = field(default=False, init=False)  # whether every id that can be predicted is a noise id

    def __post_init__(self) -> None:
        if float(1 - self.schedule.alpha(torch.zeros((), device="cpu"))) > _CLEAN:
            raise ValueError(f"{self.schedule} leaves noise at t = 0, and no bound here pays for it: use one that begins clean")

    def levels(self, t: Tensor) -> Levels:
        """Signal, noise and rates at times t."""
        raise NotImplementedError

    def bind(self, vocab: Vocab) -> Self:
        banned = set() if self.every_id else set(vocab.unemittable)
        ids = self.ids or tuple(i for i in range(vocab.size) if i not in banned)
        if not 0 <= min(ids) <= max(ids) < vocab.size or len(set(ids)) < len(ids):
            raise ValueError(f"noise ids run from {min(ids)} to {max(ids)}: expected different ids below the model's {vocab.size} rows")
        bound = replace(self, ids=ids)
        predictable = set(range(vocab.size)) - set(vocab.unemittable)
        known = {"rows": vocab.size, "mask_id": self.absorbing(vocab), "covers": predictable <= set(ids)}
        for name, value in known.items():
            object.__setattr__(bound, name, value)
        return bound

    def absorbing(self, vocab: Vocab) -> int:
        """The id of the mask that is part of the noise, -1 when there is none."""
        return -1

    @cached_property
    def _tables(self) -> dict[torch.device, tuple[Tensor, Tensor]]:
        return {}

    def _table(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """The noise ids (K,), and which ids they are, (V,) bool; made once per device."""
        if device not in self._tables:
            ids = torch.tensor(self.ids, device=device)
            self._tables[device] = ids, torch.zeros(self.rows, dtype=torch.bool, device=device).index_fill(0, ids, True)
        return self._tables[device]

    def is_noise(self, tokens: Tensor) -> Tensor:
        """Whether tokens are among the noise ids, bool of their shape."""
        return self._table(tokens.device)[1][tokens]

    def noise_at(self, tokens: Tensor, levels: Levels) -> Tensor:
        """b_t at tokens, float64."""
        plain = torch.where(self.is_noise(tokens), levels.noise, 0.0)
        return torch.where(tokens == self.mask_id, levels.mask + plain, plain)

    def touch(self, x0: Tensor, touched: Tensor, t: Tensor, rng: Rng) -> Tensor:
        levels = self.levels(per_token(t))
        return x0.where(~touched, self._noise(x0, levels, rng))

    def _noise(self, like: Tensor, levels: Levels, rng: Rng) -> Tensor:
        """Draws (B, L) from b / (1 - alpha)."""
        ids = self._table(like.device)[0]
        drawn = ids[rng.integers("noise", like.shape[1:], len(ids))]
        share = levels.mask / (levels.mask + len(ids) * levels.noise).clamp_min(_TINY)
        return torch.where(rng.uniform("mask", like.shape[1:]) < share, self.mask_id, drawn)

    def _divergence(self, pred: Prediction, clean: Tensor, xt: Tensor, levels: Levels, where: Tensor) -> Divergence:
        """Between the true and the predicted law of the noised token at `levels`, each (B, L), for the tokens z = `xt`."""
        log_odds = levels.alpha.clamp_min(_TINY).log() - levels.noise.clamp_min(_TINY).log()
        ids = None if self.covers else self._table(xt.device)[0]
        terms = pred.terms(torch.stack([clean, xt], -1), where, log_odds, ids)
        at = Levels(*(level[where] for level in levels))
        x, z, (log_x, log_z) = clean[where], xt[where], terms.log_prob.double().unbind(-1)
        noise_x, noise_z = self.noise_at(x, at), self.noise_at(z, at)
        odds_x, odds_z = (at.alpha.clamp_min(_TINY).log() - b.clamp_min(_TINY).log() for b in (noise_x, noise_z))
        gain_x = F.softplus(log_x + odds_x)
        d_x = torch.where(noise_x > 0, F.softplus(odds_x) - gain_x, -log_x)
        others = terms.blended.double() - torch.where(self.is_noise(x), gain_x, 0.0)
        kl = (at.alpha + noise_x) * d_x - at.noise * others
        same = x == z
        d_z = torch.where(same, d_x, -F.softplus(log_z + odds_z))
        return Divergence(kl, d_z, torch.where(same, at.alpha + noise_x, noise_z))

    def nelbo_at(self, pred: Prediction, clean: Clean, xt: Tensor, t: Tensor, where: Tensor, s: Tensor | None = None) -> Tensor:
        """w_t(z)/q(z) [KL(q || r) + rho - log rho - 1], rho = q(z)/r(z) (GIDD's theorem 1, equal to UDLM's closed form), or the bin's KL;
        float64. Nothing is charged where z is no noise id, because then z is clean."""
        times = per_token(t) if s is not None else inside(per_token(t))
        at = self._levels(times, xt)
        asked = where & (self.noise_at(xt, at) > 0)
        if s is None:
            found = self._divergence(pred, clean.tokens, xt, at, asked)
            nats = self._rate(xt, at)[asked] / found.seen * (found.kl + torch.expm1(found.log_ratio) - found.log_ratio)
        else:
            nats = self._bin(pred, clean.tokens, xt, at, self._levels(per_token(s), xt), asked)
        return torch.zeros(xt.shape, dtype=torch.float64, device=xt.device).masked_scatter(asked, nats)

    def _levels(self, t: Tensor, like: Tensor) -> Levels:
        return Levels(*(level.expand(like.shape) for level in self.levels(t)))

    def _rate(self, xt: Tensor, at: Levels) -> Tensor:
        """Forward rate of jumps into the tokens seen, (B, L)."""
        return torch.where(xt == self.mask_id, at.mask_rate, 0.0) + torch.where(self.is_noise(xt), at.noise_rate, 0.0)

    def _bin(self, pred: Prediction, clean: Tensor, xt: Tensor, at: Levels, before: Levels, asked: Tensor) -> Tensor:
        """KL( q(xs | z, x) || p(xs | z) ): the posterior is a mixture of "it was z already" and "noise made it z"."""
        now = self._divergence(pred, clean, xt, at, asked)
        then = self._divergence(pred, clean, xt, before, asked)
        kept = (at.alpha / before.alpha)[asked]
        jumped = self.noise_at(xt, at)[asked] - kept * self.noise_at(xt, before)[asked]
        stayed = torch.where(then.seen > 0, kept * then.seen * then.log_ratio, 0.0)
        return (jumped * then.kl + stayed) / now.seen - now.log_ratio

    def boundary(self, predict: Predict, clean: Clean, where: Tensor, rng: Rng, t_min: float) -> Tensor:
        """The bin (0, t_min), and KL( q(x1 | x0) || prior ) where alpha(1) > 0."""
        times = clean.x.new_tensor([t_min, 0.0], dtype=torch.float64)
        first, zero = (time.expand(len(clean.x)) for time in times)
        xt = self.corrupt(clean.x, first, rng).where(where, clean.x)
        nats = self.nelbo_at(predict(xt, first), clean, xt, first, where, s=zero)
        end = self._levels(torch.ones_like(first)[:, None], clean.x)
        noise = self.noise_at(clean.tokens, end)
        share = (noise / (1 - end.alpha)).clamp_min(_TINY)  # of the clean token in the prior
        kl = torch.xlogy(end.alpha + noise, (end.alpha + noise) / share) + torch.xlogy(1 - end.alpha - noise, 1 - end.alpha)
        return nats + kl.where(where & (end.alpha > 0), 0.0)

    def cross_entropy(self, pred: Prediction, clean: Clean, xt: Tensor, t: Tensor, where: Tensor) -> Tensor:
        """Bayes' rule on the leave-one-out prediction: q(z | x) p_x / (alpha p_z + b_z)."""
        at = self._levels(inside(per_token(t)), xt)
        asked = where & (self.noise_at(xt, at) > 0)
        log_x, log_z = pred.terms(torch.stack([clean.tokens, xt], -1), asked).log_prob.double().unbind(-1)
        alpha, noise, same = at.alpha[asked], self.noise_at(xt, at)[asked], (clean.tokens == xt)[asked]
        seen = torch.where(same, alpha + noise, noise).log()
        nats = torch.logaddexp(alpha.log() + log_z, noise.log()) - seen - log_x
        return torch.zeros(xt.shape, dtype=torch.float64, device=xt.device).masked_scatter(asked, nats)

    def weight(self, clean: Clean, xt: Tensor, t: Tensor) -> Tensor:
        """w_t(z) / q(z), what the divergence counts in the bound, (B, L); zero where z is no noise id."""
        at = self._levels(inside(per_token(t)), xt)
        seen = self.noise_at(xt, at) + torch.where(xt == clean.tokens, at.alpha, 0.0)
        return self._rate(xt, at) / seen.clamp_min(_TINY)

    def emission(self, xt: Tensor, t: Tensor, states: int) -> Tensor:
        at = self._levels(per_token(t), xt)
        same = xt[..., None] == torch.arange(states, device=xt.device)
        return at.alpha[..., None] * same + self.noise_at(xt, at)[..., None]

    def surprise(self, xt: Tensor, t: Tensor) -> Tensor:
        at = self._levels(inside(per_token(t)), xt)
        noise = self.noise_at(xt, at)
        return torch.where(noise > 0, torch.log1p(at.alpha / noise.clamp_min(_TINY)), 0.0)

    def changes(self, xt: Tensor, t: Tensor, s: Tensor, rng: Rng) -> Tensor:
        """Where the step's uniform number is below b_ts / b_t: no prediction makes a change likelier than that."""
        at, before = self.levels(per_token(t)), self.levels(per_token(s))
        noise, then = self.noise_at(xt, at), self.noise_at(xt, before)
        jumped = noise - at.alpha / before.alpha * then
        return rng.uniform("route", xt.shape[1:]) * noise < jumped

    def step(self, pred: Prediction, xt: Tensor, t: Tensor, s: Tensor, rng: Rng) -> Tensor:
        """Keep the token, draw a clean one from the prediction, or draw noise: the exact posterior without its (B, L, V) table."""
        asked = self.changes(xt, t, s, rng)
        at, before = self._levels(per_token(t), xt), self.levels(per_token(s))
        noise, kept = self.noise_at(xt, at), at.alpha / before.alpha
        log_z = pred.log_prob(xt, asked).double()
        total = noise.masked_scatter(asked, noise[asked] + at.alpha[asked] * log_z.exp())
        jumped = noise - kept * self.noise_at(xt, before)
        route = rng.uniform("route", xt.shape[1:]) * total
        is_clean = asked & (route < jumped * before.alpha)
        is_noise = asked & ~is_clean & (route < jumped)
        xs = xt.masked_scatter(is_clean, pred.draw(is_clean, rng)[0])
        return torch.where(is_noise, self._noise(xt, before, rng), xs)

    def log_posterior(self, pred: Prediction, xt: Tensor, t: Tensor, s: Tensor, where: Tensor) -> Tensor:
        at, before = self._levels(per_token(t), xt), self._levels(per_token(s), xt)
        z = xt[where][:, None]
        alpha, kept = before.alpha[where][:, None], (at.alpha / before.alpha)[where][:, None]
        smoothed = alpha * pred.logits(where).double().softmax(-1) + self._noise_table(Levels(*(x[where] for x in before)))
        jumped = (self.noise_at(xt, at) - at.alpha / before.alpha * self.noise_at(xt, before))[where][:, None]
        joint = jumped * smoothed
        joint = joint.scatter_add(-1, z, kept * smoothed.gather(-1, z))
        return (joint / joint.sum(-1, keepdim=True)).log()

    def log_ratio(self, pred: Prediction, xt: Tensor, t: Tensor, where: Tensor) -> Tensor:
        at = self._levels(per_token(t), xt)
        at = Levels(*(level[where] for level in at))
        smoothed = (at.alpha[:, None] * pred.logits(where).double().softmax(-1) + self._noise_table(at)).log()
        return smoothed - smoothed.gather(-1, xt[where][:, None])

    def _noise_table(self, at: Levels) -> Tensor:
        """b_t over the vocabulary, (N, V) float64."""
        ids, among = self._table(at.noise.device)
        table = at.noise[:, None] * among
        return table if self.mask_id < 0 else table.index_add(-1, ids.new_tensor([self.mask_id]), at.mask[:, None])
