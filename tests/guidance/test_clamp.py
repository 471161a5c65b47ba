import pytest
import torch

from tests.guidance.mixture import TABLE, Mixture, asked
from tests.guidance.test_vectors import embedded, labelled, noisy
from tests.models.tiny import diffusion, lone
from textdiff.guidance.clamp import Clamp
from textdiff.guidance.classifier_free import ClassifierFree
from textdiff.randomness import Rng
from textdiff.samplers.ddim import DDIM
from textdiff.state_prediction import Moved, StatePrediction

BOTH = pytest.mark.parametrize("clamp", [Clamp(), Clamp(likeliest=True)], ids=["nearest", "likeliest"])


@BOTH
def test_every_target_becomes_the_row_of_its_nearest_or_likeliest_token(clamp: Clamp) -> None:
    model, batch = embedded(), labelled()
    xt, t = noisy(model, batch, 0.7)
    raw = model.predictor(batch)(xt, t)
    found = clamp(model).predictor(batch)(xt, t)
    assert isinstance(found, Moved)
    table = model.canvas(lone(batch, 0)._replace(tokens=torch.arange(7)[None]))[0][0]  # of the ids that may be written
    distance = (raw.state()[:, :, None] - table).square().sum(-1)
    tokens = raw.logits().argmax(-1) if clamp.likeliest else distance.argmin(-1)
    torch.testing.assert_close(found.state()[batch.target], table[tokens[batch.target]])
    assert torch.equal(found.state()[~batch.target], raw.state()[~batch.target])
    assert float((found.state() - raw.state())[batch.target].detach().abs().max()) > 0.1


@BOTH
def test_rows_are_clamped_as_in_their_batch_and_known_vectors_stay(clamp: Clamp) -> None:
    model, batch = embedded(), labelled()
    xt, t = noisy(model, batch, 0.7)
    index = torch.tensor([2, 0])
    whole, some = clamp(model).predictor(batch), clamp(model).predictor(batch).rows(index)
    torch.testing.assert_close(some(xt[index], t[index]).state(), whole(xt, t).state()[index])  # type: ignore[attr-defined]
    tokens = DDIM(steps=4).sample(clamp(model), batch, Rng(0, 0, batch.sample_id))
    assert torch.equal(tokens[~batch.target], batch.tokens[~batch.target])


def test_the_order_of_wrapping_says_what_is_clamped() -> None:
    """Inside, each of the two beliefs is a row of the table and what is weighed lies between them; outside, the result is a row."""
    batch, t = asked(8, 0, 1), torch.full((8,), 0.6, dtype=torch.float64)
    xt = 2 * torch.randn(8, 3, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    model = Mixture()

    def is_row(x: torch.Tensor) -> torch.Tensor:
        return (x[..., None, :] == TABLE).all(-1).any(-1)

    before = ClassifierFree(2.5)(Clamp()(model)).predictor(batch)(xt, t)
    after = Clamp()(ClassifierFree(2.5)(model)).predictor(batch)(xt, t)
    hidden = batch._replace(source_attend=~batch.source_attend)
    c, u = (TABLE[model.decode(model.predictor(each)(xt, t).state())] for each in (batch, hidden))
    assert isinstance(before, StatePrediction)
    assert isinstance(after, StatePrediction)
    torch.testing.assert_close(before.state(), u + 2.5 * (c - u))
    assert not bool(is_row(before.state()).all())
    assert bool(is_row(after.state()).all())


def test_tokens_cannot_be_clamped() -> None:
    with pytest.raises(ValueError, match=r"^this guidance moves vectors under Gaussian noise and the model's process is Masked$"):
        Clamp()(diffusion())
