"""Scores of filled gaps against sums by hand, and that a command fills without having seen what it is asked for."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.data.texts import byte_level, sentence
from textdiff.backbones.transformer import TransformerConfig
from textdiff.cli import main
from textdiff.evaluation.infilling import Filled, infilling
from textdiff.models.autoregressive import AutoregressiveSpec
from textdiff.models.base import ModelSpec
from textdiff.models.discrete import Discrete
from textdiff.processes.uniform import Uniform
from textdiff.vocab import Vocab

TRUNK = TransformerConfig(width=16, layers=1, heads=2, max_length=48)


def test_scores_are_those_of_hand_counted_gaps() -> None:
    found = infilling(
        [
            Filled([1, 2, 3], [1, 2, 3], " the red cat", "the red cat "),
            Filled([4], [5], " dog", " cat"),
            Filled([6, 7], [7, 6], " old tea", " tea old"),
        ]
    )
    assert found.tokens.value == pytest.approx(3 / 6)
    residuals = [3 - 1.5, 0 - 0.5, 0 - 1.0]
    assert found.tokens.error == pytest.approx(math.sqrt(3 / 2 * sum(r * r for r in residuals)) / 6)
    assert found.exact.value == pytest.approx(1 / 3)
    assert found.rouge_1.value == pytest.approx((1 + 0 + 1) / 3)
    assert found.rouge_2.value == pytest.approx((1 + 0 + 0) / 3)
    assert found.rouge_l.value == pytest.approx((1 + 0 + 1 / 2) / 3)


def test_a_single_gap_has_no_error() -> None:
    found = infilling([Filled([1], [1], "a", "a")]).as_dict()
    assert found["tokens"] == {"value": 1.0, "error": None}


def test_gaps_that_cannot_be_judged_are_refused() -> None:
    with pytest.raises(ValueError, match="no gap"):
        infilling([])
    with pytest.raises(ValueError, match="a gap of 2 tokens was filled with 1"):
        infilling([Filled([1, 2], [1], "ab", "a")])


def saved(spec: ModelSpec, path: Path) -> str:
    torch.manual_seed(0)
    model: Any = spec.build(Vocab.of(byte_level())).eval()
    for weight in model.parameters():  # far from the zero with which some weights begin: what is read must matter
        weight.data.normal_(0, 0.7)
    model.tokenizer = byte_level()
    model.save_pretrained(path)
    return str(path)


def written(models: list[str], rows: list[tuple[str, str, str]], folder: Path, *options: str) -> list[list[str]]:
    """What each model writes into the gaps."""
    data = folder / "gaps.jsonl"
    data.write_text("".join(json.dumps(dict(zip(("prefix", "middle", "suffix"), row, strict=True))) + "\n" for row in rows))
    main(["infill", *models, "--data", str(data), "--draws", "2", "--temperature", "1", "--json", str(folder / "found.json"), *options])
    return [[gap["written"] for gap in model["gaps"]] for model in json.loads((folder / "found.json").read_text())["models"]]


ROWS = [("the cat ", "sat", " on a mat"), ("the dog ", "ran", " to the red house"), ("old ", "tea", "")]


def test_what_stood_in_a_gap_is_hidden_and_the_rest_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Three other letters in each gap change nothing; text after it changes what is written from both sides, and only that."""
    models = [
        saved(Discrete(backbone=TRUNK), tmp_path / "masked"),
        saved(Discrete(backbone=TRUNK, process=Uniform()), tmp_path / "uniform"),
        saved(AutoregressiveSpec(backbone=TRUNK), tmp_path / "causal"),
    ]
    other = [(before, "xqz", after) for before, _, after in ROWS]
    longer = [(before, middle, f"{after} and drink") for before, middle, after in ROWS]
    spelt = [(before, "qzx", after) for before, _, after in ROWS]
    found = written(models, other, tmp_path)
    assert found == written(models, spelt, tmp_path)
    ahead = written(models, [(before, middle, f"{after} and drink") for before, middle, after in other], tmp_path)
    assert found[0] != ahead[0]
    assert found[2] == ahead[2]
    blind = written(models[:2], other, tmp_path, "--sees", "left")
    assert blind == written(models[:2], [(a, "xqz", c) for a, _, c in longer], tmp_path, "--sees", "left")
    said = capsys.readouterr().out
    assert "both sides" in said
    assert "3 gaps" in said


def test_a_causal_model_pays_for_the_gap_alone(tmp_path: Path) -> None:
    """Its nats are those of the gap's tokens after the text before them, whatever comes after."""
    model = saved(AutoregressiveSpec(backbone=TRUNK), tmp_path / "causal")
    nats = []
    for after in ("", " and drink"):
        written([model], [(a, b, after) for a, b, _ in ROWS], tmp_path)
        nats.append(json.loads((tmp_path / "found.json").read_text())["models"][0]["likelihood"]["nats_per_token"])
    assert nats[0] == pytest.approx(nats[1], abs=1e-9)


WRONG = [
    (["--words", "0"], "words is 0"),
    (["--words", "40"], "no text has 42 words"),
    (["--json", "none/found.json"], "no folder none"),
    (["--sampler", "Nothing"], "there is no sampler 'Nothing'"),
]


@pytest.mark.parametrize(("options", "message"), WRONG)
def test_a_mistake_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str) -> None:
    model = saved(Discrete(backbone=TRUNK), tmp_path / "masked")
    (tmp_path / "text.txt").write_text(sentence(1, 9))
    with pytest.raises(SystemExit, match="2"):
        main(["infill", model, "--data", str(tmp_path / "text.txt"), *options])
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("textdiff infill: error: ")
    assert message in said
