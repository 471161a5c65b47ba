"""The variance of a bound's estimate at equal forwards, on a small byte-level masked model trained first, or on one that is given.

The ratio of variances is the ratio of forwards that the same standard error costs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from textdiff.backbones.transformer import TransformerConfig
from textdiff.batch import Batch, Clean
from textdiff.bench.base import Bench, Row, quartiles
from textdiff.data import pydocs
from textdiff.data.tokenizer import Encoder
from textdiff.models.discrete import Discrete, DiscreteDiffusionLM
from textdiff.models.loading import load
from textdiff.models.mask_counts import MaskCounts, pilot
from textdiff.models.objective import Bound
from textdiff.processes.base import UniformTime
from textdiff.processes.masked import Masked
from textdiff.randomness import Rng
from textdiff.training.optimizer import build_optimizer, learning_rate_at
from textdiff.vocab import Vocab

_BYTES = Vocab(size=257, tokens=257, mask_id=256)
_RESAMPLES = 400  # of the sequences, for the quartiles of a ratio
Estimator = Callable[[DiscreteDiffusionLM, Batch, Rng], Tensor]  # -> (B,) nats, unbiased


@torch.no_grad()
def bernoulli(model: DiscreteDiffusionLM, batch: Batch, rng: Rng) -> Tensor:
    """One forward with t uniform on [1e-3, 1], every token masked with probability t, weight 1/t (MDLM's evaluation)."""
    alone = torch.tensor([0, 1], device=batch.tokens.device).expand(len(batch.tokens), 2)
    noised = UniformTime(t_min=1e-3)(model.process, batch.tokens, batch.target, alone, rng)
    pred = model.predictor(batch)(noised.xt, noised.t)
    return Bound()(model.process, pred, Clean(batch.tokens, batch.tokens), noised, batch.target)[1].double().sum(1)


@dataclass(frozen=True)
class StratifiedCounts:
    """The mean of `draws` forwards, the k-th with a mask count from the k-th of as many strata: what `evaluation.likelihood` averages."""

    draws: int

    def __call__(self, model: DiscreteDiffusionLM, batch: Batch, rng: Rng) -> Tensor:
        """(B,) nats."""
        total = torch.zeros(len(batch.tokens), dtype=torch.float64, device=batch.tokens.device)
        for k in range(self.draws):
            total += model.nll(batch, rng.draw(k), k, self.draws)
        return total / self.draws


def repeated(estimator: Estimator, model: DiscreteDiffusionLM, batch: Batch, repetitions: int, seed: int) -> Tensor:
    """Independent estimates of the same sequences, (repetitions, B) nats."""
    return torch.stack([estimator(model, batch, Rng(seed, i, batch.sample_id)) for i in range(repetitions)])


def variance_ratio(naive: Tensor, ours: Tensor, draws: int, seed: int) -> tuple[float, float, float]:
    """Quartiles, over resampled sequences, of Var(mean of `draws` naive estimates) / Var(ours), each (repetitions, B).

    Raises AssertionError when the two means differ by more than five standard errors.
    """
    gap = naive.mean() - ours.mean()
    error = ((naive.var(0) / len(naive)).sum() + (ours.var(0) / len(ours)).sum()).sqrt() / naive.shape[1]
    if not abs(gap) < 5 * error:
        raise AssertionError(f"the estimators differ by {float(gap):.3g} nats, standard error {float(error):.3g}: no ratio is given")
    generator = torch.Generator().manual_seed(seed)
    index = torch.randint(naive.shape[1], (_RESAMPLES, naive.shape[1]), generator=generator)
    ratio = naive.var(0).cpu()[index].mean(1) / draws / ours.var(0).cpu()[index].mean(1)
    return quartiles(ratio.tolist())


@dataclass(frozen=True)
class LikelihoodBench(Bench):
    """Exact mask counts, stratified, then importance-sampled with the costs of positions taken out, against i.i.d. times with Bernoulli
    masks; 16 repetitions for each round.

    The model is trained for minutes: a poor one spends about the same on every token, so that nearly all of the other side's variance
    is that of its mask count, and the ratio flatters ours.
    """

    rounds: int = 4
    width: int = 128
    layers: int = 3
    heads: int = 4
    length: int = 64
    batch_size: int = 32
    training_steps: int = 3000
    sequences: int = 32
    model: str | None = None  # a trained masked model, in the place of the bytes

    def sizes(self) -> str:
        if self.model is not None:
            return f"{self.model}, L = {self.length}, {pydocs.NAME} ({pydocs.python()}); {self.sequences} held-out sequences"
        trained = f"{self.training_steps} steps of {self.batch_size} rows of {pydocs.NAME} ({pydocs.python()})"
        return f"bytes, d = {self.width}, {self.layers} layers, L = {self.length}, {trained}; {self.sequences} held-out sequences"

    def measure(self) -> list[Row]:
        documents, tokenizer = pydocs.load(), None
        if self.model is None:
            model = self.trained(_tokens(documents.train, None))
        else:
            model = self._given(self.model)
            tokenizer = model.tokenizer
        data, held_out = (_tokens(texts, tokenizer) for texts in (documents.train, documents.validation))
        batch = self._rows(held_out, self.sequences, torch.Generator().manual_seed(self.seed + 1))
        repetitions = 16 * self.rounds
        naive = repeated(bernoulli, model, batch, 8 * repetitions, self.seed)
        before = self._rows(data, 16, torch.Generator().manual_seed(self.seed + 2))
        profile = pilot(model, before, Rng(self.seed, repetitions, before.sample_id))  # 64 forwards for all that is ever scored
        rows = []
        sides: dict[str, tuple[int, Estimator]] = {
            "4 stratified counts": (4, StratifiedCounts(4)),
            "16 stratified counts": (16, StratifiedCounts(16)),
            "4 importance-sampled counts": (4, MaskCounts(4, profile)),
            "16 importance-sampled counts": (16, MaskCounts(16, profile)),
        }
        for name, (draws, estimator) in sides.items():
            estimates = repeated(estimator, model, batch, repetitions, self.seed + draws)
            saved = variance_ratio(naive, estimates, draws, self.seed)
            target = 10.0 if isinstance(estimator, MaskCounts) else 5.0 if draws == 16 else None
            rows.append(Row("likelihood", f"variance of {name}", "as many i.i.d. t, Bernoulli masks", *saved, at_least=target))
        return rows

    def _given(self, name: str) -> DiscreteDiffusionLM:
        model = load(name)
        if not isinstance(model, DiscreteDiffusionLM) or not isinstance(model.process, Masked):
            raise ValueError(f"{name} is no masked diffusion model, whose masks are counted here: name one, such as runs/quickstart-masked")
        if model.max_length < self.length:
            raise ValueError(f"{name} reads {model.max_length} tokens and sequences have {self.length}: name a model that reads more")
        self.place(model.eval())
        return model

    def trained(self, data: Tensor) -> DiscreteDiffusionLM:
        """A byte-level masked model after `training_steps` steps on windows of `data` (N,) uint8."""
        torch.manual_seed(self.seed)
        trunk = TransformerConfig(width=self.width, layers=self.layers, heads=self.heads, max_length=self.length)
        model = Discrete(backbone=trunk).build(_BYTES)
        self.place(model)
        optimizer = build_optimizer(dict(model.named_parameters()), weight_decay=0.01, betas=(0.9, 0.99))
        generator = torch.Generator().manual_seed(self.seed)
        for step in range(self.training_steps):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate_at(step, self.training_steps, peak=2e-3, warmup=50, final_fraction=0.1)
            loss = model(self._rows(data, self.batch_size, generator), self.seed, step)
            (loss.total / loss.tokens).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        model.eval()
        return model

    def _rows(self, data: Tensor, rows: int, generator: torch.Generator) -> Batch:
        start = torch.randint(len(data) - self.length, (rows, 1), generator=generator)
        return Batch.of(data[start + torch.arange(self.length)].long()).to(self.device)


def _tokens(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase | None) -> Tensor:
    """One row (N,) of ids, or of bytes where there is no tokenizer."""
    if tokenizer is None:
        return torch.frombuffer(bytearray("".join(texts).encode()), dtype=torch.uint8)
    return torch.cat([torch.from_numpy(encoded.ids) for encoded in Encoder(tokenizer)(texts)])
