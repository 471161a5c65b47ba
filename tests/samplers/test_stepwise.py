import pytest
import torch

from tests.samplers.watched import PAIR
from textdiff.batch import Batch
from textdiff.oracle import Oracle
from textdiff.processes.matrix import Matrix
from textdiff.randomness import Rng
from textdiff.samplers.ancestral import Ancestral
from textdiff.samplers.base import Sampler
from textdiff.samplers.corrector import Gibbs
from textdiff.samplers.rates import Euler
from textdiff.samplers.remasking import Psi


@pytest.mark.parametrize("sampler", [Psi(), Gibbs(), Euler()], ids=lambda sampler: type(sampler).__name__)
def test_matrix_noise_is_refused_before_anything_is_drawn(sampler: Sampler) -> None:
    """What these samplers do to a token, noise that moves it by degrees has no name for; ancestral steps do."""
    denoiser, batch = Oracle.of(PAIR, Matrix()), Batch.of(torch.zeros(2, 2, dtype=torch.long))
    with pytest.raises(ValueError, match="the model's is Matrix: sample with Ancestral"):
        sampler.sample(denoiser, batch, Rng(0, 0, batch.sample_id))
    assert bool((Ancestral(4).sample(denoiser, batch, Rng(0, 0, batch.sample_id)) < PAIR.states).all())
