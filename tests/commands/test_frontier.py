"""`textdiff frontier`: the texts that are drawn, their costs, what a second run does, and what is refused before anything is drawn."""

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.data.texts import byte_level
from tests.tiny_runs import corpus, pairs, stock_gpt2
from textdiff.backbones.transformer import TransformerConfig
from textdiff.batch import collate
from textdiff.commands import frontier as command
from textdiff.commands.frontier import Frontier
from textdiff.commands.unprompted import blank_text
from textdiff.decoding import text_of
from textdiff.evaluation.frontier import HELD_OUT
from textdiff.evaluation.generative_perplexity import Scorer
from textdiff.models import embedding_presets
from textdiff.models.autoregressive import AutoregressiveSpec
from textdiff.models.base import ModelSpec
from textdiff.models.discrete import Discrete
from textdiff.models.loading import load
from textdiff.processes.block import Block
from textdiff.processes.masked import Masked
from textdiff.randomness import Rng
from textdiff.samplers.ancestral import Ancestral
from textdiff.vocab import Vocab

LENGTH, TEXTS = 6, 5
TRUNK = TransformerConfig(16, 1, 2, 32)
SPECS: dict[str, ModelSpec] = {
    "masked": Discrete(Masked(), TRUNK),
    "blocks": Discrete(Block(Masked(), 4), TRUNK),
    "vectors": embedding_presets.diffuseq(TRUNK),
    "answers": AutoregressiveSpec(replace(TRUNK, encoder_layers=1)),
}


@pytest.fixture(scope="module", autouse=True)
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with models of several kinds, a stock causal model that scores, and text."""
    place, before = tmp_path_factory.mktemp("place"), Path.cwd()
    os.chdir(place)
    corpus(Path("texts"))
    pairs(Path("pairs"))
    stock_gpt2(Path("gpt2"))
    for number, (name, spec) in enumerate(SPECS.items()):
        torch.manual_seed(number)
        model = spec.build(Vocab.of(byte_level()))
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.3)
        model.tokenizer = byte_level()
        model.save_pretrained(name)
    yield place
    os.chdir(before)


def asked(*models: str, **options: Any) -> Frontier:
    usual = {"scorer": "gpt2", "data": "texts", "split": "train", "texts": TEXTS, "length": LENGTH, "device": "cpu"}
    return Frontier(models, **{**usual, **options})


def lines(folder: str, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(folder) / name).read_text().splitlines()]


def drawn(folder: str, model: str, sampler: str) -> list[str]:
    return [line["text"] for line in lines(folder, "samples.jsonl") if (line["model"], line["sampler"]) == (model, sampler)]


def row(folder: str, model: str, sampler: str) -> dict[str, Any]:
    (found,) = [line for line in lines(folder, "frontier.jsonl") if (line["model"], line["sampler"]) == (model, sampler)]
    return found


def test_a_row_holds_the_calls_and_the_texts_of_its_sampler(capsys: pytest.CaptureFixture[str]) -> None:
    """More steps than tokens: a step that reveals nothing makes no call, and the calls that were made are listed."""
    asked("masked", "gpt2", samplers=("Ancestral:steps=64", "Ancestral:steps=2"), out=Path("costs")).run()
    model: Any = load("masked")
    batch = collate([blank_text(model, "masked", LENGTH)] * TEXTS, 0, sample_id=list(range(TEXTS)))
    last = list(Ancestral(64).trajectory(model, batch, Rng(0, 0, batch.sample_id)))[-1]
    texts = [text_of(model, ids[1:].tolist()) for ids in last.x]
    found = row("costs", "masked", "Ancestral:steps=64")
    assert found["nfe"] == pytest.approx(last.nfe.double().mean().item())
    assert 2 < found["nfe"] <= LENGTH
    assert drawn("costs", "masked", "Ancestral:steps=64") == texts
    assert found["gen_ppl"] == pytest.approx(Scorer(load("gpt2"), "gpt2").perplexity(texts).value)
    assert found["dtype"] == "float32, noise float64"
    assert row("costs", "masked", "Ancestral:steps=2")["nfe"] <= 2
    causal = row("costs", "gpt2", "Autoregressive")  # it takes none of the samplers of the others
    assert 1 <= causal["nfe"] <= LENGTH
    assert [line["model"] for line in lines("costs", "frontier.jsonl")].count(HELD_OUT) == 2  # for each tokenizer
    assert row("costs", HELD_OUT, "in tokens of gpt2")["nfe"] == 0
    said = capsys.readouterr().out
    assert all(word in said for word in ("held-out text", "Ancestral:steps=64", "Autoregressive", "gpt2 is the scorer itself"))
    assert (Path("costs") / "frontier.png").read_bytes()[1:4] == b"PNG"


def test_the_seed_decides_the_texts_and_the_batch_does_not() -> None:
    for name, options in {"one": {}, "two": {"batch_size": 2}, "other": {"seed": 1}}.items():
        asked("masked", samplers=("Ancestral:steps=4",), out=Path(name), **options).run()
    texts = {name: drawn(name, "masked", "Ancestral:steps=4") for name in ("one", "two", "other")}
    assert texts["one"] == texts["two"] != texts["other"]
    assert len(set(texts["one"])) == TEXTS


def test_what_is_finished_is_not_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    samplers = ("Ancestral:steps=2", "Greedy:steps=3,temperature=0", "Ancestral:steps=4")
    asked("masked", samplers=samplers, out=Path("whole")).run()
    asked("masked", samplers=samplers[:1], out=Path("parts")).run()
    kept = [(Path("parts") / name).read_text() for name in ("frontier.jsonl", "samples.jsonl")]
    left = dict.fromkeys([("masked", words) for words in samplers])
    monkeypatch.setattr(command.Frontier, "_report", lambda self, points: left.update({point.key: point for point in points}))
    asked("masked", samplers=samplers, out=Path("parts")).run()
    for name, before in zip(("frontier.jsonl", "samples.jsonl"), kept, strict=True):
        assert (Path("parts") / name).read_text().startswith(before)
    assert all(left.values())
    timeless = [[{**line, "seconds_per_text": 0} for line in lines(folder, "frontier.jsonl")] for folder in ("whole", "parts")]
    assert timeless[0] == timeless[1]
    assert lines("whole", "samples.jsonl") == lines("parts", "samples.jsonl")


@pytest.mark.parametrize("name", ["blocks", "vectors"])
def test_a_model_has_its_own_samplers_where_none_is_typed(name: str) -> None:
    asked(name, out=Path(f"own-{name}")).run()
    rows = [line for line in lines(f"own-{name}", "frontier.jsonl") if line["model"] == name]
    kind = {"blocks": "Ancestral", "vectors": "DDIM"}[name]
    assert [line["sampler"] for line in rows] == [f"{kind}:steps={steps}" for steps in (4, 8, 16, 32, 64, 128)]
    calls = [line["nfe"] for line in rows]
    if name == "vectors":
        assert calls == [4, 8, 16, 32, 64, 128]
    else:  # one call for each token at most, and one that keeps the first of two blocks
        assert all(2 <= count <= LENGTH + 1 for count in calls)


WRONG = {
    "a scorer that bounds": (("masked",), {"scorer": "masked"}, "masked is a diffusion model, which only bounds the likelihood"),
    "a scorer that answers": (("masked",), {"scorer": "answers"}, "the scorer answers has an encoder and scores answers to prompts"),
    "a model that answers": (("answers",), {}, "answers has an encoder and answers prompts"),
    "no such sampler": (("masked",), {"samplers": ("Ancestor",)}, "Ancestor for masked: there is no sampler 'Ancestor'"),
    "an option that is no number": (
        ("masked",),
        {"samplers": ("Greedy:temperature=hot",)},
        "sampler option 'temperature=hot' is not name=number",
    ),
    "another process": (
        ("masked", "vectors"),
        {"samplers": ("Greedy:steps=2",)},
        "Greedy:steps=2 cannot draw from vectors: Greedy samples",
    ),
    "a temperature of vectors": (("vectors",), {"samplers": ("DDIM:temperature=0.5",)}, "DDIM:temperature=0.5 cannot draw from vectors"),
    "a sampler of two models": (
        ("gpt2",),
        {"samplers": ("Autoregressive", "Speculative")},
        "Speculative cannot draw from gpt2: Speculative needs a second model",
    ),
    "nobody's sampler": (("masked",), {"samplers": ("Autoregressive",)}, "Autoregressive suits none of masked: leave it out"),
    "a sampler twice": (("masked",), {"samplers": ("Greedy", "Greedy")}, "Greedy is given twice"),
    "a model twice": (("masked", "masked"), {}, "masked is given twice"),
    "no model": ((), {}, "no model is named"),
    "long texts": (("masked",), {"length": 32}, "length is 32 and masked writes 31 tokens at most"),
    "one text": (("masked",), {"texts": 1}, "texts is 1, expected 2 or more"),
    "little text": (("masked",), {"texts": 5000}, "the held-out text has .* 5000 texts are to be compared with it"),
    "pairs": (("masked",), {"data": "pairs"}, "pairs holds prompts with responses"),
    "a file": (("masked",), {"out": Path("texts/train.jsonl")}, "texts/train.jsonl is a file"),
    "no network for MAUVE": (("masked",), {"mauve": Path("nowhere")}, "MAUVE needs the package|nowhere holds no config.json"),
}


@pytest.mark.parametrize(("models", "options", "message"), WRONG.values(), ids=WRONG)
def test_a_mistake_is_one_line_before_anything_is_drawn(
    models: tuple[str, ...], options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "_shown", lambda *given: pytest.fail("something was drawn"))
    with pytest.raises(ValueError, match=message) as caught:
        asked(*models, **{"out": Path("wrong"), **options}).run()
    assert "\n" not in str(caught.value)


def test_a_scorer_without_a_tokenizer_is_refused() -> None:
    stock_gpt2(Path("bare"))
    for path in Path("bare").glob("tokenizer*"):
        path.unlink()
    with pytest.raises(ValueError, match="bare has no tokenizer files"):
        asked("masked", scorer="bare", out=Path("wrong")).run()


def test_a_folder_of_other_texts_is_refused() -> None:
    words = {"samplers": ("Ancestral:steps=2",), "out": Path("settled")}
    asked("masked", **words).run()
    with pytest.raises(ValueError, match="holds a measurement with seed 0, not 1: remove it, or name another file"):
        asked("masked", seed=1, **words).run()
    retrained: Any = load("gpt2")
    torch.nn.init.normal_(retrained.backbone.trunk.lm_head.weight, std=0.1)
    retrained.save_pretrained("gpt2-again")
    with pytest.raises(ValueError, match="holds a measurement with scorer_weights"):
        asked("masked", scorer="gpt2-again", **words).run()
