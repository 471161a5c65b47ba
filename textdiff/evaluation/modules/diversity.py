"""The diversity of several samples for each source as an `evaluate` measurement: `Diversity().compute(predictions=lists_of_texts)`."""

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate

from textdiff.evaluation.generation import distinct, div_4, self_bleu

_INPUTS = """
Args:
    predictions: for each source a list of two or more generated texts.
"""


class Diversity(evaluate.Measurement):
    """Self-BLEU (0..100) and div-4 (0..1), both means over sources, and distinct-n (0..1) of all texts together.

    Also opened by `evaluate.load` from this file's path. Raises ValueError for a source with fewer than two texts.
    """

    def add_batch(self, *, predictions: Sequence[Sequence[str]] | None = None, **kwargs: Any) -> None:
        """Keep texts for `compute`."""
        if not predictions:
            raise ValueError("predictions is empty, expected a list of two or more texts for each source")
        super().add_batch(predictions=predictions, **kwargs)

    def _info(self) -> evaluate.MeasurementInfo:
        return evaluate.MeasurementInfo(
            description=str(Diversity.__doc__),
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": datasets.Sequence(datasets.Value("string"))}),
        )

    def _compute(self, predictions: Sequence[Sequence[str]]) -> dict[str, float]:
        samples = [list(texts) for texts in predictions]
        texts = [text for own in samples for text in own]
        numbers = {"self_bleu": sum(self_bleu(own) for own in samples) / len(samples), "div_4": div_4(samples)}
        return numbers | {f"distinct_{n}": distinct(texts, n) for n in (1, 2, 3, 4)}
