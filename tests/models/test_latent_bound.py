import itertools
from dataclasses import replace
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor

from tests.models.tiny import EOS, TEXT, lone, trunk
from tests.models.tiny_latents import BOS, FIRST, SECOND, SETTINGS, SIZES, model, ragged
from textdiff.batch import Batch
from textdiff.log_snr import LinearLogSNR
from textdiff.models.autoencoder import Text
from textdiff.models.latent import LatentDiffusionLM, Vectors
from textdiff.processes.gaussian import Gaussian
from textdiff.randomness import Rng


class LinearGaussian:
    """The optimal denoiser of latents that follow N(centre, variance I): what a trained one would be, were that their law."""

    def __init__(self, process: Gaussian, centre: float, variance: float) -> None:
        self.process, self.centre, self.variance = process, centre, variance

    def __call__(self, xt: Tensor, t: Tensor, previous: Any = None) -> Vectors:
        a, s = self.process.levels(t)
        gain = a * self.variance / (a**2 * self.variance + s**2)
        return Vectors(self.centre + gain * (xt - a * self.centre))


CENTRE, VARIANCE, LOW = 0.3, 0.6, -1.0


def toy(
    autoregressive: bool, monkeypatch: pytest.MonkeyPatch, centre: float = CENTRE, variance: float = VARIANCE, high: float = 15.0
) -> LatentDiffusionLM:
    """Texts of two tokens through one latent of two numbers, whose law under the model is known: N(0, I) is that of noise at any level,
    another law needs `high` noise to become it."""
    sizes = replace(SIZES, length=2, latents=1, latent_width=2, autoregressive=autoregressive)
    found = model(sizes=sizes, process=Gaussian(LinearLogSNR(LOW, high)))
    monkeypatch.setattr(found, "predictor", lambda batch, process: LinearGaussian(process, centre, variance))
    return found  # type: ignore[no-any-return]


def grid(centre: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Gauss-Hermite points (N, 1, 2) and weights (N,) of N(centre, variance I)."""
    points, weights = (torch.from_numpy(x) for x in numpy.polynomial.hermite_e.hermegauss(40))
    pairs = torch.cartesian_prod(points, points) * variance.sqrt() + centre
    return pairs[:, None], torch.cartesian_prod(weights, weights).prod(1) / (2 * torch.pi)


def log_likelihoods(found: LatentDiffusionLM, z: Tensor, tokens: Tensor) -> Tensor:
    """log p(tokens (2,) | z (N, 1, 2)), (N,)."""
    text = Text(tokens.expand(len(z), -1), torch.ones(len(z), 2, dtype=torch.bool))
    return found.autoencoder.reads(z, text).log_prob(text.tokens, text.attend).view(-1, 2).sum(1)


@pytest.mark.parametrize(("autoregressive", "centre", "variance", "high"), [(False, CENTRE, VARIANCE, 15.0), (True, 0.0, 1.0, 1.0)])
@torch.no_grad()
def test_the_bound_is_reconstruction_plus_divergence_and_above_the_exact_likelihood(
    autoregressive: bool, centre: float, variance: float, high: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the optimal denoiser the diffusion and prior terms are KL( q(z | text) || p(z) ) at t_min, of two normal laws."""
    found, rows = toy(autoregressive, monkeypatch, centre, variance, high), 4_000
    a, s = (float(x) for x in found.process.levels(torch.zeros(1)))
    tokens = torch.tensor([3, EOS])
    latent = found._latents(Text(tokens[None], torch.ones(1, 2, dtype=torch.bool)))[0, 0]
    z, weight = grid(a * latent, torch.tensor(s**2))
    reconstruction = -(log_likelihoods(found, z, tokens) * weight).sum()
    q = torch.distributions.Normal(a * latent, s)
    p = torch.distributions.Normal(torch.full((2,), a * centre), (a**2 * variance + s**2) ** 0.5)
    expected = float(reconstruction + torch.distributions.kl_divergence(q, p).sum())
    batch = Batch.of(torch.tensor([BOS, 3, EOS]).expand(rows, -1), torch.tensor([False, True, True]).expand(rows, -1))
    nats = torch.cat([found.nll(batch, Rng(seed, 0, batch.sample_id)) for seed in range(3)])
    assert abs(float(nats.mean()) - expected) < 3 * float(nats.std()) / len(nats) ** 0.5
    z, weight = grid(torch.full((2,), a * centre), torch.tensor(a**2 * variance + s**2))
    exact = -torch.log((log_likelihoods(found, z, tokens).exp() * weight).sum())
    assert float(exact) < expected


@torch.no_grad()
def test_the_exact_likelihoods_sum_to_one_and_none_is_above_its_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    found = toy(False, monkeypatch)
    a, s = (float(x) for x in found.process.levels(torch.zeros(1)))
    z, weight = grid(torch.full((2,), a * CENTRE), torch.tensor(a**2 * VARIANCE + s**2))
    texts = torch.tensor(list(itertools.product(range(TEXT), repeat=2)))
    exact = torch.stack([(log_likelihoods(found, z, text).exp() * weight).sum() for text in texts])
    torch.testing.assert_close(exact.sum(), torch.ones((), dtype=torch.float64))
    repeated = torch.nn.functional.pad(texts, (1, 0)).repeat_interleave(100, 0)
    batch = Batch.of(repeated, torch.tensor([False, True, True]).expand(len(repeated), -1))
    nats = found.nll(batch, Rng(0, 0, batch.sample_id)).view(-1, 100)
    error = nats.std(1) / 10
    assert bool((nats.mean(1) + 3 * error > -exact.log()).all())


@SETTINGS
def test_likelihoods_and_losses_do_not_depend_on_padding(backbone: Any, self_conditioning: float) -> None:
    found, batch = model(backbone=backbone, self_conditioning=self_conditioning), ragged(backbone)
    nats = found.nll(batch, Rng(0, 0, batch.sample_id))
    totals = {progress: torch.zeros((), dtype=torch.float64) for progress in (FIRST, SECOND)}
    for row in range(3):
        single = lone(batch, row)
        if backbone.encoder_layers:
            n = int(single.source_attend.sum())
            single = single._replace(source=single.source[:, :n], source_attend=single.source_attend[:, :n])
        torch.testing.assert_close(found.nll(single, Rng(0, 0, single.sample_id))[0], nats[row])
        for progress in totals:
            totals[progress] += found(single, 0, 0, progress).total.detach()
    for progress, total in totals.items():
        torch.testing.assert_close(found(batch, 0, 0, progress).total.detach(), total)


def test_the_source_is_read_where_it_is_attended_to() -> None:
    backbone = trunk(encoder_layers=1)
    found, batch = model(backbone=backbone), ragged(backbone)
    nats = found.nll(batch, Rng(0, 0, batch.sample_id))
    elsewhere = batch._replace(source=batch.source.where(batch.source_attend, 5))
    torch.testing.assert_close(found.nll(elsewhere, Rng(0, 0, batch.sample_id)), nats)
    changed = batch._replace(source=batch.source.where(~batch.source_attend, 6))
    assert bool((found.nll(changed, Rng(0, 0, batch.sample_id)) != nats).all())
