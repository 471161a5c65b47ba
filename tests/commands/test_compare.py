"""`textdiff compare` as a person types it, on models and texts small enough for milliseconds."""

import json
import math
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from tests.tiny_runs import corpus, pairs, quickstart, stock_gpt2
from textdiff.cli import guarded, parse
from textdiff.commands.compare import Compare
from textdiff.commands.contenders import Contender, families, file_name, short_names
from textdiff.evaluation.measurement import Measurement, read_all
from textdiff.models.classifier import ClassifierSpec
from textdiff.models.loading import load
from textdiff.training.signals import StopRequest

QUICK = ["--data", "text.txt", "--passage", "60", "--draws", "2", "--length", "24"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working folder with runs of two kinds, three seeds of one of them, a stock model of another tokenizer, and texts."""
    place = tmp_path_factory.mktemp("place")
    before = Path.cwd()
    os.chdir(place)
    corpus(Path("texts"))
    stock_gpt2(Path("gpt2"))
    for seed in range(3):
        quickstart("masked", "--data", "texts", "--out", f"masked-{seed}", "--train.seed", str(seed))
    quickstart("autoregressive", "--data", "texts", "--out", "autoregressive")
    Path("text.txt").write_text("the old cat sat on a red mat and drank tea where the dog ran.\n" * 12)
    Path("other.txt").write_text("a small dog ran to the tea.\nwhere is the red cat?\n" * 8)
    pairs(Path("pairs"), count=6)
    shutil.copytree("masked-0/model", "no-tokenizer", ignore=shutil.ignore_patterns("tokenizer*"))
    shutil.copytree("masked-0/model", "copy")
    shutil.copytree("masked-0/model", "lower")
    tokenizer = json.loads(Path("lower/tokenizer.json").read_text())
    Path("lower/tokenizer.json").write_text(json.dumps({**tokenizer, "normalizer": {"type": "Lowercase"}}))
    model = load("masked-0")
    classifier = ClassifierSpec(backbone=model.spec.backbone).build(model.vocab)
    classifier.tokenizer = model.tokenizer
    classifier.save_pretrained("classifier")
    yield place
    os.chdir(before)


@pytest.fixture(autouse=True)
def clean(place: Path) -> Iterator[None]:
    yield
    shutil.rmtree("runs", ignore_errors=True)


def compare(*words: str) -> None:
    command = parse(Compare, words, "textdiff compare")
    guarded("textdiff compare", command.run)


def compared(*words: str) -> list[dict[str, Any]]:
    compare(*words, "--json", "numbers.json")
    found: list[dict[str, Any]] = json.loads(Path("numbers.json").read_text())
    return found


def everything() -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(Path().rglob("*")) if path.is_file()}


def test_every_model_is_measured_on_the_same_texts_and_every_number_follows_from_the_files(capsys: pytest.CaptureFixture[str]) -> None:
    names = ["autoregressive", "masked-0", "gpt2"]
    found = compared(*names, *QUICK, "--data", "text.txt", "other.txt")
    assert [one["data"] for one in found] == ["text.txt", "other.txt"]
    files = sorted(path.name for path in Path("runs/compare/likelihood").iterdir())
    assert files == sorted(f"{name}@{data}.jsonl" for name in names for data in ("text.txt", "other.txt"))
    for one in found:
        measured = {m.model: m for m in read_all(Path("runs/compare/likelihood")) if one["data"] in m.data}
        assert len({m.texts for m in measured.values()}) == 1
        assert sum(score.text_bytes for score in measured["gpt2"].scores) == len(Path(one["data"]).read_bytes())
        for model in one["models"]:
            scores = measured[model["model"]].scores
            nats = math.fsum(score.nats for score in scores)
            assert model["nats_per"]["tokens"]["value"] == pytest.approx(nats / sum(score.tokens for score in scores))
            assert model["nats_per"]["characters"]["value"] == pytest.approx(nats / sum(score.characters for score in scores))
        kinds = {model["model"]: (model["kind"], model["training_seed"]) for model in one["models"]}
        assert kinds == {"autoregressive": ("exact", 0), "masked-0": ("upper bound", 0), "gpt2": ("exact", None)}
        pair = {frozenset((p["a"], p["b"])): p for p in one["pairs"]}
        assert "tokens" in pair[frozenset(names[:2])]["difference_in_nats_per"]
        assert "other tokenizers" in pair[frozenset(names[1:])]["refused"]["tokens"]
    notes = json.loads(Path("runs/compare/notes.json").read_text())
    assert notes["models"] == ["autoregressive", "masked-0", "gpt2"]
    assert [table["title"] for table in notes["tables"]] == [
        f"{data}: {what}" for data in ("text.txt", "other.txt") for what in ("likelihood", "differences on the same texts")
    ]
    assert notes["command"].startswith("textdiff compare autoregressive masked-0 gpt2 --data text.txt other.txt --passage 60 --length 24")
    said = capsys.readouterr().out
    for table in notes["tables"]:
        assert all(cell in said for row in table["rows"] for cell in row)


def test_passages_depend_on_no_tokenizer_and_0_leaves_documents_whole() -> None:
    compare("autoregressive", *QUICK, "--passage", "0")
    whole = Measurement.read(Path("runs/compare/likelihood/autoregressive@text.txt.jsonl"))
    compare("autoregressive", *QUICK)
    cut = Measurement.read(Path("runs/compare-2/likelihood/autoregressive@text.txt.jsonl"))
    assert (whole.rules.unit, len(whole.scores)) == ("document", 2)  # a lone file is cut into a part for each split
    assert (cut.rules.unit, {score.document for score in cut.scores}) == ("passage", {0, 1})
    assert all(score.characters <= 60 for score in cut.scores)
    for name in ("text_bytes", "characters", "words"):
        assert sum(getattr(score, name) for score in cut.scores) == sum(getattr(score, name) for score in whole.scores)


def test_a_tokenizer_that_loses_text_is_shown_and_not_compared(capsys: pytest.CaptureFixture[str]) -> None:
    """Of 12 lines in passages of their own, 3 have a capital: on text without one the same tokenizer loses nothing."""
    line = "the old cat sat on a red mat and drank tea where the dog ran.\n"
    Path("capital.txt").write_text((line * 3 + line.capitalize()) * 3)
    found = {
        one["data"]: one for one in compared("lower", "autoregressive", *QUICK, "--passage", "62", "--data", "capital.txt", "text.txt")
    }
    said = " ".join(capsys.readouterr().out.split())
    lost = {data: {model["model"]: model["lost"] for model in one["models"]} for data, one in found.items()}
    assert lost["text.txt"] == {"lower": 0, "autoregressive": 0}
    assert lost["capital.txt"] == {"lower": pytest.approx(0.25), "autoregressive": 0}
    (pair,) = found["capital.txt"]["pairs"]
    assert set(pair["refused"]) == {"tokens", "text_bytes", "characters", "words"}
    assert pair["statement"].startswith("not comparable: the tokenizer of lower loses text, which costs nothing: 25 % of the texts")
    assert pair["p"] is None
    assert "the tokenizer of lower loses text: 25 % of the texts do not come back from their tokens" in said
    assert "text_bytes" in found["text.txt"]["pairs"][0]["difference_in_nats_per"]


def test_what_is_measured_is_used_again_and_a_model_can_join(capsys: pytest.CaptureFixture[str]) -> None:
    compare("autoregressive", *QUICK, "--out", "runs/mine")
    path = Path("runs/mine/likelihood/autoregressive@text.txt.jsonl")
    before, written = path.read_bytes(), path.stat().st_mtime_ns
    capsys.readouterr()
    found = compared("autoregressive", "masked-0", *QUICK, "--out", "runs/mine")
    assert "autoregressive on text.txt: measured before" in capsys.readouterr().err
    assert (path.read_bytes(), path.stat().st_mtime_ns) == (before, written)
    assert len(found[0]["pairs"]) == 1


def test_what_was_stopped_goes_on_in_its_folder_and_gives_the_same_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["autoregressive", "masked-0", *QUICK, "--batch-size", "4"]
    compare(*words, "--out", "runs/whole")
    asked = 0

    def third_time(request: StopRequest) -> bool:
        nonlocal asked
        asked += 1
        request.exit_code = 143 if asked > 3 else None
        return asked > 3

    with patch.object(StopRequest, "should_stop", third_time), pytest.raises(SystemExit) as stopped:
        compare(*words)
    assert stopped.value.code == 143
    assert "the same command goes on in runs/compare" in capsys.readouterr().err
    compare(*words)
    assert not Path("runs/compare-2").exists()
    for path in Path("runs/whole/likelihood").iterdir():
        assert (Path("runs/compare/likelihood") / path.name).read_bytes() == path.read_bytes()
    compare(*words)  # a finished comparison is not gone on with
    assert Path("runs/compare-2").exists()


def test_seeds_make_a_family_of_runs_that_differ_in_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    found = compared("masked-0", "masked-1", "masked-2", "autoregressive", *QUICK, "--seeds")[0]
    assert {one["family"]: one["runs"] for one in found["families"]} == {
        "masked": ["masked-0", "masked-1", "masked-2"],
        "autoregressive": ["autoregressive"],
    }
    assert [(pair["statement"], pair["p"]) for pair in found["pairs"]] == [("no claim: a family needs 3 training seeds", None)]
    said = capsys.readouterr().out
    assert "one seed" in said
    widths = {one["family"]: one["between_seeds"]["tokens"]["half_width"] for one in found["families"]}
    assert widths["masked"] > 0
    assert widths["autoregressive"] is None


def test_one_length_serves_all_and_who_sets_it_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    compare("autoregressive", "gpt2", "--data", "text.txt", "--passage", "60")
    assert {m.rules.length for m in read_all(Path("runs/compare/likelihood"))} == {64}
    assert "windows have 64 tokens because gpt2 reads no more" in " ".join(capsys.readouterr().out.split())


def test_responses_are_scored_given_their_prompts() -> None:
    found = compared("autoregressive", "masked-0", "--data", "pairs", "--draws", "2")[0]
    assert {model["rules"]["unit"] for model in found["models"]} == {"response"}
    assert {model["texts_scored"] for model in found["models"]} == {18}


WRONG = {
    "--data text.txt": "no model is named: give files, folders or hub ids",
    "masked-0 --data": "no data is named: give files, folders or hub ids",
    "masked-0 copy --seeds": "masked-0 and copy have the same recipe and training seed 0: name one of them",
    "nosuch": "nosuch cannot be opened .there is no folder of that name",
    "./nosuch": "no folder ./nosuch: check the path",
    "no-tokenizer": "no-tokenizer has no tokenizer files: text cannot be turned into its ids",
    "classifier": "classifier is a classifier, which neither writes text nor scores it: give the model that it guides",
    "autoregressive autoregressive": "autoregressive is given twice: name each once",
    "masked-0 masked-0/model": "masked-0/model is given twice: name each once",
    "masked-0 --data text.txt text.txt": "text.txt is given twice: name each once",
    "masked-0 --data nosuch.txt": "there is no file or folder 'nosuch.txt'",
    "masked-0 --data builtin:other": "there is no 'builtin:other'",
    "masked-0 --split dev": "there is no split 'dev': expected train, validation, test or all",
    "gpt2 masked-0 --length 65": "65 and gpt2 reads 64 tokens, and all models .* one length: give 64 or less, or leave gpt2 out",
    "masked-0 --length 1": "length is 1, expected at least 2",
    "masked-0 --stride 24 --length 24": "stride is 24, expected 1 to 23",
    "masked-0 --draws 0": "draws is 0, expected 1 or more",
    "masked-0 --batch-size 0": "batch_size is 0, expected 1 or more",
    "masked-0 --target-se 0": "target_se is 0.0, expected nats per token above 0",
    "masked-0 --passage -1": "passage is -1, expected a number of characters, or 0 for whole documents",
    "masked-0 --limit 0": "limit is 0, expected 1 or more",
    "masked-0 --columns a b c": r"columns are \['a', 'b', 'c'\], expected",
    "masked-0 --device toaster": "there is no device 'toaster' here",
    "masked-0 --json nosuch/numbers.json": "no folder nosuch to write numbers.json into: create it first",
    "masked-0 --json pairs": "pairs is a folder: name the json file",
    "masked-0 --out text.txt": "text.txt is a file: give the comparison a folder of its own",
}


@pytest.mark.parametrize("line", WRONG)
def test_a_wrong_input_ends_in_one_line_and_exit_code_2_and_costs_no_file(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = everything()
    capsys.readouterr()
    words = line.split()
    with pytest.raises(SystemExit) as stopped:
        compare(*words, *(["--data", "text.txt"] if "--data" not in words else []))
    error = capsys.readouterr().err
    assert (stopped.value.code, error.count("\n")) == (2, 1), error
    assert re.search(WRONG[line], error), error
    assert everything() == before
    assert not Path("runs").exists()


def test_a_folder_of_another_measurement_is_not_gone_on_with(capsys: pytest.CaptureFixture[str]) -> None:
    compare("autoregressive", *QUICK, "--out", "runs/mine")
    with pytest.raises(SystemExit):
        compare("autoregressive", *QUICK, "--passage", "50", "--out", "runs/mine")
    assert re.search("holds a measurement with .*: remove it, or name another file", capsys.readouterr().err)


def test_names_are_as_short_as_they_can_be(tmp_path: Path) -> None:
    for folder in ("one/masked", "two/masked", "two/other"):
        (tmp_path / folder / "model").mkdir(parents=True)
        (tmp_path / folder / "recipe.yaml").touch()
    places = [str(tmp_path / folder) for folder in ("one/masked", "two/masked/model", "two/other")]
    assert short_names(places) == ["one/masked", "two/masked", "two/other"]
    assert short_names(places[1:]) == ["masked", "other"]
    assert short_names(["owner/base", "base"]) == ["owner/base", "base"]
    assert file_name("owner/gpt2:main @x") == "owner--gpt2-main-x"


def test_families_are_named_by_what_their_runs_share() -> None:
    def runs(*named: tuple[str, str]) -> list[Contender]:
        return [Contender(name, name, 64, False, i, family, None) for i, (name, family) in enumerate(named)]

    found = families(runs(("small-0", "s"), ("small-1", "s"), ("big-lr-0", "b"), ("big-lr-1", "b"), ("gpt2", "g")))
    assert found == {"small": ["small-0", "small-1"], "big-lr": ["big-lr-0", "big-lr-1"], "gpt2": ["gpt2"]}
    assert families(runs(("a", "x"), ("b", "x"))) == {"a ...": ["a", "b"]}
    numbered = {
        "gpt2": ["gpt2-0", "gpt2-1", "gpt2-10"],
        "gpt3": ["gpt3_seed0", "gpt3_seed1"],
        "pythia-1.4": ["pythia-1.4", "pythia-1.4-2"],
        "one/masked": ["one/masked/seed-1", "one/masked/seed-2"],
    }
    assert families(runs(*((run, name) for name, of_family in numbered.items() for run in of_family))) == numbered
    assert families(runs(("gpt2", "x"), ("gpt3", "x"))) == {"gpt2 ...": ["gpt2", "gpt3"]}  # a number of the name's own
    assert families(runs(("gpt2", "x"), ("gpt3", "y"))) == {"gpt2": ["gpt2"], "gpt3": ["gpt3"]}
    assert families(runs(("m-0", "x"), ("m-1", "x"), ("m-2", "y"), ("m-3", "y"))) == {"m": ["m-0", "m-1"], "m-2 ...": ["m-2", "m-3"]}
