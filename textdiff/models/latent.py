"""Latent text diffusion (LD4LG, Lovelace et al. 2023): an autoencoder makes a text a few vectors, Gaussian diffusion models those.

Both are trained by one run: the first `stage` of it trains the autoencoder, the rest the diffusion in the latents of its average. A text is
written as a whole: conditions are read from `batch.source`, and nothing can be filled in.

With VAE and SlicedWasserstein training depends on how a batch is divided: the running scale follows the latents of a step's first
micro-batch on each process, not those of the batch, and that distance is measured within a micro-batch. Plain latents know no such thing.
"""

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init

from textdiff import spec as plain
from textdiff.backbones.time_features import level_of
from textdiff.backbones.transformer import Transformer, TransformerConfig, TransformerContext
from textdiff.batch import Batch, Clean
from textdiff.models.autoencoder import Autoencoder, AutoencoderConfig, Text, health
from textdiff.models.base import Loss, ModelSpec, TextDiffConfig
from textdiff.models.gaussian_bound import GaussianBound, GaussianLikelihood
from textdiff.models.generation import TextDiffusionGenerationMixin
from textdiff.models.reading import Target, Velocity
from textdiff.models.self_conditioning import read_after
from textdiff.models.time_allocation import readings
from textdiff.prediction import Prediction
from textdiff.processes.gaussian import Gaussian, states_of
from textdiff.randomness import Rng
from textdiff.samplers.base import Sampler
from textdiff.samplers.ddim import DDIM
from textdiff.state_prediction import StatePrediction
from textdiff.vocab import Vocab


class LatentConfig(TextDiffConfig):
    """`config.json` of a `LatentDiffusionLM`."""

    model_type = "textdiff-latent"


@dataclass(frozen=True)
class LatentDiffusion(ModelSpec):
    """A latent diffusion model without its weights."""

    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    process: Gaussian = Gaussian()
    backbone: TransformerConfig = field(default_factory=TransformerConfig)  # the denoiser; its time conditioning is always on
    target: Target = Velocity()
    stage: float = 0.4  # first part of training, which the autoencoder has
    self_conditioning: float = 0.0  # share of training rows that read the denoiser's own first belief; 0: no such input
    label_dropout: float = 0.0  # chance that a row's label, or the text its encoder reads, is hidden while the diffusion is trained

    def __post_init__(self) -> None:
        if not 0 < self.stage < 1:
            raise ValueError(f"stage is {self.stage}, expected a part of training between 0 and 1: both stages are needed")
        for name in ("self_conditioning", "label_dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected a number in [0, 1]")
        if self.backbone.self_conditioning or not self.backbone.tied:
            raise ValueError("a latent model reads and writes by itself: leave the backbone's self_conditioning off and tied on")

    def build(self, vocab: Vocab) -> "LatentDiffusionLM":
        """The model with fresh weights."""
        return LatentDiffusionLM(LatentConfig(spec=plain.to_plain(self), vocab=plain.to_plain(vocab)))


class Vectors(StatePrediction):
    """A belief about x0 (B, M, D), whose vectors stand for no token each."""

    def __init__(self, x0: Tensor) -> None:
        self.x0 = x0
        self.shape, self.device = (x0.shape[0], x0.shape[1]), x0.device

    def state(self, where: Tensor | None = None) -> Tensor:
        return self.x0 if where is None else self.x0[where]

    def logits(self, where: Tensor | None = None) -> Tensor:
        raise ValueError("latents stand for no token each: temperature, top-k and clamping do not act on a latent model")


class Ports(nn.Module):
    """Noisy latents (B, M, D) to the trunk's width and its output back."""

    def __init__(self, config: AutoencoderConfig, hidden: int, twice: bool) -> None:
        super().__init__()
        self.read = nn.Linear(config.latent_width, hidden)
        self.read_previous = nn.Linear(config.latent_width, hidden, bias=False) if twice else None  # of the belief before
        self.slots = nn.Parameter(torch.empty(config.latents, hidden))
        self.write = nn.Linear(hidden, config.latent_width)

    def reset(self) -> None:
        """Fresh weights: unit-variance latents read at unit variance, outputs begun near 0."""
        init.normal_(self.read.weight, std=self.read.in_features**-0.5)
        init.normal_(self.slots)
        init.normal_(self.write.weight, std=0.02)
        for layer in (self.read, self.write):
            init.zeros_(layer.bias)
        if self.read_previous is not None:
            init.zeros_(self.read_previous.weight)

    def forward(self, x: Tensor, previous: Tensor | None) -> Tensor:
        read = self.read(x) + self.slots
        return read if self.read_previous is None or previous is None else read + self.read_previous(previous)


@dataclass(frozen=True)
class LatentPredictor:
    """A denoiser bound to one batch."""

    model: "LatentDiffusionLM"
    process: Gaussian
    context: TransformerContext

    def __call__(self, xt: Tensor, t: Tensor, previous: Prediction | None = None) -> StatePrediction:
        """Belief about x0; where the model reads a `previous` one and there is none, its own first: two network calls."""
        if not self.model.spec.self_conditioning:
            return self.alone(xt, t)
        return read_after(previous, partial(self.read, xt, t), lambda pred: states_of(pred).state())

    def alone(self, xt: Tensor, t: Tensor) -> StatePrediction:
        """Belief about x0 without a previous one."""
        return self.read(xt, t, None)

    def read(self, xt: Tensor, t: Tensor, previous: Tensor | None) -> StatePrediction:
        """Belief about x0 given the mean (B, M, D) of a previous one, zeros where there was none."""
        model, process = self.model, self.process
        hidden = model.backbone(model.ports(xt, previous), self.context, level_of(process.gamma(t)))
        return Vectors(model.spec.target.x0(process, model.ports.write(hidden).to(xt.dtype), xt, t))

    def rows(self, index: Tensor) -> "LatentPredictor":
        """The same for a subset of rows."""
        return replace(self, context=self.context.rows(index))


class LatentDiffusionLM(TextDiffusionGenerationMixin, GaussianLikelihood):  # type: ignore[misc]
    """A `Denoiser` with weights; its likelihood is an upper bound."""

    config: LatentConfig
    nll_is_bound = True
    backbone: Transformer
    averaged: Tensor

    def __init__(self, config: LatentConfig, trusted: tuple[str, ...] = ("textdiff",)) -> None:
        super().__init__(config, trusted)
        spec: LatentDiffusion = self.spec
        self.process = spec.process
        self.backbone = replace(spec.backbone, time_conditioning=True).build(self.vocab, causal=False)
        if not spec.backbone.encoder_layers:
            self.backbone.embedding = nn.Identity()  # no text is read
        self.ports = Ports(spec.autoencoder, spec.backbone.width, spec.self_conditioning > 0)
        self.learning = Autoencoder(spec.autoencoder, self.vocab)  # what the first stage trains
        # Its running mean, which all else reads. In the second stage it is a constant: neither the optimizer nor its average touches it.
        self.autoencoder = Autoencoder(spec.autoencoder, self.vocab).requires_grad_(False)
        self.first_id = next((i for i in (self.vocab.bos_id, self.vocab.eos_id) if i is not None), 0)  # that every row begins with
        self.register_buffer("averaged", torch.tensor(-1))  # the training step whose weights were taken into the mean last
        self.generation_config = self.generation_config.updated(max_new_tokens=spec.autoencoder.length)
        if spec.label_dropout and not (self.backbone.labels or spec.backbone.encoder_layers):
            raise ValueError(f"label_dropout is {spec.label_dropout} and the trunk reads no source: set labels or encoder_layers")
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        self.backbone.init_weights(module)
        if isinstance(module, (Ports, Autoencoder)):
            module.reset()
        if module is self:
            init.constant_(self.averaged, -1)

    def train(self, mode: bool = True) -> Self:
        """Training mode for all but the averaged autoencoder: dropout would blur its latents, and loading makes weights trainable."""
        super().train(mode)
        self.autoencoder.train(False).requires_grad_(False)
        return self

    @property
    def max_length(self) -> int:  # type: ignore[override]
        """The longest row: one token of context and the longest text."""
        return int(self.spec.autoencoder.length) + 1

    @property
    def learnt_untold(self) -> bool:
        """Whether the model can be asked without its condition: it reads none, or training hid it now and then."""
        return self.spec.label_dropout > 0 or not (self.backbone.labels or self.spec.backbone.encoder_layers)

    def predictor(self, batch: Batch, process: Gaussian | None = None) -> LatentPredictor:
        """The network bound to a batch, under the model's own noise unless other noise is given."""
        blank = batch.tokens.new_zeros(len(batch.tokens), self.spec.autoencoder.latents)
        canvas = Batch.of(blank, source=batch.source, source_attend=batch.source_attend)
        return LatentPredictor(self, process or self.process, self.backbone.context(canvas))

    def canvas(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Nothing is known of the latents: zeros (B, M, D), all of them targets. Raises ValueError for rows that ask for infilling."""
        self._text(batch)
        if bool((batch.tokens[:, 0] != self.first_id).any()):
            raise ValueError(f"a latent model continues no prompt: begin rows with token {self.first_id} and give the prompt as source")
        known = self.ports.slots.new_zeros(len(batch.tokens), self.spec.autoencoder.latents, self.spec.autoencoder.latent_width)
        return known, known.new_ones(known.shape[:2], dtype=torch.bool)

    def decode(self, x0: Tensor) -> Tensor:
        """Rows (B, 1 + length): the first token, the text, EOS to the end."""
        level, _ = self.process.levels(torch.tensor([self.process.t_min], device=x0.device))  # where the decoder learnt to read
        return F.pad(self.autoencoder.write(level.to(x0.dtype) * x0), (1, 0), value=self.first_id)

    def default_sampler(self, steps: int | None = None) -> Sampler:
        return DDIM() if steps is None else DDIM(steps=steps)

    def _text(self, batch: Batch) -> Text:
        """The texts of a batch whose targets are all but the first token of each row."""
        wanted = batch.attend.clone()
        wanted[:, 0] = False
        if not torch.equal(batch.target, wanted) or bool(batch.document.any()):
            raise ValueError("a latent model writes whole texts after one token: put prompts into the source, infill with another model")
        if batch.tokens.shape[1] > self.max_length:
            raise ValueError(f"rows have {batch.tokens.shape[1]} tokens and the model writes {self.max_length}: shorten the texts")
        return Text(batch.tokens[:, 1:], batch.target[:, 1:])

    def forward(self, batch: Batch, seed: int, step: int, progress: float = 1.0) -> Loss:
        """The loss of the stage that `progress` lies in, summed over tokens: the autoencoder's nats, or the squared error of a number."""
        text, rng = self._text(batch), Rng(seed, step, batch.sample_id)
        if progress < self.spec.stage:
            loss = self._reconstruction(text, rng, step, progress)
            return loss._replace(total=loss.total + _zero(self.backbone) + _zero(self.ports))
        loss = self._denoising(batch, text, rng)
        return loss._replace(total=loss.total + _zero(self.learning))

    def _reconstruction(self, text: Text, rng: Rng, step: int, progress: float) -> Loss:
        """Reading the text from its latents at the noise of t_min, and what the regulariser asks."""
        spec: LatentDiffusion = self.spec
        posterior = self.learning.encode(text)
        if self.training and int(self.averaged) != step:  # once a step, however many micro-batches it has
            self.autoencoder.average(self.learning, step)
            self.learning.follow(posterior.mean, step)
            self.averaged.fill_(step)
        pred = self.learning.reads(self._noisy(self.learning.scaled(posterior.draw(rng)), self.process, self.process.t_min, rng), text)
        nats = -pred.log_prob(text.tokens, text.attend).sum()
        divergence = spec.autoencoder.regulariser.divergence(posterior, text.attend.sum(1), rng)
        with torch.no_grad():
            argmax = pred.statistics(text.attend).argmax
        metrics = health(posterior, text, argmax, warn=progress >= spec.stage / 2)
        total = nats + spec.autoencoder.regulariser.strength * divergence
        return Loss(total, text.attend.sum(), nats.new_tensor(torch.nan), {**metrics, "latent_divergence": divergence.detach()})

    @staticmethod
    def _noisy(latents: Tensor, process: Gaussian, t: float, rng: Rng) -> Tensor:
        return process.corrupt(latents, torch.full((len(latents),), t, dtype=torch.float64, device=latents.device), rng)

    @torch.no_grad()
    def _latents(self, text: Text) -> Tensor:
        """The clean state (B, M, D): means of the averaged autoencoder, at unit variance."""
        return self.autoencoder.scaled(self.autoencoder.encode(text).mean)

    def _denoising(self, batch: Batch, text: Text, rng: Rng) -> Loss:
        """The squared error of what the network predicts, a row counting as much as it has tokens."""
        process, latents = self.process, self._latents(text)
        told = rng.uniform("label", ()) >= self.spec.label_dropout
        batch = batch._replace(source_attend=batch.source_attend & told[:, None])
        everywhere = torch.ones(latents.shape[:2], dtype=torch.bool, device=latents.device)
        noised = process.measure(process, latents, everywhere, batch.stratum, rng)
        predict = self.predictor(batch)
        before: Tensor | None = None
        if self.spec.self_conditioning:
            with torch.no_grad():
                before = predict.alone(noised.xt, noised.t).state()
                before *= (rng.uniform("self_condition", ()) < self.spec.self_conditioning)[:, None, None]
        pred = predict.read(noised.xt, noised.t, before)
        error = (latents - pred.state()).square()
        # x0 is affine in the prediction, whose own error is that of x0 over the factor
        one, target = error.new_ones(len(error), 1, 1), self.spec.target
        factor = target.x0(process, one, 0 * one, noised.t) - target.x0(process, 0 * one, 0 * one, noised.t)
        tokens = text.attend.sum(1)
        total = ((error / factor.square()).mean((1, 2)) * tokens).sum()
        metrics = {"denoising_error": (error.detach().mean((1, 2)) * tokens).sum()}
        return Loss(total, tokens.sum(), total.new_tensor(torch.nan), metrics)

    def bound(self, batch: Batch) -> GaussianBound:
        """With q(z | text) = N(a latents, s^2) at t_min as the posterior: the text read from z, the diffusion of z, the prior's divergence.
        It holds for any encoder, since q(z) has a density where the latents have none."""
        text, process = self._text(batch), self.process.measured()
        latents = self._latents(text)
        everywhere = torch.ones(latents.shape[:2], dtype=torch.bool, device=latents.device)

        def ends(rng: Rng) -> Tensor:
            read = self.autoencoder.reads(self._noisy(latents, process, process.t_min, rng.draw(1)), text)
            log_prob = read.log_prob(text.tokens, text.attend)
            nats = log_prob.new_zeros(text.tokens.shape).masked_scatter(text.attend, -log_prob).double().sum(1)
            return nats + process.prior_divergence(latents).sum(1)

        return GaussianBound(process, self.predictor(batch, process), Clean(batch.tokens, latents), everywhere, ends)

    def calls(self, draws: int) -> int:
        """One of the encoder, one of the denoiser for each draw, two with self-conditioning, and one of the decoder for each reading."""
        return 1 + draws * (2 if self.spec.self_conditioning else 1) + readings(draws)


def _zero(part: nn.Module) -> Tensor:
    """0, made of weights that a stage leaves alone: the wrapper of several processes waits for a gradient of each."""
    return torch.stack([0 * parameter.reshape(-1)[0] for parameter in part.parameters()]).sum()
