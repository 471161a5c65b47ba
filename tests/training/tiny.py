"""A model small enough to train in milliseconds, with everything a trainer can get wrong: tied weights, dropout, a buffer, keyed noise."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from textdiff.batch import Example
from textdiff.models.base import Loss
from textdiff.randomness import Rng
from textdiff.training.loop import train
from textdiff.training.settings import Train

VOCABULARY = 11


class TinyModel(nn.Module):
    def __init__(self, dropout=0.0, explode_at=None):
        super().__init__()
        torch.manual_seed(1)
        self.embed = nn.Embedding(VOCABULARY, 8)
        self.mix = nn.Linear(8, 8)
        self.head = nn.Linear(8, VOCABULARY)
        self.head.weight = self.embed.weight  # tied
        self.dropout = nn.Dropout(dropout)
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))
        self.explode_at = explode_at
        self.spec = {"dropout": dropout}

    def forward(self, batch, seed, step, progress=1.0):
        if self.training:
            self.seen += 1
        masked = Rng(seed, step, batch.sample_id).uniform("mask", (batch.tokens.shape[1],)) < 0.5
        hidden = self.dropout(torch.tanh(self.mix(self.embed(torch.where(masked, 0, batch.tokens)))))
        nll = nn.functional.cross_entropy(self.head(hidden).transpose(1, 2), batch.tokens, reduction="none")
        total = (nll * batch.target).sum()
        if step == self.explode_at:
            total = total * float("nan")
        return Loss(total, batch.target.sum(), total.detach(), {"masked": (masked & batch.target).sum()})


def unequal_examples(n=23):
    generator = torch.Generator().manual_seed(5)
    lengths = torch.randint(2, 9, (n,), generator=generator).tolist()
    return [Example(torch.randint(1, VOCABULARY, (k,), generator=generator).tolist(), [i > 0 for i in range(k)]) for k in lengths]


def quick(**changes):
    numbers = {"steps": 6, "batch_size": 8, "warmup": 2, "learning_rate": 1e-2, "ema": 0.9, "log_every": 1, "final_fraction": 0.1}
    return Train(**{**numbers, "evaluate_every": 100, "checkpoint_every": 100, **changes})


def measure(model, should_stop):
    return {"norm": float(sum(p.detach().double().square().sum() for p in model.parameters()))}


def save_weights(folder, weights):
    save_file({name: value.clone() for name, value in weights.items()}, folder / "model.safetensors")


def run(accelerator, out, settings, model=None, source=None, evaluate=measure):
    model = TinyModel() if model is None else model
    source = unequal_examples() if source is None else source
    steps = train(accelerator, settings, model, source, 0, Path(out), evaluate, save_weights)
    return steps, model
