from pathlib import Path

import pytest

import textdiff.evaluation.modules.diversity as module
from textdiff.evaluation.generation import distinct, div_4, self_bleu

SAMPLES = [["the cat sat on it", "the cat sat on a mat", "a dog"], ["x y z w", "x y z w"]]
NUMBERS = {
    "self_bleu": (self_bleu(SAMPLES[0]) + 100) / 2,
    "div_4": div_4(SAMPLES),
    **{f"distinct_{n}": distinct([*SAMPLES[0], *SAMPLES[1]], n) for n in (1, 2, 3, 4)},
}


def test_it_computes_what_the_functions_do(tmp_path: Path) -> None:
    assert module.Diversity(cache_dir=str(tmp_path)).compute(predictions=SAMPLES) == pytest.approx(NUMBERS)


@pytest.mark.parametrize(("samples", "message"), [([], "predictions is empty"), ([["a"]], "self-BLEU of 1 text"), ([[]], "texts is empty")])
def test_too_few_texts_are_refused(samples: list[list[str]], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        module.Diversity(cache_dir=str(tmp_path)).compute(predictions=samples)
