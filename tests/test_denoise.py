import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

import textdiff
from tests.models.tiny import MASK, VOCAB, trunk
from tests.tiny_runs import RECIPES, SHORT, SMALL, corpus, pairs, recipe, script, stock_bert
from textdiff.batch import collate
from textdiff.data.corpora import resolve
from textdiff.data.denoising import Denoising, Spans
from textdiff.data.tokenizer import encode, load_tokenizer
from textdiff.decoding import draw
from textdiff.denoise import Denoise, prepare
from textdiff.evaluation.likelihood import likelihood
from textdiff.models.embedding_objective import DiffusionLM, TokenCrossEntropy
from textdiff.randomness import Rng
from textdiff.schedules import Cosine
from textdiff.spec import from_plain
from textdiff.training.start import started

SCRIPT = script(RECIPES / "denoise.py")
TINY = [
    *("--train.steps", "2", "--train.batch-size", "4", "--train.warmup", "1", "--train.log-every", "1", "--vocab-size", "300"),
    *("--spans.length", "24", "--spans.shortest", "6", "--held-out.rows", "6", "--held-out.draws", "2", "--held-out.samples", "3"),
    *("--data", "texts"),
]


@pytest.fixture(autouse=True)
def place(tmp_path: Path) -> Iterator[Path]:
    """The working folder of each test."""
    before = Path.cwd()
    os.chdir(tmp_path)
    corpus(Path("texts"))
    yield tmp_path
    os.chdir(before)


def denoise(preset: str, *words: str) -> None:
    recipe("denoise", preset, *TINY, *SMALL, *words)


def results(out: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(out, "results.json").read_text())
    return found


def made(out: str) -> Denoise:
    found = from_plain(yaml.safe_load(Path(out, "recipe.yaml").read_text()))
    assert isinstance(found, Denoise)
    return found


def evaluations(out: str) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in Path(out, "log.jsonl").read_text().splitlines()]
    return [row["evaluation"] for row in rows if "evaluation" in row]


def samples(out: str) -> list[dict[str, str]]:
    parts = Path(out, "samples.txt").read_text().strip("\n").split("\n\n")
    return [dict(line.split("\t") for line in part.split("\n")) for part in parts]


@pytest.mark.parametrize("preset", list(SCRIPT.presets))
def test_a_run_can_be_measured_and_filled_again_from_its_folder(preset: str) -> None:
    denoise(preset, "--out", "out")
    model, again = textdiff.load("out"), made("out")
    asked = SCRIPT.presets[preset]().model
    assert replace(model.spec, backbone=asked.backbone) == asked
    data = prepare(again, resolve("texts"), load_tokenizer("out/tokenizer"), fill=model.nll_is_bound)
    assert len(data.held_out) == 6
    for key, value in likelihood(model, data.held_out, draws=2).as_dict().items():
        if key != "rules":
            assert results("out")["held_out"][key] == (pytest.approx(value, rel=1e-5) if isinstance(value, float) else value), key
    texts = draw(model, [data.train.blank(row) for row in data.held_out[:3]], again.decode).texts
    paragraphs = Denoising(resolve("texts").texts().validation, model.tokenizer, again.spans, False).paragraphs
    count = len(paragraphs)
    for i, (sample, text) in enumerate(zip(samples("out"), texts, strict=True)):
        whole = model.tokenizer.decode(paragraphs[i * count // 6][0].tolist())
        assert sample["source"].count("[MASK]") == 1
        assert bare(sample["source"].replace("[MASK]", sample["wanted"])) == bare(whole)
        assert bare(sample["written"]) == bare(text)


def bare(text: str) -> str:
    return "".join(text.split())


@pytest.mark.parametrize("preset", list(SCRIPT.presets))
def test_the_mask_is_never_written(preset: str) -> None:
    """Fresh weights write any token that they may."""
    torch.manual_seed(0)
    model: Any = replace(SCRIPT.presets[preset]().model, backbone=trunk(encoder_layers=1)).build(VOCAB)
    source = torch.tensor([[1, MASK, 2]]).expand(64, -1)
    begin = torch.full((64, 1), VOCAB.bos_id)
    options = {"max_new_tokens": 8, "seed": 0} | ({"max_denoising_steps": 3} if model.nll_is_bound else {})
    written = model.generate(begin, source=source, **options).sequences
    assert len(written.unique()) > 4
    assert MASK not in written


def test_held_out_spans_are_the_same_at_every_evaluation_and_for_every_seed() -> None:
    """Nothing is learnt at so small a rate: what differs would be the spans or their noise."""
    still = ["--train.learning-rate", "1e-30", "--train.evaluate-every", "1", "--train.steps", "3"]
    denoise("genie", "--out", "out", *still)
    found = evaluations("out")
    assert len(found) == 3
    assert found[0] == found[1] == found[2]
    tokenizer = load_tokenizer("out/tokenizer")
    asked = made("out")
    reseeded = replace(asked, train=replace(asked.train, seed=1))
    data = [prepare(each, resolve("texts"), tokenizer, fill=True) for each in (asked, reseeded)]
    assert data[0].held_out == data[1].held_out
    assert data[0].train[:] != data[1].train[:]
    parts = (Denoising(part, tokenizer, asked.spans, True) for part in resolve("texts").texts())
    trained, held_out, _ = ({tuple(ids.tolist()) for ids, _ in rows.paragraphs} for rows in parts)
    assert not held_out & trained


def test_a_resumed_run_ends_where_one_that_was_not_stopped_does() -> None:
    denoise("genie", "--out", "whole", "--train.steps", "4", "--train.checkpoint-every", "2")
    shutil.copytree("whole", "parts")
    shutil.rmtree("parts/checkpoints/step-00000004")
    denoise("genie", "--out", "parts", "--train.steps", "4", "--train.checkpoint-every", "2", "--train.resume")
    whole, parts = (load_file(f"{out}/model/model.safetensors") for out in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert results("whole")["held_out"] == results("parts")["held_out"]
    steps = [json.loads(line)["step"] for line in Path("parts/log.jsonl").read_text().splitlines() if "loss" in line]
    assert steps == [1, 2, 3, 4]


def test_a_run_is_resumed_with_the_spans_it_began_with(capsys: pytest.CaptureFixture[str]) -> None:
    denoise("genie", "--out", "out")
    with pytest.raises(SystemExit) as stopped:
        denoise("genie", "--out", "out", "--spans.share", "0.5", "--train.resume")
    assert (stopped.value.code, "was started with spans.share = " in capsys.readouterr().err) == (2, True)


def test_a_row_is_scored_alike_alone_and_beside_longer_ones() -> None:
    """Padding of sources and rows is not read."""
    denoise("genie", "--out", "out")
    model: Any = textdiff.load("out").double()
    texts = resolve("texts").texts().train
    rows = Denoising(texts, model.tokenizer, Spans(24, 6), False)[:12]
    assert len({len(row.source) for row in rows}) > 2

    def nats(first: int, last: int) -> torch.Tensor:
        batch = collate(rows[first:last], model.vocab.pad_id, sample_id=list(range(first, last)))
        found: torch.Tensor = model.nll(batch, Rng(0, 0, batch.sample_id))
        return found

    together = nats(0, 12)
    alone = torch.cat([nats(i, i + 1) for i in range(12)])
    torch.testing.assert_close(together, alone, rtol=1e-9, atol=1e-9)


def test_pre_training_goes_on_as_a_recipe_on_pairs() -> None:
    """The same weights, tokenizer and model; a rate at which nothing is learnt leaves them as they came."""
    denoise("genie", "--out", "first")
    pairs(Path("pairs"))
    words = ["--data", "pairs", "--start", "first", "--train.steps", "1"]
    recipe("translation", "genie", *SHORT, *SMALL, *words, "--out", "still", "--train.learning-rate", "1e-30", "--train.ema", "0")
    before, after = (load_file(f"{out}/model/model.safetensors") for out in ("first", "still"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    for text in ("the old house é", "[MASK]"):
        assert encode(load_tokenizer("still/model"), text) == encode(load_tokenizer("first/model"), text)
    recipe("translation", "genie", *SHORT, *SMALL, *words, "--out", "second", "--train.steps", "3")
    assert results("second")["steps"] == 3
    trained = load_file("second/model/model.safetensors")
    assert not all(torch.equal(before[name], trained[name]) for name in before)
    assert textdiff.load("second").generation_config.max_new_tokens == 60


def test_what_is_trained_may_change_from_one_stage_to_the_next_and_the_weights_may_not() -> None:
    denoise("genie", "--out", "first")
    source: Any = textdiff.load("first")
    other = replace(
        source.spec,
        objective=TokenCrossEntropy() if not isinstance(source.spec.objective, TokenCrossEntropy) else DiffusionLM(),
        process=replace(source.spec.process, schedule=Cosine()),
    )
    begun: Any = started(Path("first"), other)
    assert begun.spec == other != source.spec
    before, after = source.state_dict(), begun.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    with pytest.raises(ValueError, match=r"first cannot lend its weights: .* is .* there and .* here: make the two models agree"):
        started(Path("first"), replace(other, self_conditioning=0.0 if other.self_conditioning else 0.5))
    with pytest.raises(ValueError, match=r"first was trained with model\.read_scale = .*, here it is 7\.0: make them agree"):
        started(Path("first"), replace(other, read_scale=7.0))


LIKE_DENOISE = ["--encoder", "--model.backbone.layers", "2", "--model.backbone.encoder-layers", "1"]


@pytest.mark.parametrize("preset", list(SCRIPT.presets))
def test_the_presets_fit_those_of_translation_as_the_recipe_says(preset: str) -> None:
    pairs(Path("pairs"))
    sizes = SMALL[:2] + SMALL[4:]  # the number of layers is the recipe's
    recipe("denoise", preset, *TINY, *sizes, "--out", "first")
    words = [] if preset == "genie" else LIKE_DENOISE
    short = [*SHORT, *sizes, "--data", "pairs", "--scoring.candidates", "1"]
    recipe("translation", preset, *short, *words, "--start", "first", "--out", "second")
    assert textdiff.load("second").spec == textdiff.load("first").spec
    assert results("second")["steps"] == 2


def test_genie_fits_that_of_dates_as_the_recipe_says() -> None:
    sizes = ["--model.backbone.width", "16", "--model.backbone.max-length", "128", "--model.backbone.heads", "2"]
    recipe("denoise", "genie", *TINY, *sizes, "--out", "first")
    short = [*SHORT, *sizes, "--scoring.candidates", "1", "--response-length", "11", "--source-length", "40"]
    recipe("dates", "genie", *short, "--start", "first", "--out", "second")
    assert textdiff.load("second").spec == textdiff.load("first").spec


REFUSED = {
    "genie --spans.length 4": "length is 4 and shortest 6: expected 2 <= shortest <= length",
    "genie --spans.share 1.5": "share is 1.5, expected a part of a paragraph between 0 and 1",
    "genie --spans.length 500": "sources have up to 351 tokens and the encoder reads 256: shorten spans.length",
    "genie --spans.length 300 --spans.share 0.9": "spans have up to 272 tokens, BOS and EOS included, and the model reads 256: shorten",
    "genie --spans.length 200 --spans.shortest 190": "texts has no training text of 190 tokens: lower spans.shortest, or give more text",
    "masked --model.backbone.encoder-layers 0": "the model's trunk has none: set model.backbone.encoder_layers",
    "genie --decode.temperature 0": "this model draws vectors: leave them out",
    "genie --data pairs": "pairs holds (prompt, response) pairs, expected documents: name the one column to read",
    "genie --data nosuch.txt": "there is no file or folder 'nosuch.txt'",
    "genie --data one": "one has no validation text of 6 tokens: lower spans.shortest, or give more text",
    "genie --column words": "column 'words' not found",
    "genie --spans-drawn 0": "spans_drawn is 0, expected 1 or more",
    "genie --held-out.draws 0": "held_out.draws is 0, expected 1 or more",
    "genie --tokenizer bert": "the tokenizer lacks a mask token, which stands for the span, or an EOS token, which ends it: choose another",
    "genie --tokenizer nosuch/": "there is no file or folder 'nosuch/'",
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_cannot_work_is_refused_in_one_line(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    pairs(Path("pairs"))
    Path("one").mkdir()
    Path("one/train.jsonl").write_text(Path("texts/train.jsonl").read_text())
    Path("one/validation.jsonl").write_text('{"text": "a"}\n')
    if "bert" in words:
        stock_bert(Path("bert"))
        path = Path("bert/tokenizer_config.json")
        path.write_text(json.dumps({name: value for name, value in json.loads(path.read_text()).items() if name != "mask_token"}))
    with pytest.raises(SystemExit) as stopped:
        denoise(*words.split(), "--out", "out")
    said = capsys.readouterr().err.strip()
    assert (stopped.value.code, REFUSED[words] in said, "\n" in said) == (2, True, False), said
    assert not Path("out").exists()


def test_what_is_left_out_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    denoise("genie", "--out", "out", "--spans.shortest", "20")
    said = " ".join(capsys.readouterr().out.split())
    tokenizer = load_tokenizer("out/tokenizer")
    texts = resolve("texts").texts()
    lengths = [len(encode(tokenizer, text)) for text in (*texts.train, *texts.validation)]
    short = sum(n % 24 < 20 for n in lengths if n % 24)
    match = re.search(r"([\d,]+) documents and ends of documents shorter than 20 tokens left out", said)
    assert match is not None
    assert int(match[1].replace(",", "")) == short > 0
