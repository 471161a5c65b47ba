"""The bound of vectors under Gaussian noise, in two parts: the diffusion term at one time, and what stands at both ends of time."""

from collections.abc import Callable

import torch
from torch import Tensor

from textdiff.batch import Batch, Clean
from textdiff.models.base import PILOT, PILOT_DRAWS, LanguageModel
from textdiff.models.time_allocation import Allocation, allocated_mean
from textdiff.processes.base import Noising, Predict
from textdiff.processes.gaussian import Gaussian
from textdiff.randomness import Rng


class GaussianBound:
    """The bound on a batch of clean states whose positions `where` (B, L) are noised; `ends` draws the rest of it, (B,) nats."""

    def __init__(self, process: Gaussian, predict: Predict, clean: Clean, where: Tensor, ends: Callable[[Rng], Tensor]) -> None:
        self.process, self.predict, self.clean, self.where, self.ends = process, predict, clean, where, ends

    def diffusion(self, noising: Noising, rng: Rng, stratum: Tensor) -> tuple[Tensor, Tensor]:
        """A time of each row and its draw of the diffusion term, (B,) each."""
        noised = noising(self.process, self.clean.x, self.where, stratum, rng)
        nats = self.process.nelbo_at(self.predict(noised.xt, noised.t), self.clean, noised.xt, noised.t, self.where)
        return noised.t, nats.double().sum(1) * noised.weight

    def draw(self, rng: Rng, draw: int, draws: int) -> Tensor:
        """(B,) nats at a time of the `draw`-th of `draws` strata."""
        stratum = torch.tensor([draw, draws], device=self.where.device).expand(len(self.where), 2)
        return self.diffusion(self.process.measure, rng, stratum)[1] + self.ends(rng)

    def mean(self, index: Tensor, seed: int, draws: int, allocation: Allocation | None) -> Tensor:
        """(B,) nats, the mean of `draws` draws at times of the allocation, for sequences `index` (B,)."""
        noising = self.process.measure if allocation is None else allocation
        return allocated_mean(lambda rng, stratum: self.diffusion(noising, rng, stratum)[1], self.ends, index, seed, draws)

    def pilot(self, rng: Rng, draws: int) -> Allocation:
        """What `draws` draws for each row say of where the diffusion term is; `rng` must not be that of a score."""
        rows, targets = torch.arange(len(self.where), device=self.where.device), self.where.sum(1)
        made = []
        for k in range(draws):
            stratum = torch.stack([rows * draws + k, torch.full_like(rows, len(rows) * draws)], dim=1)
            made.append(self.diffusion(self.process.measure, rng.draw(k), stratum))
        t, nats = (torch.cat(column) for column in zip(*made, strict=True))
        return Allocation.fitted(t, nats / targets.clamp_min(1).repeat(draws))


class GaussianLikelihood(LanguageModel):
    """A model whose nats are such a bound."""

    def bound(self, batch: Batch) -> GaussianBound:
        """That of a batch, in parts."""
        raise NotImplementedError

    @torch.no_grad()
    def nll(self, batch: Batch, rng: Rng, draw: int = 0, draws: int = 1) -> Tensor:
        """One draw of the bound: the diffusion term at one time, the reconstruction at t_min and the prior's divergence."""
        return self.bound(batch).draw(rng, draw, draws)

    @torch.no_grad()
    def pilot(self, batch: Batch, seed: int, draws: int) -> Allocation:
        """Where in time the diffusion term is."""
        return self.bound(batch).pilot(Rng(seed, PILOT, batch.sample_id), PILOT_DRAWS)

    @torch.no_grad()
    def mean_nll(self, batch: Batch, seed: int, draws: int, pilot: Allocation | None = None) -> Tensor:
        """Of stratified times, most of them where the diffusion term is, with few draws of the reconstruction."""
        return self.bound(batch).mean(batch.sample_id, seed, draws, pilot)
