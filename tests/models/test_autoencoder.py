import itertools
import math
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, distributions

from tests.models.tiny import EOS, PAD, TEXT, VOCAB
from textdiff.models.autoencoder import (
    VAE,
    Autoencoder,
    AutoencoderConfig,
    Plain,
    Posterior,
    PosteriorCollapseWarning,
    Regulariser,
    SlicedWasserstein,
    Text,
    health,
    normal_divergence,
    sliced_wasserstein,
)
from textdiff.randomness import Rng

LENGTH = 5


def autoencoder(seed: int = 0, **options: object) -> Autoencoder:
    """In double precision, with weights so large that everything matters."""
    sizes = {"length": LENGTH, "latents": 3, "latent_width": 4, "width": 16, "layers": 1, "heads": 2}
    model = Autoencoder(AutoencoderConfig(**{**sizes, **options}), VOCAB)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.35, generator=generator)
    return model.double().eval()


def ragged() -> Text:
    attend = torch.arange(4) < torch.tensor([4, 2, 3])[:, None]
    tokens = torch.tensor([[1, 5, 2, EOS], [3, EOS, PAD, PAD], [4, 4, EOS, PAD]])
    return Text(tokens, attend)


def lone(text: Text, row: int) -> Text:
    n = int(text.attend[row].sum())
    return Text(text.tokens[row : row + 1, :n], text.attend[row : row + 1, :n])


def latents(rows: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


both_decoders = pytest.mark.parametrize("autoregressive", [False, True])


def test_the_divergence_of_a_normal_law_is_that_of_torch_distributions() -> None:
    mean, log_variance = latents(2), latents(2, seed=1)
    found = normal_divergence(mean, log_variance)
    law = distributions.Normal(mean, (0.5 * log_variance).exp())
    expected = distributions.kl_divergence(law, distributions.Normal(torch.zeros_like(mean), 1.0)).sum((1, 2))
    torch.testing.assert_close(found, expected)


def test_the_sliced_wasserstein_distance_has_its_closed_form_for_normal_laws() -> None:
    count, width = 20_000, 6
    points = Rng(0, 0, torch.arange(count)).normal("points", (width,))
    directions = torch.nn.functional.normalize(torch.randn(64, width, dtype=torch.float64), dim=-1)
    assert float(sliced_wasserstein(points, directions)) < 1e-3
    shift = torch.linspace(-2, 2, width, dtype=torch.float64)
    expected = (directions @ shift).square().mean()  # W2(N(m, 1), N(0, 1)) = |m|
    torch.testing.assert_close(sliced_wasserstein(points + shift, directions), expected, rtol=0.02, atol=0.0)
    expected = torch.tensor(1.5**2, dtype=torch.float64)  # W2(N(0, s^2), N(0, 1)) = |s - 1|
    torch.testing.assert_close(sliced_wasserstein(2.5 * points, directions), expected, rtol=0.02, atol=0.0)


def test_minimising_the_sliced_wasserstein_distance_makes_points_normal() -> None:
    rng = Rng(0, 0, torch.arange(256))
    points = (rng.uniform("points", (4, 1)) * torch.tensor([[3.0], [0.1], [1.0], [5.0]]) + 1).requires_grad_()
    optimizer = torch.optim.Adam([points], lr=0.1)
    for step in range(200):
        optimizer.zero_grad()
        loss = SlicedWasserstein().divergence(Posterior(points), torch.ones(256), Rng(0, step, torch.arange(256)))
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    flat = points.detach().flatten(1)
    torch.testing.assert_close(flat.T.cov(correction=0), torch.eye(4, dtype=torch.float64), atol=0.15, rtol=0.0)
    assert float(flat.mean(0).abs().max()) < 0.05


def test_draws_from_a_posterior_have_its_moments() -> None:
    posterior = VAE().posterior(torch.tensor([0.7, 4.5]).expand(20_000, 1, 2).double())  # log variance 4.5 - 4
    drawn = posterior.draw(Rng(0, 0, torch.arange(20_000)))
    assert abs(float(drawn.mean()) - 0.7) < 3 * math.exp(0.25) / math.sqrt(20_000)
    assert abs(float(drawn.var()) / math.exp(0.5) - 1) < 3 * math.sqrt(2 / 20_000)


@pytest.mark.parametrize("regulariser", [Plain(), VAE(), SlicedWasserstein()])
def test_latents_have_unit_mean_square(regulariser: Regulariser) -> None:
    model, text = autoencoder(regulariser=regulariser), ragged()
    mean = model.encode(text).mean.detach()
    for step in range(500):
        model.follow(mean, step)
    square = model.scaled(mean).square().mean()
    torch.testing.assert_close(square, torch.ones_like(square))


def test_a_collapsed_encoder_is_not_magnified() -> None:
    model = autoencoder(regulariser=VAE())
    for step in range(500):
        model.follow(1e-6 * latents(2), step)
    assert float(model.scaled(1e-6 * latents(2)).abs().max()) < 1e-4


def test_an_average_of_weights_that_stand_still_is_those_weights() -> None:
    kept, other = autoencoder(seed=0), autoencoder(seed=1)
    other.scale.fill_(2.0)
    for step in range(3):
        kept.average(other, step)
    for name, value in other.state_dict().items():
        torch.testing.assert_close(kept.state_dict()[name], value)


@both_decoders
def test_padding_changes_nothing(autoregressive: bool) -> None:
    model, text = autoencoder(autoregressive=autoregressive), ragged()
    mean, z = model.encode(text).mean, latents(3)
    log_prob = model.reads(z, text).log_prob(text.tokens, text.attend).split(text.attend.sum(1).tolist())
    for row in range(3):
        single = lone(text, row)
        torch.testing.assert_close(model.encode(single).mean[0], mean[row])
        found = model.reads(z[row : row + 1], single).log_prob(single.tokens, single.attend)
        torch.testing.assert_close(found, log_prob[row])


def test_the_encoder_tells_the_order_of_tokens() -> None:
    model = autoencoder()
    tokens = torch.tensor([[1, 2, 3], [3, 2, 1]])
    mean = model.encode(Text(tokens, torch.ones_like(tokens, dtype=torch.bool))).mean.detach()
    assert float((mean[0] - mean[1]).abs().max()) > 1e-3


@both_decoders
def test_the_probabilities_of_all_texts_sum_to_one(autoregressive: bool) -> None:
    model = autoencoder(autoregressive=autoregressive)
    tokens = torch.tensor(list(itertools.product(range(TEXT), repeat=2)))
    attend = torch.ones_like(tokens, dtype=torch.bool)
    log_prob = model.reads(latents(1).expand(len(tokens), -1, -1), Text(tokens, attend)).log_prob(tokens, attend)
    total = log_prob.view_as(tokens).sum(1).exp().sum()
    torch.testing.assert_close(total, torch.ones_like(total))


def test_writing_left_to_right_is_greedy_under_what_reading_says() -> None:
    model, z = autoencoder(autoregressive=True), latents(4)
    written = model.write(z)
    tokens = torch.full((4, LENGTH), EOS)
    for place in range(LENGTH):  # without a cache, each token from those before it
        belief = model.reads(z, Text(tokens, torch.ones_like(tokens, dtype=torch.bool))).logits()[:, place]
        tokens[:, place] = belief.argmax(-1)
    ended = (tokens == EOS).cumsum(1) - (tokens == EOS).long() > 0
    assert torch.equal(written, tokens.masked_fill(ended, EOS))


@both_decoders
def test_nothing_stands_after_the_end_of_a_text(autoregressive: bool) -> None:
    written = autoencoder(autoregressive=autoregressive, latents=3).write(3 * latents(200))
    ended = (written == EOS).cumsum(1) > 0
    assert bool(ended.any())
    assert bool((written[ended] == EOS).all())
    assert not bool(torch.isin(written, torch.tensor(VOCAB.unemittable)).any())


def varied(spread: float, rows: int = 10) -> Posterior:
    """Of twelve numbers, four vary over texts."""
    mean = torch.zeros(rows, 3, 4, dtype=torch.float64)
    mean[:, 0] = spread * latents(rows)[:, 0]
    return Posterior(mean)


def rows_of_ten() -> Text:
    tokens = torch.arange(20).view(10, 2) % 4 + 1  # each of four tokens five times
    return Text(tokens, torch.ones_like(tokens, dtype=torch.bool))


def test_active_units_are_the_numbers_that_vary() -> None:
    text = rows_of_ten()
    found = health(varied(1.0), text, text.tokens.flatten(), warn=True)
    assert int(found["active_units"]) == 4 * 20
    assert int(found["reconstruction_accuracy"]) == 20
    wrong = text.tokens.flatten().where(torch.arange(20) >= 5, 0)
    assert int(health(varied(1.0), text, wrong, warn=True)["reconstruction_accuracy"]) == 15


def test_collapse_is_reported() -> None:
    text = rows_of_ten()
    with pytest.warns(PosteriorCollapseWarning, match="^the posterior has collapsed"):
        health(varied(0.01), text, text.tokens.flatten(), warn=True)
    with pytest.warns(PosteriorCollapseWarning, match="^the posterior has collapsed"):
        health(varied(1.0), text, torch.ones(20, dtype=torch.long), warn=True)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("default")
        for argmax in (0, 1, 2, 3):  # numbers that differ from step to step are one warning
            health(varied(0.01), text, torch.full((20,), argmax), warn=True)
    assert len(said) == 1
    with warnings.catch_warnings(action="error"):
        health(varied(0.01), text, text.tokens.flatten(), warn=False)
        health(varied(1.0), text, text.tokens.flatten(), warn=True)


def test_impossible_sizes_are_refused() -> None:
    cases: tuple[dict[str, Any], ...] = ({"length": 0}, {"latents": 0}, {"latent_width": 0}, {"width": 10, "heads": 4})
    for options in cases:
        with pytest.raises(ValueError, match=r"expected|multiple"):
            AutoencoderConfig(**options)
    with pytest.raises(ValueError, match="beta"):
        VAE(beta=-1)
    with pytest.raises(ValueError, match="projections"):
        SlicedWasserstein(projections=0)
