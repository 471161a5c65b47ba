import pytest
import torch

from tests.models.test_embedding import built
from tests.models.tiny import diffusion, ragged, trunk
from textdiff.batch import Batch, Example
from textdiff.evaluation.likelihood import likelihood
from textdiff.evaluation.probability_flow import FlowEstimate
from textdiff.log_snr import LinearLogSNR
from textdiff.models.embedding import EmbeddingDiffusion, EmbeddingDiffusionLM
from textdiff.processes.gaussian import Gaussian
from textdiff.vocab import Vocab

LAW = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)


def bayes() -> EmbeddingDiffusionLM:
    """Independent tokens of law LAW as two numbers each: a silent trunk is the exact denoiser."""
    torch.manual_seed(0)
    model = EmbeddingDiffusion(Gaussian(LinearLogSNR(-4, 9)), trunk(), 2).build(Vocab(size=4, tokens=4)).double().eval()
    with torch.no_grad():
        model.output.weight.zero_()  # type: ignore[union-attr,operator]
        model.output.bias.copy_(LAW.log())  # type: ignore[union-attr,operator]
    return model


def test_an_exact_denoiser_gives_every_sequence_its_own_likelihood() -> None:
    """By Bayes' rule p(w | z) p(z) / q(z | w) = p(w) for every z: nothing is left to chance but Hutchinson's signs."""
    tokens = torch.tensor([[0, 1, 2], [3, 0, 0], [1, 1, 3], [2, 3, 1]])
    found = FlowEstimate(steps=48)(bayes(), Batch.of(tokens.repeat(50, 1)), 0, 1).view(50, 4)
    error = (found.mean(0) + LAW.log()[tokens].sum(1)).abs()
    assert bool((error < 4 * found.std(0) / 50**0.5 + 0.02).all()), error
    assert float(found.std()) < 3


def test_the_rule_is_of_second_order() -> None:
    """Twice the steps, about a quarter of the error, on the same noise and signs."""
    batch, model = Batch.of(torch.tensor([[0, 1, 2, 3]])), bayes()
    values = [float(FlowEstimate(steps=steps)(model, batch, 0, 1)) for steps in (20, 40, 80, 200)]
    coarse, fine = abs(values[0] - values[3]), abs(values[1] - values[3])
    assert coarse > 2.5 * fine


def test_known_positions_and_padding_are_not_scored() -> None:
    model, batch = built(width=4), ragged()
    flow = FlowEstimate(steps=4)
    other = batch._replace(tokens=torch.where(batch.attend, batch.tokens, 3))
    torch.testing.assert_close(flow(model, batch, 0, 1), flow(model, other, 0, 1))
    nothing = batch._replace(target=torch.zeros_like(batch.target))
    assert torch.equal(flow(model, nothing, 0, 1), torch.zeros(4, 1, dtype=torch.float64))


def test_it_is_called_an_estimate() -> None:
    result = likelihood(built(width=4), [Example([0, 1, 2, 3], [False, True, True, True])], draws=1, estimator=FlowEstimate(3))
    assert (result.kind, result.forwards_per_sequence) == ("estimate", 7)


def test_other_models_are_refused() -> None:
    with pytest.raises(ValueError, match="leave the flow out"):
        FlowEstimate(2)(diffusion(), ragged(), 0, 1)
