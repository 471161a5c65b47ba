from pathlib import Path

import pytest

import textdiff.evaluation.modules.generation as module
from tests.evaluation.sentences import changed, random_texts
from textdiff.evaluation.generation import generation_quality

REFERENCES = [text or "a" for text in random_texts(20, seed=1)]
HYPOTHESES = changed(REFERENCES, seed=2)
SEVERAL = [[text, *changed([text] * (i % 3), seed=i)] for i, text in enumerate(REFERENCES)]


def test_it_computes_what_the_function_does(tmp_path: Path) -> None:
    metric = module.Generation(cache_dir=str(tmp_path))
    for references in (REFERENCES, SEVERAL):
        numbers = metric.compute(predictions=HYPOTHESES, references=references, resamples=20, seed=3)
        expected = generation_quality(HYPOTHESES, references, resamples=20, seed=3).as_dict()
        assert numbers == {name: value for name, value in expected.items() if name not in ("self_bleu", "div_4")}


def test_batches_add_up(tmp_path: Path) -> None:
    metric = module.Generation(cache_dir=str(tmp_path))
    metric.add_batch(predictions=HYPOTHESES[:7], references=REFERENCES[:7])
    metric.add_batch(predictions=HYPOTHESES[7:], references=REFERENCES[7:])
    assert metric.compute()["bleu"] == generation_quality(HYPOTHESES, REFERENCES).bleu


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        ([], [], "hypotheses is empty"),
        (["a"], ["a", "b"], "2 references for 1 hypotheses"),
        (["a"], None, "0 references for 1 hypotheses"),
        ([1], ["a"], r"hypotheses\[0\] is a int, expected a string"),
    ],
)
def test_texts_that_do_not_pair_up_are_refused_in_one_line(
    predictions: list[str], references: list[str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        module.Generation(cache_dir=str(tmp_path)).compute(predictions=predictions, references=references)
    assert "\n" not in str(caught.value)
