"""`textdiff compare` on pairs: each model reads them as the run that made it did, and what is too long is found before any measuring."""

import json
import math
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.data.texts import sentence
from tests.tiny_runs import SHORT, SMALL, corpus, pairs, quickstart, recipe, stock_gpt2
from textdiff.cli import guarded, parse
from textdiff.commands.compare import Compare
from textdiff.data.collate import Pairs
from textdiff.data.readers import Pair
from textdiff.evaluation.likelihood import sequence_nats
from textdiff.evaluation.measurement import Measurement
from textdiff.models.loading import load

RUNS = ("genie", "masked", "autoregressive")  # an encoder-decoder, and prompts in the row with responses filled up and not


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working folder with runs on pairs, a run on plain text, a stock model, and files of pairs."""
    place = tmp_path_factory.mktemp("place")
    before = Path.cwd()
    os.chdir(place)
    pairs(Path("pairs"), count=8)
    corpus(Path("texts"))
    for name in RUNS:
        recipe("translation", name, *SHORT, *SMALL, "--data", "pairs", "--scoring.candidates", "1", "--out", name)
    quickstart("autoregressive", "--data", "texts", "--out", "plain")
    stock_gpt2(Path("gpt2"))
    written("few.jsonl", few())
    yield place
    os.chdir(before)


@pytest.fixture(autouse=True)
def clean(place: Path) -> Iterator[None]:
    yield
    shutil.rmtree("runs", ignore_errors=True)


def written(name: str, rows: list[Pair]) -> None:
    Path(name).write_text("".join(json.dumps({"src": pair.prompt, "trg": pair.response}) + "\n" for pair in rows))


def few() -> list[Pair]:
    return [Pair(sentence(i, 4), sentence(i + 90, 2)) for i in range(7)]


def compare(*words: str) -> list[dict[str, Any]]:
    command = parse(Compare, (*words, "--draws", "3", "--json", "numbers.json"), "textdiff compare")
    guarded("textdiff compare", command.run)
    found: list[dict[str, Any]] = json.loads(Path("numbers.json").read_text())
    return found


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line that a wrong input ends in, before anything is measured or written."""
    before = sorted(Path("runs").rglob("*"))
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        compare(*words)
    said = capsys.readouterr().err
    assert (stopped.value.code, said.count("\n")) == (2, 1), said
    assert sorted(Path("runs").rglob("*")) == before
    return said


def test_each_model_reads_pairs_as_its_run_did() -> None:
    found = compare(*RUNS, "plain", "gpt2", "--data", "few.jsonl")[0]
    read = {
        "genie": {"max_length": 80, "encoder": True, "fill": 60},
        "masked": {"max_length": 142, "fill": 60},
        "autoregressive": {"max_length": 142},
        "plain": {"max_length": 1024},
        "gpt2": {"max_length": 64},
    }
    for name, shape in read.items():
        model = load(name)
        rows = Pairs(few(), model.tokenizer, **shape)  # type: ignore[arg-type]
        measured = Measurement.read(Path(f"runs/compare/likelihood/{name}@few.jsonl.jsonl"))
        draws = 3 if model.nll_is_bound else 1
        assert [score.nats for score in measured.scores] == pytest.approx(sequence_nats(model, rows, draws=draws).tolist(), rel=1e-5)
        assert [score.tokens for score in measured.scores] == [sum(row.target) for row in rows]
        assert [score.text_bytes for score in measured.scores] == [len(pair.response.encode()) for pair in few()]
        assert (measured.rules.unit, measured.rules.end, measured.rules.fill) == ("response", True, shape.get("fill"))
    pair = {frozenset((one["a"], one["b"])): one for one in found["pairs"]}
    assert "tokens" in pair[frozenset(("genie", "masked"))]["difference_in_nats_per"]
    assert "EOS fills responses" in pair[frozenset(("autoregressive", "masked"))]["refused"]["tokens"]
    assert "other tokenizers" in pair[frozenset(("plain", "gpt2"))]["refused"]["tokens"]
    assert all("text_bytes" in one["difference_in_nats_per"] for one in found["pairs"])


def test_the_encoder_reads_the_prompt() -> None:
    """Responses cost something else after other prompts, and the same after the same ones."""
    written("swapped.jsonl", [pair._replace(prompt=few()[-1 - i].prompt) for i, pair in enumerate(few())])
    swapped, own = (
        [model["nats_per"]["tokens"]["value"] for model in one["models"]]
        for one in compare("genie", "--data", "swapped.jsonl", "few.jsonl")
    )
    assert swapped != own
    assert compare("genie", "--data", "few.jsonl", "--out", "runs/again")[0]["models"][0]["nats_per"]["tokens"]["value"] == own[0]


def test_a_run_leaves_what_it_was_not_made_for_out_of_every_models_measurement(capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever the order of the models: the plain one is not asked for what the run has no row for."""
    long = Pair(sentence(1, 120), sentence(2, 1))
    written("long.jsonl", [few()[0], long, *few()[1:]])
    for names in (("autoregressive", "gpt2"), ("gpt2", "autoregressive")):
        found = compare(*names, "--data", "long.jsonl", "--out", f"runs/{names[0]}")[0]
        assert [model["texts_scored"] for model in found["models"]] == [7, 7]
        assert "1 too long for autoregressive left out" in " ".join(capsys.readouterr().out.split())
    written("all.jsonl", [long])
    assert "autoregressive reads shorter rows than any pair of all.jsonl" in refused(capsys, "autoregressive", "--data", "all.jsonl")


def test_a_pair_too_long_for_a_plain_model_is_named_before_measuring(capsys: pytest.CaptureFixture[str]) -> None:
    """By its number in the data, also where pairs before it are left out for another model's sake."""
    tokenizer = load("gpt2").tokenizer
    before, long = Pair(sentence(1, 120), sentence(2, 1)), Pair(sentence(3, 40), sentence(4, 30))
    tokens = sum(len(tokenizer.encode(text)) for text in long) + 3
    assert tokens > 64
    written("long.jsonl", [few()[0], before, few()[1], long])
    expected = (
        rf"pair 4 .'{long.prompt[:40]}'. is too long for gpt2 .BOS, prompt, separator, response and EOS: {tokens} tokens, 64 fit.: "
        "take it out of the data, or leave the model out"
    )
    for names in (["autoregressive", "gpt2"], ["gpt2", "autoregressive"]):
        said = refused(capsys, *names, "--data", "long.jsonl")
        assert re.search(expected, said), said
    written("long.jsonl", [few()[0], long])
    assert "pair 2" in refused(capsys, "plain", "gpt2", "--data", "long.jsonl")
    said = refused(capsys, "plain", "--data", "few.jsonl", "--length", "10")
    assert re.search(r"pair 1 .* is too long for plain .* 10 fit.: raise length, or", said), said
    assert len(compare("plain", "--data", "long.jsonl")[0]["models"]) == 1


def test_an_encoder_without_a_run_names_what_it_cannot_read(capsys: pytest.CaptureFixture[str]) -> None:
    model = load("genie")
    model.save_pretrained("bare")
    reads = model.backbone.max_length
    count = len(model.tokenizer.encode(sentence(1, 1200)))
    written("prompt.jsonl", [few()[0], Pair(sentence(1, 1200), "a")])
    written("response.jsonl", [Pair("a", sentence(1, 1200))])
    said = refused(capsys, "bare", "--data", "prompt.jsonl")
    assert f"pair 2 ({sentence(1, 1200)[:40]!r}) is too long for bare (the prompt: {count} tokens, {reads} fit)" in said
    assert f"(BOS, response and EOS: {count + 2} tokens, {reads} fit)" in refused(capsys, "bare", "--data", "response.jsonl")


def test_texts_and_pairs_in_one_comparison() -> None:
    Path("text.txt").write_text("the old cat sat on a red mat and drank tea where the dog ran.\n" * 4)
    words = ["autoregressive", "plain", "--passage", "60", "--data", "text.txt", "few.jsonl"]
    found = {one["data"]: one for one in compare(*words)}
    units = {data: {model["rules"]["unit"] for model in one["models"]} for data, one in found.items()}
    assert units == {"text.txt": {"passage"}, "few.jsonl": {"response"}}
    assert {model["rules"]["length"] for model in found["text.txt"]["models"]} == {128}
    assert all(math.isfinite(model["nats_per"]["text_bytes"]["value"]) for one in found.values() for model in one["models"])


WRONG = {
    "genie --data text.txt": "genie has an encoder and text.txt no prompts for it: give pairs, such as rows with src and trg",
    "autoregressive --data few.jsonl --length 64": "length is 64 and autoregressive was trained on pairs of 80 . 60 tokens: leave it out",
    "plain --data few.jsonl --stride 8": "stride and end are of windows of text, and all data are pairs, which are read whole",
    "plain --data few.jsonl --end": "stride and end are of windows of text, and all data are pairs, which are read whole",
    "plain --data few.jsonl --columns prompt response": "few.jsonl.*prompt",
}


@pytest.mark.parametrize("line", WRONG)
def test_a_wrong_input_ends_in_one_line(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("text.txt").write_text("the old cat sat on a red mat and drank tea where the dog ran.\n" * 4)
    said = refused(capsys, *line.split())
    assert re.search(WRONG[line], said), said


def test_windows_are_not_spoken_of_where_there_are_none(capsys: pytest.CaptureFixture[str]) -> None:
    compare("gpt2", "--data", "few.jsonl")
    assert "windows" not in capsys.readouterr().out
