"""First-hitting sampling of masked diffusion (Zheng et al. 2024): the exact law of infinitely many steps in one call per token."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch

from textdiff.batch import Batch
from textdiff.processes.base import Denoiser
from textdiff.processes.masked import Masked
from textdiff.randomness import Rng
from textdiff.samplers.base import Canvas, Sampler, start


@dataclass(frozen=True)
class FirstHitting(Sampler):
    """With n masks left the next one falls at 1 - alpha <- (1 - alpha) * U^(1/n), at a uniformly random masked position.

    Every row keeps its own clock, so a batch may be ragged; a row costs as many calls as it has targets.
    """

    requires: ClassVar[type[Masked]] = Masked
    law: ClassVar[str] = "exact"

    @torch.no_grad()
    def trajectory(self, denoiser: Denoiser, batch: Batch, rng: Rng) -> Iterator[Canvas]:
        self.check(denoiser)
        process = denoiser.process
        assert isinstance(process, Masked)
        canvas, _, target = start(denoiser, batch, rng)
        predictor, remaining = denoiser.predictor(batch), target
        noise = torch.ones(len(target), dtype=torch.float64, device=target.device)  # 1 - alpha of each row
        yield canvas
        for i in range(int(target.sum(1).max())):
            step_rng = rng.draw(i)
            count = remaining.sum(1)
            rows = count > 0
            noise = torch.where(rows, noise * step_rng.uniform("hit", ()) ** (1 / count.clamp_min(1).double()), noise)
            chosen = step_rng.uniform("position", target.shape[1:]).masked_fill(~remaining, -1.0).argmax(1)
            revealed = torch.zeros_like(target).scatter(1, chosen[:, None], True) & remaining
            index = rows.nonzero()[:, 0]
            pred = predictor.rows(index)(canvas.x[index], process.schedule.inverse(1 - noise[index]))
            drawn, _ = pred.draw(revealed[index], step_rng.rows(index))
            remaining = remaining & ~revealed
            left = float(remaining.sum() / target.sum())
            canvas = Canvas(canvas.x.masked_scatter(revealed, drawn), left, canvas.nfe + rows * pred.calls, ~remaining)
            yield canvas
