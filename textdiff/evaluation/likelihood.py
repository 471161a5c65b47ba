"""Likelihoods that say what they are: exact or an upper bound, with a standard error, the counts behind it and the rules of counting."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
import torch
from torch import Tensor, distributed

from textdiff.batch import Batch, Example, collate
from textdiff.evaluation.pilot import piloted
from textdiff.evaluation.statistics import ratio_error
from textdiff.models.base import LanguageModel

RULES = "every target token counts, end-of-document tokens included; BOS is context; a document longer than a block continues in the next"


def pair_rules(fill: int | None) -> str:
    """The rules for responses given their prompts; with `fill` EOS follows each up to so many targets."""
    ends = "its EOS included" if fill is None else f"and EOS after it up to {fill} tokens"
    return f"every token of a response counts, {ends}; BOS and the prompt are context; bytes are those of the response"


class Row(NamedTuple):
    """One example."""

    number: int
    nats: float
    tokens: int
    text_bytes: int
    calls: int  # of the network
    variance: float  # of its nats between orders, nan without several


class Estimator(Protocol):
    """Where the nats of sequences come from."""

    def rules(self, model: LanguageModel) -> str:
        """What to add to the rules of counting, or nothing."""
        ...

    def kind(self, model: LanguageModel) -> str:
        """ "exact", "upper bound" or "estimate"; raises ValueError for a model that this is not for."""
        ...

    def calls(self, model: LanguageModel, batch: Batch, draws: int) -> Tensor:
        """(B,) network calls for each sequence."""
        ...

    def __call__(self, model: LanguageModel, batch: Batch, seed: int, draws: int) -> Tensor:
        """(B, orders) nats of each sequence, whose mean over the orders counts; (B, 1) where there is but one number."""
        ...


@dataclass(frozen=True)
class OwnLikelihood:
    """The model's own: exact, or a bound that averages stratified draws."""

    pilot: Any = None  # what the model's estimator was told beforehand

    def rules(self, model: LanguageModel) -> str:
        """Nothing to add."""
        return ""

    def kind(self, model: LanguageModel) -> str:
        """As the model says."""
        return "upper bound" if model.nll_is_bound else "exact"

    def calls(self, model: LanguageModel, batch: Batch, draws: int) -> Tensor:
        """(B,), the same for all."""
        return batch.sample_id.new_full((len(batch.tokens),), model.calls(draws))

    def __call__(self, model: LanguageModel, batch: Batch, seed: int, draws: int) -> Tensor:
        """(B, 1) nats."""
        return model.mean_nll(batch, seed, draws if model.nll_is_bound else 1, self.pilot)[:, None]

    def after_a_pilot(self, model: LanguageModel, examples: Sequence[Example], seed: int, draws: int) -> Self:
        """The same, told of the model by some of the examples."""
        return replace(self, pilot=piloted(model, examples, seed, draws)[0])


OWN = OwnLikelihood()


class EvaluationStopped(Exception):
    """An evaluation was asked to stop before it ended."""


@dataclass(frozen=True)
class Likelihood:
    """Nats per token over a set of sequences."""

    nats_per_token: float
    standard_error: float  # of nats_per_token, over sequences; Monte Carlo noise of a bound is part of the spread it measures
    tokens: int
    text_bytes: int  # UTF-8 bytes of the scored text, 0 when unknown
    sequences: int
    forwards_per_sequence: float  # the mean, where sequences differ
    kind: str  # "exact", "upper bound" or "estimate"
    rules: str = RULES
    order_spread: float = math.nan  # standard deviation of a sequence's nats per token between orders; nan without several orders

    @property
    def perplexity(self) -> float:
        """exp(nats per token)."""
        return _exp(self.nats_per_token)

    @property
    def perplexity_interval(self) -> tuple[float, float]:
        """95 % interval of the perplexity, normal in nats."""
        half = 1.96 * self.standard_error
        return _exp(self.nats_per_token - half), _exp(self.nats_per_token + half)

    @property
    def bits_per_byte(self) -> float:
        """Total bits over UTF-8 bytes of text; nan when the bytes are unknown."""
        return self.nats_per_token * self.tokens / self.text_bytes / math.log(2) if self.text_bytes else math.nan

    @property
    def bits_per_byte_error(self) -> float:
        """Standard error of bits per byte."""
        return self.standard_error * self.tokens / self.text_bytes / math.log(2) if self.text_bytes else math.nan

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers for json; None for one that does not exist, such as the error of a single sequence."""
        low, high = self.perplexity_interval
        derived = {"perplexity": self.perplexity, "perplexity_low": low, "perplexity_high": high}
        bits = {"bits_per_byte": self.bits_per_byte, "bits_per_byte_error": self.bits_per_byte_error}
        numbers = {**asdict(self), **derived, **bits}
        if math.isnan(self.order_spread):
            del numbers["order_spread"]
        return {name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in numbers.items()}


def likelihood(
    model: LanguageModel,
    examples: Sequence[Example],
    draws: int = 16,
    batch_size: int = 32,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
    should_stop: Callable[[], bool] = lambda: False,
    estimator: Estimator = OWN,
    rules: str = RULES,
) -> Likelihood:
    """The likelihood of `examples` under a model; a bound averages `draws` stratified draws for each sequence. Another `estimator` gives
    the nats in the place of the model's own. `rules` say how the examples were made.

    Some models are told of themselves by a pilot first, at most 64 network calls for all, which `forwards_per_sequence` leaves out. Noise
    is keyed by the example's index, so neither the batch size nor the number of processes changes the result beyond rounding.
    With torch.distributed running, each process scores its share and all return the same numbers. Raises ValueError when there is
    nothing to score, or when the estimator is not for the model, and EvaluationStopped when `should_stop` says so.
    """
    kind, rules = estimator.kind(model), "; ".join(filter(None, (rules, estimator.rules(model))))
    return _summary(_scored(model, examples, draws, batch_size, seed, progress, should_stop, estimator), kind, rules)


def sequence_nats(model: LanguageModel, examples: Sequence[Example], draws: int = 16, batch_size: int = 32, seed: int = 0) -> Tensor:
    """Nats of each example, (N,) float64, as `likelihood` sums them."""
    rows = _scored(model, examples, draws, batch_size, seed)
    return torch.tensor([row.nats for row in rows], dtype=torch.float64)


def _scored(
    model: LanguageModel,
    examples: Sequence[Example],
    draws: int,
    batch_size: int,
    seed: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
    should_stop: Callable[[], bool] = lambda: False,
    estimator: Estimator = OWN,
) -> list[Row]:
    """Every example's row, in the order of the examples, on every process."""
    for name, value in (("draws", draws), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name} is {value}, expected 1 or more")
    world, rank = (distributed.get_world_size(), distributed.get_rank()) if _is_distributed() else (1, 0)
    order = sorted(range(rank, len(examples), world), key=lambda i: len(examples[i].tokens))
    was_training = model.training
    model.eval()
    if isinstance(estimator, OwnLikelihood) and model.nll_is_bound:
        estimator = estimator.after_a_pilot(model, examples, seed, draws)
    rows: list[Row] = []
    most = -(-len(examples) // world)  # every process makes as many rounds, because `should_stop` may be a collective call
    try:
        for start in range(0, most, batch_size):
            if should_stop():
                raise EvaluationStopped
            index = order[start : start + batch_size]
            if index:
                rows += _score(model, [examples[i] for i in index], index, draws, seed, estimator)
            progress(min(start + batch_size, most), most)
    finally:
        model.train(was_training)
    return _gathered(rows, world)


def _score(model: LanguageModel, examples: list[Example], index: list[int], draws: int, seed: int, estimator: Estimator) -> Iterator[Row]:
    device = next(model.parameters()).device
    batch = collate(examples, pad_id=model.vocab.pad_id or 0, sample_id=index).to(device)
    found = estimator(model, batch, seed, draws)
    variance = found.var(1) if found.shape[1] > 1 else torch.full_like(found[:, 0], math.nan)
    numbers = (found.mean(1), batch.target.sum(1), estimator.calls(model, batch, draws), variance)
    for i, example, nats, tokens, calls, spread in zip(index, examples, *(values.tolist() for values in numbers), strict=True):
        yield Row(i, nats, tokens, example.text_bytes, calls, spread)


def _summary(rows: list[Row], kind: str, rules: str) -> Likelihood:
    tokens = sum(row.tokens for row in rows)
    if tokens == 0:
        raise ValueError("there is no token to score: the data is empty, or nothing in it is a target")
    mean = math.fsum(row.nats for row in rows) / tokens
    between = [row.variance / row.tokens**2 for row in rows if row.tokens]
    calls, rest = divmod(sum(row.calls for row in rows), len(rows))
    nats, counts = (np.array(values, dtype=np.float64) for values in ([row.nats for row in rows], [row.tokens for row in rows]))
    return Likelihood(
        nats_per_token=mean,
        standard_error=ratio_error(nats, counts),
        tokens=tokens,
        text_bytes=sum(row.text_bytes for row in rows),
        sequences=len(rows),
        forwards_per_sequence=calls + rest / len(rows) if rest else calls,
        kind=kind,
        rules=rules,
        order_spread=math.sqrt(math.fsum(between) / len(between)),
    )


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf


def _is_distributed() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def _gathered(rows: list[Row], world: int) -> list[Row]:
    if world == 1:
        return sorted(rows)
    parts: list[Any] = [None] * world
    distributed.all_gather_object(parts, rows)
    return sorted(row for part in parts for row in part)
