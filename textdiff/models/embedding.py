"""Diffusion of token vectors: Diffusion-LM, DiffuSeq, GENIE and their successors are settings of one model.

Tokens become rows of a table, Gaussian noise acts on those, a trunk reads the noisy vectors and says what they were. Prompts, sources and
infilled text are clean vectors that no noise touches (DiffuSeq); a trunk with an encoder cross-attends to `batch.source` instead (GENIE).
"""

import math
from dataclasses import dataclass, field, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init

from textdiff import spec as plain
from textdiff.backbones.attention_masks import positions
from textdiff.backbones.base import banned_ids
from textdiff.backbones.transformer import Transformer, TransformerConfig, TransformerContext
from textdiff.batch import Batch, Clean
from textdiff.log_snr import Gumbel
from textdiff.models.base import Loss, ModelSpec, TextDiffConfig
from textdiff.models.embedding_objective import DiffusionLM, EmbeddingObjective, Encoded, TokenCrossEntropy
from textdiff.models.embedding_table import Reader, Sphere, Table, health
from textdiff.models.gaussian_bound import GaussianBound, GaussianLikelihood
from textdiff.models.generation import TextDiffusionGenerationMixin
from textdiff.models.learned_schedule import LearnedGumbel
from textdiff.models.reading import Output, Reading, Regression, Softmax, SoftmaxOutput
from textdiff.models.self_conditioning import read_after
from textdiff.models.time_allocation import readings
from textdiff.prediction import Prediction
from textdiff.processes.base import Noised, Noising, per_token, stratified
from textdiff.processes.gaussian import Gaussian, states_of
from textdiff.randomness import Rng
from textdiff.samplers.base import Sampler
from textdiff.samplers.continuous import EqualLogSNR, EqualTimes
from textdiff.samplers.ddim import DDIM
from textdiff.state_prediction import StatePrediction
from textdiff.vocab import Vocab


class EmbeddingConfig(TextDiffConfig):
    """`config.json` of an `EmbeddingDiffusionLM`."""

    model_type = "textdiff-embedding"


@dataclass(frozen=True)
class EmbeddingDiffusion(ModelSpec):
    """A diffusion model of token vectors without its weights."""

    process: Gaussian = Gaussian()
    backbone: TransformerConfig = field(default_factory=TransformerConfig)
    width: int = 32  # numbers of a token's vector: the more, the more noise it takes to hide it (log_snr.Shifted)
    table: Table = Sphere()
    reading: Reading = Softmax()
    objective: EmbeddingObjective = TokenCrossEntropy()
    noising: Noising | None = None  # None: times uniform on [t_min, 1]
    self_conditioning: float = 0.0  # share of training rows that read the model's own first belief; 0: no such input
    shift: bool = False  # position l is read from the trunk's output at l - 1, where the left neighbour is at hand
    read_scale: float = 1.0  # standard deviation of what the trunk is given to begin with: the louder, the less its blocks add
    own_evidence: bool = False  # the trunk also reads what each noisy vector says by itself, the mean of x0 under a softmax output's bias
    curriculum: float = 0.0  # first part of training in which each target is either pure noise or at t_min, as masks would have it
    label_dropout: float = 0.0  # chance that a row's label, or the text its encoder reads, is hidden in training
    learned_schedule: bool = False  # a `Gumbel` schedule moves to where the information is
    absorb: float | None = None  # DiffuSeq v2: vectors are noised around a learnt point, to which they jump with chance absorb * s

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ValueError(f"width is {self.width}, expected 1 or more numbers to a token")
        for name in ("self_conditioning", "label_dropout", "curriculum"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected a number in [0, 1]")
        if self.absorb is not None and not 0 <= self.absorb <= 1:
            raise ValueError(f"absorb is {self.absorb}, expected a chance in [0, 1]")
        if self.learned_schedule and not isinstance(self.process.schedule, Gumbel):
            raise ValueError(f"learned_schedule moves a Gumbel schedule and this one is {type(self.process.schedule).__name__}")
        if self.learned_schedule and not isinstance(self.objective, TokenCrossEntropy):
            raise ValueError(f"learned_schedule follows cross-entropies and the objective is {type(self.objective).__name__}")
        if isinstance(self.objective, DiffusionLM) and not isinstance(self.reading, Regression):
            raise ValueError(f"DiffusionLM compares vectors and the reading is {type(self.reading).__name__}: use Regression")
        if self.own_evidence and not isinstance(self.reading, Softmax):
            raise ValueError(
                f"own_evidence weighs vectors by a softmax output and the reading is {type(self.reading).__name__}: use Softmax"
            )
        if self.backbone.self_conditioning or not self.backbone.tied:
            raise ValueError("an embedding model reads and writes by itself: leave the backbone's self_conditioning off and tied on")

    def build(self, vocab: Vocab) -> "EmbeddingDiffusionLM":
        """The model with fresh weights."""
        return EmbeddingDiffusionLM(EmbeddingConfig(spec=plain.to_plain(self), vocab=plain.to_plain(vocab)))


@dataclass(frozen=True)
class EmbeddingPredictor:
    """A trunk bound to one batch."""

    model: "EmbeddingDiffusionLM"
    process: Gaussian
    context: TransformerContext
    table: Tensor  # (V, D), around the origin that noise is added at
    target: Tensor  # (B, L) bool
    starts: Tensor  # (B, L) bool, the first position of each document

    def __call__(self, xt: Tensor, t: Tensor, previous: Prediction | None = None) -> StatePrediction:
        """Belief about x0; where the model reads a `previous` one and there is none, its own first: two network calls."""
        if not self.model.spec.self_conditioning:
            return self.alone(xt, t)
        return read_after(previous, partial(self.read, xt, t), lambda pred: states_of(pred).state())

    def alone(self, xt: Tensor, t: Tensor) -> StatePrediction:
        """Belief about x0 without a previous one."""
        return self.read(xt, t, None)

    def read(self, xt: Tensor, t: Tensor, previous: Tensor | None) -> StatePrediction:
        """Belief about x0 given the mean (B, L, D) of a previous one, zeros where there was none."""
        model, process = self.model, self.process
        gamma, banned = process.gamma(t), banned_ids(model.vocab.unemittable, self.table)
        beliefs = [previous] if model.spec.self_conditioning else []
        if isinstance(model.output, SoftmaxOutput) and model.spec.own_evidence:
            beliefs.append(model.output.alone(xt, t, process, self.table, banned))
        noisy = model.reader.noisy(xt if model.centre is None else xt + model.centre, gamma, self.target, beliefs)
        hidden = model.backbone(noisy, self.context, torch.sigmoid(gamma))
        if model.spec.shift:
            hidden = torch.where(self.starts[..., None], hidden, hidden.roll(1, dims=1))
        return model.output(hidden, xt, t, process, self.table, banned)

    def under(self, process: Gaussian) -> "EmbeddingPredictor":
        """The same network at the times of another schedule."""
        return replace(self, process=process)

    def rows(self, index: Tensor) -> "EmbeddingPredictor":
        """The same for a subset of rows."""
        return replace(self, context=self.context.rows(index), target=self.target[index], starts=self.starts[index])


class EmbeddingDiffusionLM(TextDiffusionGenerationMixin, GaussianLikelihood):  # type: ignore[misc]
    """A `Denoiser` with weights; its likelihood is an upper bound."""

    config: EmbeddingConfig
    nll_is_bound = True
    backbone: Transformer

    def __init__(self, config: EmbeddingConfig, trusted: tuple[str, ...] = ("textdiff",)) -> None:
        super().__init__(config, trusted)
        spec: EmbeddingDiffusion = self.spec
        hidden = spec.backbone.width
        self.backbone = spec.backbone.build(self.vocab, causal=False)
        self.backbone.embedding = Reader(
            spec.table, self.vocab.size, spec.width, hidden, (spec.self_conditioning > 0) + spec.own_evidence, spec.read_scale
        )
        self.output: Output = spec.reading.build(self.vocab.size, spec.width, hidden)
        self.centre = None if spec.absorb is None else nn.Parameter(torch.empty(spec.width))
        schedule = spec.process.schedule
        self.learned: LearnedGumbel | None = None
        if spec.learned_schedule and isinstance(schedule, Gumbel):
            self.learned = LearnedGumbel(schedule, math.log(self.vocab.tokens))
        if spec.label_dropout and not (self.backbone.labels or spec.backbone.encoder_layers):
            raise ValueError(f"label_dropout is {spec.label_dropout} and the trunk reads no source: set labels or encoder_layers")
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        self.backbone.init_weights(module)
        if isinstance(module, (Reader, Output, LearnedGumbel)):
            module.reset()
        if module is self.backbone.place:
            init.normal_(module.weight, std=self.spec.read_scale)  # as loud as what the reader reads  # type: ignore[arg-type]
        if module is self and self.centre is not None:
            init.normal_(self.centre, std=self.spec.width**-0.5)

    @property
    def reader(self) -> Reader:
        """What stands in the trunk's place for ids."""
        reader = self.backbone.embedding
        assert isinstance(reader, Reader)
        return reader

    @property
    def process(self) -> Gaussian:
        """The process, with the schedule learnt so far."""
        process: Gaussian = self.spec.process
        return process if self.learned is None else self.learned.process(process)

    @property
    def learnt_untold(self) -> bool:
        """Whether the model can be asked without its condition: it reads none, or training hid it now and then."""
        return self.spec.label_dropout > 0 or not (self.backbone.labels or self.spec.backbone.encoder_layers)

    @property
    def weighs_tokens(self) -> bool:
        """Whether x0 is a mean of the vectors weighed by a softmax, and not regressed."""
        return isinstance(self.spec.reading, Softmax)

    def vectors(self) -> Tensor:
        """The vectors (V, D), around the origin that noise is added at."""
        rows = self.reader.rows()
        return rows if self.centre is None else rows - self.centre

    def predictor(self, batch: Batch) -> EmbeddingPredictor:
        """The network bound to a batch."""
        return self._predictor(batch, self.process, self.vectors())

    def _predictor(self, batch: Batch, process: Gaussian, table: Tensor) -> EmbeddingPredictor:
        starts = positions(batch.document) == 0
        return EmbeddingPredictor(self, process, self.backbone.context(batch), table, batch.target, starts)

    def canvas(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The vectors of the tokens, and the targets."""
        return F.embedding(batch.tokens, self.vectors()), batch.target

    def decode(self, x0: Tensor) -> Tensor:
        """The nearest token of each vector, (B, L)."""
        table = self.vectors()
        distance = table.square().sum(-1) - 2 * x0.to(table.dtype) @ table.T
        return distance.index_fill(-1, torch.tensor(self.vocab.unemittable, device=x0.device, dtype=torch.long), torch.inf).argmin(-1)

    def default_sampler(self, steps: int | None = None) -> Sampler:
        # under a Gumbel law the first levels of noise take up next to no time
        spacing = EqualLogSNR() if isinstance(self.spec.process.schedule, Gumbel) else EqualTimes()
        return DDIM(spacing=spacing, eta=1.0) if steps is None else DDIM(steps, spacing, eta=1.0)

    def forward(self, batch: Batch, seed: int, step: int, progress: float = 1.0) -> Loss:
        """The training loss; `nelbo` is not a number: a bound needs a second call for the reconstruction, which evaluations make."""
        spec: EmbeddingDiffusion = self.spec
        rng, process, table = Rng(seed, step, batch.sample_id), self.process, self.vectors()
        if spec.label_dropout:
            told = rng.uniform("label", ()) >= spec.label_dropout
            batch = batch._replace(source_attend=batch.source_attend & told[:, None])
        rows = F.embedding(batch.tokens, table)
        state = rows
        if spec.objective.own_noise:
            state = rows + batch.target[..., None] * spec.objective.own_noise * rng.normal("own_noise", rows.shape[1:]).to(rows.dtype)
        encoded = Encoded(Clean(batch.tokens, state), rows)
        noised = self._noised(process, state, batch, rng, progress)
        predict = self._predictor(batch, process, table)
        pred = predict.read(noised.xt, noised.t, self._first_guess(predict, noised, rng))
        nats = spec.objective(process, pred, encoded, noised, batch.target)
        total = nats.sum() + 0.0 * self.output.bias[0]  # without a rounding term nothing else reads the bias
        if self.centre is not None:
            total = total + 0.01 * self.centre.abs().mean() * batch.target.sum()
        if self.learned is not None:
            gamma = process.gamma(per_token(noised.t)).expand(nats.shape)
            taught = float(progress >= spec.curriculum)  # a curriculum's two levels are no curve
            total = total + taught * self.learned.misfit(gamma, nats)[batch.target].sum()
        count = batch.target.sum()
        return Loss(total, count, nats.new_tensor(torch.nan), health(self.reader.rows().detach()[: self.vocab.tokens], count))

    def _noised(self, process: Gaussian, state: Tensor, batch: Batch, rng: Rng, progress: float) -> Noised:
        spec: EmbeddingDiffusion = self.spec
        if progress < spec.curriculum:  # what neighbours say of a token is learnt where it is plain which of them to trust
            hidden = rng.uniform("hidden", state.shape[1:2]) < stratified(rng, batch.stratum)
            t = process.t_min + (1 - process.t_min) * hidden.double()
            x = process.corrupt(state, t, rng).where(batch.target[..., None], state)
            return Noised(x, t, torch.full_like(t, torch.nan))
        noised = (spec.noising or process.measure)(process, state, batch.target, batch.stratum, rng)
        if spec.absorb is None:
            return noised
        chance = spec.absorb * process.levels(noised.t)[1]
        jumps = (rng.uniform("absorb", state.shape[1:2])[..., None] < chance) & batch.target[..., None]
        return noised._replace(xt=noised.xt.masked_fill(jumps, 0.0))

    def _first_guess(self, predict: EmbeddingPredictor, noised: Noised, rng: Rng) -> Tensor | None:
        chance: float = self.spec.self_conditioning
        if not chance:
            return None
        with torch.no_grad():
            before = predict.alone(noised.xt, noised.t).state()
        return before * (rng.uniform("self_condition", ()) < chance)[:, None, None]

    def bound(self, batch: Batch) -> GaussianBound:
        """Diffusion of the vectors of the targets, and their reconstruction."""
        process, table = self.process.measured(), self.vectors()
        clean, predict = Clean(batch.tokens, F.embedding(batch.tokens, table)), self._predictor(batch, process, table)

        def ends(rng: Rng) -> Tensor:
            return process.boundary(predict, clean, batch.target, rng.draw(1), process.t_min).double().sum(1)

        return GaussianBound(process, predict, clean, batch.target, ends)

    def calls(self, draws: int) -> int:
        """One for each draw of either term, two with self-conditioning."""
        return (draws + readings(draws)) * (2 if self.spec.self_conditioning else 1)
