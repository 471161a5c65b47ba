"""Sampling against dense samplers of the same law: the whole (B, L, V) table is normalised, and drawn from, at every step."""

from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from textdiff.backbones.transformer import TransformerConfig
from textdiff.batch import Batch
from textdiff.bench.base import Action, Bench, Row, ratios
from textdiff.guidance.filters import Filters
from textdiff.models.discrete import Discrete, DiscreteDiffusionLM
from textdiff.processes.base import Denoiser, TokenProcess
from textdiff.processes.masked import Masked
from textdiff.processes.uniform import Uniform
from textdiff.randomness import Rng
from textdiff.samplers.ancestral import Ancestral
from textdiff.samplers.base import Sampler
from textdiff.samplers.confidence import Greedy
from textdiff.samplers.first_hitting import FirstHitting
from textdiff.vocab import Vocab


def _start(denoiser: Denoiser, batch: Batch) -> tuple[Masked, Tensor]:
    process = denoiser.process
    assert isinstance(process, Masked)
    return process, batch.tokens.masked_fill(batch.target, process.mask_id)


def _race(weight: Tensor, generator: torch.Generator) -> Tensor:
    """One categorical draw per row of unnormalised `weight` (..., V), overwritten: the first arrival of exponential clocks."""
    noise = torch.rand(weight.shape, dtype=weight.dtype, device=weight.device, generator=generator)  # faster than `exponential_` on a CPU
    return weight.div_(noise.log_().neg_()).argmax(-1)


@torch.no_grad()
def dense_ancestral(denoiser: Denoiser, batch: Batch, steps: int, generator: torch.Generator) -> Tensor:
    """MDLM's ancestral sampler: the posterior of every position over the whole vocabulary, [MASK] included, and a draw from all of them."""
    process, x = _start(denoiser, batch)
    predict = denoiser.predictor(batch)
    for t, s in pairwise(torch.linspace(1, 0, steps + 1, dtype=torch.float64, device=x.device)):
        posterior = predict(x, t.expand(len(x))).logits().softmax(-1)
        alpha_t, alpha_s = float(process.schedule.alpha(t)), float(process.schedule.alpha(s))
        posterior *= (alpha_s - alpha_t) / (1 - alpha_t)
        posterior[..., process.mask_id] = (1 - alpha_s) / (1 - alpha_t)
        x = _race(posterior, generator).where(process.is_masked(x), x)
    return x


@torch.no_grad()
def dense_uniform(denoiser: Denoiser, batch: Batch, steps: int, generator: torch.Generator) -> Tensor:
    """UDLM's ancestral sampler: the posterior of every position over the whole vocabulary under uniform noise, and a draw from each."""
    process = denoiser.process
    assert isinstance(process, Uniform)
    ids, (rows, length) = torch.tensor(process.ids, device=batch.tokens.device), batch.tokens.shape
    pure = ids[torch.randint(len(ids), (rows, length), device=ids.device, generator=generator)]
    x, predict = pure.where(batch.target, batch.tokens), denoiser.predictor(batch)
    uniform = torch.zeros(process.rows, device=ids.device).index_fill(0, ids, 1 / len(ids))
    for t, s in pairwise(torch.linspace(1, 0, steps + 1, dtype=torch.float64, device=x.device)):
        posterior = predict(x, t.expand(rows)).logits().softmax(-1)
        alpha_t, alpha_s = float(process.alpha(t)), float(process.alpha(s))
        jumped = (1 - alpha_t / alpha_s) / len(ids)  # b_ts
        # whatever it was noise made it z, or it was z before; the normaliser alpha_t p_z + b_t does not enter a draw
        posterior.mul_(jumped * alpha_s).add_(jumped * (1 - alpha_s) * uniform)
        z = x[..., None]
        posterior.scatter_(-1, z, posterior.gather(-1, z) * (1 + alpha_t / alpha_s / jumped))
        x = _race(posterior, generator).where(batch.target, x)
    return x


@torch.no_grad()
def dense_first_hitting(denoiser: Denoiser, batch: Batch, generator: torch.Generator) -> Tensor:
    """First-hitting sampling that draws a token for every position and keeps one per row."""
    process, x = _start(denoiser, batch)
    predict, noise = denoiser.predictor(batch), torch.ones(len(x), dtype=torch.float64, device=x.device)
    for _ in range(int(batch.target.sum(1).max())):
        masked = process.is_masked(x)
        uniform = torch.rand(len(x), dtype=torch.float64, device=x.device, generator=generator)
        noise = noise * uniform ** (1 / masked.sum(1).clamp_min(1))
        drawn = _race(predict(x, process.schedule.inverse(1 - noise)).logits().softmax(-1), generator)
        order = torch.rand(x.shape, device=x.device, generator=generator).masked_fill(~masked, -1.0)
        chosen = torch.zeros_like(masked).scatter(1, order.argmax(1, keepdim=True), True) & masked
        x = drawn.where(chosen, x)
    return x


@torch.no_grad()
def dense_greedy(denoiser: Denoiser, batch: Batch, steps: int) -> Tensor:
    """LLaDA's low-confidence remasking at temperature 0: probabilities and best token of every position, the surest masks are committed."""
    process, x = _start(denoiser, batch)
    predict, total = denoiser.predictor(batch), batch.target.sum(1)
    for step in range(steps):
        masked = process.is_masked(x)
        t = process.schedule.inverse(1 - masked.sum(1).double() / total)
        probability = predict(x, t).logits().softmax(-1)
        confidence, best = probability.max(-1)
        confidence = confidence.masked_fill(~masked, -torch.inf)
        for row, count in enumerate(-(-masked.sum(1) // (steps - step))):
            chosen = confidence[row].topk(int(count)).indices
            x[row, chosen] = best[row, chosen]
    return x


@dataclass(frozen=True)
class SamplingBench(Bench):
    """Ancestral (masked and uniform), first-hitting and greedy confidence sampling of models with weights drawn at random."""

    rounds: int = 3
    vocabulary: int = 50257
    width: int = 384
    layers: int = 6
    heads: int = 6
    length: int = 128
    batch_size: int = 8
    steps: int = 32  # of the masked ancestral and the greedy sampler; first-hitting takes one per token
    uniform_steps: int = 128  # on a quarter of the rows

    def sizes(self) -> str:
        size = f"V = {self.vocabulary}, d = {self.width}, {self.layers} layers, L = {self.length}, B = {self.batch_size}, T = {self.steps}"
        uniform = f"T = {self.uniform_steps} and B = {self.batch_size // 4} for uniform noise"
        return f"{size} ({uniform}), float32; greedy is given the first quarter of each row, first-hitting the first three"

    def build(self, process: TokenProcess) -> DiscreteDiffusionLM:
        """A model with wider weights than fresh ones: its beliefs differ between positions, so that no two confidences tie."""
        torch.manual_seed(self.seed)
        told = not isinstance(process, Masked)  # a masked network sees the noise level
        trunk = TransformerConfig(self.width, self.layers, self.heads, self.length, time_conditioning=told)
        vocab = Vocab(size=self.vocabulary, tokens=self.vocabulary, mask_id=self.vocabulary - 1)
        model = Discrete(process=process, backbone=trunk).build(vocab)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 2:
                    parameter.mul_(4.0)
        model.eval()
        self.place(model)
        return model

    def canvas(self, known: int) -> Batch:
        """Random tokens of which all but the first `known` are to be generated."""
        generator = torch.Generator().manual_seed(self.seed)
        tokens = torch.randint(self.vocabulary - 1, (self.batch_size, self.length), generator=generator)
        target = (torch.arange(self.length) >= known).expand_as(tokens)
        return Batch.of(tokens, target=target).to(self.device)

    def measure(self) -> list[Row]:
        model, uniform, free, prompted = self.build(Masked()), self.build(Uniform()), self.canvas(0), self.canvas(self.length // 4)
        few = free.rows(torch.arange(self.batch_size // 4, device=free.tokens.device))
        short = self.canvas(3 * self.length // 4)  # both first-hitting sides cost the same at every call: a quarter of them will do
        check_greedy(model, prompted, self.steps)
        generator = torch.Generator(self.device).manual_seed(self.seed)
        sides: dict[str, Action] = {
            "ancestral": partial(_sampled, Ancestral(self.steps), model, free),
            "dense ancestral": lambda _: dense_ancestral(model, free, self.steps, generator),
            "uniform ancestral": partial(_sampled, Ancestral(self.uniform_steps), uniform, few),
            "dense uniform ancestral": lambda _: dense_uniform(uniform, few, self.uniform_steps, generator),
            "first-hitting": partial(_sampled, FirstHitting(), model, short),
            "dense first-hitting": lambda _: dense_first_hitting(model, short, generator),
            "greedy": partial(_sampled, Greedy(self.steps), Filters(temperature=0.0)(model), prompted),
            "dense greedy": lambda _: dense_greedy(model, prompted, self.steps),
        }
        times = self.interleaved(sides)
        targets = {"ancestral": 3.0, "uniform ancestral": 3.0, "first-hitting": 3.0, "greedy": 1.4}
        return [
            Row("sampling", "speed", f"dense {name}", *ratios(times[f"dense {name}"], times[name]), at_least=target)
            for name, target in targets.items()
        ]


def _sampled(sampler: Sampler, denoiser: Denoiser, batch: Batch, i: int) -> Tensor:
    return sampler.sample(denoiser, batch, Rng(0, i, batch.sample_id))


def check_greedy(model: Denoiser, batch: Batch, steps: int) -> None:
    """Raise AssertionError unless both greedy samplers write the same tokens."""
    ours = _sampled(Greedy(steps), Filters(temperature=0.0)(model), batch, 0)
    other = dense_greedy(model, batch, steps)
    if not torch.equal(ours, other):
        raise AssertionError(f"the greedy samplers differ at {int((ours != other).sum())} of {ours.numel()} tokens: no ratio is given")
