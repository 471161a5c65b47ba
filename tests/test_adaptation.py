import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

import textdiff
from tests.tiny_runs import BRIEF, corpus, quickstart, recipe, stock_gpt2
from textdiff.adaptation import SCRATCH, Arm, differences
from textdiff.backbones.annealing import RandomEntries


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(tmp_path)
    yield
    os.chdir(before)


def test_differences_are_those_of_the_same_seed() -> None:
    """Seeds that lie far apart do not widen the interval of a difference that every one of them shows."""
    seeds = [5.0, 6.0, 9.0]
    moves = {"shift, annealed": -2.0, "shift": -1.5, "no shift, annealed": -0.5, "no shift": -0.25, SCRATCH: 0.0}
    found = differences({arm: Arm([seed + move for seed in seeds], []) for arm, move in moves.items()})
    assert found["shift - no shift"].mean == pytest.approx(((-2.0 + 0.5) + (-1.5 + 0.25)) / 2)
    assert found["annealed - at once"].mean == pytest.approx(((-2.0 + 1.5) + (-0.5 + 0.25)) / 2)
    assert found[f"shift - {SCRATCH}"].mean == pytest.approx(-1.5)
    assert all(one.half_width == pytest.approx(0, abs=1e-9) for one in found.values())


def test_every_run_is_what_its_name_says_and_finished_ones_are_kept(capsys: pytest.CaptureFixture[str]) -> None:
    corpus(Path("texts"))
    quickstart("autoregressive", "--data", "texts", "--out", "causal")
    words = ["--model", "causal", "--data", "texts", "--out", "out", "--seeds", "3", "4", *BRIEF]
    recipe("adaptation", "masked", *words)
    source = textdiff.load("causal")
    for seed in (3, 4):
        for name, shift, annealed in (
            ("shift-annealed", True, True),
            ("shift", True, False),
            ("no-shift-annealed", False, True),
            ("no-shift", False, False),
            ("from-scratch", True, False),
        ):
            model = textdiff.load(f"out/{name}-{seed}")
            assert (model.spec.shift, model.spec.annealing) == (shift, RandomEntries() if annealed else None)
            assert model.spec.backbone == source.spec.backbone
            assert model.tokenizer.get_vocab() == source.tokenizer.get_vocab()
    results = json.loads(Path("out/results.json").read_text())
    assert results["bounds"]["shift"][1] == json.loads(Path("out/shift-4/results.json").read_text())["validation"]["nats_per_token"]
    assert len(set(results["bounds"]["shift"])) == 2
    before = Path("out/shift-3/results.json").stat().st_mtime_ns
    recipe("adaptation", "masked", *words, "--train.resume")
    assert Path("out/shift-3/results.json").stat().st_mtime_ns == before
    assert json.loads(Path("out/results.json").read_text()) == results
    record = Path("out/shift-3/recipe.yaml")
    then = yaml.safe_load(record.read_text())
    del then["train"]["clip"]  # as a run wrote it before there was such a setting
    record.write_text(yaml.safe_dump(then))
    recipe("adaptation", "masked", *words, "--train.resume")
    assert Path("out/shift-3/results.json").stat().st_mtime_ns == before
    Path("out/shift-3/results.json").unlink()
    with pytest.raises(SystemExit):
        recipe("adaptation", "masked", *words, "--train.resume", "--train.learning-rate", "0.5")
    assert "shift-annealed-3 was started with train.learning_rate = 0.001, now it is 0.5" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        recipe("adaptation", "masked", *words)
    assert "out already holds runs" in capsys.readouterr().err


def test_what_has_no_rival_from_scratch_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    corpus(Path("texts"))
    stock_gpt2(Path("gpt2"))
    with pytest.raises(SystemExit) as stopped:
        recipe("adaptation", "masked", "--model", "gpt2", "--data", "texts", "--out", "out")
    assert (stopped.value.code, "gpt2 is a GPT2LMHeadModel" in capsys.readouterr().err) == (2, True)
    assert not Path("out").exists()
