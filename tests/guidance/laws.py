"""Denoisers and classifiers whose laws are known: a joint law of two tokens and a class, and everything that follows from it by Bayes."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from textdiff.batch import Batch
from textdiff.prediction import Prediction, TablePrediction
from textdiff.processes.base import TokenProcess, per_token
from textdiff.processes.hybrid import Hybrid
from textdiff.processes.masked import Masked
from textdiff.processes.uniform import Uniform
from textdiff.vocab import Vocab

STATES, CLASSES = 3, 2
VOCAB = Vocab(size=STATES + 1, tokens=STATES + 1, mask_id=STATES)
MASK = STATES
PROCESSES: list[TokenProcess] = [process.bind(VOCAB) for process in (Masked(), Uniform(), Hybrid(share=0.3))]
NAMES = [type(process).__name__ for process in PROCESSES]


def joint(length: int, seed: int = 0) -> Tensor:
    """A random p(y, x_1 .. x_length), (C, 3, ..., 3) float64."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.rand(CLASSES, *[STATES] * length, generator=generator, dtype=torch.float64) + 0.05
    return weight / weight.sum()


def labels(rows: int, *classes: int) -> Batch:
    """`rows` rows of two blanks whose classes take turns."""
    source = torch.tensor(classes).repeat(rows)[:rows, None]
    return Batch.of(torch.zeros(rows, 2, dtype=torch.long), source=source)


def noising(process: TokenProcess, noise: Tensor) -> Tensor:
    """q(z | x) at noise levels 1 - alpha (B,), (B, 3, 4)."""
    t = process.time_of(1 - noise)
    z = torch.arange(STATES + 1).expand(len(t), -1)
    known = torch.eye(STATES, STATES + 1, dtype=torch.float64)
    alpha = (1 - noise)[:, None, None]
    emitted = process.emission(z, t, STATES).transpose(1, 2)
    if isinstance(process, Masked):  # whose emission leaves out the chance to be masked
        return alpha * known + noise[:, None, None] * torch.nn.functional.one_hot(torch.tensor(MASK), STATES + 1)
    return emitted


@dataclass
class Bayes:
    """p(x0_l | the other noisy tokens, and y where it is told), for a `law` p(y, x_1 .. x_L) of length 1 or 2."""

    process: TokenProcess
    law: Tensor

    def predictor(self, batch: Batch) -> "BayesPredictor":
        told = batch.source_attend[:, 0] if batch.source.shape[1] else torch.zeros(len(batch.tokens), dtype=torch.bool)
        label = batch.source[:, 0] if batch.source.shape[1] else torch.zeros(len(batch.tokens), dtype=torch.long)
        return BayesPredictor(self, label, told, batch.target)

    def canvas(self, batch: Batch) -> tuple[Tensor, Tensor]:
        return batch.tokens, batch.target

    def decode(self, x0: Tensor) -> Tensor:
        return x0


@dataclass
class BayesPredictor:
    denoiser: Bayes
    label: Tensor
    told: Tensor
    target: Tensor

    def __call__(self, xt: Tensor, t: Tensor, previous: Prediction | None = None) -> TablePrediction:
        law = torch.where(self.told[:, None, None], self.denoiser.law[self.label].flatten(1).unflatten(1, (STATES, -1)), 0.0)
        law = law + torch.where(self.told, 0.0, 1.0)[:, None, None] * self.denoiser.law.sum(0).view(1, STATES, -1)
        known = torch.eye(STATES + 1, STATES, dtype=torch.float64)[xt]
        seen = self.denoiser.process.emission(xt, t, STATES).where(self.target[..., None], known)  # (B, L, 3)
        if xt.shape[1] == 1:
            beliefs = [law[:, :, 0]]
        else:
            beliefs = [torch.einsum("bij,bj->bi", law, seen[:, 1]), torch.einsum("bij,bi->bj", law, seen[:, 0])]
        table = torch.stack(beliefs, 1)
        return TablePrediction(torch.nn.functional.pad((table / table.sum(-1, keepdim=True)).log(), (0, 1), value=-torch.inf))

    def rows(self, index: Tensor) -> "BayesPredictor":
        return replace(self, label=self.label[index], told=self.told[index], target=self.target[index])


@dataclass
class Knows:
    """The exact classifier p(y | z) of the same law."""

    process: TokenProcess
    law: Tensor
    states: int = STATES + 1

    def log_prob(self, z: Tensor, noise: Tensor, attend: Tensor) -> Tensor:
        levels = per_token(noise).expand(z.shape)
        kernel = noising(self.process, levels.flatten()).view(*z.shape, STATES, STATES + 1)
        seen = kernel.gather(3, z[..., None, None].expand(-1, -1, STATES, 1))[..., 0]  # (B, L, 3)
        if z.shape[1] == 1:
            joint = torch.einsum("ci,bi->bc", self.law, seen[:, 0])
        else:
            joint = torch.einsum("cij,bi,bj->bc", self.law, seen[:, 0], seen[:, 1])
        return (joint / joint.sum(1, keepdim=True)).log()
