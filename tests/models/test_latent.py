import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

import textdiff
from tests.models.tiny import EOS, PAD, VOCAB, trunk
from tests.models.tiny_latents import BOS, FIRST, LENGTH, SECOND, SETTINGS, SIZES, model, ragged
from textdiff.batch import Batch
from textdiff.log_snr import LinearLogSNR
from textdiff.models.autoencoder import VAE, Plain, PosteriorCollapseWarning, SlicedWasserstein
from textdiff.models.latent import LatentDiffusion, LatentDiffusionLM
from textdiff.models.reading import Noise, State, Target, Velocity
from textdiff.processes.gaussian import Gaussian
from textdiff.randomness import Rng
from textdiff.samplers.ddim import DDIM


def gradients(module: torch.nn.Module) -> list[Tensor | None]:
    return [parameter.grad for parameter in module.parameters()]


def all_zero(module: torch.nn.Module) -> bool:
    return all(gradient is not None and not bool(gradient.any()) for gradient in gradients(module))


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


def test_label_dropout_hides_the_labels_of_that_share_of_rows() -> None:
    rows = 4000
    found = model(backbone=trunk(labels=2), label_dropout=0.25)
    texts = torch.tensor([BOS, 1, EOS]).expand(rows, -1)
    batch = Batch.of(texts, torch.tensor([False, True, True]).expand(rows, -1), source=torch.ones(rows, 1, dtype=torch.long))
    with patch.object(found.backbone, "context", side_effect=found.backbone.context) as read:
        found(batch, 0, 0, SECOND)
    told = read.call_args.args[0].source_attend
    assert abs(float(told.double().mean()) - 0.75) < 4.5 * (0.1875 / rows) ** 0.5


@pytest.mark.parametrize("backbone", [trunk(labels=6), trunk(encoder_layers=1)], ids=["label", "encoder"])
def test_what_is_always_hidden_trains_nothing_and_what_is_not_trains_as_before(backbone: Any) -> None:
    """With chance 1 the loss is that of rows that attend to no source, whatever it says; a bound is told it all the same."""
    batch = ragged(backbone)
    other = batch._replace(source=(batch.source + 1) % 6)
    always, never = (model(backbone=backbone, label_dropout=chance) for chance in (1.0, 0.0))
    untold = batch._replace(source_attend=torch.zeros_like(batch.source_attend))
    hidden = always(batch, 0, 0, SECOND).total
    assert torch.equal(hidden, always(other, 0, 0, SECOND).total)
    assert torch.equal(hidden, never(untold, 0, 0, SECOND).total)
    assert not torch.equal(hidden, never(batch, 0, 0, SECOND).total)
    rng = Rng(0, 0, batch.sample_id)
    assert torch.equal(always.nll(batch, rng), never.nll(batch, rng))
    assert not torch.equal(always.nll(batch, rng), always.nll(other, rng))


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

    with pytest.warns(PosteriorCollapseWarning, match="^the posterior has collapsed"):
        collapsed = trained(VAE(beta=1000.0))
    assert collapsed["active_units"] == 0
    assert collapsed["latent_divergence"] < 0.01
    with warnings.catch_warnings(action="error"):
        for healthy in (VAE(beta=1e-4), SlicedWasserstein(weight=0.1)):
            metrics = trained(healthy)
            assert metrics["reconstruction_accuracy"] > 0.8
            assert metrics["active_units"] >= 4


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
    for options in ({"stage": 0.0}, {"stage": 1.0}, {"self_conditioning": 2.0}, {"label_dropout": -1.0}, {"backbone": trunk(tied=False)}):
        with pytest.raises(ValueError, match=r"expected|leave|both"):
            LatentDiffusion(**options)
    with pytest.raises(ValueError, match=r"^label_dropout is 0.1 and the trunk reads no source: set labels or encoder_layers$"):
        model(label_dropout=0.1)


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
