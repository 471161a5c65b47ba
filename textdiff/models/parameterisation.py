"""How the trunk's output is read: the one place where a network's numbers become a belief about x0. It is saved with the model."""

import math
from dataclasses import dataclass

from torch import Tensor

from textdiff.prediction import HeadPrediction, Prediction, ScorePrediction
from textdiff.processes.base import Process, TokenProcess
from textdiff.projection import Head, Tilt


@dataclass(frozen=True)
class Parameterisation:
    """What hidden states (B, L, H) through a head mean at a noisy state and time."""

    def __call__(self, hidden: Tensor, head: Head, process: Process, xt: Tensor, t: Tensor) -> Prediction:
        """The leave-one-out belief that processes ask for."""
        raise NotImplementedError


@dataclass(frozen=True)
class LeaveOneOut(Parameterisation):
    """The softmax is p(x0_l | xt without position l): what the bound of every token process trains (for masks it is the posterior too)."""

    def __call__(self, hidden: Tensor, head: Head, process: Process, xt: Tensor, t: Tensor) -> Prediction:
        return HeadPrediction(hidden, head)


@dataclass(frozen=True)
class Posterior(Parameterisation):
    """The softmax is p(x0_l | xt): what plain cross-entropy on noisy inputs trains. Dividing by q(xt_l | x0_l) takes the token's own
    testimony out again, exactly: the logit of the token seen is lowered by log(1 + alpha / b)."""

    def __call__(self, hidden: Tensor, head: Head, process: Process, xt: Tensor, t: Tensor) -> Prediction:
        if not isinstance(process, TokenProcess):
            raise ValueError(f"a posterior over tokens cannot be converted for {type(process).__name__}: use LeaveOneOut")
        return HeadPrediction(hidden, head, Tilt(xt, -process.surprise(xt, t)))


@dataclass(frozen=True)
class Score(Parameterisation):
    """exp(logits) are unnormalised: the ratios of SEDD (Lou et al. 2024), up to what masked or uniform noise knows of them."""

    def __call__(self, hidden: Tensor, head: Head, process: Process, xt: Tensor, t: Tensor) -> Prediction:
        banned = 0 if head.banned is None else len(head.banned)
        return ScorePrediction(hidden, head, math.log(len(head.weight) - banned))
