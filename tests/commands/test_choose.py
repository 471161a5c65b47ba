"""`textdiff choose`: what is written, how a model of pairs reads questions, and what is refused before any time is spent."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.data.texts import byte_level
from tests.tiny_runs import SHORT, SMALL, pairs, recipe
from textdiff.backbones.transformer import TransformerConfig
from textdiff.batch import collate
from textdiff.cli import main
from textdiff.data.collate import Pairs
from textdiff.data.readers import Pair
from textdiff.evaluation.likelihood import sequence_nats
from textdiff.models.autoregressive import AutoregressiveSpec
from textdiff.models.base import ModelSpec
from textdiff.models.discrete import Discrete
from textdiff.models.loading import load
from textdiff.vocab import Vocab

TRUNK = TransformerConfig(width=16, layers=1, heads=2, max_length=24)
ASKED: list[dict[str, Any]] = [
    {"context": "the sky is ", "choices": ["blue", "a tree", "no"], "answer": 0},
    {"context": "tea is ", "choices": ["hot", "a cat or so"], "answer": "hot"},
    {"context": "two and two ", "choices": ["four", "five"], "answer": "B"},
]


def saved(folder: Path, spec: ModelSpec) -> str:
    torch.manual_seed(0)
    model = spec.build(Vocab.of(byte_level()))
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    model.tokenizer = byte_level()
    model.save_pretrained(folder)
    return str(folder)


def written(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def answered(place: Path, model: str, *words: str) -> dict[str, Any]:
    main(["choose", model, "--data", written(place / "q.jsonl", *ASKED), "--json", str(place / "found.json"), *words])
    found: dict[str, Any] = json.loads((place / "found.json").read_text())
    return found


def test_the_seed_fixes_every_number_and_the_batch_size_none(tmp_path: Path) -> None:
    model = saved(tmp_path / "model", Discrete(backbone=TRUNK))
    first = answered(tmp_path, model, "--draws", "4")
    assert first == answered(tmp_path, model, "--draws", "4")
    assert first == answered(tmp_path, model, "--draws", "4", "--batch-size", "2")
    assert first["chance"] == pytest.approx((1 / 3 + 1 / 2 + 1 / 2) / 3)
    assert (first["kind"], first["draws"], first["seed"]) == ("upper bound", 4, 0)
    assert "no EOS; 0 rows lost the beginning of their context" in first["rules"]


def test_a_model_with_an_encoder_reads_the_question_by_it(tmp_path: Path) -> None:
    """The chosen are those of the least nats as responses to the question."""
    place = saved(tmp_path / "model", AutoregressiveSpec(backbone=replace(TRUNK, encoder_layers=1)))
    model, expected = load(place), []
    for row in ASKED:
        rows = Pairs([Pair(row["context"], choice) for choice in row["choices"]], model.tokenizer, 24, encoder=True)
        expected.append(int(sequence_nats(model, rows).argmin()))
    found = answered(tmp_path, place)
    assert found["chosen"] == expected
    assert (found["kind"], found["draws"]) == ("exact", 1)
    assert "the encoder reads the context, EOS included" in found["rules"]  # of a training nothing is known


def test_a_question_that_an_encoder_has_no_room_for_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = saved(tmp_path / "model", AutoregressiveSpec(backbone=replace(TRUNK, encoder_layers=1)))
    for long, what in (
        ({"context": "az" * 20}, "the prompt: 40 tokens"),
        ({"choices": ["a", "qq" * 12]}, "BOS, response and EOS: 26 tokens"),
    ):
        data = written(tmp_path / "q.jsonl", ASKED[0], {"context": "tea is ", "choices": ["a", "b"], "answer": 0, **long})
        capsys.readouterr()
        with pytest.raises(SystemExit):
            main(["choose", place, "--data", data])
        said = capsys.readouterr().err
        assert f"is too long for {place} ({what}, 24 fit): shorten it" in said
        assert said.count("\n") == 1


def test_a_run_on_pairs_reads_a_question_as_it_was_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pairs(Path("pairs"), count=8)
    recipe("translation", "masked", *SHORT, *SMALL, "--data", "pairs", "--scoring.candidates", "1", "--out", "run")
    found, model, expected = answered(tmp_path, "run", "--draws", "4"), load("run"), []
    for number, row in enumerate(ASKED):
        rows = Pairs([Pair(row["context"], choice) for choice in row["choices"]], model.tokenizer, 142, fill=60)
        batch = collate(list(rows), model.vocab.pad_id or 0, sample_id=[number] * len(rows))
        expected.append(int(model.eval().mean_nll(batch, 0, 4).argmin()))
    assert found["chosen"] == expected
    assert "rows as in the model's training, EOS included" in found["rules"]


def test_one_question_has_no_error_which_json_can_say(tmp_path: Path) -> None:
    model = saved(tmp_path / "model", AutoregressiveSpec(backbone=TRUNK))
    found = answered(tmp_path, model, "--limit", "1")
    assert (found["questions"], found["total"]["error"]) == (1, None)
    assert "NaN" not in (tmp_path / "found.json").read_text()


WRONG = [
    (["--json", "nosuch/numbers.json"], "no folder nosuch to write numbers.json into: create it first"),
    (["--json", "."], "is a folder: name the json file to write"),
    (["--limit", "0"], "limit is 0, expected 1 or more"),
    (["--draws", "0"], "draws is 0, expected 1 or more"),
    (["--data", "q.txt"], "q.txt has suffix '.txt', expected one of .jsonl"),
    (["--data", "half.jsonl"], "half.jsonl:1: it holds half of a surrogate pair"),
    (["--data", "nosuch.jsonl"], "nosuch.jsonl"),
]


@pytest.mark.parametrize(("words", "message"), WRONG)
def test_a_mistake_is_one_line_before_the_model_is_opened(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    written(Path("half.jsonl"), {**ASKED[0], "context": "a \ud800"})
    data = [] if "--data" in words else ["--data", written(Path("q.jsonl"), *ASKED)]
    Path("q.txt").write_text("a question")
    with pytest.raises(SystemExit) as stop:
        main(["choose", "./no-model", *data, *words])
    said = capsys.readouterr().err
    assert stop.value.code == 2
    assert message in said
    assert "no-model" not in said
    assert said.count("\n") == 1
