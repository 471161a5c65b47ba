"""Generative perplexity: what a causal model pays for texts that another model wrote, and what must stand beside it.

    gen-ppl = exp( sum_i -log q(text_i) / sum_i n_i ),   n_i tokens of text i as the scorer's tokenizer cuts it

over all texts together, each decoded up to its first EOS, which does not count (MDLM and Duo count that EOS; SEDD averages the perplexities
of texts). It asks only whether the scorer finds a text likely: a temperature below 1, or a sampler that repeats itself, lowers it and the
entropy with it. So the entropy within a text and its repetition, over the same tokens, belong to it.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from textdiff.data.tokenizer import Encoder
from textdiff.evaluation.measuring import Settings, Texts, measure
from textdiff.evaluation.statistics import Estimate, ratio
from textdiff.models.base import LanguageModel

_NOTHING = Estimate(math.nan, math.nan, math.nan, math.nan)


class GenerativePerplexity(NamedTuple):
    """Nats per token of the scorer for a set of texts; nan where no text has a token."""

    nats: Estimate  # errors by bootstrap over texts
    tokens: int
    texts: int  # that have a token; the others count nowhere
    rules: str

    @property
    def value(self) -> float:
        """exp(nats per token)."""
        return math.exp(min(self.nats.value, 700.0))

    @property
    def error(self) -> float:
        """Its standard error, to first order."""
        return self.value * self.nats.error


@dataclass(frozen=True)
class Scorer:
    """A model that scores texts exactly. Raises ValueError for one that only bounds their likelihood, or has no tokenizer."""

    model: LanguageModel
    name: str

    def __post_init__(self) -> None:
        if self.model.nll_is_bound:
            raise ValueError(
                f"{self.name} is a diffusion model, which only bounds the likelihood of a text, and bounds are loose to an unknown degree: "
                "name a causal model as scorer"
            )
        if self.model.tokenizer is None:
            raise ValueError(f"the scorer {self.name} has no tokenizer files: texts cannot be turned into its ids")

    def encoded(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, without any special token."""
        return [encoding.ids.tolist() for encoding in Encoder(self.model.tokenizer)(texts)]

    def perplexity(self, texts: Sequence[str], batch_size: int = 32) -> GenerativePerplexity:
        """Of texts under the scorer: each is read whole after BOS (else EOS) where it fits, or in rolling windows of all that the model
        reads, half of one counted at a time."""
        longest = 1 + max(map(len, self.encoded(texts)), default=0)
        length = max(2, min(self.model.max_length, longest))
        if longest < 2:
            return GenerativePerplexity(_NOTHING, 0, 0, "no text has a token")
        found = measure(self.model, self.name, Texts("samples", "passage", texts), Settings(length, batch_size=batch_size))
        tokens = sum(score.tokens for score in found.scores)
        before = "their first token is context" if found.rules.start is None else f"{found.rules.start} before each is context"
        fits = longest <= self.model.max_length
        windows = "read whole" if fits else f"read in windows of {length} tokens, {found.rules.stride} counted in those after the first"
        rules = f"texts up to their first EOS, which does not count, tokenised and scored by {self.name}, {windows}; {before}"
        return GenerativePerplexity(ratio(found, "tokens"), tokens, len(found.scores), rules)


def unigram_entropy(ids: Sequence[int]) -> float:
    """Entropy, in nats, of how often each token is in one text; nan for an empty one. At most log(len(ids)): compare equal lengths.

    Its mean over texts is what BD3-LM (Arriola et al. 2025) and Duo (Sahoo et al. 2025) state.
    """
    if not ids:
        return math.nan
    shares = [count / len(ids) for count in Counter(ids).values()]
    return max(0.0, -math.fsum(share * math.log(share) for share in shares))


def repetition(ids: Sequence[int], n: int = 4) -> float:
    """seq-rep-n of one text (Welleck et al. 2020): 1 - distinct n-grams / n-grams, 0..1; nan where it has no n-gram."""
    grams = [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else math.nan
