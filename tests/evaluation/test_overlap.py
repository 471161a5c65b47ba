import math
import random
from collections.abc import Sequence

import pytest
import sacrebleu

from tests.evaluation.sentences import random_texts
from textdiff.evaluation.overlap import Chrf, SentenceBleu, common_subsequence, rouge

TEXTS = random_texts(60, seed=0)


def bleu_of(hypothesis: str, reference: str) -> float:
    scorer = SentenceBleu()
    return scorer.score(scorer.count(hypothesis), scorer.count(reference))


def chrf_of(hypothesis: str, reference: str) -> float:
    scorer = Chrf()
    return scorer.score(scorer.count(hypothesis), scorer.count(reference))


def test_sentence_bleu_by_hand() -> None:
    assert bleu_of("a b c d e", "a b c d f") == pytest.approx(100 * (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25)
    assert bleu_of("a b c d", "a b c d e f") == pytest.approx(100 * math.exp(1 - 6 / 4))
    assert bleu_of("a b x", "a b y") == pytest.approx(100 * (2 / 3 * 1 / 2 * 1 / 2) ** (1 / 3))  # three orders, no trigram: half a match
    assert bleu_of("a x y z", "a u v w") == pytest.approx(100 * (1 / 4 * 1 / 6 * 1 / 8 * 1 / 8) ** 0.25)  # 1/2, 1/4 and 1/8 of a match
    assert bleu_of("a b", "c d") == bleu_of("", "a") == bleu_of("a", "") == 0


def test_sentence_bleu_and_chrf_equal_sacrebleu_on_random_pairs() -> None:
    for hypothesis in TEXTS:
        for reference in TEXTS:
            assert bleu_of(hypothesis, reference) == pytest.approx(sacrebleu.sentence_bleu(hypothesis, [reference]).score, abs=1e-9)
            assert chrf_of(hypothesis, reference) == pytest.approx(sacrebleu.sentence_chrf(hypothesis, [reference]).score, abs=1e-9)


def test_chrf_by_hand() -> None:
    # "ab" against "abc": 1-grams 2 of 2 and of 3, 2-grams 1 of 1 and of 2, no 3-gram: P = 1, R = (2/3 + 1/2) / 2 = 7/12, F2 = 5 R / (4 + R)
    assert chrf_of("a b", "abc") == pytest.approx(100 * 7 / 11)
    assert chrf_of("", "abc") == chrf_of("abc", "") == chrf_of("abc", "xyz") == 0


def test_a_text_is_all_of_itself() -> None:
    for text in filter(None, TEXTS):
        assert bleu_of(text, text) == pytest.approx(100)
        assert chrf_of(text, text) == pytest.approx(100)
        assert rouge(text, ["something else", text]).rouge_l == 1


def test_rouge_by_hand() -> None:
    assert rouge("the cat sat", ["The cat was sat!"]) == pytest.approx((6 / 7, 2 / 5, 6 / 7))  # 3 of 3 and 4; 1 of 2 and 3; 3
    assert rouge("b a c", ["a b c"]) == pytest.approx((1, 0, 2 / 3))  # a c, or b c
    assert rouge("a a b", ["a b b"]) == pytest.approx((2 / 3, 1 / 2, 2 / 3))  # counts are clipped
    assert rouge("größer", ["gr er"]) == (1, 1, 1)  # a letter outside a-z parts tokens, as in rouge-score
    assert rouge("", ["a"]) == rouge("a", [""]) == rouge("?", ["!"]) == (0, 0, 0)


def test_each_rouge_takes_its_best_reference() -> None:
    assert rouge("a b c", ["c b a", "a b x y"]) == pytest.approx((1, 2 / 5, 4 / 7))  # the first; the second; the second


def longest_common(first: Sequence[str], second: Sequence[str]) -> int:
    """The recursion that defines it."""
    if not first or not second:
        return 0
    if first[-1] == second[-1]:
        return longest_common(first[:-1], second[:-1]) + 1
    return max(longest_common(first[:-1], second), longest_common(first, second[:-1]))


def test_the_common_subsequence_by_its_definition() -> None:
    draw = random.Random(0)
    for _ in range(300):
        first, second = ([draw.choice("abc") for _ in range(draw.randrange(7))] for _ in range(2))
        assert common_subsequence(first, second) == longest_common(first, second)
    assert common_subsequence(list("ab" * 200), list("ba" * 200)) == 399  # longer than a machine word
