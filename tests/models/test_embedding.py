import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import textdiff
from tests.models.tiny import VOCAB, lone, ragged, trunk
from textdiff.backbones.transformer import TransformerConfig
from textdiff.batch import Batch
from textdiff.log_snr import Gumbel, LinearLogSNR
from textdiff.models import embedding_presets as presets
from textdiff.models.embedding import EmbeddingDiffusion, EmbeddingDiffusionLM
from textdiff.models.embedding_objective import DiffusionLM, EmbeddingObjective, TokenCrossEntropy
from textdiff.models.embedding_table import EmbeddingCollapseWarning, Free, Sphere
from textdiff.models.reading import Regression, Softmax
from textdiff.processes.gaussian import Gaussian
from textdiff.randomness import Rng
from textdiff.vocab import Vocab

EVERYTHING: dict[str, Any] = {
    "process": Gaussian(Gumbel(1.0, 1.3)),
    "width": 4,
    "self_conditioning": 0.5,
    "own_evidence": True,
    "shift": True,
    "learned_schedule": True,
    "absorb": 0.5,
}
KINDS: list[dict[str, Any]] = [
    {"width": 4},
    {"width": 4, "reading": Regression(), "table": Free(), "objective": DiffusionLM()},
    EVERYTHING,
]


def built(seed: int = 0, backbone: TransformerConfig | None = None, vocab: Vocab = VOCAB, **options: Any) -> EmbeddingDiffusionLM:
    model = EmbeddingDiffusion(backbone=backbone or trunk(), **options).build(vocab)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.35, generator=generator)
    return model.double().eval()


@pytest.mark.parametrize("law", ["uniform", "zipf"])
@pytest.mark.parametrize("own_evidence", [False, True])
def test_the_bound_of_independent_tokens_is_their_entropy(law: str, own_evidence: bool) -> None:
    """A silent trunk whose bias is the log unigram is the Bayes-optimal network: the whole model's likelihood, calls and all."""
    states = 13
    vocab = Vocab(size=states, tokens=states)
    spec = EmbeddingDiffusion(Gaussian(LinearLogSNR(-4, 9)), trunk(), 4, Sphere(), Softmax(), own_evidence=own_evidence)
    model = spec.build(vocab).double().eval()
    weight = torch.ones(states) if law == "uniform" else 1 / torch.arange(1.0, states + 1)
    probability = (weight / weight.sum()).double()
    with torch.no_grad():
        model.output.weight.zero_()  # type: ignore[union-attr,operator]
        model.output.bias.copy_(probability.log())  # type: ignore[union-attr,operator]
    tokens = torch.multinomial(probability, 1_000 * 16, True, generator=torch.Generator().manual_seed(0)).view(1_000, 16)
    nats = model.mean_nll(Batch.of(tokens), 0, 16) / 16
    surprise = -probability.log()[tokens].mean(1)
    excess = nats - surprise  # of the same tokens: the sampling noise of the source cancels
    assert abs(float(excess.mean())) < 3 * float(excess.std()) / 1_000**0.5 + 2e-4  # the prior's divergence at gamma = 9
    assert float(excess.std()) / 1_000**0.5 < 0.01 * float((-probability * probability.log()).sum())


@pytest.mark.parametrize("options", KINDS)
def test_a_ragged_batch_is_its_rows(options: dict[str, Any]) -> None:
    model, batch = built(**options), ragged()
    together = model.mean_nll(batch, 3, 2)
    alone = torch.cat([model.mean_nll(lone(batch, row), 3, 2) for row in range(4)])
    torch.testing.assert_close(together, alone)
    loss = model(batch, 0, 5)
    parts = [model(lone(batch, row), 0, 5) for row in range(4)]
    torch.testing.assert_close(loss.total, torch.stack([part.total for part in parts]).sum())
    assert int(loss.tokens) == int(batch.target.sum())


@pytest.mark.parametrize("options", KINDS)
def test_stratified_means_are_unbiased_for_each_sequence(options: dict[str, Any]) -> None:
    """Over many seeds the mean over strata is the mean of plain draws."""
    model, batch = built(**options), ragged()
    strata = torch.stack([model.mean_nll(batch, seed, 2) for seed in range(150)])
    plain = torch.stack([model.nll(batch, Rng(7, k, batch.sample_id)) for k in range(300)])
    error = (strata.var(0) / 150 + plain.var(0) / 300).sqrt()
    assert bool(((strata.mean(0) - plain.mean(0)).abs() < 4 * error).all())


@pytest.mark.parametrize("options", KINDS)
def test_every_weight_learns(options: dict[str, Any]) -> None:
    """DistributedDataParallel needs a gradient for each; the second step is past the curriculum."""
    model = built(**options, curriculum=0.5)
    model.train()
    for progress in (0.2, 0.8):
        model.zero_grad()
        model(ragged(), 0, 1, progress).total.backward()
        assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.mark.parametrize("options", KINDS)
def test_saved_models_open_with_the_same_numbers(options: dict[str, Any], tmp_path: Path) -> None:
    model = built(**options).float()
    model.save_pretrained(tmp_path)
    other = textdiff.load(str(tmp_path))
    assert isinstance(other, EmbeddingDiffusionLM)
    torch.testing.assert_close(other.mean_nll(ragged(), 0, 2), model.mean_nll(ragged(), 0, 2))


def test_known_tokens_stay_and_nothing_unwritable_is_written() -> None:
    model, batch = built(width=4), ragged()
    sampled = model.default_sampler(5).sample(model, batch, Rng(0, 0, batch.sample_id))
    assert torch.equal(sampled[~batch.target], batch.tokens[~batch.target])
    assert bool((sampled[batch.target] < 7).all())


def test_clean_vectors_decode_to_their_tokens() -> None:
    for options in KINDS:
        model = built(**options)
        tokens = torch.arange(7)[None]
        assert torch.equal(model.decode(model.canvas(Batch.of(tokens))[0]), tokens)


def test_the_curriculum_hides_targets_or_leaves_them_at_the_least_noise() -> None:
    model = built(width=4, curriculum=0.5, process=Gaussian(LinearLogSNR(-8, 9)))
    batch = Batch.of(torch.randint(1, 6, (64, 32), generator=torch.Generator().manual_seed(0)))
    noised = model._noised(model.process, model.canvas(batch)[0], batch, Rng(0, 0, batch.sample_id), 0.1)
    assert noised.t.unique().tolist() == [0.0, 1.0]
    share = (noised.t == 1).double().mean(1)
    assert float(share.min()) < 0.1
    assert float(share.max()) > 0.9
    assert float(share.mean()) == pytest.approx(0.5, abs=0.03)  # one slot of 64 each


def test_shifted_outputs_read_the_left_neighbour() -> None:
    """The belief about position 2 may use the trunk's output at position 1 alone, so that with a trunk that does not mix positions it does
    not change with the vector at 2, but for the evidence, which is left out here."""
    model = built(width=4, shift=True, reading=Softmax(prior=False), backbone=trunk(layers=1))
    with torch.no_grad():
        model.backbone.blocks[0].attention.out.weight.zero_()
    batch = Batch.of(torch.tensor([[1, 2, 3, 4]]))
    x, t = model.canvas(batch)[0], torch.tensor([0.5], dtype=torch.float64)
    moved = x.clone()
    moved[0, 2] += 1.0
    first, second = (model.predictor(batch)(state, t).logits().log_softmax(-1) for state in (x, moved))
    changed = (first != second).any(-1)[0]
    assert changed.tolist() == [False, False, False, True]


def test_self_conditioning_reads_the_belief_before() -> None:
    model, batch = built(width=4, self_conditioning=0.5), ragged()
    predict, x, t = model.predictor(batch), model.canvas(batch)[0], torch.full((4,), 0.4, dtype=torch.float64)
    first = predict.alone(x, t)
    assert predict(x, t).calls == 2
    told = predict(x, t, first)
    assert told.calls == 1
    torch.testing.assert_close(told.state(), predict(x, t).state())
    assert not torch.allclose(told.state(), first.state())
    assert model.calls(3) == 8  # three times and one reading, two calls each


def _steps(model: EmbeddingDiffusionLM, batch: Batch, count: int) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for step in range(count):
        optimizer.zero_grad()
        model(batch, 0, step).total.backward()
        optimizer.step()


def _trained(objective: EmbeddingObjective, steps: int) -> None:
    """Diffusion-LM's model of five random tokens under another loss."""
    torch.manual_seed(0)
    model = replace(presets.diffusion_lm(trunk(), 4), objective=objective).build(Vocab(size=5, tokens=5))
    tokens = torch.randint(5, (16, 12), generator=torch.Generator().manual_seed(0))
    _steps(model, Batch.of(tokens), steps)


def test_collapsing_embeddings_raise_an_alarm() -> None:
    """Mean squared error with learnt vectors and no rounding is best served by equal ones (reference: section 9.1)."""
    with pytest.warns(EmbeddingCollapseWarning, match="collapsed"):
        _trained(DiffusionLM(rounding=0.0, own_noise=0.0), 300)


def test_cross_entropy_keeps_embeddings_apart() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", EmbeddingCollapseWarning)
        _trained(TokenCrossEntropy(), 300)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0}, "width is 0"),
        ({"absorb": 2.0}, "absorb is 2.0"),
        ({"learned_schedule": True}, "moves a Gumbel schedule"),
        ({"own_evidence": True, "reading": Regression()}, "use Softmax"),
        ({"backbone": trunk(self_conditioning=True)}, "backbone's self_conditioning"),
    ],
)
def test_settings_that_cannot_work_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EmbeddingDiffusion(**options)
