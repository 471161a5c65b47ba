"""recipes/adapt.py: what it makes of a causal model, and what it refuses in one line."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

import textdiff
from tests.backbones.stock_models import tiny
from tests.tiny_runs import QUICK, corpus, quickstart, recipe, stock_bert, stock_gpt2
from textdiff.backbones.annealing import GrowingBlocks, RandomEntries, WholeBatch
from textdiff.models.objective import Bound
from textdiff.processes.block import Block
from textdiff.processes.masked import Masked

ENCODER_DECODER: dict[str, dict[str, Any]] = {
    "t5": {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1, "num_heads": 4},
    "bart": {
        **{f"{part}_layers": 1 for part in ("encoder", "decoder")},
        **{f"{part}_attention_heads": 4 for part in ("encoder", "decoder")},
        **{f"{part}_ffn_dim": 48 for part in ("encoder", "decoder")},
        **{"d_model": 32, "max_position_embeddings": 64},
    },
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working folder with a corpus, stock models of every kind, and an autoregressive run."""
    place = tmp_path_factory.mktemp("adapt")
    before = Path.cwd()
    os.chdir(place)
    corpus(Path("texts"))
    stock_bert(Path("bert"))
    tokenizer = AutoTokenizer.from_pretrained(stock_gpt2(Path("gpt2")))
    for name in ("gpt_neo", "bloom"):
        tiny(name, vocab_size=300, bos_token_id=0, eos_token_id=0).save_pretrained(name)
        tokenizer.save_pretrained(name)
    for name, sizes in ENCODER_DECODER.items():
        AutoModelForSeq2SeqLM.from_config(AutoConfig.for_model(name, vocab_size=300, **sizes)).save_pretrained(name)
        tokenizer.save_pretrained(name)
    quickstart("autoregressive", "--data", "texts", "--out", "ours")
    yield place
    os.chdir(before)


def adapt(preset: str, *words: str) -> None:
    recipe("adapt", preset, *QUICK["adapt"], *words)


def test_the_default_is_diffugpts_recipe_on_the_bound(place: Path) -> None:
    adapt("masked", "--out", "default", "--train.learning-rate", "1e-30", "--train.weight-decay", "0")
    model = textdiff.load("default")
    spec = model.spec
    assert (type(spec.process), spec.objective, spec.shift, spec.annealing) == (Masked, Bound(), True, RandomEntries(part=0.1))
    before, after = (load_file(f"{folder}/model.safetensors") for folder in ("gpt2", "default/model"))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        torch.testing.assert_close(after[name][: len(tensor)], tensor, atol=1e-6, rtol=1e-6)
    stock = AutoModelForCausalLM.from_pretrained("default/model")
    assert (stock.config.is_causal, stock.config.vocab_size) == (False, 301)


@pytest.mark.parametrize(
    ("words", "annealing"),
    [
        (["annealing:random-entries", "--annealing.part", "0.3"], RandomEntries(0.3)),
        (["annealing:whole-batch"], WholeBatch()),
        (["annealing:growing-blocks", "--annealing.largest", "16"], GrowingBlocks(largest=16)),
        (["annealing:none"], None),
    ],
)
def test_another_annealing_is_the_last_word(words: list[str], annealing: Any, place: Path, tmp_path: Path) -> None:
    adapt("masked", "--out", str(tmp_path), *words)
    assert textdiff.load(str(tmp_path)).spec.annealing == annealing


def test_an_autoregressive_run_of_ours_is_adapted_with_its_trunk_and_tokenizer(place: Path, tmp_path: Path) -> None:
    adapt("masked", "--model", "ours", "--out", str(tmp_path))
    source, model = textdiff.load("ours"), textdiff.load(str(tmp_path))
    assert (model.spec.backbone, model.spec.shift, model.vocab) == (source.spec.backbone, True, source.vocab)
    assert model.tokenizer.get_vocab() == source.tokenizer.get_vocab()


def test_a_resumed_run_meets_the_attention_it_would_have_met(place: Path, tmp_path: Path) -> None:
    words = ["--out", str(tmp_path), "--train.steps", "4", "--train.checkpoint-every", "2"]
    last = ["annealing:random-entries", "--annealing.part", "1"]
    adapt("masked", *words, *last)
    whole = load_file(tmp_path / "model" / "model.safetensors")
    shutil.rmtree(max((tmp_path / "checkpoints").iterdir()))
    shutil.rmtree(tmp_path / "model")
    adapt("masked", *words, "--train.resume", *last)
    again = load_file(tmp_path / "model" / "model.safetensors")
    assert all(torch.equal(tensor, again[name]) for name, tensor in whole.items())


def rows_of_log(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "tokens_per_second"} for line in lines]


@pytest.mark.parametrize("source", ["gpt2", "ours"])
def test_layers_computed_again_and_isolated_documents_train_under_annealing(source: str, place: Path, tmp_path: Path) -> None:
    last = ["annealing:random-entries", "--annealing.part", "1"]
    found = {}
    for name, words in (("plain", []), ("saving", ["--gradient-checkpointing"]), ("alone", ["--layout.isolate"])):
        found[name] = tmp_path / name
        adapt("masked", "--model", source, "--out", str(found[name]), "--train.steps", "3", *words, *last)
    plain, saving, alone = (rows_of_log(found[name]) for name in found)
    for row, again in zip(plain, saving, strict=True):
        assert row.get("loss", 0) == pytest.approx(again.get("loss", 0), rel=1e-5)
    assert textdiff.load(str(found["saving"])).spec.backbone.gradient_checkpointing
    assert plain[0]["loss"] != alone[0]["loss"]
    one, two = (load_file(found[name] / "model" / "model.safetensors") for name in ("plain", "saving"))
    assert all(torch.allclose(tensor, two[name], atol=1e-5) for name, tensor in one.items())


def test_without_shift_positions_are_read_where_they_stand(place: Path, tmp_path: Path) -> None:
    adapt("masked", "--no-shift", "--out", str(tmp_path))
    assert not textdiff.load(str(tmp_path)).spec.shift
    assert json.loads((tmp_path / "model" / "config.json").read_text())["textdiff"]["spec"]["shift"] is False


def test_rates_and_adapters_are_flags(place: Path, tmp_path: Path) -> None:
    """The row of [MASK] alone, and adapters beside it: [MASK] is the last of 301 rows, the mean of the others at first."""
    alone = ["--train.rates.attention", "0", "--train.rates.rest", "0"]
    adapters = ["--train.lora.rank", "2", "--train.lora.targets", "c_attn"]
    for name, words, changed in (("row", alone, set()), ("lora", adapters, {f"transformer.h.{i}.attn.c_attn.weight" for i in range(2)})):
        adapt("masked", "--out", str(tmp_path / name), *words)
        before, after = (load_file(f"{folder}/model.safetensors") for folder in ("gpt2", tmp_path / name / "model"))
        table = "transformer.wte.weight"
        assert {name for name, tensor in before.items() if not torch.equal(after[name][: len(tensor)], tensor)} == changed
        assert not torch.allclose(after[table][300], before[table].mean(0), atol=1e-6)
        AutoModelForCausalLM.from_pretrained(tmp_path / name / "model")


@pytest.mark.parametrize("words", [["--model", "ours"], ["--model", "gpt2", "--gradient-checkpointing", "--train.lora.rank", "2"]])
def test_block_diffusion_begins_from_a_causal_model(words: list[str], place: Path, tmp_path: Path) -> None:
    adapt("block", *words, "--out", str(tmp_path))
    spec = textdiff.load(str(tmp_path)).spec
    assert (spec.process, spec.shift, spec.annealing) == (Block(Masked(), size=16), True, None)


def test_adapters_of_nothing_are_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        quickstart("masked", "--data", "texts", "--out", "refused", "--train.lora.rank", "2")
    assert stopped.value.code == 2
    assert "train.lora adapts weights that are there, and here they are fresh" in capsys.readouterr().err
    assert not Path("refused").exists()


REFUSED = {
    "t5": "t5 is a t5 model, neither a causal nor a masked LM",
    "bart": "BartForConditionalGeneration is an encoder-decoder model, whose decoder reads no text alone: take a causal LM",
    "bert": "bert looks both ways already: set annealing to None, or begin from a causal LM",
    "gpt_neo": "GPTNeoForCausalLM stays causal in 2 layers",
    "bloom": "BloomForCausalLM takes no explicit attention mask, which RandomEntries needs: set annealing to WholeBatch, or to None",
    "./nosuch": "no folder ./nosuch: check the path",
    "nosuch": "no tokenizer from 'nosuch', as a hub id it failed",
    "texts": "texts has no config.json: give the folder that holds a model's config.json",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_adapted_ends_in_one_line_and_exit_code_2(name: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        adapt("masked", "--model", name, "--out", "refused")
    error = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert stopped.value.code == 2
    assert len(error) == 1
    assert REFUSED[name] in error[0]
    assert not Path("refused").exists()


def test_the_way_out_for_a_model_that_takes_no_mask_works(place: Path, tmp_path: Path) -> None:
    adapt("masked", "--model", "bloom", "--out", str(tmp_path), "annealing:whole-batch")
    assert textdiff.load(str(tmp_path)).spec.annealing == WholeBatch()
