"""One model of each family around the same trunk, with the settings that suit runs of minutes; a recipe trains one, a comparison all."""

from textdiff.backbones.transformer import TransformerConfig
from textdiff.models import embedding_presets
from textdiff.models.autoencoder import AutoencoderConfig
from textdiff.models.autoregressive import AutoregressiveSpec
from textdiff.models.discrete import Discrete
from textdiff.models.embedding import EmbeddingDiffusion
from textdiff.models.latent import LatentDiffusion
from textdiff.models.objective import CrossEntropy
from textdiff.models.parameterisation import Score
from textdiff.processes.block import Block
from textdiff.processes.hybrid import Hybrid
from textdiff.processes.masked import Masked
from textdiff.processes.uniform import Uniform


def autoregressive(trunk: TransformerConfig) -> AutoregressiveSpec:
    """The rival: each token from those before it; the likelihood is exact."""
    return AutoregressiveSpec(backbone=trunk)


def masked(trunk: TransformerConfig) -> Discrete:
    """Masked diffusion, on plain cross-entropy and read one position to the right, without which so short a run learns little; a bound."""
    return Discrete(backbone=trunk, objective=CrossEntropy(), shift=True)


def block(trunk: TransformerConfig) -> Discrete:
    """Block diffusion (BD3-LM): blocks of 16 tokens from left to right, masked diffusion inside each; an upper bound."""
    return Discrete(process=Block(Masked(), size=16), backbone=trunk, objective=CrossEntropy(), shift=True)


def uniform(trunk: TransformerConfig) -> Discrete:
    """Uniform noise (UDLM), after masks alone for the first two thirds of training; an upper bound."""
    return Discrete(process=Uniform(), backbone=trunk, objective=CrossEntropy(), shift=True, curriculum=0.66)


def hybrid(trunk: TransformerConfig) -> Discrete:
    """Masks with some uniform noise (GIDD), after masks alone; an upper bound."""
    return Discrete(process=Hybrid(), backbone=trunk, objective=CrossEntropy(), shift=True, curriculum=0.66)


def score(trunk: TransformerConfig) -> Discrete:
    """Masked diffusion by unnormalised ratios (SEDD's parameterisation, the same bound); an upper bound."""
    return Discrete(backbone=trunk, objective=CrossEntropy(), parameterisation=Score(), shift=True)


def modern(trunk: TransformerConfig) -> EmbeddingDiffusion:
    """Gaussian noise on normalised token vectors, after tokens that are pure noise or nearly clean; an upper bound."""
    return embedding_presets.modern(trunk, curriculum=0.66, tied=False)


def diffusion_lm(trunk: TransformerConfig) -> EmbeddingDiffusion:
    """Diffusion-LM: regressed vectors, mean squared error with rounding; its bound, made proper, is far above the others'."""
    return embedding_presets.diffusion_lm(trunk)


def latent(trunk: TransformerConfig, length: int) -> LatentDiffusion:
    """Latent diffusion: an autoencoder of texts of up to `length` tokens, three latents for eight of them, and diffusion of those; an
    upper bound, which holds for texts that fit."""
    autoencoder = AutoencoderConfig(length, latents=-(-3 * length // 8), width=trunk.width, heads=trunk.heads, dropout=trunk.dropout)
    return LatentDiffusion(autoencoder, backbone=trunk)
