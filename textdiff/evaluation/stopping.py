"""When a measurement is exact enough: the rule behind a target standard error.

Texts are scored in random order and the standard error of nats per token over texts is looked at when there are 30 of them, and then
whenever their number has grown by a quarter; over documents where texts are passages of them (textdiff/evaluation/statistics.py), and it
takes 30 of those too to end early. If all are scored and the error is above the target, a bound is drawn again for all of them, round
after round, as long as the error of the draws is what keeps it there: with R rounds it is estimated from the spread of each text's values
between rounds, and what remains of the whole error is the spread between texts, which only more text makes smaller. When that is above
the target by twice its own error, further rounds would be in vain and measuring ends.

The error, not the mean, decides when to stop, and it is looked at rarely; still an early stop favours samples that look calm. The 95 %
interval of the stopped measurement covers a little less than it says, and nominally as the target shrinks (Chow and Robbins 1965): of
1,000 simulated measurements 93 to 96 % covered the truth where the costs of texts are normal, 90 % where they are log-normal (deviation
0.5 of the log) and 80 texts meet the target, 94 to 95 % where 300 or more do. Where few texts cost much more than all others, a sample
without any of them looks calm by mistake, the mean is low and the interval may miss it: measure all texts for a number that is published.
"""

import math
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from textdiff.evaluation.statistics import ratio_error

FEWEST = 30  # texts; the spread of fewer says little about their error
MOST_ROUNDS = 64
_GROWTH = 1.25


class Errors(NamedTuple):
    """Standard errors of nats per token."""

    total: float  # over texts as a sample of more such text, the error of the draws included; nan for one text
    of_draws: float  # what other noise on the same texts would change; nan where one round of draws is all there is
    doubt: float = 0.0  # standard error of total^2 - of_draws^2, given the texts

    @classmethod
    def of(cls, nats: NDArray[np.float64], tokens: NDArray[np.float64], exact: bool = False) -> Self:
        """Those of sum(nats) / sum(tokens) for `nats` (rounds, texts) and `tokens` (texts,), a ratio of sums over independent texts.

        With residual r_i = mean over rounds of nats_i - ratio * tokens_i and noise of variance s_i^2 in that mean, total^2 is sum r_i^2
        and of_draws^2 is sum s_i^2, both over (sum tokens)^2; the noise moves r_i^2 by 2 r_i e_i + e_i^2.
        """
        rounds = len(nats)
        counted, mean = float(tokens.sum()), nats.mean(0)
        total = ratio_error(mean, tokens)
        if exact:
            return cls(total, 0.0)
        if rounds == 1:
            return cls(total, math.nan, math.nan)
        residual = (mean - mean.sum() / counted * tokens) ** 2
        noise = nats.var(0, ddof=1) / rounds
        moved = 4 * (residual - noise).clip(0) * noise + 2 * noise**2 * rounds / (rounds - 1)
        return cls(total, math.sqrt(float(noise.sum())) / counted, math.sqrt(float(moved.sum())) / counted**2)

    @property
    def between_texts(self) -> float:
        """What would remain of the total with endless draws."""
        return math.sqrt(max(0.0, self.total**2 - self.of_draws**2))


def looks(texts: int, target_se: float | None) -> list[int]:
    """How many of so many texts are scored each time the error is looked at; the last time all are."""
    found = [] if target_se is None else [FEWEST]
    while found and found[-1] < texts:
        found.append(math.ceil(found[-1] * _GROWTH))
    return [*(count for count in found if count < texts), texts]


def outcome(target: float, errors: Errors, scored: int, texts: int, rounds: int, independent: int) -> str:
    """What has become of the target with `scored` of all `texts`, of which so many are independent, in so many rounds of draws; empty where
    measuring goes on.
    """
    if scored < FEWEST:
        return f"{texts} texts are too few to know their error, {FEWEST} or more are needed: give more text"
    if errors.total <= target and (scored == texts or independent >= FEWEST):
        return f"the standard error {errors.total:.2g} meets the target {target:.2g} with {scored} of {texts} texts"
    if scored < texts or math.isnan(errors.of_draws):
        return ""
    if errors.between_texts**2 - 2 * errors.doubt > target**2:
        between = "between texts" if errors.of_draws == 0 else f"between texts alone, {errors.between_texts:.2g},"
        return f"the standard error {errors.total:.2g} misses the target {target:.2g}: the spread {between} is above it, give more text"
    if rounds == MOST_ROUNDS:
        return f"the standard error {errors.total:.2g} misses the target {target:.2g} after {rounds} rounds of draws: raise draws"
    return ""
