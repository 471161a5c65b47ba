"""The rivals of every sequence-to-sequence recipe: one model of each family around the same trunk, with the sampler that suits it.

They are not of equal size: some split the trunk into an encoder and a decoder, or add an autoencoder; the scores say how large each is.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial, update_wrapper
from typing import TypeVar

from textdiff.backbones.transformer import TransformerConfig
from textdiff.decoding import Decode
from textdiff.log_snr import LinearLogSNR
from textdiff.models import embedding_presets
from textdiff.models.autoencoder import AutoencoderConfig
from textdiff.models.autoregressive import AutoregressiveSpec
from textdiff.models.base import ModelSpec
from textdiff.models.discrete import Discrete
from textdiff.models.latent import LatentDiffusion
from textdiff.models.objective import CrossEntropy
from textdiff.models.reading import State
from textdiff.processes.base import UniformTime
from textdiff.processes.gaussian import Gaussian
from textdiff.processes.masked import Masked
from textdiff.processes.uniform import Uniform
from textdiff.samplers.ancestral import Ancestral
from textdiff.samplers.autoregressive import Autoregressive
from textdiff.samplers.confidence import Greedy
from textdiff.samplers.continuous import EqualLogSNR, EqualTimes, Spacing
from textdiff.samplers.ddim import DDIM
from textdiff.schedules import FlowPolynomial

_STEPS = 20
_VARIED = 0.5  # temperature of candidate tokens: among those at 1 minimum Bayes risk finds worse texts than the single one

Plan = TypeVar("Plan")


@dataclass(frozen=True)
class Family:
    """A model and how it reads pairs and writes responses."""

    model: ModelSpec
    """What is trained; it is a `Denoiser`."""
    single: Decode
    """How its one best response is drawn."""
    varied: Decode
    """How the candidates are drawn among which minimum Bayes risk chooses."""
    encoder: bool
    """Whether the prompt goes to the trunk's encoder instead of standing before the response."""
    fill: bool
    """Whether a response is written at a fixed number of positions, EOS to the end, rather than token by token until EOS."""


def masked(trunk: TransformerConfig) -> Family:
    """Masked diffusion on plain cross-entropy, read one position to the right; the surest tokens are written first.

    Three quarters of the targets are masked on average: what a prompt decides is learnt where little else is left to read.
    """
    model = Discrete(Masked(FlowPolynomial(3.0)), trunk, CrossEntropy(), UniformTime(), shift=True)
    return Family(model, Decode(Greedy(_STEPS), 0.0), Decode(Greedy(_STEPS), _VARIED), encoder=False, fill=True)


def uniform(trunk: TransformerConfig) -> Family:
    """Uniform noise on plain cross-entropy, after masks alone for the first two thirds of training."""
    model = Discrete(process=Uniform(), backbone=trunk, objective=CrossEntropy(), shift=True, curriculum=0.66)
    return Family(model, Decode(Ancestral(_STEPS), 0.0), Decode(Ancestral(_STEPS), _VARIED), encoder=False, fill=True)


def autoregressive(trunk: TransformerConfig) -> Family:
    """The rival: token by token, greedily, or drawn for the candidates."""
    model = AutoregressiveSpec(backbone=trunk)
    return Family(model, Decode(Autoregressive(), 0.0), Decode(Autoregressive(), _VARIED), encoder=False, fill=False)


def _vectors(model: ModelSpec, encoder: bool, spacing: Spacing, temperatures: tuple[float, float] = (1.0, 1.0)) -> Family:
    """Drawn by DDIM, with the noise of ancestral steps for the candidates; the temperatures are those of the two."""
    one, several = temperatures
    return Family(model, Decode(DDIM(_STEPS, spacing), one), Decode(DDIM(_STEPS, spacing, eta=1.0), several), encoder=encoder, fill=True)


def diffuseq(trunk: TransformerConfig) -> Family:
    """DiffuSeq: regressed vectors of the response in one row with the clean prompt."""
    return _vectors(embedding_presets.diffuseq(trunk), encoder=False, spacing=EqualTimes())


def genie(trunk: TransformerConfig) -> Family:
    """GENIE: the same under an encoder, which takes half of the trunk's layers."""
    return _vectors(embedding_presets.genie(_with_encoder(trunk)), encoder=True, spacing=EqualTimes())


def modern(trunk: TransformerConfig) -> Family:
    """The modern embedding model, the clean prompt in the same row; its one best response is drawn from sharpened beliefs."""
    model = embedding_presets.modern(trunk, noise=2.5, scale=0.3)
    return _vectors(model, encoder=False, spacing=EqualLogSNR(), temperatures=(0.2, _VARIED))


def latent(trunk: TransformerConfig, response_length: int) -> Family:
    """Latent diffusion, a vector for each token that a response may have; an autoencoder of two layers and an encoder of the prompt."""
    autoencoder = AutoencoderConfig(response_length, response_length, 16, width=trunk.width, layers=1, heads=trunk.heads)
    model = LatentDiffusion(autoencoder, Gaussian(LinearLogSNR(-1.0, 6.0)), _with_encoder(trunk), target=State(), stage=0.1)
    return _vectors(model, encoder=True, spacing=EqualTimes())


def _with_encoder(trunk: TransformerConfig) -> TransformerConfig:
    half = trunk.layers // 2
    return replace(trunk, layers=trunk.layers - half, encoder_layers=half)


def presets(trunk: TransformerConfig, response_length: int, plan: Callable[[Family], Plan]) -> dict[str, Callable[[], Plan]]:
    """A preset of each family around the same trunk, by name, for `run_presets`; `plan` makes a run of a family."""
    sized = update_wrapper(partial(latent, response_length=response_length), latent)
    return {kind.__name__: _preset(kind, trunk, plan) for kind in (diffuseq, genie, modern, sized, masked, uniform, autoregressive)}


def _preset(kind: Callable[[TransformerConfig], Family], trunk: TransformerConfig, plan: Callable[[Family], Plan]) -> Callable[[], Plan]:
    def build() -> Plan:
        return plan(kind(trunk))

    build.__doc__ = kind.__doc__
    return build
