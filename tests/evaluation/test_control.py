import torch

from tests.guidance.test_vectors import embedded
from tests.models.tiny import EOS, VOCAB
from textdiff.batch import Example
from textdiff.data.token_classes import TokenClasses
from textdiff.evaluation.control import agreement, distinct, end_trials, ending_at, ends_there, gap_trials, sampled, with_gap
from textdiff.guidance.classifier_free import ClassifierFree
from textdiff.samplers.ancestral import Ancestral


def row(*tokens: int) -> Example:
    return Example(tokens, [False] + [True] * (len(tokens) - 1), source=[1])


def test_a_text_ends_where_its_first_end_stands() -> None:
    texts = [row(0, 1, EOS), row(0, EOS, EOS), row(0, 1, 2), row(0, 1, 2, EOS, 1)]
    assert ends_there(texts, [3, 3, 3, 4], EOS).tolist() == [True, False, False, True]
    assert ends_there(texts, [4, 2, 4, 3], EOS).tolist() == [False, True, True, False]  # a row without an end ends after it


def test_an_end_is_known_and_all_after_it_is_gone() -> None:
    short = ending_at(row(0, 1, 2, 3, 4), 3, EOS)
    assert list(short.tokens) == [0, 1, EOS]
    assert list(short.target) == [False, True, False]
    gap = with_gap(row(0, 1, 2, 3, 4, 5))
    assert list(gap.target) == [False, False, True, True, False, False]


def test_agreement_counts_targets_by_token_or_by_class() -> None:
    wanted, found = row(0, 1, 2, 3, 4), row(0, 1, 3, 3, 5)._replace(target=[False, True, True, False, True])
    assert agreement([found], [wanted]).tolist() == [1 / 3]
    classes = torch.tensor([0, 0, 1, 1, 1, 0])
    assert agreement([found], [wanted], classes).tolist() == [2 / 3]
    assert TokenClasses(classes).pattern(wanted) == [0, 0, 1, 1, 1]


def test_pairs_are_counted_once_over_all_texts() -> None:
    assert distinct([row(0, 1, 2, 1, 2), row(0, 1, 2)]) == 2 / 4  # 12, 21, 12 and 12; the first token is given


def test_pairs_with_a_given_token_are_not_counted() -> None:
    gap = row(0, 1, 2, 1, 2, 1)._replace(target=[False, True, False, True, True, True])
    assert distinct([gap]) == 1.0  # 12 and 21 stand in the target, what is around them not
    assert distinct([gap._replace(target=[False] * 6)]) == 0.0


def test_a_given_end_and_the_words_around_a_gap_come_out_as_they_went_in() -> None:
    model, shapes = embedded(), [row(0, 1, 2, 3, 4, 5, 1, 2), row(0, 5, 4, 3, 2)]

    def write(guidance: object, asked: list[Example]) -> list[Example]:
        return sampled(ClassifierFree(0.0)(model), Ancestral(3), asked, VOCAB, "cpu")

    free = write(None, shapes)
    ends, gaps = (list(trials) for trials in (end_trials(write, shapes, free, EOS), gap_trials(write, shapes, free)))  # type: ignore[arg-type]
    assert [len(text.tokens) for text in ends[1][2]] == [3, 3]
    assert all(text.tokens[-1] == EOS for text in ends[1][2])
    for text, shape in zip(gaps[1][2], shapes, strict=True):
        kept = ~torch.tensor(text.target)
        assert torch.equal(torch.tensor(text.tokens)[kept], torch.tensor(shape.tokens)[kept])
    assert [trial[0] for trial in (*ends, *gaps)] == ["end: none", "end: given", "gap: hidden context", "gap: given context"]
    again = write(None, [*shapes[:1]])
    assert again[0].tokens == free[0].tokens  # a text does not depend on its neighbours
