import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import textdiff
from tests.tiny_runs import QUICK, corpus, pairs, recipe
from textdiff.commands.report import Report
from textdiff.data.corpora import resolve
from textdiff.evaluation.measurement import Measurement
from textdiff.evaluation.measuring import measure
from textdiff.evaluation.statistics import ratio
from textdiff.family_comparison import FAMILIES
from textdiff.family_runs import Pace, at_equal_seconds, at_equal_tokens, paces
from textdiff.family_tables import budget_tables
from textdiff.models.sizes import trained_parameters

WORDS = ["quickstart", *QUICK["compare_families"]]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(tmp_path)
    corpus(Path("texts"))
    yield
    os.chdir(before)


def compare(*words: str) -> None:
    recipe("compare_families", *WORDS, *words)


def log(folder: Path, rows: list[tuple[int, int, float]]) -> None:
    folder.mkdir(parents=True)
    lines: list[dict[str, Any]] = [{"step": step, "tokens": tokens, "tokens_per_second": speed} for step, tokens, speed in rows]
    lines.insert(1, {"step": lines[0]["step"], "evaluation": {"nats_per_token": 3.0}})
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def likelihood(out: str, run: str, budget: str = "equal-tokens") -> Measurement:
    return Measurement.read(Path(out, "likelihood", f"{run}@texts-at-{budget}.jsonl"))


def test_seconds_are_those_of_the_steps_of_each_row(tmp_path: Path) -> None:
    log(tmp_path / "run", [(10, 1_000, 500.0), (20, 3_000, 250.0)])
    assert paces(tmp_path / "run" / "log.jsonl") == [Pace(10, 1_000, 2.0), Pace(20, 3_000, 10.0)]
    with pytest.raises(ValueError, match="does not say how long the run took"):
        paces(tmp_path / "nothing.jsonl")


def test_equal_seconds_buy_steps_at_the_pace_of_the_first_seed_and_about_as_many_are_the_same_run(tmp_path: Path) -> None:
    runs = at_equal_tokens(tmp_path, ["slow", "fast", "same"], [5, 6], steps=100)
    assert [(run.family, run.seed) for run in runs[:4]] == [("slow", 5), ("fast", 5), ("same", 5), ("slow", 6)]
    speeds = {"slow": 50.0, "fast": 200.0, "same": 104.0}
    for run in runs:
        log(run.folder, [(100, 1_000, speeds[run.family] * (1 if run.seed == 5 else 3))])
    found = {(run.family, run.seed): run for run in at_equal_seconds(tmp_path, runs, seconds=10.0)}
    for seed in (5, 6):
        assert (found["slow", seed].steps, found["fast", seed].steps) == (50, 200)
        assert found["same", seed].steps == 100
        assert found["same", seed].folder == tmp_path / "equal-tokens" / f"same-{seed}"
        assert found["slow", seed].folder == tmp_path / "equal-seconds" / f"slow-{seed}"


def test_tables_rank_families_and_say_what_seeds_allow(tmp_path: Path) -> None:
    compare("--data", "texts", "--families", "masked", "--out", "out")
    one = likelihood("out", "masked-0")
    for seeds, titles in ((1, 2), (2, 2), (3, 4)):
        runs = at_equal_tokens(tmp_path / f"of-{seeds}", ["worse", "better"], range(seeds), steps=7)
        measured = {}
        for run in runs:
            log(run.folder, [(7, 70, 10.0 * (1 + run.seed))])
            nats = {"worse": 2.0, "better": 1.0}[run.family] + 0.01 * run.seed
            measured[run] = replace(one, training_seed=run.seed, scores=tuple(s._replace(nats=nats * s.tokens) for s in one.scores))
        tables = budget_tables("texts", runs, runs, 3.0, {"worse": 11, "better": 12}, measured)
        assert len(tables) == titles
        rows = [dict(zip(tables[0].columns, row, strict=True)) for row in tables[0].rows]
        assert [row["family"] for row in rows] == ["better", "worse"]
        assert [row["trained parameters"] for row in rows] == ["12", "11"]
        assert all(row["steps"] == "7" and row["training tokens"] == "70" for row in rows)
        assert float(rows[0]["seconds"]) == pytest.approx(sum(7 / (1 + seed) for seed in range(seeds)) / seeds, abs=0.06)
        if seeds == 1:
            assert (rows[0]["nats/token"].split(" ± ")[0], rows[0]["seed"]) == ("1.0000", "0 alone")
            assert "one training seed" in tables[0].note
        else:
            half = {2: 0.0635, 3: 0.0248}[seeds]  # Student's t of 1 and 2 degrees of freedom, 12.706 and 4.303
            assert rows[0]["nats/token between seeds"] == f"{1 + 0.005 * (seeds - 1):.4f} ± {half:.4f}"


def test_every_character_is_scored_once_in_passages_that_fit_and_the_table_says_what_the_files_hold() -> None:
    words = ["--measuring.limit", "1000", "--measuring.passage", "200", "--length", "12"]  # so that no document fits
    compare("--data", "texts", "--families", "autoregressive", "latent", "--out", "out", *words)
    held_out = resolve("texts").texts()[1]
    found = {run: likelihood("out", run) for run in ("autoregressive-0", "latent-0")}
    for run, measurement in found.items():
        assert sum(score.characters for score in measurement.scores) == sum(map(len, held_out))
        assert max(score.tokens for score in measurement.scores) <= 11
        model = textdiff.load(f"out/equal-tokens/{run}")
        assert model.spec.backbone.max_length >= 12
    assert found["autoregressive-0"].texts == found["latent-0"].texts
    notes = json.loads(Path("out/notes.json").read_text())
    table = notes["tables"][0]
    shown = {row[0]: dict(zip(table["columns"], row, strict=True)) for row in table["rows"]}
    for family in ("autoregressive", "latent"):
        estimate = ratio(found[f"{family}-0"], "tokens")
        assert shown[family]["nats/token"].startswith(f"{estimate.value:.4f} ± ")
        assert shown[family]["kind"] == found[f"{family}-0"].kind
        assert shown[family]["trained parameters"] == f"{trained_parameters(textdiff.load(f'out/equal-tokens/{family}-0')):,}"
    assert sorted(notes["models"]) == sorted(found)
    for name in ("curves", "profile", "frontier", "samples"):
        models = {line.get("run", line.get("model")) for line in map(json.loads, Path(f"out/{name}.jsonl").read_text().splitlines())}
        assert {"autoregressive-0", "latent-0"} <= models, name
    page = Path("out/report.html").read_text()
    Path("out/report.html").unlink()
    Report(Path("out")).run()
    assert Path("out/report.html").read_text() == page


def test_finished_runs_are_kept_and_seeds_can_be_added(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--data", "texts", "--families", "autoregressive", "masked", "--out", "out"]
    compare(*words)
    weights = Path("out/equal-tokens/masked-0/model/model.safetensors")
    before, measured = weights.stat().st_mtime_ns, Path("out/likelihood/masked-0@texts-at-equal-tokens.jsonl").stat().st_mtime_ns
    with pytest.raises(SystemExit):
        compare(*words)
    assert "out already holds runs" in capsys.readouterr().err
    for changed, said in (
        (["--train.steps", "3"], "started with train.steps = 2, now it is 3"),
        (["--length", "20"], "started with length = 24, now it is 20"),
        (["--seeds", "1", "0"], "started with seeds' first = 0, now it is 1"),
    ):
        with pytest.raises(SystemExit):
            compare(*words, "--train.resume", *changed)
        assert said in capsys.readouterr().err
    compare(*words, "--train.resume", "--seeds", "0", "1")
    assert weights.stat().st_mtime_ns == before
    assert Path("out/likelihood/masked-0@texts-at-equal-tokens.jsonl").stat().st_mtime_ns == measured
    one, other = (load_file(f"out/equal-tokens/masked-{seed}/model/model.safetensors") for seed in (0, 1))
    assert not any(torch.equal(tensor, other[name]) for name, tensor in one.items() if tensor.dim() > 1)
    assert likelihood("out", "masked-1").training_seed == 1


def test_a_signal_stops_it_and_what_goes_on_ends_as_a_run_without_a_break(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--data", "texts", "--families", "autoregressive", "masked", "--train.steps", "40", "--train.checkpoint-every", "100"]
    for part in ("measured", "report"):
        monkeypatch.setattr(f"textdiff.family_comparison.{part}", lambda *parts: None)
    compare(*words, "--out", "whole")

    def interrupt() -> None:
        while not Path("parts/equal-tokens/masked-0/log.jsonl").exists():
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt, daemon=True)
    thread.start()
    with pytest.raises(SystemExit) as stopped:
        compare(*words, "--out", "parts")
    thread.join()
    assert stopped.value.code == 130
    rows = Path("parts/equal-tokens/masked-0/log.jsonl").read_text().splitlines()
    assert len(rows) < 40
    finished = Path("parts/equal-tokens/autoregressive-0/model/model.safetensors")
    before = finished.stat().st_mtime_ns
    compare(*words, "--out", "parts", "--train.resume")
    assert finished.stat().st_mtime_ns == before
    whole, parts = (load_file(f"{out}/equal-tokens/masked-0/model/model.safetensors") for out in ("whole", "parts"))
    assert all(torch.equal(tensor, parts[name]) for name, tensor in whole.items())


def test_a_signal_while_measuring_keeps_what_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--data", "texts", "--families", "autoregressive", "masked", "--out", "out"]

    def interrupted(model: Any, name: str, *others: Any, **named: Any) -> Measurement:
        if name == "masked-0":
            os.kill(os.getpid(), signal.SIGTERM)
        return measure(model, name, *others, **named)

    monkeypatch.setattr("textdiff.family_report.measure", interrupted)
    with pytest.raises(SystemExit) as stopped:
        compare(*words)
    monkeypatch.undo()
    assert stopped.value.code == 143
    done = Path("out/likelihood/autoregressive-0@texts-at-equal-tokens.jsonl")
    before = done.stat().st_mtime_ns
    assert not Path("out/likelihood/masked-0@texts-at-equal-tokens.jsonl").exists()
    compare(*words, "--train.resume")
    assert done.stat().st_mtime_ns == before
    assert likelihood("out", "masked-0").scores


def test_what_cannot_be_compared_is_refused_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    pairs(Path("pairs"))
    for words, said in (
        (["--families", "maskd"], "there is no family 'maskd': did you mean 'masked'?"),
        (["--families", "masked", "masked"], "expected one or more different ones"),
        (["--seeds", "0", "0"], "seeds are [0, 0]"),
        (["--seconds", "0"], "seconds is 0.0, expected a time above 0"),
        (["--length", "2"], "length is 2, expected 3 tokens or more"),
        (["--data", "pairs"], "pairs holds prompts with responses"),
        (["--data", "nowhere.txt"], "nowhere.txt"),
        (["--measuring.texts", "1"], "measuring.texts is 1, expected 2 or more"),
    ):
        with pytest.raises(SystemExit) as stopped:
            compare("--out", "out", *words)
        assert stopped.value.code == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1
    assert not Path("out").exists()


def test_without_the_rival_there_is_no_scorer(capsys: pytest.CaptureFixture[str]) -> None:
    compare("--data", "texts", "--families", "masked", "--out", "out")
    assert not Path("out/frontier.jsonl").exists()
    assert "no sample quality" in capsys.readouterr().out


@pytest.mark.slow
def test_all_families_together() -> None:
    compare("--data", "texts", "--out", "out")
    notes = json.loads(Path("out/notes.json").read_text())
    for table in notes["tables"]:
        assert {row[0] for row in table["rows"]} == set(FAMILIES)
        assert {row[table["columns"].index("kind")] for row in table["rows"]} == {"exact", "upper bound"}


def test_a_time_limit_ends_in_one_line_and_no_table(capsys: Any) -> None:
    with pytest.raises(SystemExit, match="2"):
        compare("--families", "autoregressive", "--train.steps", "4000", "--train.max-seconds", "0.5", "--data", "texts")
    assert "the time limit stopped autoregressive at step" in capsys.readouterr().err
