"""How an embedding diffusion model reads its trunk's output: as a softmax over tokens or as a regressed vector."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init

from textdiff.processes.gaussian import Gaussian
from textdiff.projection import Head
from textdiff.state_prediction import Interpolated, Regressed, StatePrediction


class Output(nn.Module):
    """The last layer: hidden states (B, L, H) at a noisy state to a belief about x0; `table` is (V, D)."""

    bias: nn.Parameter  # (V,)

    def reset(self) -> None:
        """Fresh weights."""
        raise NotImplementedError

    def forward(self, hidden: Tensor, xt: Tensor, t: Tensor, process: Gaussian, table: Tensor, banned: Tensor | None) -> StatePrediction:
        """The belief; `banned` ids are never read."""
        raise NotImplementedError


@dataclass(frozen=True)
class Reading:
    """An output layer without its weights."""

    def build(self, size: int, width: int, hidden: int) -> Output:
        """The layer for `size` ids, vectors of `width` and trunk states of `hidden` numbers."""
        raise NotImplementedError


@dataclass(frozen=True)
class Softmax(Reading):
    """x0hat = softmax(logits) E (score interpolation, CDCD; categorical reparametrisation, Plaid).

    With `prior` the logits hold what the noisy vector says of its own token, log N(xt; a E_w, s^2 I) = (a / s^2) xt.E_w
    - (a^2 / (2 s^2)) |E_w|^2 + const (Plaid, LangFlow): the trunk is left with what the neighbours say. With
    `tied` the trunk's own logits are products with the same E.
    """

    prior: bool = True
    tied: bool = True

    def build(self, size: int, width: int, hidden: int) -> Output:
        return SoftmaxOutput(self, size, width, hidden)


class SoftmaxOutput(Output):
    """Logits over the vocabulary."""

    def __init__(self, config: Softmax, size: int, width: int, hidden: int) -> None:
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.empty(width if config.tied else size, hidden))
        self.bias = nn.Parameter(torch.empty(size))

    def reset(self) -> None:
        init.normal_(self.weight, std=0.02)
        init.zeros_(self.bias)

    def forward(self, hidden: Tensor, xt: Tensor, t: Tensor, process: Gaussian, table: Tensor, banned: Tensor | None) -> Interpolated:
        features, weight = (F.linear(hidden, self.weight), table) if self.config.tied else (hidden, self.weight)
        if self.config.prior:
            evidence, rows = _evidence(xt, t, process, table)
            # one product for the trunk's logits and the evidence, so that neither exists for the whole vocabulary by itself
            if self.config.tied:
                features, weight = evidence + F.pad(features, (0, 1)), rows
            else:
                features, weight = torch.cat([features, evidence], dim=-1), torch.cat([weight, rows], dim=1)
        return Interpolated(features, Head(weight, self.bias, banned), table)

    @torch.no_grad()
    def alone(self, xt: Tensor, t: Tensor, process: Gaussian, table: Tensor, banned: Tensor | None) -> Tensor:
        """The mean of x0 (B, L, D) given each noisy vector by itself, every token as likely beforehand as the bias says."""
        features, rows = _evidence(xt, t, process, table)
        return Interpolated(features, Head(rows, self.bias, banned), table).state()


def _evidence(xt: Tensor, t: Tensor, process: Gaussian, table: Tensor) -> tuple[Tensor, Tensor]:
    """Features (B, L, D + 1) and rows (V, D + 1) whose products are log N(xt; a E_w, s^2 I) up to what no w enters."""
    a, s = process.levels(t.clamp(min=process.t_min))
    of_norm = (-(a**2) / (2 * s**2)).to(xt.dtype).expand(*xt.shape[:2], 1)
    return torch.cat([(a / s**2).to(xt.dtype) * xt, of_norm], dim=-1), torch.cat([table, table.square().sum(-1, keepdim=True)], dim=1)


@dataclass(frozen=True)
class Target:
    """What a regression predicts; all are affine in one another given xt."""

    def x0(self, process: Gaussian, output: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        """The clean state that an output (B, L, D) means."""
        raise NotImplementedError


@dataclass(frozen=True)
class State(Target):
    """x0 itself: bounded, and the field's choice for text."""

    def x0(self, process: Gaussian, output: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        return output


@dataclass(frozen=True)
class Noise(Target):
    """eps (DDPM)."""

    def x0(self, process: Gaussian, output: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        return process.from_noise(output, xt, t)


@dataclass(frozen=True)
class Velocity(Target):
    """v = a eps - s x0 (Salimans & Ho 2022)."""

    def x0(self, process: Gaussian, output: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        return process.from_velocity(output, xt, t)


@dataclass(frozen=True)
class Rounding:
    """How tokens are read from vectors (B, L, D)."""

    def head(self, table: Tensor, bias: Tensor, banned: Tensor | None) -> Head:
        """The head over the rows of `table` (V, D)."""
        raise NotImplementedError


@dataclass(frozen=True)
class Tied(Rounding):
    """logits = x E^T + bias (Diffusion-LM, DiffuSeq)."""

    def head(self, table: Tensor, bias: Tensor, banned: Tensor | None) -> Head:
        return Head(table, bias, banned)


@dataclass(frozen=True)
class Distance(Rounding):
    """logits = -|x - E_w|^2 + bias, up to |x|^2, which is the same for every token."""

    def head(self, table: Tensor, bias: Tensor, banned: Tensor | None) -> Head:
        return Head(2 * table, bias - table.square().sum(-1), banned)


@dataclass(frozen=True)
class Regression(Reading):
    """A regressed vector, from which tokens are rounded."""

    target: Target = State()
    rounding: Rounding = Tied()

    def build(self, size: int, width: int, hidden: int) -> Output:
        return RegressionOutput(self, size, width, hidden)


class RegressionOutput(Output):
    """A linear layer to the width of the vectors, and the rounding's bias."""

    def __init__(self, config: Regression, size: int, width: int, hidden: int) -> None:
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.empty(width, hidden))
        self.bias = nn.Parameter(torch.empty(size))

    def reset(self) -> None:
        init.normal_(self.weight, std=0.02)
        init.zeros_(self.bias)

    def forward(self, hidden: Tensor, xt: Tensor, t: Tensor, process: Gaussian, table: Tensor, banned: Tensor | None) -> Regressed:
        x0 = self.config.target.x0(process, F.linear(hidden, self.weight), xt, t)
        return Regressed(x0, self.config.rounding.head(table, self.bias, banned), table)
