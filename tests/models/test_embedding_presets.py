"""Each preset is its paper's model: what is noised, what is read and what is paid, on a trunk that does not matter."""

import pytest
import torch

from tests.models.tiny import VOCAB, ragged, trunk
from textdiff.log_snr import Shifted, Sqrt
from textdiff.models import embedding_presets as presets
from textdiff.models.embedding import EmbeddingDiffusionLM
from textdiff.models.embedding_objective import DiffusionLM
from textdiff.randomness import Rng


def test_the_sqrt_presets_start_at_the_first_of_2000_steps() -> None:
    process = presets.diffusion_lm(trunk()).process
    assert process.schedule == Sqrt()
    a, s = process.levels(torch.tensor([process.t_min], dtype=torch.float64))
    assert float(a**2) == pytest.approx(0.985359, abs=1e-6)
    assert float(s) == pytest.approx(DiffusionLM().own_noise, abs=1e-4)


def test_wider_vectors_get_as_much_more_noise_as_their_norm_grows() -> None:
    assert presets.diffuseq(trunk(), 64).process.schedule == Shifted(Sqrt(), 2.0)


def test_diffuseq_never_noises_the_source() -> None:
    model, batch = presets.diffuseq(trunk()).build(VOCAB).double(), ragged()
    process, rng = model.process, Rng(0, 0, batch.sample_id)
    known, target = model.canvas(batch)
    noised = process.measure(process, known, target, batch.stratum, rng)
    assert torch.equal(noised.xt[~target], known[~target])
    assert bool((noised.xt[target] != known[target]).any(-1).all())


def test_targets_of_diffuseq_v2_jump_to_the_learnt_point_as_often_as_they_should() -> None:
    """In the coordinates of the process that point is 0; the chance is half the noise s."""
    model = presets.diffuseq_v2(trunk()).build(VOCAB).double()
    tokens = torch.randint(1, 6, (400, 24), generator=torch.Generator().manual_seed(0))
    batch = ragged()._replace(
        tokens=tokens,
        target=torch.ones_like(tokens, dtype=torch.bool),
        sample_id=torch.arange(400),
        stratum=torch.tensor([[3, 8]]).expand(400, 2),
    )
    noised = model._noised(model.process, model.canvas(batch)[0], batch, Rng(0, 0, batch.sample_id), 1.0)
    jumped = (noised.xt == 0).all(-1).double().mean(1)
    expected = 0.5 * model.process.levels(noised.t)[1][:, 0, 0]
    assert abs(float((jumped - expected).mean())) < 4 * float((expected * (1 - expected) / 24).mean() / 400) ** 0.5


def test_genie_honours_the_mask_of_its_source() -> None:
    model: EmbeddingDiffusionLM = presets.genie(trunk(encoder_layers=1)).build(VOCAB).double().eval()
    source = torch.tensor([[1, 2, 3, 5]]).expand(4, 4).clone()
    attend = torch.tensor([[True, True, True, False]]).expand(4, 4)
    batch = ragged()._replace(source=source, source_attend=attend)
    known, _ = model.canvas(batch)
    t = torch.full((4,), 0.5, dtype=torch.float64)

    def state(changed: int, value: int) -> torch.Tensor:
        other = source.clone()
        other[:, changed] = value
        return model.predictor(batch._replace(source=other))(known, t).state()

    assert torch.equal(state(3, 5), state(3, 1))  # hidden
    assert not torch.equal(state(1, 2), state(1, 4))


def test_genie_needs_an_encoder() -> None:
    with pytest.raises(ValueError, match="encoder_layers"):
        presets.genie(trunk())
