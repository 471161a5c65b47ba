"""Minimum Bayes risk decoding: of several samples for one source, the one that agrees best with the others (Kumar and Byrne 2004)."""

import math
from collections.abc import Sequence
from typing import Any

from textdiff.evaluation.overlap import Gain, SentenceBleu

_BLEU = SentenceBleu()


def select(candidates: Sequence[Sequence[str]], gain: Gain[Any] = _BLEU) -> list[int]:
    """For each source's candidates, the index of argmax over y of the mean over y' != y of gain(hypothesis = y', reference = y).

    That direction is DiffuSeq's (Gong et al. 2023), whose published selections call its BLEU with the candidate as the reference.
    The first of equals is taken; one candidate is taken as it is. The cost is one draw per candidate: state it beside the result.
    Raises ValueError for a source without candidates, or one that is a string.
    """
    for i, texts in enumerate(candidates):
        if isinstance(texts, str) or not texts:
            raise ValueError(f"candidates[{i}] is {texts!r}, expected a list of one or more texts for each source")
    chosen = []
    for texts in candidates:
        gains = expected_gains(texts, gain)
        chosen.append(gains.index(max(gains)))
    return chosen


def expected_gains(texts: Sequence[str], gain: Gain[Any] = _BLEU) -> list[float]:
    """For each text y, the mean over the other texts y' of gain(hypothesis = y', reference = y); 0 for a single text."""
    counts = [gain.count(text) for text in texts]
    others = max(len(texts) - 1, 1)
    # fsum is exact: the order of the candidates cannot break a tie
    return [math.fsum(gain.score(other, own) for j, other in enumerate(counts) if j != i) / others for i, own in enumerate(counts)]
