"""The published embedding diffusion models, and a modern one, as settings of `EmbeddingDiffusion` around any trunk.

What makes each model is here: its noise, its vectors, what it reads and what it is trained on. The trunk is ours (pre-norm, rotary
positions), not the BERT body of the papers; the loss counts targets only, as the papers' equations do and their code does not; times are
uniform, where DiffuSeq and GENIE draw them by their losses.
"""

import math

import torch

from textdiff.backbones.transformer import TransformerConfig
from textdiff.log_snr import Gumbel, Shifted, Sqrt
from textdiff.models.embedding import EmbeddingDiffusion
from textdiff.models.embedding_objective import DiffusionLM, TokenCrossEntropy
from textdiff.models.embedding_table import Free, Sphere
from textdiff.models.reading import Regression, Softmax
from textdiff.processes.gaussian import Gaussian

_MATCHED = 16  # numbers per token for which the plain sqrt schedule is right
_FIRST = 1 / 2000  # of Diffusion-LM's steps


def _sqrt(width: int) -> Gaussian:
    """Diffusion-LM's schedule; vectors of more numbers than 16 are given noise as their norm grows."""
    factor = math.sqrt(width / _MATCHED)
    return Gaussian(Shifted(Sqrt(), factor) if factor > 1 else Sqrt(), t_min=_FIRST)


def _own_noise(width: int) -> float:
    """sigma_0, the noise around embeddings: the schedule's after its first step."""
    process = _sqrt(width)
    return float((1 - process.alpha(torch.tensor(process.t_min, dtype=torch.float64))).sqrt())


def diffusion_lm(trunk: TransformerConfig, width: int = 16) -> EmbeddingDiffusion:
    """Diffusion-LM (Li et al. 2022): regressed x0, mean squared error with embedding and rounding terms, sqrt schedule, free vectors."""
    return EmbeddingDiffusion(_sqrt(width), trunk, width, Free(), Regression(), DiffusionLM(_own_noise(width)))


def diffusion_lm_simple(trunk: TransformerConfig, width: int = 16) -> EmbeddingDiffusion:
    """The "e2e-simple" loss of its code: cross-entropy of the tokens rounded from the prediction."""
    return EmbeddingDiffusion(_sqrt(width), trunk, width, Free(), Regression(), TokenCrossEntropy(_own_noise(width)))


def diffuseq(trunk: TransformerConfig, width: int = 16) -> EmbeddingDiffusion:
    """DiffuSeq (Gong et al. 2023): Diffusion-LM with partial noising, the source in the same row and clean in training as in sampling."""
    return diffusion_lm(trunk, width)


def diffuseq_v2(trunk: TransformerConfig, width: int = 16) -> EmbeddingDiffusion:
    """DiffuSeq-v2 (Gong et al. 2023b): noise around a learnt absorbing vector, to which targets jump with chance s / 2 in training."""
    return EmbeddingDiffusion(_sqrt(width), trunk, width, Free(), Regression(), DiffusionLM(_own_noise(width)), absorb=0.5)


def genie(trunk: TransformerConfig, width: int = 16) -> EmbeddingDiffusion:
    """GENIE (Lin et al. 2023): the source is read by an encoder and cross-attended to, under its padding mask; the trunk must have one."""
    if not trunk.encoder_layers:
        raise ValueError("GENIE reads its source by an encoder: set encoder_layers")
    return diffusion_lm(trunk, width)


def modern(
    trunk: TransformerConfig, width: int = 32, noise: float = 0.0, curriculum: float = 0.0, tied: bool = True, scale: float = 1.0
) -> EmbeddingDiffusion:
    """The CDCD / Plaid / LangFlow line: normalised vectors, cross-entropy through the prediction, the noisy vector's own evidence added to
    the logits, and a Gumbel law of noise levels about where a vector by itself says half of what it can. Unlike theirs the trunk also reads
    that evidence, is read one position to the right, and does not condition on itself: so runs of minutes learn most.

    `noise` moves that law up in gamma: a response that its prompt decides is learnt where little else is left to read. `curriculum` is the
    first part of training, in which targets are noise or clean; `tied` makes the trunk answer in vectors of the table, from which what a
    prompt says is more easily copied; `scale` is the model's `read_scale`.
    """
    location = math.log(width / 14) + noise  # at an SNR of 14 / width about half of the ln 1,000 nats are known
    process = Gaussian(Gumbel(location, 1.3, -4.0, 8.0 + noise / 2))
    reading, loss = Softmax(tied=tied), TokenCrossEntropy()
    return EmbeddingDiffusion(
        process, trunk, width, Sphere(), reading, loss, shift=True, curriculum=curriculum, read_scale=scale, own_evidence=True
    )
