"""One training step of a masked model against the two usual structures, on the same weights, noise, optimizer and average."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from textdiff.backbones.transformer import TransformerConfig
from textdiff.batch import Batch
from textdiff.bench.base import Action, Bench, Row, ratios, require_equal
from textdiff.models.base import Loss
from textdiff.models.discrete import Discrete, DiscreteDiffusionLM
from textdiff.prediction import HeadPrediction
from textdiff.processes.base import Noised
from textdiff.processes.masked import Masked
from textdiff.randomness import Rng
from textdiff.training.ema import Ema
from textdiff.training.optimizer import build_optimizer
from textdiff.vocab import Vocab

_LEARNING_RATE = 1e-5  # small, so that the sides keep meeting much the same model
LossOf = Callable[[DiscreteDiffusionLM, Batch, int], Tensor]  # (model, batch, step) -> nats per token


def ours(model: DiscreteDiffusionLM, batch: Batch, step: int) -> Tensor:
    """The model's own loss: the head runs at masked rows only."""
    loss: Loss = model(batch, 0, step)
    return loss.total / loss.tokens


def _denoised(model: DiscreteDiffusionLM, batch: Batch, step: int) -> tuple[Noised, HeadPrediction, Tensor, Tensor]:
    """The noise that `ours` meets, the trunk's answer, the masked positions (B, L) and their weight 1/t (B, 1)."""
    process = model.process
    assert isinstance(process, Masked)
    noised = process.measure(process, batch.tokens, batch.target, batch.stratum, Rng(0, step, batch.sample_id))
    pred = model.predictor(batch)(noised.xt, noised.t)
    assert isinstance(pred, HeadPrediction)
    weight = (noised.weight * process.rate(noised.t))[:, None].to(pred.hidden.dtype)
    return noised, pred, process.is_masked(noised.xt), weight


def whole_subs(model: DiscreteDiffusionLM, batch: Batch, step: int) -> Tensor:
    """MDLM's structure: logits (B, L, V), the SUBS parameterisation over all of them, the log-probability gathered at the end."""
    noised, pred, masked, weight = _denoised(model, batch, step)
    logits = F.linear(pred.hidden, pred.head.weight)
    logits[..., model.vocab.mask_id] = -1e6  # stands for -inf, which would make the gradient of an overwritten row NaN
    log_prob = logits - logits.logsumexp(-1, keepdim=True)
    known = ~masked
    log_prob[known] = -1e6
    log_prob[known, noised.xt[known]] = 0.0
    wanted = log_prob.gather(-1, batch.tokens[..., None])[..., 0]
    return -(wanted * weight).sum() / batch.target.sum()


def whole_cross_entropy(model: DiscreteDiffusionLM, batch: Batch, step: int) -> Tensor:
    """The plain structure: `cross_entropy` over every position, with weight zero where nothing was masked."""
    _, pred, masked, weight = _denoised(model, batch, step)
    nats = F.cross_entropy(_banned(F.linear(pred.hidden, pred.head.weight).flatten(0, 1), model), batch.tokens.flatten(), reduction="none")
    return (nats.view_as(masked) * masked * weight).sum() / batch.target.sum()


def _banned(logits: Tensor, model: DiscreteDiffusionLM) -> Tensor:
    logits.detach()[:, model.vocab.mask_id] = -torch.inf  # behind autograd's back: a softmax of zero has a gradient of zero, at no cost
    return logits


class _LoopAverage:
    """An exponential moving average parameter by parameter, as research code has it."""

    def __init__(self, parameters: list[Tensor]) -> None:
        self.parameters, self.average = parameters, [parameter.detach().clone() for parameter in parameters]

    @torch.no_grad()
    def update(self) -> None:
        for average, parameter in zip(self.average, self.parameters, strict=True):
            average.sub_((1 - 0.9999) * (average - parameter))


@dataclass(frozen=True)
class TrainingBench(Bench):
    """Forward, loss, backward, clipping, fused AdamW and moving average; every side steps the same model in turn."""

    vocabulary: int = 50257
    width: int = 384
    layers: int = 6
    heads: int = 6
    length: int = 128
    batch_size: int = 8

    def sizes(self) -> str:
        return (
            f"V = {self.vocabulary}, d = {self.width}, {self.layers} layers, L = {self.length}, B = {self.batch_size}, untied head, float32"
        )

    def build(self) -> tuple[DiscreteDiffusionLM, Batch]:
        """A fresh model and a batch of random tokens."""
        torch.manual_seed(self.seed)
        trunk = TransformerConfig(width=self.width, layers=self.layers, heads=self.heads, max_length=self.length, tied=False)
        vocab = Vocab(size=self.vocabulary, tokens=self.vocabulary, mask_id=self.vocabulary - 1)
        model = Discrete(backbone=trunk).build(vocab)
        self.place(model)
        tokens = torch.randint(self.vocabulary - 1, (self.batch_size, self.length))
        return model, Batch.of(tokens).to(self.device)

    def measure(self) -> list[Row]:
        model, batch = self.build()
        check_sides(model, batch)
        losses = {"ours": ours, "subs": whole_subs, "plain": whole_cross_entropy}
        times = self.interleaved(self._steps(model, batch, losses))
        peaks = {name: self._peak(model, batch, loss_of) for name, loss_of in losses.items()}
        subs, plain = "logits and SUBS over (B, L, V) (MDLM)", "cross-entropy of all positions"
        return [
            Row("training", "speed", subs, *ratios(times["subs"], times["ours"]), at_least=1.8),
            Row("training", "speed", plain, *ratios(times["plain"], times["ours"]), at_least=1.4),
            Row("training", "speed", f"{subs}, looped AdamW and EMA", *ratios(times["loop"], times["ours"])),
            Row("training", "peak memory", subs, *ratios([peaks["ours"]], [peaks["subs"]]), at_most=0.5),
            Row("training", "peak memory", plain, *ratios([peaks["ours"]], [peaks["plain"]]), at_most=0.65),
        ]

    def _steps(self, model: DiscreteDiffusionLM, batch: Batch, losses: Mapping[str, LossOf]) -> dict[str, Action]:
        """A whole step with each loss, and as "loop" MDLM's with an unfused optimizer and average; all move the same weights."""
        parameters = dict(model.named_parameters())
        fused = build_optimizer(parameters, weight_decay=0.0, betas=(0.9, 0.999))
        for group in fused.param_groups:
            group["lr"] = _LEARNING_RATE
        loop = torch.optim.AdamW(parameters.values(), lr=_LEARNING_RATE, weight_decay=0.0, foreach=False, fused=False)
        ema, loop_average = Ema(parameters, 0.9999), _LoopAverage(list(parameters.values()))

        def step(loss_of: LossOf, i: int) -> None:
            _backward(model, batch, loss_of, i)
            fused.step()
            ema.update(i)
            fused.zero_grad()

        def loop_step(i: int) -> None:
            _backward(model, batch, whole_subs, i)
            loop.step()
            loop_average.update()
            loop.zero_grad()

        return {**{name: partial(step, loss_of) for name, loss_of in losses.items()}, "loop": loop_step}

    def _peak(self, model: DiscreteDiffusionLM, batch: Batch, loss_of: LossOf) -> int:
        """Above weights, gradients and optimizer state, all of which exist when the step begins; the update itself needs no memory."""
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        return self.peak_bytes(lambda: _backward(model, batch, loss_of, 0))


def _backward(model: DiscreteDiffusionLM, batch: Batch, loss_of: LossOf, step: int) -> None:
    loss_of(model, batch, step).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)


def check_sides(model: DiscreteDiffusionLM, batch: Batch, tolerance: float = 1e-4) -> None:
    """Raise AssertionError unless all three structures have the same loss and the same gradient on the same noise."""
    found = {}
    for loss_of in (ours, whole_subs, whole_cross_entropy):
        loss = loss_of(model, batch, 0)
        gradient = torch.autograd.grad(loss, list(model.parameters()))
        found[loss_of] = loss.detach(), torch.cat([part.flatten() for part in gradient])
    for other in (whole_subs, whole_cross_entropy):
        require_equal(found[ours][0], found[other][0], tolerance, f"loss of {other.__name__}")
        require_equal(found[ours][1], found[other][1], tolerance, f"gradient of {other.__name__}")
