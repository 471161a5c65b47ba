import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import yaml
from safetensors.torch import load_file

import textdiff
from tests.data.texts import byte_level, sentence
from tests.models.tiny import trunk
from tests.tiny_runs import SHORT, SMALL, pairs, recipe, stock_gpt2
from textdiff import families
from textdiff.backbones.transformer import TransformerConfig
from textdiff.cli import main
from textdiff.data.corpora import resolve
from textdiff.data.readers import Pair
from textdiff.data.tokenizer import encode
from textdiff.decoding import draw
from textdiff.evaluation.generation import GenerationQuality, bleu, exact_match
from textdiff.families import Family
from textdiff.models.base import LanguageModel
from textdiff.models.latent import LatentDiffusion
from textdiff.sampler_words import sampler_named
from textdiff.scores import Case, Score
from textdiff.seq2seq import Scoring, Seq2Seq, blanks, cases, prepare, run
from textdiff.spec import from_plain
from textdiff.training.settings import Train
from textdiff.vocab import Vocab

KINDS = [families.masked, families.uniform, families.autoregressive]


@pytest.fixture(autouse=True)
def place(tmp_path: Path) -> Iterator[Path]:
    """The working folder of each test."""
    before = Path.cwd()
    os.chdir(tmp_path)
    yield tmp_path
    os.chdir(before)


def exact(quality: GenerationQuality, test: Sequence[Case], texts: Sequence[str]) -> Mapping[str, Score]:
    return {"exact match, %": Score(100 * quality.exact_match)}


def plan(family: Family, **options: Any) -> Seq2Seq:
    return Seq2Seq(**{**vars(family), "data": "pairs", "source_length": 40, "response_length": 30, **options})


def translate(preset: str, *words: str) -> None:
    recipe("translation", preset, *SHORT, *SMALL, "--data", "pairs", *words)


def results(out: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(out, "results.json").read_text())
    return found


def written(out: str) -> list[dict[str, list[str]]]:
    """samples.txt by prompt: the texts behind each label."""
    found = []
    for part in Path(out, "samples.txt").read_text().strip("\n").split("\n\n"):
        rows: dict[str, list[str]] = {}
        for line in part.split("\n"):
            label, text = line.split("\t")
            rows.setdefault(label, []).append(text)
        found.append(rows)
    return found


def test_every_family_trains_on_the_same_pairs_each_whole() -> None:
    pairs(Path("pairs"))
    corpus, tokenizer = resolve("pairs"), byte_level()
    kept, seen = [], []
    for encoder in (False, True):
        for fill in (False, True):
            recipe = plan(replace(families.masked(trunk()), encoder=encoder, fill=fill), source_length=12, response_length=9)
            prepared = prepare(recipe, corpus, corpus.pairs(), tokenizer)
            assert prepared.train.truncated == 0
            rows = []
            for example in prepared.train:
                target = [i for i, scored in zip(example.tokens, example.target, strict=True) if scored]
                context = list(example.tokens[: len(example.tokens) - len(target)])
                asked = list(example.source) if encoder else context[1:-1]
                assert len(target) == 9 if fill else target.count(tokenizer.eos_token_id) == 1
                assert len(example.tokens) <= recipe.shape.row_length
                rows.append((asked, target[: target.index(tokenizer.eos_token_id)]))
            seen.append(rows)
            kept.append(prepared.description)
    short = [p for p in corpus.pairs().train if len(encode(tokenizer, p.prompt)) <= 12 and len(encode(tokenizer, p.response)) < 9]
    assert 0 < len(short) < len(corpus.pairs().train)
    assert seen[0] == [(encode(tokenizer, p.prompt), encode(tokenizer, p.response)) for p in short]
    assert seen[0] == seen[1] == seen[2] == seen[3]
    assert len(set(kept)) == 1
    assert kept[0].endswith(f"; {len(corpus.pairs().train) - len(short)} training pairs longer than 12 + 9 tokens left out")


@pytest.mark.parametrize("encoder", [False, True])
def test_a_sampler_is_given_the_prompt_and_nothing_of_the_references(encoder: bool) -> None:
    pairs(Path("pairs"))
    recipe = plan(replace(families.masked(trunk()), encoder=encoder))
    model = recipe.model.build(Vocab.of(byte_level()))
    model.tokenizer = byte_level()
    asked = [Case(sentence(3), ("one",)), Case("tea", (sentence(1), "two"))]
    other = [Case(case.prompt, ("something else",)) for case in asked]
    given = list(blanks(recipe, asked, model))
    assert given == list(blanks(recipe, other, model))
    bos, eos = byte_level().bos_token_id, byte_level().eos_token_id
    for example, case in zip(given, asked, strict=True):
        prompt = encode(byte_level(), case.prompt)
        assert list(example.tokens) == ([bos] if encoder else [bos, *prompt, eos]) + [eos] * 30
        assert list(example.source) == (prompt if encoder else [])
        assert sum(example.target) == 30


@pytest.mark.parametrize("encoder", [False, True])
def test_a_long_prompt_ends_at_the_same_token_in_every_family(encoder: bool) -> None:
    recipe = plan(replace(families.masked(trunk()), encoder=encoder), source_length=4)
    for fill in (False, True):
        (row,) = recipe.shape._replace(fill=fill).rows([Pair("the cat sat on the red mat", "tea")], byte_level())
        kept = encode(byte_level(), "the cat sat on the red mat")[:4]
        assert list(row.source if encoder else row.tokens[1:5]) == kept
        assert encoder or row.tokens[5] == byte_level().eos_token_id


def test_a_latent_model_has_room_for_the_response_and_other_models_stay_as_they_are() -> None:
    asked = families.latent(trunk(), 12).model
    assert isinstance(asked, LatentDiffusion)
    for latents, length, made in ((12, 9, 9), (4, 20, 4)):  # as many as tokens where they were, else as many as asked for
        family = replace(families.latent(trunk(), 12), model=replace(asked, autoencoder=replace(asked.autoencoder, latents=latents)))
        model = plan(family, response_length=length).sized().model
        assert model == replace(asked, autoencoder=replace(asked.autoencoder, length=length, latents=made))
    assert plan(families.masked(trunk())).sized() == plan(families.masked(trunk()))


def test_a_prompt_is_answered_once_and_scored_against_all_its_references() -> None:
    rows = [("a", "1"), ("b", "2"), ("a", "3")]
    assert cases([Pair(*row) for row in rows]) == [Case("a", ("1", "3")), Case("b", ("2",))]


def test_what_is_recorded_is_what_was_written_and_can_be_drawn_again() -> None:
    pairs(Path("pairs"))
    translate("masked", "--out", "out", "--scoring.candidates", "3")
    recorded, shown, model = results("out"), written("out"), textdiff.load("out")
    made = from_plain(yaml.safe_load(Path("out/recipe.yaml").read_text()))
    assert isinstance(made, Seq2Seq)
    test = cases(resolve("pairs").pairs().test)
    chosen = [test[i * len(test) // 6] for i in range(6)]
    assert [(rows["prompt"], rows["wanted"]) for rows in shown] == [([case.prompt], list(case.references)) for case in chosen]
    references = [case.references for case in chosen]
    again = [
        draw(model, blanks(made, chosen, model), decode, k).texts
        for decode, k in [(made.single, 0), *((made.varied, k) for k in (1, 2, 3))]
    ]
    single, best = ([rows[label][0] for rows in shown] for label in ("single", "MBR of 3"))
    assert single == [" ".join(text.split()) for text in again[0]]
    assert all(text in {" ".join(found[i].split()) for found in again[1:]} for i, text in enumerate(best))
    assert recorded["rows"][0]["columns"]["BLEU"][0] == pytest.approx(bleu(again[0], references).score)
    assert recorded["baselines"][0]["columns"]["BLEU"][0] == pytest.approx(bleu([case.prompt for case in chosen], references).score)
    fill = made.response_length
    assert [row["nfe"] for row in recorded["rows"]] == [min(20, fill), 3 * min(20, fill)]
    assert (recorded["prompts"], recorded["steps"]) == (6, 2)
    logged = [json.loads(line) for line in Path("out/log.jsonl").read_text().splitlines() if "evaluation" in line]
    assert {"nats_per_target", "BLEU", "chrF"} <= set(logged[-1]["evaluation"])


def test_a_table_holds_the_runs_beside_it_on_the_same_test_set_best_first(capsys: pytest.CaptureFixture[str]) -> None:
    pairs(Path("pairs"))
    for preset in ("masked", "uniform"):
        translate(preset, "--scoring.candidates", "1")
    translate("uniform", "--out", "runs/other", "--scoring.candidates", "1", "--scoring.test-limit", "5")
    Path("runs/broken").mkdir()
    Path("runs/broken/results.json").write_text("{")  # cut off
    capsys.readouterr()
    translate("autoregressive")
    lines = [line for line in capsys.readouterr().out.splitlines() if " single " in line or " MBR of " in line or line.startswith("copied")]
    names = [line.split()[0] for line in lines]
    assert sorted(names) == ["autoregressive", "autoregressive", "copied", "masked", "uniform"]
    scores = [float(line.split("single")[-1].split("MBR of 2")[-1].replace("copied prompt", "").split()[0]) for line in lines]
    assert scores == sorted(scores, reverse=True)
    assert max(map(len, lines)) <= 80


REFUSED = {
    "--data nosuch.jsonl": "there is no file or folder 'nosuch.jsonl'",
    "--data texts.jsonl": "texts.jsonl holds documents, expected pairs: rows with columns prompt and response, src and trg",
    "--data few.jsonl": r"few.jsonl is too small: its hash split leaves no test pair|few.jsonl has no validation pair within",
    "--source-length 1": "pairs has no training pair within source_length 1 and response_length 60: raise them",
    "--source-length 0": "source_length 0, response_length 60: expected 1 token or more of a prompt",
    "--source-length 2000": "rows have 2062 tokens and the model reads 256: shorten source or response_length",
    "--scoring.candidates 0": "scoring.candidates is 0, expected 1 or more",
    "--scoring.test-limit 0": "scoring.test_limit is 0, expected 1 or more",
    "--single.sampler.steps 0": "steps is 0, expected 1 or more",
    "--single.temperature -1": r"temperature is -1\.0, expected 0",
    "--columns a b c": r"columns are \['a', 'b', 'c'\], expected a prompt and a response column",
    "--columns a b --data builtin:dates": "builtin:dates is made of prompts and responses and has no columns to choose from",
    "--columns a b --data attributes.txt": r"attributes.txt holds lines `name : X\|\|Text` and has no columns to choose from",
    "--data parallel": r"train\.tgt:2: the line is empty: a response needs text",
    "--columns trg words": "column 'words' not found",
    "--no-fill": "fill is off and the model writes all positions at once, told no length: turn it on",
    "--encoder": "encoder is on and the model's trunk has none: make them agree",
    "--vocab-size 100": "vocab_size is 100, expected at least 260",
    "--tokenizer ./nosuch": "there is no file or folder './nosuch'",
    "--scoring.candidtes 3": "did you mean --scoring.candidates",
    "--start nosuch": "there is no folder nosuch to start from: name that of a run, or of a model",
    "--start runs/nosuch": "there is no folder runs/nosuch to start from",
    "--start few.jsonl": "there is no folder few.jsonl to start from",
    "--start pairs": "pairs has no config.json: give the folder that holds a model's config.json and model.safetensors",
    "--start pairs --tokenizer pairs": "start is pairs, which has a tokenizer, and tokenizer is pairs: leave one of them out",
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_cannot_work_is_refused_in_one_line(words: str, capsys: pytest.CaptureFixture[str]) -> None:

    pairs(Path("pairs"))
    Path("texts.jsonl").write_text('{"text": "a"}\n' * 50)
    Path("attributes.txt").write_text("name : a||A .\n" * 50)
    Path("parallel").mkdir()
    for side in ("src", "tgt"):
        Path(f"parallel/train.{side}").write_text("a\n\n")
    Path("few.jsonl").write_text('{"src": "a", "trg": "b"}\n')
    with pytest.raises(SystemExit) as stopped:
        translate("masked", *words.split(), "--out", "out")
    assert stopped.value.code == 2
    said = capsys.readouterr().err.strip()
    assert re.search(REFUSED[words], said), said
    assert "\n" not in said
    assert not Path("out/checkpoints").exists()


REFUSED_BY = {
    "autoregressive --fill": "fill is on and the model writes token by token until EOS: turn it off",
    "genie --no-encoder": "encoder is off and the model's trunk has an encoder: make them agree",
    "genie --source-length 300": "source_length is 300 and the encoder reads 256 tokens: shorten it",
    "genie --single.temperature 0": "this model draws vectors: leave them out",
    "genie --train.lora.rank 2": "train.lora adapts weights that are there, and here they are fresh",
    "latent --varied.temperature 0.5": "this model draws vectors: leave them out",
}


@pytest.mark.parametrize("words", REFUSED_BY)
def test_what_does_not_suit_the_model_is_refused_before_training(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    pairs(Path("pairs"))
    with pytest.raises(SystemExit) as stopped:
        translate(*words.split(), "--out", "out")
    said = capsys.readouterr().err.strip()
    assert (stopped.value.code, REFUSED_BY[words] in said, "\n" in said) == (2, True, False), said
    assert not Path("out").exists()


@pytest.mark.parametrize("preset", ["diffuseq", "genie", "latent", "masked", "modern"])
def test_the_command_printed_last_asks_the_model(preset: str, capsys: pytest.CaptureFixture[str]) -> None:
    pairs(Path("pairs"))
    translate(preset, "--out", "out", "--scoring.candidates", "1")
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("next"))
    words = line.split()[2:-1]
    options = dict(pairwise(words))
    model, steps = textdiff.load("out"), options.get("--steps")
    asked = sampler_named(model, options["--sampler"], None if steps is None else int(steps))
    began: Any = from_plain(yaml.safe_load(Path("out/recipe.yaml").read_text()))
    assert asked == began.single.of(model)
    answers = []
    for prompt in ("tea", "tea", "a dog ran to the red house"):
        main([*words, prompt, "--steps", "2", "--seed", "3"])
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1]
    if preset in ("genie", "latent"):
        assert "--response" not in words
        for wrong, reason in ((["tea", "--label", "1"], "leave it out"), ([""], "give one with --prompt")):
            with pytest.raises(SystemExit):
                main([*words, *wrong])
            assert reason in capsys.readouterr().err
        main(["perplexity", "out", "--data", "pairs", "--draws", "1"])
        assert "BOS and the prompt are context" in capsys.readouterr().out


def at_step_0(preset: str, *words: str) -> LanguageModel:
    """The model that a run is about to train."""
    found: list[LanguageModel] = []

    def stop(accelerator: Any, settings: Any, model: LanguageModel, *rest: Any) -> None:
        found.append(model)
        raise SystemExit

    with patch("textdiff.seq2seq.train", stop), pytest.raises(SystemExit):
        translate(preset, *words)
    return found[0]


@pytest.mark.parametrize("preset", ["genie", "masked"])
def test_a_run_starts_with_the_very_weights_and_tokenizer_of_another(preset: str) -> None:
    pairs(Path("pairs"))
    translate(preset, "--out", "first", "--scoring.candidates", "1")
    saved = load_file("first/model/model.safetensors")
    for start in ("first", "first/model"):
        other = ["--start", start, "--out", f"second-{start[-5:]}", "--train.seed", "7", "--response-length", "20"]
        for words in (other, [*other, "--train.resume"]):  # nothing to resume yet
            begun = at_step_0(preset, *words)
            weights = begun.state_dict()
            assert all(torch.equal(weights[name], tensor) for name, tensor in saved.items())
            assert {name for name, tensor in weights.items() if name not in saved} == {
                name for name, tensor in textdiff.load("first").state_dict().items() if name not in saved
            }
            assert encode(begun.tokenizer, sentence(5)) == encode(textdiff.load("first").tokenizer, sentence(5))
            assert begun.vocab == Vocab.of(begun.tokenizer)
    fresh = at_step_0(preset, "--out", "third").state_dict()
    assert not all(torch.equal(fresh[name], tensor) for name, tensor in saved.items())


def test_what_acts_in_training_alone_may_change_after_the_start() -> None:
    pairs(Path("pairs"))
    translate("uniform", "--out", "first", "--scoring.candidates", "1")
    model = at_step_0("uniform", "--start", "first", "--out", "second", "--model.curriculum", "0", "--model.backbone.dropout", "0.2")
    assert (model.spec.curriculum, model.spec.backbone.dropout) == (0.0, 0.2)
    saved = load_file("first/model/model.safetensors")
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in saved.items())


@pytest.mark.parametrize(
    ("words", "reason"), [(["--start", "other"], "start = None, now it is other"), (["--source-length", "9"], "source_length")]
)
def test_a_run_is_resumed_as_it_began(words: list[str], reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    pairs(Path("pairs"))
    translate("genie", "--out", "out", "--scoring.candidates", "1")
    before = Path("out/recipe.yaml").read_text()
    with pytest.raises(SystemExit) as stopped:
        translate("genie", "--out", "out", *words, "--train.resume")
    assert (stopped.value.code, reason in capsys.readouterr().err) == (2, True)
    assert Path("out/recipe.yaml").read_text() == before


def test_a_latent_model_does_not_start_from_another(capsys: pytest.CaptureFixture[str]) -> None:
    pairs(Path("pairs"))
    translate("latent", "--out", "first", "--scoring.candidates", "1")
    with pytest.raises(SystemExit) as stopped:
        translate("latent", "--start", "first", "--out", "second")
    assert stopped.value.code == 2
    assert "first holds a latent model, whose autoencoder would be trained anew: resume its run" in capsys.readouterr().err


def test_what_is_resumed_does_not_start_again() -> None:
    """A run goes on from its own checkpoint, as if it had not been stopped, with the folder it started from gone."""
    pairs(Path("pairs"))
    translate("genie", "--out", "first", "--scoring.candidates", "1")
    words = ["--start", "first", "--scoring.candidates", "1", "--train.steps", "4", "--train.checkpoint-every", "2"]
    translate("genie", *words, "--out", "whole")
    shutil.copytree("whole", "parts")
    shutil.rmtree("parts/checkpoints/step-00000004")
    shutil.rmtree("first")
    translate("genie", *words, "--out", "parts", "--train.resume")
    whole, parts = (load_file(f"{out}/model/model.safetensors") for out in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    steps = [json.loads(line)["step"] for line in Path("parts/log.jsonl").read_text().splitlines() if "loss" in line]
    assert steps == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("preset", "start", "reason"),
    [
        ("genie", "first", "first was trained with model.backbone.width = 16, here it is 24: make them agree"),
        ("diffuseq", "first", "first was trained with model.backbone.layers = 1, here it is 2: make them agree"),
        ("masked", "first", "model.class = textdiff.models.embedding.EmbeddingDiffusion, here it is textdiff.models.discrete.Discrete"),
        ("autoregressive", "stock", "model.backbone.class = textdiff.backbones.pretrained.Pretrained, here it is textdiff.backbones."),
        ("genie", "bare", "bare has no tokenizer files: start from a folder that holds its tokenizer"),
        ("genie", "cut", "the weights of cut are truncated or corrupt"),
    ],
)
def test_a_start_that_does_not_fit_is_refused_in_one_line(preset: str, start: str, reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    pairs(Path("pairs"))
    stock_gpt2(Path("stock"))
    translate("genie", "--out", "first", "--scoring.candidates", "1")
    for copy in ("bare", "cut"):
        shutil.copytree("first/model", copy)
    for file in Path("bare").glob("tokenizer*"):
        file.unlink()
    Path("cut/model.safetensors").write_bytes(Path("cut/model.safetensors").read_bytes()[:2000])
    capsys.readouterr()
    width = ["--model.backbone.width", "24"] if "width" in reason else []
    layers = ["--model.backbone.layers", "2"] if "layers" in reason else []
    with pytest.raises(SystemExit) as stopped:
        translate(preset, "--start", start, *width, *layers, "--out", "out")
    said = capsys.readouterr().err.strip()
    assert (stopped.value.code, reason in said, "\n" in said) == (2, True, False), said
    assert not Path("out").exists()


LOOKUP = {
    f"{word} {number}": f"{number} {word.upper()}" for word in ("cat", "dog", "tea", "house", "red") for number in ("1", "2", "3", "4")
}
QUICK_TRAIN = Train(steps=400, batch_size=16, learning_rate=2e-3, warmup=20, final_fraction=0.05, ema=0.9, evaluate_every=400)


@pytest.mark.slow
@pytest.mark.parametrize("encoder", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_every_family_learns_a_table_by_heart_and_answers_from_it(kind: Any, encoder: bool) -> None:
    Path("pairs").mkdir()
    rows = "".join(json.dumps({"src": prompt, "trg": response}) + "\n" for prompt, response in LOOKUP.items())
    for split in ("train", "valid", "test"):
        Path("pairs", f"{split}.jsonl").write_text(rows)
    family = kind(TransformerConfig(width=64, layers=2, heads=2, max_length=64, encoder_layers=2 if encoder else 0, place_embedding=True))
    made = plan(
        replace(family, encoder=encoder),
        vocab_size=300,
        response_length=9,
        train=QUICK_TRAIN,
        scoring=Scoring(candidates=1),
        out=Path("out"),
    )
    run(made, "out", exact)
    found = [rows["single"][0] for rows in written("out")]
    assert exact_match(found, list(LOOKUP.values())) >= 0.9
    assert results("out")["rows"][0]["columns"]["exact match, %"][0] == pytest.approx(100 * exact_match(found, list(LOOKUP.values())))
