"""The quality of generated text as an `evaluate` metric: `Generation().compute(predictions=texts, references=texts)`."""

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate

from textdiff.evaluation.generation import References, generation_quality, paired

_INPUTS = """
Args:
    predictions: generated texts, a list of strings.
    references: one string for each prediction, or a list of strings for each.
    resamples: corpora drawn for the bootstrap errors of BLEU and chrF (default 1000).
    seed: of those draws (default 0).
"""


class Generation(evaluate.Metric):
    """BLEU and chrF (0..100), ROUGE and exact match (0..1) with standard errors, distinct-n and the mean length.

    Also opened by `evaluate.load` from this file's path. Raises ValueError for texts that do not pair up.
    """

    def add_batch(self, *, predictions: Sequence[str] | None = None, references: References | None = None, **kwargs: Any) -> None:
        """Keep texts for `compute`."""
        paired(predictions or (), references or ())  # evaluate meets empty or uneven lists with an IndexError, or several lines
        super().add_batch(predictions=predictions, references=references, **kwargs)

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        several = datasets.Features({"predictions": text, "references": datasets.Sequence(text)})
        return evaluate.MetricInfo(
            description=str(Generation.__doc__),
            citation="",
            inputs_description=_INPUTS,
            features=[datasets.Features({"predictions": text, "references": text}), several],
        )

    def _compute(self, predictions: Sequence[str], references: References, resamples: int = 1_000, seed: int = 0) -> dict[str, Any]:
        numbers = generation_quality(list(predictions), list(references), resamples=resamples, seed=seed).as_dict()
        return {name: value for name, value in numbers.items() if name not in ("self_bleu", "div_4")}  # which `Diversity` measures
