import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from textdiff.backbones.transformer import TransformerConfig
from textdiff.batch import Batch, Clean, Example, collate
from textdiff.evaluation.likelihood import likelihood
from textdiff.evaluation.profile import profile
from textdiff.models.autoencoder import AutoencoderConfig, Text
from textdiff.models.autoregressive import AutoregressiveSpec
from textdiff.models.discrete import Discrete
from textdiff.models.latent import LatentDiffusion
from textdiff.models.objective import Bound
from textdiff.models.parameterisation import Score
from textdiff.oracle import GaussianOracle, Markov, Oracle, mixed
from textdiff.processes.base import TokenProcess
from textdiff.processes.block import Block
from textdiff.processes.gaussian import Gaussian
from textdiff.processes.hybrid import Hybrid
from textdiff.processes.masked import Masked
from textdiff.processes.uniform import Uniform
from textdiff.randomness import Rng
from textdiff.schedules import CosineSquared
from textdiff.vocab import Vocab

SMALL = Markov(torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64), Markov.random(3, 4, seed=2).transition, length=4)
PATHS = torch.tensor(list(itertools.product(range(3), repeat=4)))
LAW = SMALL.log_prob(PATHS).exp()
TRUNK = TransformerConfig(width=16, layers=1, heads=2)
VOCAB = Vocab(size=12, tokens=12, mask_id=11, pad_id=0, bos_id=1, eos_id=2)


def examples(n: int, source: Markov = SMALL) -> list[Example]:
    rows = source.sample(n, Rng(0, 0, torch.arange(n)))
    return [Example(row, [True] * len(row)) for row in rows.tolist()]


def texts(n: int) -> list[Example]:
    """Rows of 4 to 8 tokens behind BOS."""
    rows = torch.randint(3, 11, (n, 8), generator=torch.Generator().manual_seed(0)).tolist()
    return [Example([1, *row[: 4 + i % 5]], [False] + [True] * (4 + i % 5)) for i, row in enumerate(rows)]


def posterior_nats(likelihoods: Tensor) -> float:
    """Mean over positions and paths of -log p(x_l | y), enumerated, for `likelihoods` (paths of x, outcomes y)."""
    joint = LAW[:, None] * likelihoods
    total = 0.0
    for column in range(4):
        of_state = torch.stack([joint[PATHS[:, column] == state].sum(0) for state in range(3)])  # (3, Y)
        total += float(-(of_state * (of_state / of_state.sum(0)).log().nan_to_num()).sum())
    return total / 4


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_loss_at_each_masked_share_is_that_of_enumeration(count: int) -> None:
    """H(x_l | what is shown), averaged over the sets of `count` masked positions and the positions in them."""
    exact = []
    for hidden in itertools.combinations(range(4), count):
        shown = [i for i in range(4) if i not in hidden]
        key = (PATHS[:, shown] * torch.tensor([3**i for i in range(len(shown))])).sum(1) if shown else torch.zeros(81, dtype=torch.long)
        for column in hidden:
            joint = torch.zeros(81, 3, dtype=torch.float64).index_put_((key, PATHS[:, column]), LAW, accumulate=True)
            exact.append(float(-(joint * (joint / joint.sum(1, keepdim=True)).log().nan_to_num()).sum()))
    (row,) = profile(Oracle.of(SMALL, Masked()), "oracle", examples(3000), [count / 4], draws=4, seed=1)
    assert row["tokens"] == 3000 * 4 * count
    assert 0 < row["error"] < 0.02
    assert row["nats_per_token"] == pytest.approx(sum(exact) / len(exact), abs=4 * row["error"])


@pytest.mark.parametrize("t", [0.3, 0.8])
def test_loss_under_uniform_noise_is_that_of_enumeration(t: float) -> None:
    process = Uniform().bind(SMALL.vocab)
    emission = process.emission(PATHS, torch.full((81,), t, dtype=torch.float64), 3)  # (outcomes, 4, states)
    given = torch.stack([emission[:, range(4), path].prod(1) for path in PATHS])
    assert given.sum(1) == pytest.approx(torch.ones(81), abs=1e-9)
    (row,) = profile(Oracle(SMALL, process), "oracle", examples(3000), [t], draws=4, seed=1)
    assert row["nats_per_token"] == pytest.approx(posterior_nats(given), abs=4 * row["error"])


def deviation(row: dict[str, Any]) -> float:
    """The largest gap between accuracy and confidence of a bin, in standard errors of independent tokens."""
    return max(abs(c - a) / math.sqrt(max(c * (1 - c), 1e-3) / n) for c, a, n in row["bins"])


@pytest.mark.parametrize("process", [Masked(), Uniform(), Hybrid(gamma=1.0)])
def test_the_exact_denoiser_is_calibrated_and_a_wrong_one_is_not(process: TokenProcess) -> None:
    source = Markov.random(5, 6, seed=3)
    exact = Oracle.of(source, process)
    for good, bad in zip(
        *(profile(found, "", examples(4000, source), [0.3, 0.9], 1, 0) for found in (exact, mixed(exact, 0.5))), strict=True
    ):
        assert deviation(good) < 5
        assert good["calibration_error"] < 0.02 < 0.1 < bad["calibration_error"]
        assert deviation(bad) > 20
        assert good["nats_per_token"] < bad["nats_per_token"]


def test_the_exact_gaussian_denoiser_is_calibrated_and_a_wrong_one_is_not() -> None:
    table = torch.tensor([[1.0, 0.0], [-0.5, 0.9], [-0.5, -0.9]], dtype=torch.float64)
    source = Markov(SMALL.initial, SMALL.transition * 0.9 + 0.1 / 3, 4)
    exact = GaussianOracle(source, Gaussian(), table)
    for good, bad in zip(
        *(profile(found, "", examples(4000, source), [0.5, 0.6], 1, 0) for found in (exact, mixed(exact, 0.5))), strict=True
    ):
        assert good["axis"] == "t"
        assert deviation(good) < 5
        assert good["calibration_error"] < 0.02 < 0.05 < bad["calibration_error"]
        assert good["nats_per_token"] < bad["nats_per_token"]


def test_calibration_errors_are_those_of_the_bins() -> None:
    (row,) = profile(mixed(Oracle.of(SMALL, Masked()), 0.3), "m", examples(500), [0.5], draws=2, seed=0)
    total = sum(n for _, _, n in row["bins"])
    assert total == row["tokens"] == 500 * 2 * 2
    assert row["calibration_error"] == pytest.approx(sum(n * abs(c - a) for c, a, n in row["bins"]) / total)
    assert row["confidence"] == pytest.approx(sum(n * c for c, _, n in row["bins"]) / total)
    assert row["accuracy"] == pytest.approx(sum(n * a for _, a, n in row["bins"]) / total)


def test_places_of_an_autoregressive_model_add_up_to_its_likelihood() -> None:
    torch.manual_seed(0)
    model, rows = AutoregressiveSpec(TRUNK).build(VOCAB), texts(20)
    found = profile(model, "ar", rows, [0.1, 0.5, 1.0], draws=7, seed=0)
    assert {row["axis"] for row in found} == {"position"}
    assert [row["x"] for row in found] == [0.5, 1.0]  # no token of these rows lies in the first tenth
    exact = likelihood(model, rows)
    assert sum(row["tokens"] for row in found) == exact.tokens
    assert sum(row["tokens"] * row["nats_per_token"] for row in found) / exact.tokens == pytest.approx(exact.nats_per_token, rel=1e-5)


@pytest.mark.parametrize(
    ("spec", "axis"),
    [
        (Discrete(backbone=TRUNK), "masked share"),
        (Discrete(Masked(), TRUNK, parameterisation=Score()), "masked share"),
        (Discrete(Block(Masked(), size=3), TRUNK), "masked share"),
        (Discrete(Uniform(), TRUNK), "t"),
        (Discrete(Block(Uniform(), size=3), TRUNK), "t"),
        (Discrete(Uniform(), TRUNK, Bound(), parameterisation=Score()), "t, rate of the bound"),
    ],
)
def test_a_row_has_the_same_profile_alone_and_beside_others(spec: Discrete, axis: str) -> None:
    """Neither the padding nor the company of a sequence changes what is asked of it; the model is handed back as it was."""
    torch.manual_seed(0)
    model, rows = spec.build(VOCAB).train(), texts(6)
    whole = profile(model, "m", rows, [0.5], draws=2, seed=3)[0]
    assert model.training
    assert whole["axis"] == axis
    alone = [profile(model, "m", [rows[0]], [0.5], draws=2, seed=3)[0], profile(model, "m", rows[:2], [0.5], draws=2, seed=3)[0]]
    second = (alone[1]["nats_per_token"] * alone[1]["tokens"] - alone[0]["nats_per_token"] * alone[0]["tokens"]) / (
        alone[1]["tokens"] - alone[0]["tokens"]
    )
    assert alone[0]["error"] is None
    tokens = [alone[0]["tokens"], alone[1]["tokens"] - alone[0]["tokens"]]
    residual = [n * (value - alone[1]["nats_per_token"]) for n, value in zip(tokens, [alone[0]["nats_per_token"], second], strict=True)]
    assert alone[1]["error"] == pytest.approx(math.sqrt(2 * sum(r**2 for r in residual)) / sum(tokens), rel=1e-3)
    assert (whole["accuracy"] is None) == axis.endswith("bound")


def test_the_rate_of_a_latent_bound_averages_to_its_diffusion_term_under_any_schedule() -> None:
    """Over all times of the model's own schedule; the reference runs evenly through the log-SNR, on the same noise."""
    torch.manual_seed(0)
    size = AutoencoderConfig(length=8, latents=2, latent_width=4, width=16, layers=1, heads=2)
    model = LatentDiffusion(size, Gaussian(CosineSquared(), t_min=0.1), TRUNK).build(VOCAB).eval()
    rows, steps = texts(4), 60
    found = profile(model, "latent", rows, [0.1 + 0.9 * (i + 0.5) / steps for i in range(steps)], draws=1, seed=0)
    assert {row["accuracy"] for row in found} == {None}
    mean = 0.9 * sum(row["nats_per_token"] for row in found) / steps
    batch = collate(rows, 0)
    text, process = Text(batch.tokens[:, 1:], batch.target[:, 1:]), model.process.measured()
    latents = model.autoencoder.scaled(model.autoencoder.encode(text).mean).detach()
    everywhere, total = torch.ones(latents.shape[:2], dtype=torch.bool), 0.0
    for i in range(steps):
        t = torch.full((4,), (i + 0.5) / steps, dtype=torch.float64)
        xt = process.corrupt(latents, t, Rng(0, 0, torch.arange(4)))
        with torch.no_grad():
            pred = model.predictor(batch, process)(xt, t)
        total += float(process.nelbo_at(pred, Clean(batch.tokens, latents), xt, t, everywhere).double().sum()) / steps
    assert mean == pytest.approx(total / int(batch.target.sum()), rel=0.01)


def test_what_cannot_be_profiled_is_refused() -> None:
    oracle = Oracle.of(SMALL, Masked())
    for rows, places, draws in (([], [0.5], 1), (examples(2), [], 1), (examples(2), [0.0], 1), (examples(2), [0.5], 0)):
        with pytest.raises(ValueError, match="expected 1 or more each, places in"):
            profile(oracle, "m", rows, places, draws, seed=0)


def test_known_tokens_are_never_asked_for() -> None:
    rows = [Example(e.tokens, [False, False, True, True]) for e in examples(50)]
    seen: list[Batch] = []

    class Watched(Oracle):
        def predictor(self, batch: Batch) -> Any:
            seen.append(batch)
            return super().predictor(batch)

    (row,) = profile(Watched.of(SMALL, Masked()), "m", rows, [1.0], draws=1, seed=0)
    assert row["tokens"] == 100
