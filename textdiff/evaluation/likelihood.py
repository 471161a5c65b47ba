"""Likelihoods that say what they are: exact or an upper bound, with a standard error, the counts behind it and the rules of counting."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, distributed

from textdiff.batch import Example, collate
from textdiff.evaluation.probability_flow import FlowEstimate
from textdiff.models.base import LanguageModel

RULES = "every target token counts, end-of-document tokens included; BOS is context; a document longer than a block continues in the next"


def pair_rules(fill: int | None) -> str:
    """The rules for responses given their prompts; with `fill` EOS follows each up to so many targets."""
    ends = "its EOS included" if fill is None else f"and EOS after it up to {fill} tokens"
    return f"every token of a response counts, {ends}; BOS and the prompt are context; bytes are those of the response"


Row = tuple[int, float, int, int]  # index, nats, tokens, bytes of one example


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
    forwards_per_sequence: int
    is_bound: bool
    rules: str = RULES
    is_estimate: bool = False

    @property
    def kind(self) -> str:
        """ "exact", "upper bound" or "estimate"."""
        return "estimate" if self.is_estimate else "upper bound" if self.is_bound else "exact"

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
        derived = {"kind": self.kind, "perplexity": self.perplexity, "perplexity_low": low, "perplexity_high": high}
        bits = {"bits_per_byte": self.bits_per_byte, "bits_per_byte_error": self.bits_per_byte_error}
        numbers = {**asdict(self), **derived, **bits}
        return {name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in numbers.items()}


def likelihood(
    model: LanguageModel,
    examples: Sequence[Example],
    draws: int = 16,
    batch_size: int = 32,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
    should_stop: Callable[[], bool] = lambda: False,
    flow: FlowEstimate | None = None,
) -> Likelihood:
    """The likelihood of `examples` under a model; a bound averages `draws` stratified draws for each sequence. With `flow` it is an
    estimate by the probability-flow ODE instead, for models of embeddings.

    Noise is keyed by the example's index, so neither the batch size nor the number of processes changes the result beyond rounding.
    With torch.distributed running, each process scores its share and all return the same numbers. Raises ValueError when there is
    nothing to score, and EvaluationStopped when `should_stop` says so.
    """
    rows = _scored(model, examples, draws, batch_size, seed, progress, should_stop, flow)
    found = _summary(rows, model.calls(draws), model.nll_is_bound)
    return found if flow is None else replace(found, forwards_per_sequence=flow.calls(draws), is_bound=False, is_estimate=True)


def sequence_nats(model: LanguageModel, examples: Sequence[Example], draws: int = 16, batch_size: int = 32, seed: int = 0) -> Tensor:
    """Nats of each example, (N,) float64, as `likelihood` sums them."""
    rows = _scored(model, examples, draws, batch_size, seed)
    return torch.tensor([nats for _, nats, _, _ in rows], dtype=torch.float64)


def _scored(
    model: LanguageModel,
    examples: Sequence[Example],
    draws: int,
    batch_size: int,
    seed: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
    should_stop: Callable[[], bool] = lambda: False,
    flow: FlowEstimate | None = None,
) -> list[Row]:
    """Every example's row, in the order of the examples, on every process."""
    for name, value in (("draws", draws), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name} is {value}, expected 1 or more")
    world, rank = (distributed.get_world_size(), distributed.get_rank()) if _is_distributed() else (1, 0)
    order = sorted(range(rank, len(examples), world), key=lambda i: len(examples[i].tokens))
    draws = draws if model.nll_is_bound else 1
    was_training = model.training
    model.eval()
    rows: list[Row] = []
    most = -(-len(examples) // world)  # every process makes as many rounds, because `should_stop` may be a collective call
    try:
        for start in range(0, most, batch_size):
            if should_stop():
                raise EvaluationStopped
            index = order[start : start + batch_size]
            if index:
                rows += _score(model, [examples[i] for i in index], index, draws, seed, flow)
            progress(min(start + batch_size, most), most)
    finally:
        model.train(was_training)
    return _gathered(rows, world)


def _score(model: LanguageModel, examples: list[Example], index: list[int], draws: int, seed: int, flow: FlowEstimate | None) -> list[Row]:
    device = next(model.parameters()).device
    batch = collate(examples, pad_id=model.vocab.pad_id or 0, sample_id=index).to(device)
    found = model.mean_nll(batch, seed, draws) if flow is None else flow(model, batch, seed, draws)
    nats, tokens = found.tolist(), batch.target.sum(1).tolist()
    return [(i, nats[r], tokens[r], examples[r].text_bytes) for r, i in enumerate(index)]


def _summary(rows: list[Row], calls: int, is_bound: bool) -> Likelihood:
    tokens = sum(row[2] for row in rows)
    if tokens == 0:
        raise ValueError("there is no token to score: the data is empty, or nothing in it is a target")
    mean = math.fsum(row[1] for row in rows) / tokens
    spread = math.fsum((nats - mean * n) ** 2 for _, nats, n, _ in rows)
    correction = len(rows) / (len(rows) - 1) if len(rows) > 1 else math.nan
    return Likelihood(
        nats_per_token=mean,
        standard_error=math.sqrt(spread * correction) / tokens,
        tokens=tokens,
        text_bytes=sum(row[3] for row in rows),
        sequences=len(rows),
        forwards_per_sequence=calls,
        is_bound=is_bound,
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
