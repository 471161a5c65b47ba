"""Text to a fixed number of vectors and back: the space in which latent diffusion runs.

A bidirectional trunk reads the text, M queries gather it into latents of D numbers (Perceiver resampler, Alayrac et al. 2022; LD4LG,
Lovelace et al. 2023), and a trunk that cross-attends to the latents writes it again. It sees them through noise, so that latents which
are nearly right read as right ones do. Query m begins from the m-th stretch of the text, and each place of the text that is written from
its own latent: attention, which would have to find that correspondence, is left to add what the rest of the text says.
"""

import math
import warnings
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init

from textdiff.backbones.base import KeyValueCache
from textdiff.backbones.transformer import TransformerConfig, TransformerContext
from textdiff.batch import Batch
from textdiff.prediction import HeadPrediction
from textdiff.randomness import Rng
from textdiff.vocab import Vocab

_ACTIVE = 0.01  # variance over texts from which a number counts as used (Burda et al. 2016, section 5)
_FEWEST_ROWS = 8  # texts from which that variance is judged
_MEMORY = 0.99  # decay of running means, reached as steps go by
_SMALLEST = 0.1  # scale below which latents are not magnified any more


class PosteriorCollapseWarning(UserWarning):
    """Latents say nothing of the text, or the decoder does not listen."""


class Text(NamedTuple):
    """The targets of a batch, from the first column on."""

    tokens: Tensor  # (B, N) long
    attend: Tensor  # (B, N) bool, False at padding


class Posterior(NamedTuple):
    """q(latents | text) = N(mean, exp(log_variance)); without a variance the encoder is deterministic."""

    mean: Tensor  # (B, M, D)
    log_variance: Tensor | None = None  # (B, M, D)

    def draw(self, rng: Rng) -> Tensor:
        """Latents (B, M, D)."""
        if self.log_variance is None:
            return self.mean
        return self.mean + (0.5 * self.log_variance).exp() * rng.normal("posterior", self.mean.shape[1:]).to(self.mean.dtype)


@dataclass(frozen=True)
class Regulariser:
    """What is asked of latents beside that the text can be read from them."""

    numbers: ClassVar[int] = 1  # that the encoder gives for each number of a latent

    @property
    def strength(self) -> float:
        """What `divergence` is multiplied by."""
        raise NotImplementedError

    def posterior(self, output: Tensor) -> Posterior:
        """The law of the latents that the encoder's output (B, M, numbers D) stands for."""
        return Posterior(output)

    def divergence(self, posterior: Posterior, tokens: Tensor, rng: Rng) -> Tensor:
        """How far the latents are from N(0, I), summed over the batch, (); `tokens` (B,) are the texts' lengths."""
        raise NotImplementedError


@dataclass(frozen=True)
class Plain(Regulariser):
    """Latents of norm sqrt(D), so that a number is 1 in the mean square (LD4LG), and no more."""

    @property
    def strength(self) -> float:
        return 0.0

    def posterior(self, output: Tensor) -> Posterior:
        return Posterior(F.normalize(output, dim=-1) * math.sqrt(output.shape[-1]))

    def divergence(self, posterior: Posterior, tokens: Tensor, rng: Rng) -> Tensor:
        return posterior.mean.new_zeros(())


@dataclass(frozen=True)
class VAE(Regulariser):
    """KL( q(latents | text) || N(0, I) ) in nats, `beta` times (Kingma & Welling 2014; Higgins et al. 2017)."""

    numbers: ClassVar[int] = 2
    beta: float = 0.01

    def __post_init__(self) -> None:
        if self.beta < 0:
            raise ValueError(f"beta is {self.beta}, expected 0 or more")

    @property
    def strength(self) -> float:
        return self.beta

    def posterior(self, output: Tensor) -> Posterior:
        mean, log_variance = output.chunk(2, dim=-1)
        return Posterior(mean, (log_variance - 4.0).clamp(-12.0, 4.0))  # narrow at first: a decoder that hears only noise stops listening

    def divergence(self, posterior: Posterior, tokens: Tensor, rng: Rng) -> Tensor:
        assert posterior.log_variance is not None
        return normal_divergence(posterior.mean, posterior.log_variance).sum()


@dataclass(frozen=True)
class SlicedWasserstein(Regulariser):
    """The squared sliced Wasserstein-2 distance of a batch's latents to N(0, I), `weight` times for each token (Kolouri et al. 2019)."""

    weight: float = 1.0
    projections: int = 64

    def __post_init__(self) -> None:
        if self.weight < 0 or self.projections < 1:
            raise ValueError(f"weight is {self.weight}, projections {self.projections}: expected 0 or more, and 1 or more")

    @property
    def strength(self) -> float:
        return self.weight

    def divergence(self, posterior: Posterior, tokens: Tensor, rng: Rng) -> Tensor:
        flat = posterior.mean.flatten(1)
        directions = rng.rows(rng.key.new_zeros(1)).normal("projections", (self.projections, flat.shape[1]))[0].to(flat.dtype)
        return sliced_wasserstein(flat, F.normalize(directions, dim=-1)) * tokens.sum()


def normal_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL( N(mean, exp(log_variance)) || N(0, I) ) of latents (B, M, D), (B,) nats."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).flatten(1).sum(-1)


def sliced_wasserstein(points: Tensor, directions: Tensor) -> Tensor:
    """Mean over `directions` (P, K) of the squared Wasserstein-2 distance between the points (B, K) seen along one and N(0, 1), ():
    sorted points against the normal's quantiles. Points that do follow N(0, I) score about log log B / B, not 0."""
    ordered = (points @ directions.T).sort(dim=0).values  # (B, P)
    middle = (torch.arange(len(points), device=points.device, dtype=torch.float64) + 0.5) / len(points)
    return (ordered - torch.special.ndtri(middle).to(points.dtype)[:, None]).square().mean()


@dataclass(frozen=True)
class AutoencoderConfig:
    """Sizes of a text autoencoder."""

    length: int = 64  # tokens of the longest text, its EOS included
    latents: int = 16  # M, for every text
    latent_width: int = 32  # D
    regulariser: Regulariser = Plain()
    autoregressive: bool = False  # the decoder also reads the tokens before; else the latents must tell it all
    width: int = 128
    layers: int = 2  # of the encoder, and of the decoder
    heads: int = 4
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if min(self.length, self.latents, self.latent_width) < 1:
            sizes = f"length {self.length}, latents {self.latents}, latent_width {self.latent_width}"
            raise ValueError(f"{sizes}: expected 1 or more of each")
        self.trunk(1, 1)

    @property
    def stride(self) -> int:
        """Tokens in a latent's stretch of the longest text."""
        return -(-self.length // self.latents)

    def trunk(self, layers: int, encoder_layers: int) -> TransformerConfig:
        """A trunk with cross-attention."""
        longest = max(self.length, self.latents)
        return TransformerConfig(self.width, layers, self.heads, longest, encoder_layers=encoder_layers, dropout=self.dropout)


class Autoencoder(nn.Module):
    """Encoder and decoder with weights; latents have about unit variance, for Plain exactly and else by a running scale."""

    scale: Tensor

    def __init__(self, config: AutoencoderConfig, vocab: Vocab) -> None:
        super().__init__()
        self.config, self.banned = config, vocab.unemittable
        self.eos_id, width = vocab.eos_id, config.width
        self.reader = config.trunk(1, config.layers).build(vocab, causal=False)
        self.gather = nn.Linear(config.stride * width, width)
        self.queries = nn.Parameter(torch.empty(config.latents, width))
        self.narrow = nn.Linear(width, config.regulariser.numbers * config.latent_width)
        self.widen = nn.Linear(config.latent_width, width)
        self.slots = nn.Parameter(torch.empty(config.latents, width))
        self.spread = nn.Linear(config.latent_width, config.stride * width)
        self.writer = config.trunk(config.layers, 1).build(vocab, config.autoregressive)
        self.writer.encoder, self.writer.encoder_norm = nn.ModuleList(), None  # the latents stand where it would have put its memory
        self.places = nn.Parameter(torch.empty(config.length, width))
        self.register_buffer("scale", torch.ones(()))

    def reset(self) -> None:
        """Fresh weights of what no trunk owns."""
        for layer in (self.gather, self.narrow, self.widen, self.spread):
            init.normal_(layer.weight, std=1 / math.sqrt(layer.in_features))
            init.zeros_(layer.bias)
        for table in (self.queries, self.places, self.slots):
            init.normal_(table)
        init.ones_(self.scale)

    def encode(self, text: Text) -> Posterior:
        """The latents' law given a text, before scaling."""
        rows = len(text.tokens)
        blank = text.tokens.new_zeros(rows, self.config.latents)
        context = self.reader.context(Batch.of(blank, source=text.tokens, source_attend=text.attend))
        assert context.memory is not None
        short = self.config.latents * self.config.stride - text.tokens.shape[1]
        states = F.pad(context.memory * text.attend[..., None], (0, 0, 0, short))
        begun = self.queries + self.gather(states.reshape(rows, self.config.latents, -1))
        return self.config.regulariser.posterior(self.narrow(self.reader(begun, context)).to(self.queries.dtype))

    def scaled(self, latents: Tensor) -> Tensor:
        """Latents at unit variance."""
        return latents / self.scale.clamp(min=_SMALLEST)

    @torch.no_grad()
    def follow(self, mean: Tensor, step: int) -> None:
        """Take the root mean square of latents (B, M, D) at a training step into the running scale, which so depends on which rows those
        are: other micro-batches or processes make it another, within the spread of such means."""
        self.scale.lerp_(mean.square().mean().sqrt().to(self.scale.dtype), _share(step))

    @torch.no_grad()
    def average(self, other: "Autoencoder", step: int) -> None:
        """Take another's weights at a training step into these, which are their running mean."""
        for kept, new in zip(self.parameters(), other.parameters(), strict=True):
            kept.lerp_(new, _share(step))
        self.scale.copy_(other.scale)

    def _inputs(self, latents: Tensor) -> Tensor:
        """What each place (B, length, H) is told by itself."""
        return self.spread(latents).reshape(len(latents), -1, self.config.width)[:, : self.config.length] + self.places

    def _context(self, latents: Tensor, columns: int) -> TransformerContext:
        blank = torch.zeros(len(latents), columns, dtype=torch.long, device=latents.device)
        context = self.writer.context(Batch.of(blank))
        return context._replace(memory=self.widen(latents) + self.slots)

    def reads(self, latents: Tensor, text: Text) -> HeadPrediction:
        """The belief (B, N) about each token of a text, given noisy latents (B, M, D) and, left to right, the tokens before it.

        All places of the longest text are written at once whatever the text's own length, which the latents alone may tell.
        """
        head = self.writer.head(self.banned)
        if not self.config.autoregressive:
            hidden = self.writer(self._inputs(latents), self._context(latents, self.config.length))
            return HeadPrediction(hidden[:, : text.tokens.shape[1]], head)
        before = F.pad(self.writer.embedding(text.tokens[:, :-1]), (0, 0, 1, 0))
        inputs = before + self._inputs(latents)[:, : text.tokens.shape[1]]
        hidden = self.writer(inputs, self._context(latents, text.tokens.shape[1]))
        return HeadPrediction(hidden, head)

    @torch.no_grad()
    def write(self, latents: Tensor) -> Tensor:
        """The most probable tokens (B, length), each given those before it left to right; EOS after the first one."""
        rows, length = len(latents), self.config.length
        inputs, context, head = self._inputs(latents), self._context(latents, length), self.writer.head(self.banned)
        if not self.config.autoregressive:
            hidden = self.writer(inputs, context)
            return self._ended(head(hidden.flatten(0, 1)).argmax(-1).unflatten(0, (rows, length)))
        cache, written = KeyValueCache(length), []
        before = torch.zeros_like(inputs[:, :1])
        for place in inputs.split(1, dim=1):
            written.append(head(self.writer(before + place, context, cache=cache)[:, 0]).argmax(-1))
            before = self.writer.embedding(written[-1])[:, None]
        return self._ended(torch.stack(written, dim=1))

    def _ended(self, tokens: Tensor) -> Tensor:
        return tokens if self.eos_id is None else tokens.masked_fill((tokens == self.eos_id).cumsum(1) > 0, self.eos_id)


def _share(step: int) -> float:
    """The weight of the newest in a running mean that soon forgets where it began."""
    return max(1 - _MEMORY, 9 / (9 + step))


def health(posterior: Posterior, text: Text, argmax: Tensor, warn: bool) -> dict[str, Tensor]:
    """Reconstruction accuracy and active units (Burda et al. 2016), sums over the tokens as every metric is; `argmax` (N,) are the tokens
    read. With `warn` a `PosteriorCollapseWarning` is given when there is nothing left of either."""
    wanted = text.tokens[text.attend]
    right, count = (argmax == wanted).sum(), len(wanted)
    active = (posterior.mean.detach().flatten(1).var(dim=0, correction=0) > _ACTIVE).sum()
    commonest = wanted.bincount().max()
    if warn and len(text.tokens) >= _FEWEST_ROWS and (int(active) == 0 or (right <= commonest and commonest < count)):
        warnings.warn(
            "the posterior has collapsed (active_units and reconstruction_accuracy in the log say how far): no number of the latents "
            "varies, or the commonest token alone would be read as well; weaken the regulariser, or train the autoencoder longer",
            PosteriorCollapseWarning,
            stacklevel=2,
        )
    return {"reconstruction_accuracy": right, "active_units": active * count}
