import csv
import json
import os
import runpy
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import torch
import yaml
from safetensors.torch import load_file

import textdiff
from tests.data.texts import sentence
from tests.tiny_runs import QUICK, RECIPES, SMALL, TINY, corpus, quickstart, recipe, script, stock_gpt2
from tests.tiny_runs import pairs as pair_files
from textdiff.backbones.transformer import TransformerConfig
from textdiff.data.layout import Layout
from textdiff.data.tokenizer import load_tokenizer
from textdiff.evaluation.likelihood import likelihood
from textdiff.evaluation.ngram import Trigram, Unigram, nats_per_token
from textdiff.models.autoregressive import AutoregressiveLM
from textdiff.models.discrete import DiscreteDiffusionLM
from textdiff.recipe import Recipe
from textdiff.seq2seq import Seq2Seq
from textdiff.spec import from_plain

SCRIPTS = {path.stem: script(path) for path in sorted(RECIPES.glob("*.py"))}
WITH_TESTS_OF_THEIR_OWN = {"adaptation", "compare_families", "drafter", "speculative"}  # of several models each
PRESETS = [(name, preset) for name, found in SCRIPTS.items() for preset in found.presets if name not in WITH_TESTS_OF_THEIR_OWN]


@pytest.fixture(autouse=True)
def place(tmp_path: Path) -> Iterator[Path]:
    """The working folder of each test."""
    before = Path.cwd()
    os.chdir(tmp_path)
    yield tmp_path
    os.chdir(before)


def results(out: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(out, "results.json").read_text())
    return found


def steps(out: str) -> list[int]:
    rows = [json.loads(line) for line in Path(out, "log.jsonl").read_text().splitlines()]
    return [row["step"] for row in rows if "loss" in row]


def saved_recipe(out: str) -> Recipe:
    found = from_plain(yaml.safe_load(Path(out, "recipe.yaml").read_text()))
    assert isinstance(found, Recipe)
    return found


@pytest.mark.parametrize(("name", "preset"), PRESETS)
def test_every_preset_trains_two_steps_and_leaves_a_whole_run(name: str, preset: str) -> None:
    corpus(Path("texts"))
    pair_files(Path("pairs"))
    stock_gpt2(Path("gpt2"))
    small = [] if name == "adapt" else SMALL  # its trunk is there already
    recipe(name, preset, *QUICK.get(name, [*TINY, "--data", "texts"]), *small, "--out", "out")
    assert steps("out")[-1] == 2
    assert results("out")
    asked = SCRIPTS[name].presets[preset]()
    if name == "adapt":
        asked = asked.recipe()
    if isinstance(asked, Seq2Seq):
        asked = replace(asked, response_length=int(yaml.safe_load(Path("out/recipe.yaml").read_text())["response_length"])).sized()
    model = textdiff.load("out")
    assert type(model.spec) is type(asked.model)
    assert replace(model.spec, backbone=asked.model.backbone) == asked.model
    if isinstance(asked, Recipe):
        check_text_run("out", asked)


def check_text_run(out: str, asked: Recipe) -> None:
    """The folder says again what was measured, and how to make the same run."""
    model, recorded, made = textdiff.load(out), results(out), saved_recipe(out)
    assert (made.out, made.data, made.train.steps, made.layout.length) == (Path(out), "texts", 2, 24)
    assert made.evaluation.samples == 2
    assert replace(made.model, backbone=asked.model.backbone) == asked.model  # type: ignore[type-var, attr-defined]
    data = made.layout.open(made.data).examples(load_tokenizer(f"{out}/tokenizer"))
    again = likelihood(model, data.validation, made.evaluation.draws)
    for key, value in again.as_dict().items():
        assert recorded["validation"][key] == (pytest.approx(value, rel=1e-5) if isinstance(value, float) else value), key
    for key, kind in (("unigram", Unigram), ("trigram", Trigram)):
        assert recorded["baselines"][key] == nats_per_token(kind(data.train, model.vocab), data.validation, model.vocab)  # type: ignore[arg-type]
    assert Path(out, "samples.txt").stat().st_size > 0
    assert model.tokenizer.get_vocab() == load_tokenizer(f"{out}/tokenizer").get_vocab()
    evaluations = [json.loads(line) for line in Path(out, "log.jsonl").read_text().splitlines() if "evaluation" in line]
    assert evaluations[-1]["step"] == 2


def test_an_attribute_is_stated_in_whole_words_whatever_its_case_and_hyphens() -> None:
    said = runpy.run_path(str(RECIPES / "data_to_text.py"))["_said"]
    asked = "name[The Vaults], priceRange[more than £30], food[cheap eats], familyFriendly[yes]"
    assert said(asked, "the vaults, more than £30-odd, has cheap-eats.") == [True, True, True]
    assert said(asked, "Bathe Vaults asks more than £300 for cheap eatsies.") == [False, False, False]


def pairs(count: int = 90) -> list[dict[str, str]]:
    return [{"prompt": sentence(i, 3), "response": sentence(1000 + i, 2)} for i in range(count)]


def test_of_prompt_and_response_only_the_response_is_scored() -> None:
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs()))
    quickstart("autoregressive", "--data", "pairs.jsonl", "--layout.length", "64", "--out", "out")
    model, layout = textdiff.load("out"), Layout(length=64)
    held_out = layout.open("pairs.jsonl").splits.validation  # type: ignore[attr-defined]
    total, tokens = 0.0, 0
    for pair in held_out:
        prompt, response = (model.tokenizer(text, add_special_tokens=False)["input_ids"] for text in pair)
        vocab = model.vocab
        row = torch.tensor([[vocab.bos_id, *prompt, vocab.eos_id, *response, vocab.eos_id]])
        with torch.no_grad():
            hidden = model.backbone(row, model.backbone.context(textdiff.Batch.of(row)))
        logits = model.backbone.head(vocab.unemittable)(hidden)[0].index_fill(-1, torch.tensor(vocab.unemittable), -torch.inf)
        log_prob = logits.log_softmax(-1)[:-1].gather(1, row[0, 1:, None])[:, 0]
        total -= float(log_prob.detach()[-len(response) - 1 :].double().sum())
        tokens += len(response) + 1
    recorded = results("out")["validation"]
    assert (recorded["tokens"], recorded["sequences"]) == (tokens, len(held_out))
    assert recorded["text_bytes"] == sum(len(pair.response.encode()) for pair in held_out)
    assert recorded["nats_per_token"] == pytest.approx(total / tokens, rel=1e-5)


def test_csv_parquet_folder_and_stream_give_the_numbers_of_jsonl() -> None:
    folder = corpus(Path("texts"))
    rows = {
        split: [json.loads(line)["text"] for line in (folder / f"{split}.jsonl").read_text().splitlines()]
        for split in ("train", "validation")
    }
    Path("tables").mkdir()
    for split, texts in rows.items():
        with Path("tables", f"{split}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([["text"], *([text] for text in texts)])
    Path("columns").mkdir()
    for split, texts in rows.items():
        pyarrow.parquet.write_table(pyarrow.table({"body": texts}), f"columns/{split}.parquet")
    quickstart("masked", "--data", "texts", "--out", "reference")
    quickstart("masked", "--data", "tables", "--out", "csv")
    quickstart("masked", "--data", "columns", "--layout.columns", "body", "--out", "parquet")
    reference = results("reference")
    for out in ("csv", "parquet"):
        assert results(out)["validation"] == reference["validation"]
        assert results(out)["baselines"] == reference["baselines"]
    quickstart("masked", "--data", "texts", "--layout.streaming", "--out", "stream")
    assert results("stream")["validation"]["tokens"] == reference["validation"]["tokens"]
    assert results("stream")["baselines"] == {}  # they would need the whole text


def test_a_tokenizer_of_ones_own_is_used_and_saved() -> None:
    corpus(Path("texts"))
    quickstart("masked", "--data", "texts", "--out", "first")
    for given in ("first", "first/tokenizer"):
        quickstart(
            "autoregressive", "--data", "texts", "--tokenizer", given, "--vocab-size", "290", "--out", f"by-{given.replace('/', '-')}"
        )
    for out in ("by-first", "by-first-tokenizer"):
        assert textdiff.load(out).tokenizer.get_vocab() == load_tokenizer("first/tokenizer").get_vocab()
        assert results(out)["validation"]["tokens"] == results("first")["validation"]["tokens"]


FROZEN = ["--train.learning-rate", "1e-30", "--train.weight-decay", "0"]  # so that the weights that come out are those that went in


@pytest.mark.parametrize(("preset", "source"), [("masked", "masked"), ("masked", "autoregressive"), ("autoregressive", "autoregressive")])
def test_init_takes_the_weights_the_trunk_and_the_tokenizer_of_ours(preset: str, source: str) -> None:
    corpus(Path("texts"))
    quickstart(source, "--data", "texts", "--out", "source")
    quickstart(preset, "--data", "texts", "--init", "source", "--out", "out", *FROZEN)
    theirs, ours = load_file("source/model/model.safetensors"), load_file("out/model/model.safetensors")
    assert theirs.keys() == ours.keys()
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, atol=1e-6, rtol=1e-6)
    model = textdiff.load("out")
    assert isinstance(model, DiscreteDiffusionLM if preset == "masked" else AutoregressiveLM)
    assert isinstance(model.spec.backbone, TransformerConfig)
    assert model.spec.backbone.width == 16
    assert model.tokenizer.get_vocab() == textdiff.load("source").tokenizer.get_vocab()
    if preset == source:
        first = likelihood(textdiff.load("source"), saved_recipe("out").layout.open("texts").examples(model.tokenizer).validation, draws=2)
        assert results("out")["validation"]["nats_per_token"] == pytest.approx(first.nats_per_token, rel=1e-5)


def test_a_diffusion_model_from_an_autoregressive_one_is_shifted_as_asked_and_one_from_a_diffusion_model_as_that_was(
    capsys: pytest.CaptureFixture[str],
) -> None:
    corpus(Path("texts"))
    quickstart("autoregressive", "--data", "texts", "--out", "causal")
    for words, shift in ((["--model.shift"], True), (["--model.no-shift"], False)):
        out = f"shift-{shift}"
        quickstart("masked", "--data", "texts", "--init", "causal", "--out", out, *words)
        assert textdiff.load(out).spec.shift is shift
    with pytest.raises(SystemExit):
        quickstart("masked", "--data", "texts", "--init", "shift-False", "--out", "other", "--model.shift")
    assert "shift-False was trained to read position l from its own output" in capsys.readouterr().err


def test_init_from_a_stock_model_keeps_it_stock_and_its_likelihood_where_nothing_changes() -> None:
    corpus(Path("texts"))
    stock_gpt2(Path("gpt2"))
    quickstart("autoregressive", "--data", "texts", "--init", "gpt2", "--out", "causal", *FROZEN)
    data = saved_recipe("causal").layout.open("texts").examples(textdiff.load("gpt2").tokenizer)
    stock = likelihood(textdiff.load("gpt2"), data.validation)
    assert results("causal")["validation"]["nats_per_token"] == pytest.approx(stock.nats_per_token, rel=1e-5)
    quickstart("masked", "--data", "texts", "--init", "gpt2", "--out", "diffusion")
    adapted = textdiff.load("diffusion")
    assert (adapted.spec.shift, adapted.vocab.mask_id) == (True, len(textdiff.load("gpt2").tokenizer))
    quickstart("masked", "--data", "texts", "--init", "diffusion", "--out", "again")
    assert textdiff.load("again").vocab == adapted.vocab
    assert textdiff.load("again").spec.shift


def test_resume_goes_on_and_ends_as_a_run_without_a_break() -> None:
    corpus(Path("texts"))
    constant = ["--train.warmup", "0", "--train.final-fraction", "1"]
    for out, parts in (("whole", ["4"]), ("parts", ["2", "4"])):
        for number, end in enumerate(parts):
            words = ["--train.steps", end, *constant, *(["--train.resume"] if number else [])]
            quickstart("masked", "--data", "texts", "--out", out, *words)
    assert steps("whole") == steps("parts") == [1, 2, 3, 4]
    assert results("whole") == results("parts")
    whole, parts = (load_file(f"{out}/model/model.safetensors") for out in ("whole", "parts"))
    assert all(torch.equal(tensor, parts[name]) for name, tensor in whole.items())
    assert saved_recipe("parts").train.steps == 4


def test_without_a_folder_a_run_gets_the_next_free_name_and_resume_takes_the_last(capsys: pytest.CaptureFixture[str]) -> None:
    corpus(Path("texts"))
    for _ in range(2):
        quickstart("masked", "--data", "texts")
    quickstart("masked", "--data", "texts", "--train.resume", "--train.steps", "3")
    assert sorted(path.name for path in Path("runs").iterdir()) == ["quickstart-masked", "quickstart-masked-2"]
    assert (steps("runs/quickstart-masked")[-1], steps("runs/quickstart-masked-2")[-1]) == (2, 3)
    assert "textdiff generate runs/quickstart-masked-2 --prompt" in capsys.readouterr().out


@pytest.mark.parametrize("width", [80, 120])
def test_what_a_person_reads_fits_the_terminal_and_cuts_no_name(
    width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    corpus(Path("texts"))
    quickstart("masked", "--data", "texts", "--evaluation.sample-tokens", "40")
    printed = capsys.readouterr().out
    assert max(len(line) for line in printed.splitlines()) <= width
    table = [line.split() for line in printed.splitlines() if line.startswith(("unigram ", "trigram ", "quickstart-"))]
    assert [row[0] for row in table] == ["unigram", "trigram", "quickstart-masked"]
    assert table[2][-2:] == ["upper", "bound"]
    assert table[2].count("±") == 2
    assert "…" not in printed
    assert all(c == "\n" or c.isprintable() for c in printed)


def test_a_table_holds_the_runs_beside_it_on_the_same_data_best_first(capsys: pytest.CaptureFixture[str]) -> None:
    corpus(Path("texts"))
    for preset in ("masked", "uniform"):
        quickstart(preset, "--data", "texts")
    Path("runs/broken").mkdir()
    Path("runs/broken/results.json").write_text("{")  # cut off
    quickstart("autoregressive", "--data", "texts", "--layout.length", "20")  # rows of other tokens
    capsys.readouterr()
    quickstart("hybrid", "--data", "texts", "--train.evaluate-every", "1")
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if "upper bound" in line]
    assert {row[0] for row in rows} == {"masked", "uniform", "hybrid"}  # without the quickstart- that all begin with
    assert [float(row[1]) for row in rows] == sorted(float(row[1]) for row in rows)
    recorded = {row[0]: results(f"runs/quickstart-{row[0]}")["validation"]["nats_per_token"] for row in rows}
    assert all(row[1] == f"{recorded[row[0]]:.4f}" for row in rows)
    assert Path("runs/quickstart-hybrid/curves.png").stat().st_size > 0


@pytest.mark.slow
def test_two_processes_end_where_one_does() -> None:
    corpus(Path("texts"), 200)
    words = [str(RECIPES / "quickstart.py"), "masked", *TINY, *SMALL, "--data", "texts", "--out"]
    environment = {**os.environ, "PYTHONPATH": str(RECIPES.parent), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for out, start in (("one", []), ("two", launcher)):
        done = subprocess.run([sys.executable, *start, *words, out], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("wrote ") == 1
    one, two = (load_file(f"{out}/model/model.safetensors") for out in ("one", "two"))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, atol=1e-5, rtol=1e-4)
    assert results("two")["validation"]["nats_per_token"] == pytest.approx(results("one")["validation"]["nats_per_token"], rel=1e-4)
    assert results("two")["validation"]["tokens"] == results("one")["validation"]["tokens"]
    wrong = subprocess.run(
        [sys.executable, *launcher, *words, "three", "--data", "nosuch.txt"], env=environment, capture_output=True, text=True
    )
    assert wrong.returncode != 0
    assert "error: there is no file or folder 'nosuch.txt'" in wrong.stderr
