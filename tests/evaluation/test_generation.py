import json
import math
import time

import numpy as np
import pytest
import sacrebleu

from tests.evaluation.sentences import changed, random_texts
from textdiff.evaluation.generation import (
    References,
    bleu,
    bleu_statistics,
    bootstrap_error,
    chrf,
    chrf_statistics,
    corpus_bleu,
    corpus_chrf,
    distinct,
    div_4,
    exact_match,
    generation_quality,
    mean_length,
    rouge,
    self_bleu,
)

REFERENCES = random_texts(80, seed=1)
HYPOTHESES = changed(REFERENCES, seed=2)
SEVERAL = [[text, *changed([text] * (i % 3), seed=i)] for i, text in enumerate(REFERENCES)]  # 1 to 3 references each


def test_corpus_scores_are_sacrebleus_with_its_signature() -> None:
    metric = sacrebleu.BLEU()
    assert bleu(HYPOTHESES, REFERENCES) == (metric.corpus_score(HYPOTHESES, [REFERENCES]).score, str(metric.get_signature()))
    assert chrf(HYPOTHESES, REFERENCES).score == sacrebleu.corpus_chrf(HYPOTHESES, [REFERENCES]).score
    assert bleu(HYPOTHESES, REFERENCES).signature.startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:2")
    assert chrf(HYPOTHESES, SEVERAL).signature.startswith("nrefs:var|case:mixed|eff:yes|nc:6|nw:0|space:no|version:2")


def test_several_references_reach_sacrebleu_as_streams() -> None:
    pairs = [[text, *changed([text], seed=i)] for i, text in enumerate(REFERENCES)]
    streams = [list(stream) for stream in zip(*pairs, strict=True)]
    assert bleu(HYPOTHESES, pairs).score == sacrebleu.corpus_bleu(HYPOTHESES, streams).score
    assert chrf(HYPOTHESES, pairs).score == sacrebleu.corpus_chrf(HYPOTHESES, streams).score


@pytest.mark.parametrize("references", [REFERENCES, SEVERAL], ids=["one", "several"])
def test_summed_statistics_give_the_corpus_score(references: References) -> None:
    assert corpus_bleu(bleu_statistics(HYPOTHESES, references).sum(0)) == pytest.approx(bleu(HYPOTHESES, references).score, abs=1e-9)
    assert corpus_chrf(chrf_statistics(HYPOTHESES, references).sum(0)) == pytest.approx(chrf(HYPOTHESES, references).score, abs=1e-9)


def test_identical_texts_have_every_score_at_its_best() -> None:
    texts = [text for text in REFERENCES if len(text.split()) > 3]
    result = generation_quality(texts, texts, [[text] * 3 for text in texts])
    assert (result.bleu, result.chrf, result.self_bleu) == pytest.approx((100, 100, 100))
    assert (result.rouge_1, result.rouge_2, result.rouge_l, result.exact_match) == pytest.approx((1, 1, 1, 1))
    assert (result.bleu_error, result.chrf_error, result.rouge_l_error, result.exact_match_error) == pytest.approx((0, 0, 0, 0))


def test_more_references_never_lower_a_best_of_score() -> None:
    one, several = rouge(HYPOTHESES, REFERENCES), rouge(HYPOTHESES, SEVERAL)
    assert all(more >= less for more, less in zip(several, one, strict=True))
    assert rouge(["a b", "c"], ["a b", "d"]) == (0.5, 0.5, 0.5)
    assert exact_match(["a", " b ", "c", "C"], [["x", "a"], ["b"], ["d"], ["c"]]) == 0.5


def test_diversity_by_hand() -> None:
    texts = ["a b a", "a b"]  # a b a a b; ab ba ab; aba
    assert [distinct(texts, n) for n in (1, 2, 3, 4)] == pytest.approx([2 / 5, 2 / 3, 1, 0])
    assert div_4([["a b c d", "a b c d"], ["a b c d e", "x"]]) == pytest.approx((1 / 2 + 2 / 2) / 2)
    assert mean_length(texts) == 2.5


@pytest.mark.parametrize("count", [2, 3, 30])
def test_self_bleu_takes_all_other_texts_as_references(count: int) -> None:
    texts = [*random_texts(count, seed=4), *changed(random_texts(2, seed=4), seed=5)]
    others = [[text for j, text in enumerate(texts) if j != i] for i in range(len(texts))]
    expected = np.mean([sacrebleu.sentence_bleu(text, own).score for text, own in zip(texts, others, strict=True)])
    assert self_bleu(texts) == pytest.approx(expected, abs=1e-9)
    assert self_bleu(texts[::-1]) == self_bleu(texts)


def test_the_bootstrap_error_of_a_share_is_the_binomial_one() -> None:
    matches = np.arange(200) < 60
    statistics = np.column_stack([matches, np.ones(200)])
    error = bootstrap_error(statistics, lambda total: total[0] / total[1], resamples=20_000)
    assert error == pytest.approx(math.sqrt(0.3 * 0.7 / 200), rel=0.02)  # four deviations of a deviation: 4 / sqrt(2 * 20,000)


def test_the_bootstrap_error_of_bleu_is_the_deviation_over_resampled_corpora() -> None:
    rng, scores = np.random.default_rng(7), []
    for _ in range(40):
        drawn = rng.integers(len(HYPOTHESES), size=len(HYPOTHESES))
        scores.append(bleu([HYPOTHESES[i] for i in drawn], [SEVERAL[i] for i in drawn]).score)
    error = bootstrap_error(bleu_statistics(HYPOTHESES, SEVERAL), corpus_bleu, resamples=40, seed=7)
    assert error == pytest.approx(np.std(scores, ddof=1))
    assert error != bootstrap_error(bleu_statistics(HYPOTHESES, SEVERAL), corpus_bleu, resamples=40, seed=8)


def test_a_thousand_resamples_of_a_thousand_sentences_take_well_under_a_second() -> None:
    texts = random_texts(1_000, seed=6)
    statistics = bleu_statistics(changed(texts, seed=7), texts)
    start = time.perf_counter()
    bootstrap_error(statistics, corpus_bleu)
    assert time.perf_counter() - start < 0.5


def test_the_quality_holds_what_the_functions_return() -> None:
    samples = [[text, *changed([text] * 2, seed=i)] for i, text in enumerate(REFERENCES)]
    result = generation_quality(HYPOTHESES, SEVERAL, samples, resamples=50, seed=3)
    assert (result.bleu, result.bleu_signature, result.chrf, result.chrf_signature) == (
        *bleu(HYPOTHESES, SEVERAL),
        *chrf(HYPOTHESES, SEVERAL),
    )
    assert (result.rouge_1, result.rouge_2, result.rouge_l) == rouge(HYPOTHESES, SEVERAL)
    assert (result.exact_match, result.mean_length) == (exact_match(HYPOTHESES, SEVERAL), mean_length(HYPOTHESES))
    assert result.bleu_error == bootstrap_error(bleu_statistics(HYPOTHESES, SEVERAL), corpus_bleu, 50, 3)
    assert result.chrf_error == bootstrap_error(chrf_statistics(HYPOTHESES, SEVERAL), corpus_chrf, 50, 3)
    assert [result.distinct_1, result.distinct_4] == [distinct(HYPOTHESES, 1), distinct(HYPOTHESES, 4)]
    assert (result.self_bleu, result.div_4) == pytest.approx((np.mean([self_bleu(texts) for texts in samples]), div_4(samples)))
    p, n = result.exact_match, result.sentences
    assert result.exact_match_error == pytest.approx(math.sqrt(p * (1 - p) / (n - 1)))
    assert json.loads(json.dumps(result.as_dict(), allow_nan=False)) == result.as_dict()


def test_what_one_sentence_cannot_tell_is_none() -> None:
    numbers = generation_quality(["a b"], ["a b"]).as_dict()
    assert {name for name, value in numbers.items() if value is None} == {
        *("bleu_error", "chrf_error", "rouge_1_error", "rouge_2_error", "rouge_l_error", "exact_match_error", "self_bleu", "div_4")
    }


@pytest.mark.parametrize(
    ("hypotheses", "references", "message"),
    [
        ([], [], "hypotheses is empty, expected one or more texts"),
        (["a"], ["a", "b"], "2 references for 1 hypotheses"),
        ("a", ["a"], "hypotheses is a str, expected a list of strings"),
        (["a"], "a", "references is a str, expected a string, or a list of strings, for each hypothesis"),
        (["a", None], ["a", "b"], r"hypotheses\[1\] is a NoneType, expected a string"),
        (["a"], [[]], r"references\[0\] is empty"),
        (["a"], [None], r"references\[0\] is a NoneType, expected a list of strings"),
        (["a"], [["a", 1]], r"references\[0\]\[1\] is a int, expected a string"),
    ],
)
def test_texts_that_do_not_pair_up_are_refused_in_one_line(hypotheses: list[str], references: list[str], message: str) -> None:
    for function in (bleu, chrf, rouge, exact_match, generation_quality):
        with pytest.raises(ValueError, match=message) as caught:
            function(hypotheses, references)
        assert "\n" not in str(caught.value)


def test_too_little_to_measure_is_refused() -> None:
    with pytest.raises(ValueError, match="self-BLEU of 1 text"):
        self_bleu(["a"])
    with pytest.raises(ValueError, match="texts is empty"):
        distinct([], 1)
    with pytest.raises(ValueError, match="n is 0"):
        distinct(["a"], 0)
    with pytest.raises(ValueError, match="samples is empty"):
        div_4([])
    with pytest.raises(ValueError, match=r"samples\[1\] is empty"):
        div_4([["a"], []])
    with pytest.raises(ValueError, match="resamples is 1"):
        bootstrap_error(np.ones((3, 1)), lambda total: total[0], resamples=1)
