"""Uniform noise: UDLM (Schiff et al. 2024), SEDD-uniform (Lou et al. 2024), Duo (Sahoo et al. 2025), D3PM-uniform (Austin et al. 2021).

q(xt | x0) keeps a token with probability alpha_t and replaces it by a uniformly random one of the K noise ids otherwise, which may be the
same again. Tokens can therefore change more than once, and a wrong one can be mended later. The bound is UDLM's closed form
    -alpha'/(K alpha) sum over j != z of B(r_j, s_j),  B(r, s) = r log(r / s) - r + s,
with r and s the ratios of the true and the predicted law at j and at the token z seen, evaluated as in `Interpolating`; the network should
know the noise level. A score model gives the s_j directly, and the same sum is SEDD's score entropy.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from textdiff.batch import Clean
from textdiff.prediction import Prediction, ScorePrediction
from textdiff.processes.base import per_token
from textdiff.processes.interpolating import Interpolating, Levels
from textdiff.schedules import inside


@dataclass(frozen=True)
class Uniform(Interpolating):
    """b_t = (1 - alpha_t) / K on each of the K noise ids."""

    def levels(self, t: Tensor) -> Levels:
        alpha, dalpha, ids = self.alpha(t), self.dalpha(t), len(self.ids)
        none = torch.zeros_like(alpha)
        return Levels(alpha, (1 - alpha) / ids, none, -dalpha / (ids * alpha), none)

    def nelbo_at(self, pred: Prediction, clean: Clean, xt: Tensor, t: Tensor, where: Tensor, s: Tensor | None = None) -> Tensor:
        if not isinstance(pred, ScorePrediction):
            return super().nelbo_at(pred, clean, xt, t, where, s)
        if s is not None:
            raise ValueError("a score model has no T-step bound: its ratios need not belong to a law")
        return self._score_entropy(pred, clean.tokens, xt, t, where & self.is_noise(xt) & self.is_noise(clean.tokens))

    def _score_entropy(self, pred: ScorePrediction, clean: Tensor, xt: Tensor, t: Tensor, where: Tensor) -> Tensor:
        """The sum over j != z of s_j - r_j log s_j + r_j (log r_j - 1), with log s_j = logit_j, and s_z = 1."""
        at = Levels(*(level[where] for level in self._levels(inside(per_token(t)), xt)))
        x, z, count = clean[where], xt[where], len(self.ids)
        log_y, log_total = (part.double() + pred.offset for part in pred.scores(torch.stack([clean, xt], -1), where))
        log_x, log_z = log_y.unbind(-1)
        ids = self._table(xt.device)[0]
        logs = pred.total(ids, where).double() + count * pred.offset
        same = x == z
        top = torch.log1p(at.alpha / at.noise)  # log of r_x when z is not x
        low = torch.where(same, -top, 0.0)  # log r_j of every other j
        others = count - 1 - (~same).double()
        mean = low.exp() * (logs - log_z - torch.where(same, 0.0, log_x)) + torch.where(same, 0.0, top.exp() * log_x)
        entropy = others * low.exp() * (low - 1) + torch.where(same, 0.0, top.exp() * (top - 1))
        nats = at.noise_rate * (log_total.exp() - log_z.exp() - mean + entropy)
        return torch.zeros(xt.shape, dtype=torch.float64, device=xt.device).masked_scatter(where, nats)

    def log_ratio(self, pred: Prediction, xt: Tensor, t: Tensor, where: Tensor) -> Tensor:
        if not isinstance(pred, ScorePrediction):
            return super().log_ratio(pred, xt, t, where)
        return pred.logits(where).double().scatter(-1, xt[where][:, None], 0.0)
