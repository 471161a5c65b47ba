"""Ancestral sampling: one reverse step of the process for each pair of times (DDPM; MDLM and UDLM call it so too)."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch

from textdiff.batch import Batch
from textdiff.processes.base import Denoiser, keep_known
from textdiff.randomness import Rng
from textdiff.samplers.base import Canvas, Sampler, require_steps, start


@dataclass(frozen=True)
class Ancestral(Sampler):
    """`steps` equal steps from t = 1 to t = 0; its law is the denoiser's as steps grow.

    When the process knows beforehand which positions a step can change, only rows with such a position are run through the network,
    and the vocabulary is projected at those positions only: the same law for a fraction of the work.
    """

    law: ClassVar[str] = "limit"
    steps: int = 128

    def __post_init__(self) -> None:
        require_steps(self.steps)

    @torch.no_grad()
    def trajectory(self, denoiser: Denoiser, batch: Batch, rng: Rng) -> Iterator[Canvas]:
        self.check(denoiser)
        canvas, known, target = start(denoiser, batch, rng)
        predictor, process = denoiser.predictor(batch), denoiser.process
        yield canvas
        times = torch.linspace(1, 0, self.steps + 1, dtype=torch.float64, device=known.device)
        for i, (t, s) in enumerate(pairwise(times)):
            step_rng, rows_t, rows_s = rng.draw(i), t.expand(len(known)), s.expand(len(known))
            changes = process.changes(canvas.x, rows_t, rows_s, step_rng)
            rows = target.any(1) if changes is None else (changes & target).any(1)
            index = rows.nonzero()[:, 0]
            x, nfe = canvas.x, canvas.nfe
            if len(index):
                xt, rows_t, rows_s = x[index], rows_t[index], rows_s[index]
                pred = predictor.rows(index)(xt, rows_t)
                xs = process.step(pred, xt, rows_t, rows_s, step_rng.rows(index))
                x, nfe = x.index_copy(0, index, keep_known(xs, known[index], target[index])), nfe + rows * pred.calls
            settled = ~target | process.settled(x)
            canvas = Canvas(x, float(s), nfe, settled if s > 0 else torch.ones_like(settled))
            yield canvas
