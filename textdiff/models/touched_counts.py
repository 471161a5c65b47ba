"""A bound of uniform or hybrid diffusion from importance-sampled counts of touched tokens: optimal allocation of times, without a pilot.

Noise touches k of n targets, k uniform on 0..n (processes.exact_count), and the spread of the integrand g(k) falls steeply with k: few
touched tokens stand for all. Neyman's allocation draws k as often as its spread is large, and g(k) counts with weight 1 / ((n + 1) q(k)),
which keeps the mean. The law and the line that takes out what the weights add to the spread are those of mask counts, shifted by the
k = 0 that masks lack.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from textdiff.batch import Batch, Clean
from textdiff.models.mask_counts import FEWEST_DRAWS, controlled_mean, count_law, line_through_others
from textdiff.models.objective import Bound
from textdiff.processes.base import Denoiser
from textdiff.processes.exact_count import ExactCount
from textdiff.processes.interpolating import Interpolating
from textdiff.randomness import Rng


@dataclass(frozen=True)
class TouchedCounts:
    """The estimator from `draws` forwards per sequence, 4 or more; each sequence's estimate is unbiased and depends on it alone."""

    draws: int = 16

    def __post_init__(self) -> None:
        if self.draws < FEWEST_DRAWS:
            raise ValueError(f"draws is {self.draws}, expected {FEWEST_DRAWS} or more: a line cannot be fitted to fewer; use nll instead")

    @torch.no_grad()
    def __call__(self, model: Denoiser, batch: Batch, rng: Rng) -> Tensor:
        """(B,) nats over the targets; raises ValueError when the model's process is neither uniform nor hybrid noise."""
        process, clean = model.process, Clean(batch.tokens, batch.tokens)
        if not isinstance(process, Interpolating):
            raise ValueError(
                f"TouchedCounts is for uniform and hybrid noise and this is {type(process).__name__}: use the model's nll instead"
            )
        predict, law = model.predictor(batch), count_law(batch.target.sum(1) + 1)
        counts, nats = [], []
        for j in range(self.draws):
            stream = rng.draw(j)
            level = (j + stream.uniform("count", ())) / self.draws
            k = (law.cumsum(1) < level[:, None]).sum(1).minimum(batch.target.sum(1))
            noised = ExactCount.with_count(process, batch.tokens, batch.target, k, stream)
            pred = predict(noised.xt, noised.t)
            counts.append(k + 1)
            nats.append(Bound()(process, pred, clean, noised, batch.target)[1].double().sum(1))
        place, g = torch.stack(counts, 1), torch.stack(nats, 1)
        return controlled_mean(law, place, g, line_through_others(law, place, g))
