import itertools
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor

import textdiff
from tests.models.tiny import EOS, PAD, TEXT, VOCAB, lone, trunk
from textdiff.batch import Batch
from textdiff.log_snr import LinearLogSNR
from textdiff.models.autoencoder import VAE, AutoencoderConfig, Plain, PosteriorCollapseWarning, SlicedWasserstein, Text
from textdiff.models.latent import LatentDiffusion, LatentDiffusionLM, Vectors
from textdiff.models.reading import Noise, State, Target, Velocity
from textdiff.processes.gaussian import Gaussian
from textdiff.randomness import Rng
from textdiff.samplers.ddim import DDIM

LENGTH, BOS = 4, 0
SIZES = AutoencoderConfig(length=LENGTH, latents=3, latent_width=4, width=16, layers=1, heads=2)
FIRST, SECOND = 0.1, 0.9  # progress inside the two stages
SETTINGS = pytest.mark.parametrize(
    ("backbone", "self_conditioning"), [(trunk(), 0.0), (trunk(encoder_layers=1), 0.5), (trunk(labels=6), 0.0)]
)


def model(seed: int = 0, sizes: AutoencoderConfig = SIZES, **options: Any) -> Any:
    """In double precision, with weights so large that everything matters."""
    built = LatentDiffusion(**{"autoencoder": sizes, "backbone": trunk(), **options}).build(VOCAB)
    generator = torch.Generator().manual_seed(seed)
    for parameter in built.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.35, generator=generator)
    return built.double().eval()


def ragged(backbone: Any = None) -> Batch:
    attend = torch.arange(5) < torch.tensor([5, 3, 4])[:, None]
    tokens = torch.tensor([[BOS, 1, 5, 2, EOS], [BOS, 3, EOS, PAD, PAD], [BOS, 4, 4, EOS, PAD]])
    target = attend.clone()
    target[:, 0] = False
    source, source_attend = None, None
    if backbone is not None and backbone.encoder_layers:
        source = torch.tensor([[1, 2, 3], [4, 5, PAD], [2, PAD, PAD]])
        source_attend = source != PAD
    elif backbone is not None and backbone.labels:
        source = torch.tensor([[2], [0], [5]])
    stratum = torch.tensor([[2, 8], [0, 8], [7, 8]])
    ids = torch.tensor([11, 4, 29])
    return Batch.of(tokens, target, attend, source=source, source_attend=source_attend, sample_id=ids, stratum=stratum)


def gradients(module: torch.nn.Module) -> list[Tensor | None]:
    return [parameter.grad for parameter in module.parameters()]


def all_zero(module: torch.nn.Module) -> bool:
    return all(gradient is not None and not bool(gradient.any()) for gradient in gradients(module))


# The bound.


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


# The two stages.


@SETTINGS
def test_gradients_stay_in_their_stage_and_every_weight_takes_part(backbone: Any, self_conditioning: float) -> None:
    found, batch = model(backbone=backbone, self_conditioning=self_conditioning).train(), ragged(backbone)
    denoiser = torch.nn.ModuleList([found.backbone, found.ports])
    found(batch, 0, 0, FIRST).total.backward()
    assert all_zero(denoiser)
    assert all(gradient is not None and bool(gradient.any()) for gradient in gradients(found.learning.narrow))
    assert bool(found.learning.writer.embedding.weight.grad.any())
    found.zero_grad()
    found(batch, 0, 1, SECOND).total.backward()
    assert all_zero(found.learning)
    assert all(gradient is not None for gradient in gradients(denoiser))
    assert bool(found.ports.read.weight.grad.any())
    assert all(gradient is None for gradient in gradients(found.autoencoder))


def test_the_second_stage_leaves_the_autoencoder_as_it_is_whatever_the_optimizer_does() -> None:
    found, batch = model().train(), ragged()
    optimizer = torch.optim.AdamW([p for p in found.parameters() if p.requires_grad], lr=0.1, weight_decay=0.5)
    kept: dict[str, Tensor] = {}
    for step in range(4):
        if step == 2:
            kept = {name: value.clone() for name, value in found.autoencoder.state_dict().items()}
        optimizer.zero_grad()
        found(batch, 0, step, FIRST if step < 2 else SECOND).total.backward()
        optimizer.step()
    assert all(torch.equal(value, kept[name]) for name, value in found.autoencoder.state_dict().items())


def test_weights_are_averaged_once_a_step_and_only_in_training() -> None:
    found, batch = model(), ragged()
    before = {name: value.clone() for name, value in found.state_dict().items()}
    found(batch, 0, 0, FIRST)
    assert all(torch.equal(value, before[name]) for name, value in found.state_dict().items())
    found.train()
    found(batch, 0, 1, FIRST)
    once = {name: value.clone() for name, value in found.state_dict().items()}
    assert any(not torch.equal(value, before[name]) for name, value in once.items())
    found(batch, 0, 1, FIRST)
    assert all(torch.equal(value, once[name]) for name, value in found.state_dict().items())


def test_dropout_does_not_blur_the_latents_of_the_second_stage() -> None:
    found = model(sizes=replace(SIZES, dropout=0.5)).train()
    text = found._text(ragged())
    torch.testing.assert_close(found._latents(text), found._latents(text), rtol=0.0, atol=0.0)


@pytest.mark.parametrize("target", [State(), Noise(), Velocity()])
def test_the_loss_is_the_squared_error_of_what_is_predicted(target: Target) -> None:
    found, batch = model(target=target), ragged()
    loss = found(batch, 3, 5, SECOND)
    text, rng, process = found._text(batch), Rng(3, 5, batch.sample_id), found.process
    latents = found._latents(text)
    everywhere = torch.ones(latents.shape[:2], dtype=torch.bool)
    noised = process.measure(process, latents, everywhere, batch.stratum, rng)
    believed = found.predictor(batch).alone(noised.xt, noised.t).state()
    error = latents - believed
    if isinstance(target, Noise):
        error = process.noise_of(latents, noised.xt, noised.t) - process.noise_of(believed, noised.xt, noised.t)
    elif isinstance(target, Velocity):
        error = process.velocity_of(latents, noised.xt, noised.t) - process.velocity_of(believed, noised.xt, noised.t)
    expected = (error.square().mean((1, 2)) * torch.tensor([4, 2, 3])).sum()
    torch.testing.assert_close(loss.total, expected)
    assert int(loss.tokens) == 9


def test_a_fresh_self_conditioned_model_ignores_what_it_believed() -> None:
    found = LatentDiffusion(SIZES, backbone=trunk(), self_conditioning=0.5).build(VOCAB).double()
    assert found.ports.read_previous is not None
    predict, xt = found.predictor(ragged()), torch.randn(3, 3, 4, dtype=torch.float64)
    t = torch.full((3,), 0.5, dtype=torch.float64)
    torch.testing.assert_close(predict(xt, t).state(), predict.alone(xt, t).state())
    torch.nn.init.ones_(found.ports.read_previous.weight)
    torch.nn.init.normal_(found.ports.write.weight)
    assert not torch.equal(predict(xt, t).state(), predict.alone(xt, t).state())


def test_strong_regularisation_collapses_the_posterior_and_is_reported() -> None:
    texts = torch.tensor([[BOS, 1 + i % 5, 1 + i // 5, EOS] for i in range(10)])
    batch = Batch.of(texts, torch.tensor([False, True, True, True]).expand(10, -1))

    def trained(regulariser: Any) -> dict[str, float]:
        torch.manual_seed(0)
        found = LatentDiffusion(replace(SIZES, width=32, regulariser=regulariser), backbone=trunk()).build(VOCAB).train()
        optimizer = torch.optim.AdamW([p for p in found.parameters() if p.requires_grad], lr=5e-3)
        for step in range(80):
            optimizer.zero_grad()
            loss = found(batch, 0, step, 0.39 * step / 80)
            loss.total.backward()
            optimizer.step()
        return {name: float(value) / 30 for name, value in loss.metrics.items()}

    with pytest.warns(PosteriorCollapseWarning, match="0 of 12 numbers are active"):
        collapsed = trained(VAE(beta=1000.0))
    assert collapsed["active_units"] == 0
    assert collapsed["latent_divergence"] < 0.01
    with warnings.catch_warnings(action="error"):
        for healthy in (VAE(beta=1e-4), SlicedWasserstein(weight=0.1)):
            metrics = trained(healthy)
            assert metrics["reconstruction_accuracy"] > 0.8
            assert metrics["active_units"] >= 4


# Writing.


def fitted(first: int, second: int) -> tuple[LatentDiffusionLM, Batch]:
    """A model of four texts after so many steps of the two stages."""
    texts = torch.tensor([[BOS, 1, 2, 3, EOS], [BOS, 4, 4, EOS, EOS], [BOS, 5, EOS, EOS, EOS], [BOS, 3, 2, 1, EOS]])
    torch.manual_seed(0)
    sizes = replace(SIZES, latent_width=8, width=32)
    found = LatentDiffusion(sizes, Gaussian(LinearLogSNR(-3.0, 6.0)), trunk(width=48, layers=2)).build(VOCAB).train()
    optimizer = torch.optim.AdamW([p for p in found.parameters() if p.requires_grad], lr=3e-3)
    index = torch.arange(32)
    batch = Batch.of(texts[index % 4], torch.tensor([False, True, True, True, True]).expand(32, -1))
    for step in range(first + second):
        optimizer.zero_grad()
        loss = found(batch, 0, step, FIRST if step < first else SECOND)
        (loss.total / loss.tokens).backward()
        optimizer.step()
    return found.eval(), batch.rows(torch.arange(4))


def test_a_few_texts_are_learnt_reconstructed_and_sampled() -> None:
    found, batch = fitted(80, 250)
    assert torch.equal(found.decode(found._latents(found._text(batch))), batch.tokens)
    many = Batch.of(batch.tokens.repeat(25, 1), batch.target.repeat(25, 1))
    sampled = DDIM(30).sample(found, many, Rng(0, 0, many.sample_id))
    seen = (sampled[:, None] == batch.tokens).all(-1)  # (100, 4)
    assert float(seen.any(1).double().mean()) > 0.95
    assert bool((seen.double().mean(0) > 0.1).all())  # of a fair 0.25 each
    nats = found.mean_nll(many, 0, 16).mean()
    assert 1.3 < float(nats) < 4.0  # log 4 = 1.386 is the texts' entropy


def test_generate_writes_rows_after_one_token_of_context() -> None:
    found = model(sizes=replace(SIZES, latents=2))
    output = found.generate(seed=1, max_denoising_steps=5)
    assert output.sequences.shape == (1, 1 + LENGTH)
    rng = Rng(1, 0, torch.zeros(1, dtype=torch.long))
    rows = DDIM(5).sample(found, Batch.of(torch.full((1, 5), EOS).index_fill(1, torch.tensor([0]), BOS), ~torch.eye(5)[:1].bool()), rng)
    kept = (rows == EOS).cumsum(1) - (rows == EOS).long() == 0
    assert torch.equal(output.sequences, rows.where(kept, PAD))


def test_infilling_prompts_and_texts_that_are_too_long_are_refused() -> None:
    found, batch = model(), ragged()
    holed = batch._replace(target=batch.target & (torch.arange(5) != 2))
    with pytest.raises(ValueError, match="put prompts into the source"):
        found.canvas(holed)
    with pytest.raises(ValueError, match="put prompts into the source"):
        found.nll(Batch.of(batch.tokens), Rng(0, 0, torch.arange(3)))
    with pytest.raises(ValueError, match="put prompts into the source"):
        found(batch._replace(document=torch.ones_like(batch.document)), 0, 0)
    with pytest.raises(ValueError, match="begin rows with token 0"):
        found.canvas(batch._replace(tokens=batch.tokens + 1))
    longer = Batch.of(torch.zeros(1, 6, dtype=torch.long), torch.arange(6)[None] > 0)
    with pytest.raises(ValueError, match="shorten"):
        found.canvas(longer)
    with pytest.raises(ValueError, match="shorten"):
        found.generate(max_new_tokens=LENGTH + 1)
    with pytest.raises(ValueError, match="temperature"):
        found.predictor(batch)(torch.zeros(3, 3, 4).double(), torch.ones(3)).logits()


def test_specs_that_cannot_work_are_refused() -> None:
    for options in ({"stage": 0.0}, {"stage": 1.0}, {"self_conditioning": 2.0}, {"backbone": trunk(tied=False)}):
        with pytest.raises(ValueError, match=r"expected|leave|both"):
            LatentDiffusion(**options)


@pytest.mark.parametrize("regulariser", [Plain(), VAE(), SlicedWasserstein()])
def test_a_saved_model_is_the_same_model(regulariser: Any, tmp_path: Path) -> None:
    torch.manual_seed(3)
    sizes = replace(SIZES, regulariser=regulariser)
    found, batch = LatentDiffusion(sizes, backbone=trunk()).build(VOCAB).train(), ragged()
    found(batch, 0, 0, FIRST)  # the scale and the average have moved
    found.eval()
    found.save_pretrained(tmp_path)
    again = textdiff.load(str(tmp_path))
    assert isinstance(again, LatentDiffusionLM)
    rng = Rng(0, 0, batch.sample_id)
    torch.testing.assert_close(again.nll(batch, rng), found.nll(batch, rng), rtol=0.0, atol=0.0)
    assert torch.equal(again.averaged, found.averaged)
    assert not any(parameter.requires_grad for parameter in again.autoencoder.parameters())
    first, second = (m.generate(seed=0, max_denoising_steps=3).sequences for m in (found, again))
    assert first is not None
    assert second is not None
    assert torch.equal(first, second)
