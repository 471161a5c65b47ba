"""Diffusion over tokens: a process, a trunk that sees the noisy tokens, and an objective."""

from dataclasses import dataclass, field
from functools import partial
from typing import Self

import torch
from torch import Tensor

from textdiff import spec as plain
from textdiff.backbones.annealing import Annealing
from textdiff.backbones.attention_masks import apart, positions
from textdiff.backbones.base import Backbone, BackboneConfig, Context
from textdiff.backbones.transformer import TransformerConfig
from textdiff.batch import Batch, Clean
from textdiff.models.base import PILOT, PILOT_DRAWS, LanguageModel, Loss, ModelSpec, TextDiffConfig
from textdiff.models.block import Network, PairedPredictor, Rows
from textdiff.models.generation import TextDiffusionGenerationMixin
from textdiff.models.mask_counts import FEWEST_DRAWS, MaskCounts, Profile, pilot
from textdiff.models.objective import Bound, BoundAndCrossEntropy, CrossEntropy, Dynamic, Objective
from textdiff.models.parameterisation import LeaveOneOut, Parameterisation, Score
from textdiff.models.self_conditioning import conditioned
from textdiff.models.touched_counts import TouchedCounts
from textdiff.prediction import Prediction, Withheld
from textdiff.processes.base import Noised, Noising, TokenProcess
from textdiff.processes.block import Block
from textdiff.processes.hybrid import Hybrid
from textdiff.processes.interpolating import Interpolating
from textdiff.processes.masked import Masked
from textdiff.processes.uniform import Uniform
from textdiff.projection import Head
from textdiff.randomness import Rng
from textdiff.samplers.ancestral import Ancestral
from textdiff.samplers.base import Sampler
from textdiff.samplers.blockwise import Blockwise
from textdiff.samplers.rates import Analytic
from textdiff.vocab import Vocab


class DiscreteConfig(TextDiffConfig):
    """`config.json` of a `DiscreteDiffusionLM`."""

    model_type = "textdiff-discrete"


@dataclass(frozen=True)
class Discrete(ModelSpec):
    """A token diffusion model without its weights."""

    process: TokenProcess = Masked()
    backbone: BackboneConfig = field(default_factory=TransformerConfig)
    objective: Objective = Bound()
    noising: Noising | None = None  # None: as the process measures its bound
    parameterisation: Parameterisation = LeaveOneOut()
    shift: bool = False  # position l is read from the trunk's output at l - 1, as trunks that came from an AR model expect
    annealing: Annealing | None = None  # how a trunk trained left to right learns to look ahead; None: at once
    curriculum: float = 0.0  # first part of training in which tokens are masked instead: uniform noise is learnt much faster after it
    label_dropout: float = 0.0  # chance that a row's label is hidden in training, so that the model can be asked without one too

    def __post_init__(self) -> None:
        process = self.process.inner if isinstance(self.process, Block) else self.process
        kind, free = type(process).__name__, isinstance(self.parameterisation, Score)
        if not 0 <= self.label_dropout <= 1:
            raise ValueError(f"label_dropout is {self.label_dropout}, expected a chance in [0, 1]")
        if not 0 <= self.curriculum < 1 or (self.curriculum and isinstance(self.process, (Masked, Block))):
            name = type(self.process).__name__
            raise ValueError(
                f"curriculum is {self.curriculum} for {name}: expected a part of training in [0, 1), and 0 for masks and blocks"
            )
        if self.annealing is not None and isinstance(self.process, Block):
            raise ValueError("block diffusion has attention of its own, which is not annealed: set annealing to None")
        if free and not (isinstance(process, Masked) or (isinstance(process, Uniform) and not process.ids and not process.every_id)):
            raise ValueError(f"scores are read under masks or uniform noise over the real tokens, not under this {kind}: use LeaveOneOut")
        if free and isinstance(self.objective, (CrossEntropy, BoundAndCrossEntropy)) and not isinstance(process, Masked):
            raise ValueError(f"a score model has no cross-entropy under {kind} noise: train it on Bound or Clipped")
        if isinstance(self.objective, Dynamic) and (not isinstance(self.process, Hybrid) or self.curriculum):
            raise ValueError(f"Dynamic weighs mask and uniform noise apart: expected Hybrid noise without a curriculum, got {kind}")

    def build(self, vocab: Vocab, backbone: Backbone | None = None) -> "DiscreteDiffusionLM":
        """The model with fresh weights, or around a trunk that already has them."""
        config = DiscreteConfig(spec=plain.to_plain(self), vocab=plain.to_plain(vocab))
        return DiscreteDiffusionLM(config, backbone)


class NetworkPredictor:
    """A trunk and its head bound to one batch."""

    def __init__(self, model: "DiscreteDiffusionLM", process: TokenProcess, context: Context, head: Head, starts: Tensor) -> None:
        self.model, self.process, self.context, self.head = model, process, context, head
        self.starts = starts  # (B, L) bool, the first position of each document

    def __call__(self, xt: Tensor, t: Tensor, previous: Prediction | None = None) -> Prediction:
        """Belief about x0; the trunk is told the noise level 1 - alpha(t), which means the same under every schedule. A trunk that reads a
        `previous` belief is given its own first one when there is none: two network calls."""
        return conditioned(self.model.backbone, self.head, previous, partial(self._read, xt, t))

    def alone(self, xt: Tensor, t: Tensor) -> Prediction:
        """Belief about x0 without a previous one."""
        return self._read(xt, t, None)

    def _read(self, xt: Tensor, t: Tensor, previous: Tensor | None) -> Prediction:
        model = self.model
        hidden = model.backbone(xt, self.context, 1 - self.process.alpha(t), previous=previous)
        if model.spec.shift:
            # the first token of a document has no left neighbour in it and is read at its own, noisy, position
            hidden = torch.where(self.starts[..., None], hidden, hidden.roll(1, dims=1))
        return model.spec.parameterisation(hidden, self.head, self.process, xt, t)

    def rows(self, index: Tensor) -> "NetworkPredictor":
        """The same for a subset of rows."""
        return NetworkPredictor(self.model, self.process, self.context.rows(index), self.head, self.starts[index])


class DiscreteDiffusionLM(TextDiffusionGenerationMixin, LanguageModel):  # type: ignore[misc]
    """A `Denoiser` with weights; its likelihood is an upper bound."""

    config: DiscreteConfig
    nll_is_bound = True

    def __init__(self, config: DiscreteConfig, backbone: Backbone | None = None, trusted: tuple[str, ...] = ("textdiff",)) -> None:
        super().__init__(config, trusted)
        self.process: TokenProcess = self.spec.process.bind(self.vocab)
        self.backbone = self.spec.backbone.build(self.vocab, causal=False) if backbone is None else backbone
        self._lesson = Masked(self.process.schedule).bind(self.vocab) if self.spec.curriculum else self.process
        if self.spec.label_dropout and not self.backbone.labels:
            raise ValueError(f"label_dropout is {self.spec.label_dropout} and the trunk reads no labels: set its labels, or leave it out")
        if isinstance(self.process, Block) and not self.backbone.reads_blocks:
            name = type(self.backbone.trunk or self.backbone).__name__
            raise ValueError(f"{name} reads a block after cached ones otherwise than in a whole row, or not at all: choose another trunk")
        self.post_init()

    def train(self, mode: bool = True) -> Self:
        """Raises ValueError when the trunk cannot be annealed as training is to do it."""
        if mode and self.spec.annealing is not None:
            self.spec.annealing.check(self.backbone)  # here, because a model that is only used must not pay for the probe
        return super().train(mode)

    @property
    def learnt_untold(self) -> bool:
        """Whether the model can be asked without its label: it reads none, or training hid it now and then."""
        return self.spec.label_dropout > 0 or not self.backbone.labels

    def predictor(self, batch: Batch) -> NetworkPredictor | PairedPredictor:
        """The network bound to a batch."""
        return self._predictor(batch, self.process)

    def _predictor(self, batch: Batch, process: TokenProcess, ahead: Tensor | bool = True) -> NetworkPredictor | PairedPredictor:
        context, head = self.backbone.context(batch, ahead), self.backbone.head(self.vocab.unemittable)
        if isinstance(process, Block):
            network = Network(self.backbone, head, process, self.spec.parameterisation, self.spec.shift)
            return PairedPredictor(network, Rows.of(batch, context))
        return NetworkPredictor(self, process, context, head, positions(apart(batch.document, batch.attend)) == 0)

    def canvas(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The tokens are their own state."""
        return batch.tokens, batch.target

    def decode(self, x0: Tensor) -> Tensor:
        """The state is the tokens."""
        return x0

    def default_sampler(self, steps: int | None = None) -> Sampler:
        free = isinstance(self.spec.parameterisation, Score) and not isinstance(self.process, Masked)  # no probability of the token seen
        kind = Analytic if free else Ancestral
        return self.in_blocks(kind() if steps is None else kind(steps=steps))

    def in_blocks(self, sampler: Sampler) -> Sampler:
        """The sampler itself, or for block diffusion the one that runs it in each block and stops rows at EOS."""
        if not isinstance(self.process, Block) or isinstance(sampler, Blockwise):
            return sampler
        return Blockwise(sampler, eos_id=-1 if self.vocab.eos_id is None else self.vocab.eos_id)

    def forward(self, batch: Batch, seed: int, step: int, progress: float = 1.0) -> Loss:
        clean, rng = Clean(batch.tokens, batch.tokens), Rng(seed, step, batch.sample_id)
        if self.spec.label_dropout and self.backbone.labels:
            told = rng.uniform("label", ()) >= self.spec.label_dropout
            batch = batch._replace(source_attend=batch.source_attend & told[:, None])
        process = self._process_at(progress)
        noised = (self.spec.noising or process.measure)(process, clean.x, batch.target, batch.stratum, rng)
        ahead = self._ahead(batch, seed, step, progress)
        predict = self._predictor(batch, process, ahead)
        pred = predict(noised.xt, noised.t, self._first_guess(predict, noised, rng))
        nats, bound = self.spec.objective(process, pred, clean, noised, batch.target)
        own = process is self.process and ahead is True  # the bound of another noise, or with less in sight, is not this model's
        total = bound.sum() if own else bound.new_tensor(torch.nan)
        return Loss(nats.sum(), batch.target.sum(), total, {})

    def _process_at(self, progress: float) -> TokenProcess:
        """The noise to train on; each step's is a function of how much of the training is done."""
        return self.process if progress >= self.spec.curriculum else self._lesson

    def _ahead(self, batch: Batch, seed: int, step: int, progress: float) -> Tensor | bool:
        """What positions see of the future in a step of training; everything anywhere else."""
        if self.spec.annealing is None:
            return True
        index = torch.arange(batch.tokens.shape[1], device=batch.tokens.device)
        seen: Tensor | bool = self.spec.annealing.ahead(len(index), progress, Rng(seed, step, index))
        return seen

    def _first_guess(self, predict: NetworkPredictor | PairedPredictor, noised: Noised, rng: Rng) -> Prediction | None:
        """For trunks that read a previous belief: their own first one, in half of the rows (Chen et al. 2022)."""
        if not self.backbone.self_conditioned:
            return None
        with torch.no_grad():
            return Withheld(predict.alone(noised.xt, noised.t), rng.uniform("self_condition", ()) < 0.5)

    @torch.no_grad()
    def nll(self, batch: Batch, rng: Rng, draw: int = 0, draws: int = 1) -> Tensor:
        """One draw of the bound, its times drawn as the process measures best: by exact counts of noised tokens, or by bins."""
        clean = Clean(batch.tokens, batch.tokens)
        stratum = torch.tensor([draw, draws], device=batch.tokens.device).expand(len(batch.tokens), 2)
        noised = self.process.measure(self.process, clean.x, batch.target, stratum, rng)
        pred = self.predictor(batch)(noised.xt, noised.t)
        return Bound()(self.process, pred, clean, noised, batch.target)[1].double().sum(1)

    def pilot(self, batch: Batch, seed: int, draws: int) -> Profile | None:
        """What masked tokens cost, by the share of them, where counts of masks are importance-sampled."""
        if not isinstance(self.process, Masked) or draws < FEWEST_DRAWS:
            return None
        return pilot(self, batch, Rng(seed, PILOT, batch.sample_id), PILOT_DRAWS)

    def mean_nll(self, batch: Batch, seed: int, draws: int, pilot: Profile | None = None) -> Tensor:
        """From importance-sampled counts of noised tokens, whose standard error is smaller for as many network calls."""
        rng = Rng(seed, 0, batch.sample_id)
        if isinstance(self.process, Masked) and draws >= FEWEST_DRAWS:
            return MaskCounts(draws, pilot)(self, batch, rng)
        if isinstance(self.process, Interpolating) and draws >= FEWEST_DRAWS:
            return TouchedCounts(draws)(self, batch, rng)
        return super().mean_nll(batch, seed, draws)

    def calls(self, draws: int) -> int:
        """One for each draw, two where the trunk reads its own first belief."""
        return draws * (2 if self.backbone.self_conditioned else 1)
