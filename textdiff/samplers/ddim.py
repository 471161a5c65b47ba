"""DDIM (Song et al. 2021) between any two times: deterministic at eta = 0, ancestral sampling at eta = 1."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from textdiff.randomness import Rng
from textdiff.samplers.continuous import Belief, Solver, Walk


@dataclass(frozen=True)
class DDIM(Solver):
    """xs = a_s x0hat + sqrt(s_s^2 - eta^2 var) epshat + eta sqrt(var) z, with var that of q(xs | xt, x0) (DDIM, eq. 12).

    Whatever eta and however few the steps, xs follows q(xs | x0) when x0hat is the true x0.
    """

    law: ClassVar[str] = "limit"
    eta: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta is {self.eta}, expected 0 (deterministic) to 1 (ancestral)")

    def move(self, walk: Walk, now: Belief, before: Belief | None, xt: Tensor, s: Tensor, rng: Rng) -> Tensor:
        variance = self.eta**2 * walk.process.posterior(now.x0, xt, now.t, s).variance
        a, sigma = walk.process.levels(s)
        noise = walk.process.noise_of(now.x0, xt, now.t)
        xs = a.to(xt.dtype) * now.x0 + (sigma**2 - variance).clamp(min=0).sqrt().to(xt.dtype) * noise
        return xs + variance.sqrt().to(xt.dtype) * rng.normal("step", xt.shape[1:]).to(xt.dtype) if self.eta else xs
