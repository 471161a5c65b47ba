import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from tests.data.test_labelled import restaurants
from tests.tiny_runs import RECIPES, SMALL, recipe, script
from textdiff import cli
from textdiff.batch import Batch, collate
from textdiff.data.labelled import Labelled, texts_by_kind
from textdiff.data.token_classes import NAMES
from textdiff.data.tokenizer import load_tokenizer
from textdiff.evaluation.control import with_gap
from textdiff.evaluation.ngram import Trigram, nats_per_token
from textdiff.models.classifier import NoisyClassifier
from textdiff.models.embedding import EmbeddingDiffusionLM

SCRIPT = script(RECIPES / "controlled.py")
TOKENS = ("masked", "uniform", "hybrid")
TINY = [
    *("--train.steps", "2", "--train.batch-size", "4", "--classifier-train.steps", "2", "--classifier-train.batch-size", "4"),
    *("--vocab-size", "300", "--length", "16", "--samples", "3", "--sampling-steps", "3", "--gammas", "0", "1", "2"),
]

# Runs the recipe and notes which process trains a tokenizer and which writes the numbers.
NOTING = """
import os, pathlib, runpy
from unittest.mock import patch
import textdiff.data.tokenizer as tokenizer

train, write = tokenizer.train_tokenizer, pathlib.Path.write_text

def note(what):
    open({noted!r} + "/" + what + "-" + os.environ["RANK"], "w").close()

def train_tokenizer(*words):
    note("train_tokenizer")
    return train(*words)

def write_text(path, text):
    if path.name == "results.json":
        note("write_text")
    return write(path, text)

with patch.object(tokenizer, "train_tokenizer", train_tokenizer), patch.object(pathlib.Path, "write_text", write_text):
    runpy.run_path({recipe!r}, run_name="__main__")
"""


def controlled(preset: str, folder: Path, *words: str) -> dict[str, Any]:
    source = restaurants(folder / "e2e.jsonl")
    recipe("controlled", preset, *TINY, *SMALL, "--data", str(source), "--out", str(folder / "out"), *words)
    found: dict[str, Any] = json.loads((folder / "out" / "results.json").read_text())
    return found


@pytest.mark.slow
def test_two_processes_train_one_tokenizer_and_the_main_one_alone_measures_and_writes(tmp_path: Path) -> None:
    source, noted = restaurants(tmp_path / "e2e.jsonl"), tmp_path / "noted"
    noted.mkdir()
    started = tmp_path / "started.py"
    started.write_text(NOTING.format(noted=str(noted), recipe=str(RECIPES / "controlled.py")))
    words = ["masked", *TINY, *SMALL, "--train.steps", "1", "--data", str(source), "--out", str(tmp_path / "out")]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "PYTHONPATH": str(RECIPES.parent), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, *launcher, str(started), *words], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    once = ("diffusion model: ", "guiding classifier: ", "judge: ", "guidance ", "real text ", "wrote ")
    assert [sum(line.startswith(start) for line in done.stdout.splitlines()) for start in once] == [1] * len(once)
    assert sorted(path.name for path in noted.iterdir()) == ["train_tokenizer-0", "write_text-0"]
    assert len(json.loads((tmp_path / "out" / "results.json").read_text())["rows"]) == 6


def rows_of(preset: str) -> list[tuple[str, float | None]]:
    """What is asked of each preset at gammas 0, 1, 2, in order."""
    free = [("real text", None), ("none", 0.0), ("classifier-free", 1.0), ("classifier-free", 2.0)]
    if preset in TOKENS:
        return [*free, ("classifier", 1.0), ("classifier", 2.0)]
    if preset == "latent":
        return free
    steered = [*(("gradient", gamma) for gamma in (2.0, 10.0, 40.0)), ("plug-and-play", 0.1)]
    classes = [("classes: none", 0.0), *((f"classes: {name}", strength) for name, strength in steered)]
    return [*free, *steered, *classes, *((name, None) for name in ("end: none", "end: given", "gap: hidden context", "gap: given context"))]


@pytest.mark.parametrize("preset", list(SCRIPT.presets))
def test_the_table_has_every_strength_and_its_first_row_is_what_the_saved_judge_says_of_held_out_text(preset: str, tmp_path: Path) -> None:
    found = controlled(preset, tmp_path)
    assert [(row["guidance"], row["gamma"]) for row in found["rows"]] == rows_of(preset)
    texts = texts_by_kind(str(tmp_path / "e2e.jsonl"), "food")
    tokenizer = load_tokenizer(str(tmp_path / "out" / "model"))
    real = Labelled(texts.held_out, False, tokenizer, 16).spread(3)
    judge = NoisyClassifier.from_pretrained(tmp_path / "out" / "judge" / "model").eval()
    batch = collate(real, judge.vocab.pad_id or 0)
    right = (judge.judge(batch) == batch.source[:, 0]).double()
    row = found["rows"][0]
    assert row["success"] == pytest.approx(100 * float(right.mean()))
    assert row["standard_error"] == pytest.approx(100 * float((right.mean() * (1 - right.mean()) / 6).sqrt()))
    train = Labelled(texts.train, False, tokenizer, 16)
    trigram = Trigram([each for rows in train.rows for each in rows], judge.vocab)
    assert row["trigram"] == pytest.approx(nats_per_token(trigram, real, judge.vocab))
    assert found["kinds"] == ["Chinese", "English"]
    assert judge.spec.process is None


def test_gaps_and_classes_are_those_of_rows_that_differ(tmp_path: Path) -> None:
    """Copies of a row would count as independent in the errors of the table."""
    with patch("textdiff.evaluation.control.with_gap", side_effect=with_gap) as gaps:
        controlled("diffusion_lm", tmp_path)
    shapes = [call.args[0] for call in gaps.call_args_list]
    assert [list(shape.source) for shape in shapes] == [[0], [1]] * 3
    assert len({tuple(shape.tokens) for shape in shapes}) == 6


def test_guides_of_vectors_read_those_of_the_model_they_guide(tmp_path: Path) -> None:
    """Saved with the classifiers, so that a guide and its model can be opened by themselves."""
    controlled("diffusion_lm", tmp_path)
    model = EmbeddingDiffusionLM.from_pretrained(tmp_path / "out" / "model")
    ids = Batch.of(torch.arange(model.vocab.size)[None])
    for part, labels in (("classifier", 2), ("tagger", len(NAMES))):
        guide: Any = NoisyClassifier.from_pretrained(tmp_path / "out" / part / "model")
        assert torch.equal(guide.backbone.embedding.table, model.canvas(ids)[0][0])
        assert guide.spec.process == model.process
        assert (guide.spec.labels, guide.spec.each) == (labels, part == "tagger")


def test_judge_and_guide_are_different_models_of_different_texts(tmp_path: Path) -> None:
    """Different sizes, seeds and halves of the training texts; a resumed run trains nothing and measures the same."""
    found = controlled("masked", tmp_path)
    guide, judge = (NoisyClassifier.from_pretrained(tmp_path / "out" / part / "model") for part in ("classifier", "judge"))
    assert guide.backbone.embedding.weight.shape != judge.backbone.embedding.weight.shape
    assert type(guide.process).__name__ == "Masked"
    states = [
        json.loads(next((tmp_path / "out" / part / "checkpoints").glob("step-*/state.json")).read_text())["settings"]
        for part in ("classifier", "judge")
    ]
    assert states[0]["seed"] != states[1]["seed"]
    assert controlled("masked", tmp_path, "--train.resume") == found


def test_without_matplotlib_the_run_says_so_and_ends_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with patch("textdiff.controlled.can_draw", lambda: False):
        controlled("masked", tmp_path)
    assert "no plot: matplotlib is not installed (pip install textdiff[plots])" in capsys.readouterr().out
    assert not (tmp_path / "out" / "control.png").exists()


@pytest.mark.parametrize(
    ("preset", "words", "message"),
    [
        ("masked", ["--gammas", "0", "-1"], "gammas are [0.0, -1.0], expected strengths of 0 or more"),
        (
            "masked",
            ["--samples", "0"],
            "samples 0, sampling_steps 3, length 16: expected 1 or more samples and steps, and 4 tokens or more",
        ),
        ("masked", ["--attribute", "stars"], "has 0 values of 'stars', expected 2 or more, in prompts like stars[value]"),
        ("masked", ["--data", "nothing.jsonl"], "there is no file or folder 'nothing.jsonl'"),
        ("masked", ["--length", "1"], "sampling_steps 3, length 1: expected"),
        ("masked", ["--gammas", "nan"], "gammas are [nan], expected strengths of 0 or more"),
        (
            "masked",
            ["--data", "builtin:pydocs", "--attribute", "area"],
            "attribute is 'area' and builtin:pydocs has none: give data with attributes",
        ),
        ("diffusion_lm", ["--gradients", "-1"], "gradients [-1.0], rates [0.1], updates 3, fluency 0.0001: expected numbers of 0 or more"),
        ("diffusion_lm", ["--rates", "-1"], "rates [-1.0], updates 3, fluency 0.0001: expected numbers of 0 or more, and 1 update or more"),
        ("diffusion_lm", ["--updates", "-3"], "updates -3, fluency 0.0001: expected numbers of 0 or more, and 1 update or more"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_2_before_anything_is_trained(
    preset: str, words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        controlled(preset, tmp_path, *words)
    said = capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert stop.value.code == 2
    assert message in " ".join(said.split())
    assert len(said.strip().splitlines()) == 1


@pytest.mark.slow
def test_guidance_raises_control_by_15_points_as_an_independent_judge_sees_it(tmp_path: Path) -> None:
    with patch.object(sys, "argv", ["recipes/controlled.py", "masked", "--gammas", "0", "2", "--out", str(tmp_path)]):
        cli.run_presets(*SCRIPT)
    success = {(row["guidance"], row["gamma"]): row["success"] for row in json.loads((tmp_path / "results.json").read_text())["rows"]}
    for guidance in ("classifier-free", "classifier"):
        assert success[guidance, 2.0] >= success["none", 0.0] + 15
    assert success["real text", None] > 70


@pytest.mark.slow
def test_a_classifier_of_vectors_raises_control_by_15_points_as_an_independent_judge_sees_it(tmp_path: Path) -> None:
    words = ["recipes/controlled.py", "diffusion_lm", "--gammas", "0", "--samples", "32", "--out", str(tmp_path)]
    with patch.object(sys, "argv", words):
        cli.run_presets(*SCRIPT)
    success = {(row["guidance"], row["gamma"]): row["success"] for row in json.loads((tmp_path / "results.json").read_text())["rows"]}
    assert success["gradient", 40.0] >= success["none", 0.0] + 15
    assert success["plug-and-play", 0.1] >= success["none", 0.0] + 15
    assert success["end: given", None] > success["end: none", None] + 50
