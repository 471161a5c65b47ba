"""recipes/speculative.py: what it trains, compares, goes on with, and refuses."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import textdiff
from tests.tiny_runs import corpus, quickstart, recipe

TINY = [
    *("--train.steps", "2", "--train.batch-size", "4", "--train.warmup", "1", "--vocab-size", "300", "--layout.length", "24"),
    *("--drafter-train.steps", "2", "--drafter-train.batch-size", "4", "--drafter-train.warmup", "1", "--data", "texts"),
    *("--flash-train.steps", "2", "--flash-train.batch-size", "4", "--flash-train.warmup", "1", "--flash-own.rows", "8"),
    *("--compare.prompts", "2", "--compare.prompt-length", "8", "--compare.new", "6", "--compare.rounds", "1"),
    *("--compare.lengths", "2", "--compare.steps", "1"),
]
SMALL = [
    *(word for role in ("target", "assistant") for word in (f"--{role}-size.width", "16", f"--{role}-size.layers", "1")),
    *(word for role in ("target", "assistant") for word in (f"--{role}-size.heads", "2", f"--{role}-size.max-length", "32")),
    *("--drafter-model.backbone.width", "16", "--drafter-model.backbone.layers", "1", "--drafter-model.backbone.heads", "2"),
]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """The working folder of a test, with a text."""
    before = Path.cwd()
    os.chdir(tmp_path)
    corpus(Path("texts"))
    yield tmp_path
    os.chdir(before)


def results(out: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(out, "results.json").read_text())
    return found


def test_a_run_trains_all_models_with_one_tokenizer_and_may_be_compared_again(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe("speculative", *TINY, *SMALL, "--out", "out")
    printed = capsys.readouterr().out
    assert "in float64: all 2 rows are the same, token for token" in printed
    assert "--train.resume" not in printed
    assert "\x1b" not in printed
    models = [textdiff.load(f"out/{role}") for role in ("target", "assistant", "drafter", "flash")]
    assert len({json.dumps(model.tokenizer.get_vocab(), sort_keys=True) for model in models}) == 1
    AutoModelForCausalLM.from_pretrained("out/target/model")
    first = {line["name"]: line for line in results("out")["temperature 0.0"]}
    assert all(line["same"] == [2, 0, 2] for line in first.values())
    assert len(first) == 8
    assert len(results("out")["temperature 1.0"]) == 8
    recipe("speculative", "masked", *TINY, "--target", "out/target", "--drafter", "out/drafter", "--flash", "out/flash", "--out", "again")
    again = {line["name"]: line for line in results("again")["temperature 0.0"]}
    assert first.keys() - again.keys() == {"AR drafter (transformers)"}  # no assistant was given
    for name, line in again.items():
        assert [line[key] for key in ("tokens", "passes", "calls", "accepted")] == [
            first[name][key] for key in ("tokens", "passes", "calls", "accepted")
        ]


def test_a_target_that_is_no_stock_model_is_compared_in_our_loop_only(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quickstart("autoregressive", "--data", "texts", "--out", "own")
    recipe("speculative", "masked", *TINY, *SMALL, "--target", "own", "--out", "out", "--compare.temperatures", "0")
    assert [line["name"] for line in results("out")["temperature 0.0"]] == [
        *("left to right", "2 at once", "2 from features", "up to 4 at once")
    ]
    assert "the target is no stock model" in " ".join(capsys.readouterr().out.split())


def stopped_at(where: str, *words: str) -> None:
    """A run whose process ends where `where` is called, having written a configuration there."""

    def end(self: Any, folder: Any = "", *args: Any, **options: Any) -> None:
        if "save_pretrained" in where:
            Path(folder).mkdir(parents=True, exist_ok=True)
            (Path(folder) / "config.json").write_text("{")
        raise KeyboardInterrupt

    with patch(where, end), pytest.raises(SystemExit):
        recipe("speculative", *TINY, *SMALL, *words)


SAVE, TRAIN = "transformers.LlamaForCausalLM.save_pretrained", "textdiff.speculation.models.recipe.run"


@pytest.mark.parametrize("left", ["aside", "in place"])  # by this version, and by one that wrote where the folder is to stand
def test_weights_to_begin_with_that_are_half_written_are_written_anew(left: str, place: Path) -> None:
    stopped_at(SAVE, "--out", "out")
    assert not Path("out/begin/target").exists()
    if left == "in place":
        Path("out/begin/target").mkdir(parents=True)
        Path("out/begin/target/config.json").write_text("{")
    stopped_at(TRAIN, "--out", "out", "--train.resume")
    stopped_at(TRAIN, "--out", "straight")
    one, other = (load_file(f"{out}/begin/target/model.safetensors") for out in ("out", "straight"))
    assert all(bool((tensor == other[name]).all()) for name, tensor in one.items())
    written = Path("out/begin/target/model.safetensors").stat().st_mtime_ns
    stopped_at(TRAIN, "--out", "out", "--train.resume")
    assert Path("out/begin/target/model.safetensors").stat().st_mtime_ns == written


def test_a_start_that_is_not_resumed_begins_with_what_is_asked_for_now(place: Path) -> None:
    stopped_at(TRAIN, "--out", "out", "--vocab-size", "290", "--target-size.width", "32")
    stopped_at(TRAIN, "--out", "out")
    begun = json.loads(Path("out/begin/target/config.json").read_text())
    assert (begun["vocab_size"], begun["hidden_size"]) == (300, 16)


def test_what_was_begun_is_resumed_or_refused_before_anything_is_trained(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*TINY, *SMALL, "--compare.temperatures", "0", "--compare.prompts", "1", "--out", "out"]
    recipe("speculative", *words)
    first = results("out")
    files = [f"out/{place}/model.safetensors" for place in ("begin/target", "target/model", "drafter/model", "flash/model")]
    began = [Path(file).stat().st_mtime_ns for file in files]
    capsys.readouterr()
    for word in ("--drafter-train.resume", "--flash-train.resume", None):
        with pytest.raises(SystemExit) as stopped:
            recipe("speculative", *words, *([word] if word else []))
        expected = "resume is set and train.resume is not, which resumes all" if word else "out/target already holds a run: resume it"
        assert (stopped.value.code, expected in capsys.readouterr().err) == (2, True)
    assert began == [Path(file).stat().st_mtime_ns for file in files]
    recipe("speculative", *words, "--train.resume", "--flash-train.resume")
    assert [line["tokens"] for line in results("out")["temperature 0.0"]] == [line["tokens"] for line in first["temperature 0.0"]]
    assert began == [Path(file).stat().st_mtime_ns for file in files]


def test_what_ran_out_of_time_is_said_to_be_unfinished_and_is_trained_on(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And the target's weights are others then, so a drafter that reads their features is trained anew, beside the first."""
    words = ["--compare.temperatures", "0", "--compare.prompts", "1", "--out", "out"]
    recipe("speculative", *TINY, *SMALL, *words, "--train.steps", "100000", "--train.max-seconds", "0.3")
    steps = json.loads(Path("out/target/results.json").read_text())["steps"]
    said = " ".join(capsys.readouterr().out.split())
    assert 0 < steps < 100000
    assert f"the target is compared as it is after {steps:,} of 100,000 steps: --train.resume trains it to the end" in said
    assert "the assistant is compared as it is after" in said
    assert "the drafter is compared" not in said
    assert said.index("the target is compared as it is") < said.index("tokens per second of the faster plain way")
    first = Path("out/flash/model/model.safetensors").stat().st_mtime_ns
    more = 1 + max(json.loads(Path(f"out/{role}/results.json").read_text())["steps"] for role in ("target", "assistant"))
    for _ in range(2):  # trains, and finds all trained
        recipe("speculative", *TINY, *SMALL, *words, "--train.steps", str(more), "--train.resume")
        said = " ".join(capsys.readouterr().out.split())
        assert "is compared as it is" not in said
        assert f"--drafter out/flash-{more} " in said
    assert Path("out/flash/model/model.safetensors").stat().st_mtime_ns == first


def test_several_processes_are_refused(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit) as stopped:
        recipe("speculative", "masked", *TINY, *SMALL, "--out", "out")
    assert (stopped.value.code, "start it without torchrun or accelerate" in capsys.readouterr().err) == (2, True)


REFUSED = {
    "--drafter out": "a drafter is given and no target: what drafts has its target's token ids, so name that with --target",
    "--target gpt2 --drafter gpt2": "gpt2 is a causal model: name a diffusion model as drafter",
    "--target masked --drafter masked": "masked is a diffusion model: name a causal model as target",
    "--target gpt2 --drafter masked": "differ in ",
    "--target nosuch --drafter masked": "nosuch cannot be opened",
    "--target autoregressive --drafter masked --assistant autoregressive": "an assistant is transformers' own way, for stock models only",
    "--target autoregressive --drafter masked --compare.new 2000": "8 tokens and 2000 new ones exceed the 1024 that the models read",
    "--compare.new 30": "prompts of 8 tokens and 30 new ones exceed the 32 that the models read: shorten one",
    "--compare.prompt-length 100": "prompts of 100 tokens are the beginnings of rows of 24: raise layout.length, or lower",
    "--target masked": "masked is a diffusion model: name a causal model as target",
    "--target autoregressive --drafter masked --data nosuch.txt": "there is no file or folder 'nosuch.txt'",
    "--target autoregressive --drafter masked --flash masked": "masked is a DiscreteDiffusionLM, which reads no target",
    "--flash out": "a drafter is given and no target",
    "--compare.new 0": "compare.new is 0, expected 1 or more",
    "--compare.lengths 0": "compare.lengths are [0], expected numbers of 1 or more",
    "--compare.steps 1 3": "compare.steps has 3 and the longest of compare.lengths is 2",
    "--compare.temperatures -1": "temperature is -1.0, expected 0",
    "--compare.temperatures nan": "temperature is nan, expected 0",
    "--compare.temperatures inf": "temperature is inf, expected 0",
    "--flash-own.temperature nan": "temperature is nan, expected 0",
    "--compare.rounds 0": "compare.rounds is 0, expected 1 or more",
    "--compare.device toaster": "compare.device is 'toaster', expected cpu or cuda",
    "--target-size.heads 3": "width 16 must be an even multiple of heads 3",
    "--train.steps 0": "steps = 0: expected at least 1",
    "--drafter-model.backbone.max-length 20": "layout.length is 24 and the drafter reads 20 tokens: shorten the rows",
    "--target autoregressive --drafter-model.backbone.max-length 30 --compare.new 30": "8 tokens and 30 new ones exceed the 30",
    "--drafter-model.backbone.encoder-layers 1": "the drafter's model has an encoder, and drafts continue a row",
    "--drafter-model.backbone.heads 3": "heads",
    "--flash-size.heads 3": "the target's width 16 must be an even multiple of heads 3",
    "--target autoregressive --flash-size.heads 3": "the target's width 16 must be an even multiple of heads 3",
    "--layout.streaming": "a stream has no beginnings to choose from: leave layout.streaming off",
    "--target autoregressive --assistant gpt2": "target and drafter differ in ",
    "--compare.device cuda": "compare.device is cuda and there is no GPU here: leave it out",
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_cannot_work_is_refused_in_one_line(words: str, shelf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = Path.cwd()
    os.chdir(shelf)
    try:
        with pytest.raises(SystemExit) as stopped:
            recipe("speculative", "masked", *TINY, *SMALL, *words.split(), "--out", "out")
    finally:
        os.chdir(before)
    said = capsys.readouterr().err.strip()
    assert (stopped.value.code, REFUSED[words] in said, "\n" in said) == (2, True, False), said
    assert not (shelf / "out").exists()
