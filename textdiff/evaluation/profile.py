"""Where a model's nats come from: its loss, and how well it knows what it knows, at each level of noise.

What is asked is always p(x0_l | what the model is shown), never a term of the bound: at equal shares of masks models of any training
compare. A model is calibrated where of the tokens it gives a probability c to its first choice a share c is right.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from textdiff.batch import Batch, Clean, Example, collate
from textdiff.evaluation.statistics import ratio_error
from textdiff.models.autoencoder import Text
from textdiff.models.base import LanguageModel
from textdiff.models.discrete import DiscreteDiffusionLM
from textdiff.models.latent import LatentDiffusionLM
from textdiff.models.parameterisation import Score
from textdiff.processes.base import Denoiser, TokenProcess, keep_known, spread
from textdiff.processes.block import Block
from textdiff.processes.exact_count import ExactCount
from textdiff.processes.left_to_right import LeftToRight
from textdiff.processes.masked import Masked
from textdiff.randomness import Rng

BINS = 10  # of confidence, equally wide (Guo et al. 2017)
_AT_ONCE = 2**24  # probabilities of a batch


class Answer(NamedTuple):
    """What a model says of a batch at one place."""

    nats: Tensor  # (B,) summed over the tokens asked for
    tokens: Tensor  # (B,) how many those are
    confidence: Tensor | None = None  # (N,) probability of the likeliest token; None where no token is predicted
    hit: Tensor | None = None  # (N,) bool, whether it is the right one


class Axis:
    """What the places of a profile are, and how a model is asked at one."""

    name: ClassVar[str]
    meaning: ClassVar[str]
    """Of a place, in words for who reads a picture."""
    unit: ClassVar[str] = "nats per token"
    """Of the loss."""

    def answer(self, model: Denoiser, batch: Batch, place: float, rng: Rng) -> Answer:
        """The tokens asked for at `place`, scored."""
        raise NotImplementedError


@dataclass(frozen=True)
class MaskedShare(Axis):
    """A share of the targets is masked, of each block where there are blocks: the nearest count, at least one; the masked are asked for."""

    name: ClassVar[str] = "masked share"
    meaning: ClassVar[str] = "masked share of the tokens (a block model also sees all earlier blocks)"
    unit: ClassVar[str] = "nats per masked token"
    process: TokenProcess
    mask_id: int

    def answer(self, model: Denoiser, batch: Batch, place: float, rng: Rng) -> Answer:
        length = batch.tokens.shape[1]
        size = self.process.span(length)
        targets = F.pad(batch.target, (0, -length % size)).unflatten(1, (-1, size)).sum(2)
        count = torch.minimum((place * targets).round().long().clamp_min(1), targets)
        noised = ExactCount.with_count(self.process, batch.tokens, batch.target, count, rng)
        where = batch.target & (noised.xt == self.mask_id)
        pred = model.predictor(batch)(noised.xt, noised.t)
        return _scored(pred.logits(where), batch.tokens, where)


@dataclass(frozen=True)
class Time(Axis):
    """The noise of time t, in the model's own schedule; every target is asked for, its own noisy state being part of what is shown."""

    name: ClassVar[str] = "t"
    meaning: ClassVar[str] = "t, time of each model's own noise schedule: equal t is not equal noise"

    def answer(self, model: Denoiser, batch: Batch, place: float, rng: Rng) -> Answer:
        process, known = model.process, model.canvas(batch)[0]
        t = _times(model, batch, place)
        xt = keep_known(process.corrupt(known, t, rng), known, batch.target)
        pred = model.predictor(batch)(xt, t)
        if isinstance(process, TokenProcess):
            law = process.log_posterior(pred, xt, t, torch.zeros_like(t), batch.target)
        else:
            law = pred.logits(batch.target)
        return _scored(law, batch.tokens, batch.target)


@dataclass(frozen=True)
class Rate(Axis):
    """The bound's integrand at time t, nats per token and unit of time: for models that give no probability to a token of a noisy text."""

    name: ClassVar[str] = "t, rate of the bound"
    meaning: ClassVar[str] = "t, time of each model's own noise schedule: equal t is not equal noise"
    unit: ClassVar[str] = "nats per token and unit of t"

    def answer(self, model: Denoiser, batch: Batch, place: float, rng: Rng) -> Answer:
        known, target = model.canvas(batch)
        if isinstance(model, LatentDiffusionLM):
            known = model.autoencoder.scaled(model.autoencoder.encode(Text(batch.tokens[:, 1:], batch.target[:, 1:])).mean)
        t = _times(model, batch, place)
        xt = keep_known(model.process.corrupt(known, t, rng), known, target)
        nats = model.process.nelbo_at(model.predictor(batch)(xt, t), Clean(batch.tokens, known), xt, t, target)
        return Answer(nats.double().sum(1), batch.target.sum(1))


@dataclass(frozen=True)
class Position(Axis):
    """Left to right: the targets of each row up to a share of them, from the place before on; noise has no part in it."""

    name: ClassVar[str] = "position"
    meaning: ClassVar[str] = "token number in the passage over its length (a point: the stretch that ends there)"
    places: tuple[float, ...]

    def answer(self, model: Denoiser, batch: Batch, place: float, rng: Rng) -> Answer:
        begin = max((other for other in self.places if other < place), default=0.0)
        share = batch.target.cumsum(1) / batch.target.sum(1, keepdim=True).clamp_min(1)
        where = batch.target & (share > begin) & (share <= place)
        return _scored(model.predictor(batch)(batch.tokens, batch.sample_id).logits(where), batch.tokens, where)


AXES: tuple[type[Axis], ...] = (MaskedShare, Time, Rate, Position)


@dataclass
class Tally:
    """Sums over the answers at one place."""

    sequences: int
    nats: Tensor = field(init=False)  # (sequences,)
    tokens: Tensor = field(init=False)  # (sequences,)
    bins: Tensor = field(init=False)  # (BINS, 3): tokens, sum of confidences, right ones

    def __post_init__(self) -> None:
        self.nats, self.tokens = torch.zeros(2, self.sequences, dtype=torch.float64)
        self.bins = torch.zeros(BINS, 3, dtype=torch.float64)

    def add(self, index: Sequence[int], found: Answer) -> None:
        """Another answer, about the sequences `index`."""
        rows = torch.tensor(index)
        self.nats[rows] += found.nats.double().cpu()
        self.tokens[rows] += found.tokens.double().cpu()
        if found.confidence is not None and found.hit is not None:
            confidence = found.confidence.double().cpu()
            of = torch.stack([torch.ones_like(confidence), confidence, found.hit.double().cpu()], dim=1)
            self.bins.index_add_(0, (confidence * BINS).long().clamp(0, BINS - 1), of)

    def row(self, model: str, axis: str, place: float) -> dict[str, Any]:
        """A line of `profile.jsonl`; None for what does not exist, such as the error of one sequence."""
        tokens, some = float(self.tokens.sum()), self.tokens > 0
        error = ratio_error(self.nats[some].numpy(), self.tokens[some].numpy())
        asked, confidence, hits = self.bins.sum(0).tolist()
        known = asked > 0
        return {
            "model": model,
            "axis": axis,
            "x": place,
            "nats_per_token": float(self.nats.sum()) / tokens,
            "error": None if math.isnan(error) else error,
            "accuracy": hits / asked if known else None,
            "confidence": confidence / asked if known else None,
            "calibration_error": float((self.bins[:, 1] - self.bins[:, 2]).abs().sum()) / asked if known else None,
            "bins": [[c / count, h / count, int(count)] for count, c, h in self.bins.tolist() if count],
            "tokens": int(tokens),
        }


@torch.no_grad()
def profile(
    model: Denoiser,
    name: str,
    examples: Sequence[Example],
    places: Sequence[float],
    draws: int,
    seed: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[dict[str, Any]]:
    """Loss, accuracy and confidence at each of `places` in (0, 1], rows as `profile.jsonl` holds them.

    Errors are standard errors over sequences; "calibration_error" is the expected calibration error over `BINS` equal bins of
    confidence, and "bins" holds (mean confidence, accuracy, tokens) of each that is not empty. A place at which no token is asked for has
    no row. Noise is keyed by the draw and the
    example's index alone: models and places share it, which makes their differences precise. Raises ValueError without examples, draws or
    places, or for a place outside (0, 1].
    """
    if not examples or draws < 1 or not places or not all(0 < place <= 1 for place in places):
        raise ValueError(f"{len(examples)} examples, {draws} draws, places {list(places)}: expected 1 or more each, places in (0, 1]")
    axis = axis_of(model, places)
    draws = 1 if isinstance(axis, Position) else draws
    groups, rows = list(_groups(model, examples)), []
    with _evaluating(model) as device:
        for number, place in enumerate(places):
            tally = Tally(len(examples))
            for done, index in enumerate(groups):
                progress(number * len(groups) + done, len(places) * len(groups))
                batch = collate([examples[i] for i in index], pad_id=0, sample_id=index).to(device)
                for draw in range(draws):
                    tally.add(index, axis.answer(model, batch, place, Rng(seed, draw, batch.sample_id)))
            if bool(tally.tokens.any()):
                rows.append(tally.row(name, axis.name, place))
    progress(1, 1)
    return rows


def axis_of(model: Denoiser, places: Sequence[float]) -> Axis:
    """What can be asked of a model."""
    process = model.process
    inner = process.inner if isinstance(process, Block) else process
    if isinstance(process, LeftToRight):
        return Position(tuple(places))
    if isinstance(process, TokenProcess) and isinstance(inner, Masked):
        return MaskedShare(process, inner.mask_id)
    # scores under other noise leave out the probability of the token seen
    free = isinstance(model, DiscreteDiffusionLM) and isinstance(model.spec.parameterisation, Score)
    return Rate() if free or isinstance(model, LatentDiffusionLM) else Time()


def _scored(logits: Tensor, tokens: Tensor, where: Tensor) -> Answer:
    """The belief (N, V) about the tokens at the True positions of `where` (B, L)."""
    law, right = logits.double().log_softmax(-1), tokens[where]
    top, first = law.max(-1)
    nats = torch.zeros(where.shape, dtype=law.dtype, device=law.device).masked_scatter(where, -law.gather(-1, right[:, None])[:, 0])
    return Answer(nats.sum(1), where.sum(1), top.exp(), first == right)


def _times(model: Denoiser, batch: Batch, place: float) -> Tensor:
    """The time (B,), or (B, L) where each block has its own."""
    rows, length = batch.tokens.shape
    size = model.process.span(length)
    spans = torch.full((rows, -(-length // size)), place, dtype=torch.float64, device=batch.tokens.device)
    return spread(spans, length, size)


def _groups(model: Denoiser, examples: Sequence[Example]) -> Iterator[list[int]]:
    """Examples of like length, as many as one call may answer for."""
    size = model.vocab.size if isinstance(model, LanguageModel) else 1
    order = sorted(range(len(examples)), key=lambda i: -len(examples[i].tokens))
    while order:
        rows = max(1, _AT_ONCE // (len(examples[order[0]].tokens) * size))
        yield order[: min(rows, 64)]
        order = order[min(rows, 64) :]


@contextmanager
def _evaluating(model: Denoiser) -> Iterator[torch.device]:
    """The model without dropout, and where it is."""
    if not isinstance(model, LanguageModel):
        yield torch.device("cpu")
        return
    was_training = model.training
    model.eval()
    try:
        yield next(model.parameters()).device
    finally:
        model.train(was_training)
