"""One DiffuSeq training step against the structure of the published loop, on the same weights and noise."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from textdiff.backbones.transformer import TransformerConfig
from textdiff.batch import Batch
from textdiff.bench.base import Action, Bench, Row, ratios, require_equal
from textdiff.models.embedding import EmbeddingDiffusionLM
from textdiff.models.embedding_objective import DiffusionLM
from textdiff.models.embedding_presets import diffuseq
from textdiff.processes.base import per_token
from textdiff.randomness import Rng
from textdiff.state_prediction import Regressed
from textdiff.training.ema import Ema
from textdiff.training.optimizer import build_optimizer
from textdiff.vocab import Vocab

_LEARNING_RATE = 1e-5  # small, so that the sides keep meeting much the same model


class Losses(NamedTuple):
    """What the published loop computes in a step."""

    loss: Tensor  # () per target, differentiated
    logged: Tensor  # () the cross-entropy of the prediction, of which nothing is differentiated


def ours(model: EmbeddingDiffusionLM, batch: Batch, step: int) -> Tensor:
    """The model's own loss per target: one projection to the vocabulary, at targets only."""
    loss = model(batch, 0, step)
    result: Tensor = loss.total / loss.tokens
    return result


def published(model: EmbeddingDiffusionLM, batch: Batch, step: int) -> Losses:
    """The structure of DiffuSeq's `training_losses_seq2seq`: terms over all positions, logits (B, L, V) of the noised truth for the loss
    and of the prediction for the log. (Its sums run over source and padding too; those are masked here, so that both sides agree.)"""
    objective, process, rng = model.spec.objective, model.process, Rng(0, step, batch.sample_id)
    assert isinstance(objective, DiffusionLM)
    table = model.reader.rows()
    rows = F.embedding(batch.tokens, table)
    noise = rng.normal("own_noise", rows.shape[1:]).to(rows.dtype)
    start = rows + batch.target[..., None] * objective.own_noise * noise
    noised = process.measure(process, start, batch.target, batch.stratum, rng)
    pred = model.predictor(batch)(noised.xt, noised.t)
    assert isinstance(pred, Regressed)
    first = (per_token(noised.t) < process.t_min + 1 / objective.steps)[..., None]
    error = (torch.where(first, rows, start) - pred.state()).square().mean(-1)
    end = process.alpha(torch.ones((), dtype=torch.float64, device=start.device)).to(start.dtype) * start.square().mean(-1)
    nll, logged = (_cross_entropy(model, x, batch) for x in (start, pred.state()))
    count = batch.target.sum()
    return Losses(((error + end + nll) * batch.target).sum() / count, (logged * batch.target).sum() / count)


def _cross_entropy(model: EmbeddingDiffusionLM, x: Tensor, batch: Batch) -> Tensor:
    logits = F.linear(x, model.reader.rows(), model.output.bias)  # type: ignore[arg-type]
    logits.detach()[..., list(model.vocab.unemittable)] = -torch.inf  # behind autograd's back: a softmax of zero has a gradient of zero
    return F.cross_entropy(logits.flatten(0, 1), batch.tokens.flatten(), reduction="none").view_as(batch.tokens)


@dataclass(frozen=True)
class EmbeddingBench(Bench):
    """Forward, loss, backward, fused AdamW and moving average; both sides step the same model in turn."""

    vocabulary: int = 30522
    embedding: int = 128
    width: int = 256
    layers: int = 4
    heads: int = 4
    length: int = 128
    batch_size: int = 8

    def sizes(self) -> str:
        return (
            f"V = {self.vocabulary}, embeddings of {self.embedding}, d = {self.width}, {self.layers} layers, L = {self.length}, "
            f"B = {self.batch_size}, float32"
        )

    def build(self) -> tuple[EmbeddingDiffusionLM, Batch]:
        """A fresh model and a batch of random tokens, all of them targets."""
        torch.manual_seed(self.seed)
        trunk = TransformerConfig(width=self.width, layers=self.layers, heads=self.heads, max_length=self.length)
        vocab = Vocab(size=self.vocabulary, tokens=self.vocabulary, pad_id=self.vocabulary - 1)
        model = diffuseq(trunk, self.embedding).build(vocab)
        self.place(model)
        tokens = torch.randint(self.vocabulary - 1, (self.batch_size, self.length))
        return model, Batch.of(tokens).to(self.device)

    def measure(self) -> list[Row]:
        model, batch = self.build()
        half = batch._replace(target=(torch.arange(self.length, device=batch.tokens.device) >= self.length // 2).expand_as(batch.target))
        found = []
        for name, rows in (("every position a target", batch), ("half of the row is source", half)):
            check_sides(model, rows)
            times = self.interleaved(self._steps(model, rows))
            versus = f"second decoder pass and per-parameter .item() (DiffuSeq), {name}"
            found.append(Row("embedding", "speed", versus, *ratios(times["published"], times["ours"]), at_least=1.25))
        return found

    def _steps(self, model: EmbeddingDiffusionLM, batch: Batch) -> dict[str, Action]:
        parameters = dict(model.named_parameters())
        optimizer, ema = build_optimizer(parameters, weight_decay=0.0, betas=(0.9, 0.999)), Ema(parameters, 0.9999)
        for group in optimizer.param_groups:
            group["lr"] = _LEARNING_RATE

        def step(backward: Callable[[int], None], i: int) -> None:
            backward(i)
            optimizer.step()
            ema.update(i)
            optimizer.zero_grad()

        def of_ours(i: int) -> None:
            ours(model, batch, i).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)

        def of_published(i: int) -> None:
            losses = published(model, batch, i)
            losses.loss.backward()
            losses.logged.item()
            norm = sum((p.grad**2).sum().item() for p in model.parameters() if p.grad is not None) ** 0.5
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter.grad.mul_(min(1.0, 1.0 / (norm + 1e-6)))

        return {"ours": partial(step, of_ours), "published": partial(step, of_published)}


def check_sides(model: EmbeddingDiffusionLM, batch: Batch, tolerance: float = 1e-4) -> None:
    """Raise AssertionError unless both structures have the same loss and the same gradient on the same noise."""
    found = []
    for loss in (ours(model, batch, 0), published(model, batch, 0).loss):
        gradient = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
        flat = [torch.zeros_like(p) if part is None else part for p, part in zip(model.parameters(), gradient, strict=True)]
        found.append((loss.detach(), torch.cat([part.flatten() for part in flat])))
    require_equal(found[0][0], found[1][0], tolerance, "loss of the published structure")
    require_equal(found[0][1], found[1][1], tolerance, "gradient of the published structure")
