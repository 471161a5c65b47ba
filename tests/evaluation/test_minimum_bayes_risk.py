import math
import random
from collections import Counter
from collections.abc import Callable

import pytest
import sacrebleu

from tests.evaluation.sentences import changed, random_texts
from textdiff.evaluation.minimum_bayes_risk import expected_gains, select
from textdiff.evaluation.overlap import Chrf, Gain, SentenceBleu

SOURCES = [[text for seed in range(6) for text in changed([source], seed)] for source in random_texts(40, seed=3, longest=20)]


def gains_by_sacrebleu(texts: list[str], sentence: Callable[[str, list[str]], float]) -> list[float]:
    """The definition: y is the reference, the other texts are the hypotheses."""
    return [sum(sentence(other, [own]) for j, other in enumerate(texts) if j != i) / (len(texts) - 1) for i, own in enumerate(texts)]


@pytest.mark.parametrize(
    ("gain", "sentence"),
    [
        (SentenceBleu(), lambda text, references: sacrebleu.sentence_bleu(text, references).score),
        (Chrf(), lambda text, references: sacrebleu.sentence_chrf(text, references).score),
    ],
    ids=["bleu", "chrf"],
)
def test_the_mean_gains_are_those_of_the_definition(gain: Gain[object], sentence: Callable[[str, list[str]], float]) -> None:
    for texts, chosen in zip(SOURCES, select(SOURCES, gain), strict=True):
        expected = gains_by_sacrebleu(texts, sentence)
        assert expected_gains(texts, gain) == pytest.approx(expected, abs=1e-9)
        assert expected[chosen] == pytest.approx(max(expected), abs=1e-9)


def test_the_candidate_is_the_reference() -> None:
    # Against the long text the short one has every n-gram right and BP exp(1 - 4/2); the other way 2/4, 1/3, (1/2)/2 and (1/4)/1 match.
    assert expected_gains(["a b c d", "a b"]) == pytest.approx([100 * math.exp(-1), 100 * (2 / 4 * 1 / 3 * 1 / 4 * 1 / 4) ** 0.25])
    assert select([["a b c d", "a b"]]) == [0]


def test_the_one_that_agrees_is_chosen() -> None:
    assert select([["x y z", "the cat ran", "the cat sat", "the dog sat"], ["alone"]]) == [2, 0]


def test_ties_go_to_the_first_and_the_order_of_candidates_changes_nothing_else() -> None:
    assert select([["a", "b", "c"], ["c c", "a b", "x", "a b"]]) == [0, 1]
    draw = random.Random(0)
    for texts in SOURCES:
        order = draw.sample(range(len(texts)), len(texts))
        permuted = [texts[i] for i in order]
        gains, again = expected_gains(texts), expected_gains(permuted)
        assert again == [gains[i] for i in order]  # to the last bit
        assert select([permuted]) == [again.index(max(gains))]


def test_each_text_is_counted_once() -> None:
    seen: Counter[str] = Counter()

    class Length:
        def count(self, text: str) -> int:
            seen[text] += 1
            return len(text)

        def score(self, hypothesis: int, reference: int) -> float:
            return -abs(hypothesis - reference)

    assert select([["a", "bbb", "cccc"]], Length()) == [1]
    assert seen == {"a": 1, "bbb": 1, "cccc": 1}


@pytest.mark.parametrize("texts", [[], "text"])
def test_a_source_without_candidates_is_refused(texts: list[str]) -> None:
    with pytest.raises(ValueError, match=r"candidates\[1\] is .*, expected a list of one or more texts"):
        select([["a"], texts])
