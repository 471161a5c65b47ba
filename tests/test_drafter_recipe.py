import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny_runs import recipe
from textdiff.data.layout import Layout
from textdiff.drafter import Trial, tried
from textdiff.models.feature_drafter import FeatureDrafter, fingerprint
from textdiff.models.loading import load

FEW = [
    *("--data", "texts", "--train.steps", "2", "--train.batch-size", "4", "--train.warmup", "1", "--layout.length", "24"),
    *("--trial.prompts", "3", "--trial.prompt", "5", "--trial.tokens", "9"),
]
OWN = ["--own.rows", "8", "--own.prompt", "4"]


@pytest.mark.parametrize(("preset", "target"), [("flash", "autoregressive"), ("flash", "gpt2"), ("corpus", "gpt2")])
def test_a_run_leaves_a_drafter_that_brings_what_was_said(place: Path, preset: str, target: str) -> None:
    out = f"{preset}-{target}"
    recipe("drafter", preset, "--target", target, *FEW, *(OWN if preset == "flash" else []), "--out", out)
    causal: Any = load(target)
    model = FeatureDrafter.from_pretrained(f"{out}/model").eval()
    assert (model.spec.target.name, model.spec.target.fingerprint) == (target, fingerprint(causal))
    data = Layout(length=24).open("texts").examples(causal.tokenizer)
    counts = tried(Trial(prompts=3, prompt=5, tokens=9), model.attach(causal), data.validation)
    recorded = json.loads(Path(out, "results.json").read_text())
    assert (recorded["tokens"], recorded["passes"]) == (int(counts.emitted.sum()), int(counts.passes.sum()))
    assert 3 <= recorded["tokens"] <= 27
    rows = [json.loads(line) for line in Path(out, "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "accepted" in row][-1] == 2
    assert torch.isfinite(torch.tensor([row["loss"] for row in rows if "loss" in row])).all()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "there is no model to draft for: name one with --target"),
        (["--target", "masked"], "masked is a DiscreteDiffusionLM: a drafter needs a causal model"),
        (["--target", "gpt2", "--layout.streaming"], "a stream has no beginnings to choose from: leave layout.streaming off"),
        (["--target", "gpt2", "--layout.length", "100"], "layout.length is 100 and the target reads 64 tokens: shorten the rows"),
        (["--target", "gpt2", "--train.lora.rank", "2"], "train.lora adapts weights that are there, and here they are fresh"),
        (["--target", "gpt2", "--backbone.heads", "3"], "the target's width 32 must be an even multiple of heads 3"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(place: Path, capsys: pytest.CaptureFixture[str], words: list[str], line: str) -> None:
    with pytest.raises(SystemExit) as stop:
        recipe("drafter", "flash", *FEW, *words, "--out", f"refused-{len(words)}-{words[-1:]}")
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert stop.value.code == 2
    assert line in said


def test_a_drafter_is_resumed_on_the_text_it_began_with(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe("drafter", "flash", *FEW, "--target", "gpt2", "--out", "begun")
    with pytest.raises(SystemExit) as stop:
        recipe("drafter", "flash", *FEW, "--target", "gpt2", "--out", "begun", "--train.resume", "--own.temperature", "1")
    assert (stop.value.code, "begun was started with own.temperature = 0.0, now it is 1.0" in capsys.readouterr().err) == (2, True)
