"""Multiple choice: the least nats win, in all, per character or per token, and all choices of a question meet the same noise."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.data.texts import byte_level
from tests.evaluation.given_costs import given
from textdiff.backbones.transformer import TransformerConfig
from textdiff.batch import Example
from textdiff.cli import main
from textdiff.evaluation.choices import Continued, Question, read_questions, scored
from textdiff.models.autoregressive import AutoregressiveSpec
from textdiff.models.base import ModelSpec
from textdiff.models.discrete import Discrete
from textdiff.vocab import Vocab

TRUNK = TransformerConfig(width=16, layers=1, heads=2, max_length=24)


def built(spec: ModelSpec) -> Any:
    torch.manual_seed(0)
    tokenizer = byte_level()
    model: Any = spec.build(Vocab.of(tokenizer)).eval()
    model.tokenizer = tokenizer
    return model


def row(tokens: list[int], text_bytes: int) -> Example:
    return Example([1, *tokens], [False] + [True] * len(tokens), text_bytes=text_bytes)


def test_the_least_nats_win_in_each_unit() -> None:
    """A token costs its id modulo 7: the choices cost 6, 8 and 5 nats in 1, 2 and 5 tokens, and have 3, 8 and 2 characters (and more bytes,
    by which the last would win).
    """
    choices = ("abc", "no space", "東京")
    rows = [row([6], 3), row([4, 4], 8), row([1, 1, 1, 1, 1], 6)]
    found = scored(given(nll_is_bound=False), [Question("q", choices, answer) for answer in (2, 1, 0)], lambda question: rows)
    assert found.chosen == (2, 2, 2)
    assert found.total.value == pytest.approx(1 / 3)  # 6, 8, 5: the last
    assert found.per_character.value == pytest.approx(1 / 3)  # 2, 1, 2.5: the second
    assert found.per_token.value == pytest.approx(1 / 3)  # 6, 4, 1: the last
    assert found.total.error == pytest.approx(math.sqrt(1 / 3 * 2 / 3 / 2))
    assert found.chance == pytest.approx(1 / 3)
    assert (found.kind, found.questions) == ("exact", 3)
    second = scored(given(nll_is_bound=False), [Question("q", choices, 1)], lambda question: rows)
    assert (second.total.value, second.per_character.value, second.per_token.value) == (0, 1, 0)


def test_a_choice_costs_what_the_model_says_of_it_after_its_context() -> None:
    model = built(AutoregressiveSpec(backbone=TRUNK))
    question = Question("one plus one is ", ("two", "three"), 0)
    rows = Continued(model)(question)
    assert [model.tokenizer.decode(example.tokens[1:]) for example in rows] == ["one plus one is two", "one plus one is three"]
    targets = [[token for token, scored in zip(example.tokens, example.target, strict=True) if scored] for example in rows]
    assert [model.tokenizer.decode(tokens) for tokens in targets] == [" two", " three"]  # the space among them
    assert [example.text_bytes for example in rows] == [4, 6]


def test_a_long_context_loses_its_beginning() -> None:
    model = built(AutoregressiveSpec(backbone=TRUNK))
    rows = Continued(model)
    (example, _) = rows(Question("az" * 40, ("qq", "cc"), 0))
    assert (len(example.tokens), rows.shortened) == (24, 2)
    assert model.tokenizer.decode(example.tokens[-sum(example.target) :]) == "qq"
    with pytest.raises(ValueError, match=r"the choice 'bqbq.*' has \d+ tokens and the model reads 23"):
        rows(Question("a", ("bq" * 30, "c"), 0))


def test_a_choice_that_melts_into_its_context_is_named() -> None:
    """Both " t" and " the" are one token, so "he" after "a t" adds none."""
    rows = Continued(built(AutoregressiveSpec(backbone=TRUNK)))
    tokens = [len(rows.encode.tokenizer.encode(text)) for text in ("a t", "a the")]
    assert tokens[1] <= tokens[0]
    with pytest.raises(ValueError, match="the choice 'he' has no token of its own, the tokenizer merges it into the end of its context"):
        rows(Question("a t", ("x", "he"), 0))


def test_choices_of_a_question_meet_the_same_noise() -> None:
    """Two choices that are read alike cost the same to the last bit, so that the first of them is chosen whatever the noise."""
    model = built(Discrete(backbone=TRUNK))
    same = Continued(model)(Question("a b c ", ("d e", "f g"), 0))[0]
    for seed in range(5):
        assert scored(model, [Question("", ("x", "y"), 0)] * 4, lambda question: [same, same], draws=4, seed=seed).chosen == (0, 0, 0, 0)


def test_nats_that_are_no_number_choose_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = given(nll_is_bound=False)
    monkeypatch.setattr(model, "mean_nll", lambda batch, seed, draws: torch.tensor([math.nan, 1.0]))
    with pytest.raises(ValueError, match=r"the nats of question 1 .'q'. are not a number"):
        scored(model, [Question("q", ("a", "b"), 1)], lambda question: [row([6], 3), row([4], 8)])


WRONG = [
    ({"choices": ["a", "b"], "answer": 0}, "no text under context, prompt, question"),
    ({"context": "q", "choices": ["a"], "answer": 0}, "expected a list of two or more texts"),
    ({"context": "q", "choices": ["a", "a"], "answer": 0}, "two choices are the same"),
    ({"context": "q", "choices": ["a", "b"], "answer": 2}, "answer is 2, expected a number from 0 to 1"),
    ({"context": "q", "choices": ["a", "b"], "answer": True}, "answer is True"),
    ({"context": "q", "choices": ["B", "A"], "answer": "C"}, "answer is 'C'"),
    ({"context": "q", "choices": ["B", "A"], "answer": "A"}, "answer 'A' is the text of one choice and the letter of another"),
]


@pytest.mark.parametrize(("record", "message"), WRONG)
def test_a_row_that_is_no_question_is_named(tmp_path: Path, record: dict[str, Any], message: str) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text(json.dumps(record) + "\n")
    with pytest.raises(ValueError, match=f"q.jsonl:1: .*{message}"):
        read_questions(path)


def test_an_answer_is_a_number_a_text_or_a_letter(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    asked = [(["x", "y"], 1), (["x", "y"], "y"), (["x", "y"], "B"), (["A", "y"], "B"), (["A", "B"], "B"), (["x", "D"], "D")]
    path.write_text("".join(json.dumps({"question": "q", "choices": choices, "answer": answer}) + "\n" for choices, answer in asked))
    assert [question.answer for question in read_questions(path)] == [1] * len(asked)


def test_the_command_answers_and_says_how(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    built(Discrete(backbone=TRUNK)).save_pretrained(tmp_path / "model")
    (tmp_path / "q.jsonl").write_text(json.dumps({"context": "a ", "choices": ["b", "c"], "answer": 0}) + "\n")
    main(["choose", str(tmp_path / "model"), "--data", str(tmp_path / "q.jsonl"), "--draws", "4", "--json", str(tmp_path / "found.json")])
    said = capsys.readouterr().out
    assert "1 question, 50.0 % by chance" in said
    assert "the same noise for all choices" in said
    assert json.loads((tmp_path / "found.json").read_text())["questions"] == 1
    with pytest.raises(SystemExit, match="2"):
        main(["choose", str(tmp_path / "model"), "--data", str(tmp_path / "none.jsonl")])
