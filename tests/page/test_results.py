import json
import math
from pathlib import Path

import pytest

from tests.page.folders import LEVELS, comparison, lines
from textdiff.evaluation.frontier import HELD_OUT
from textdiff.page.results import Results


def test_everything_in_a_folder_is_read(tmp_path: Path) -> None:
    found = Results.read(comparison(tmp_path / "c", texts=3))
    assert set(found.measurements) == {"pydocs", "texts-2"}
    assert [m.model for m in found.measurements["pydocs"]] == sorted(LEVELS)
    assert found.models == sorted(LEVELS)  # held-out text is no model
    assert (len(found.profile), len(found.curves), len(found.samples)) == (90, 180, 36)
    assert found.notes.tables[0].rows == [("uniform", "3.7"), ("a | b", "-")]


@pytest.mark.parametrize("name", ["frontier.jsonl", "profile.jsonl", "curves.jsonl", "samples.jsonl", "notes.json", "likelihood"])
def test_each_file_alone_is_enough_and_none_is_refused(tmp_path: Path, name: str) -> None:
    whole, part = comparison(tmp_path / "whole", texts=2), tmp_path / "part"
    part.mkdir()
    with pytest.raises(ValueError, match="holds none of"):
        Results.read(part)
    (whole / name).rename(part / name)
    found = Results.read(part)
    given = [found.frontier, found.profile, found.curves, found.samples, found.notes.title, found.measurements]
    assert sum(map(bool, given)) == 1


def test_numbers_that_do_not_exist_are_nan(tmp_path: Path) -> None:
    row = {"model": "latent", "axis": "t", "x": 0.5, "nats_per_token": 1, "error": None, "accuracy": None, "confidence": None, "tokens": 3}
    lines(tmp_path / "profile.jsonl", [row])
    (tmp_path / "curves.jsonl").write_text('{"run": "r", "tokens": 1, "nats_per_token": NaN}\n\n')
    found = Results.read(tmp_path)
    assert found.profile[0].nats_per_token == 1.0
    for value in (found.profile[0].error, found.profile[0].accuracy, found.curves[0].nats_per_token, found.curves[0].seconds):
        assert math.isnan(value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("curves.jsonl", '{"run": "a", "tokens": 1, "nats_per_token": 2}\n{"run": "a", "tokens": "many", "nats_per_token": 2}'),
        ("curves.jsonl", '{"run": "a", "tokens": 1, "nats_per_token": 2}\n{"run": "a", "tokens": 1'),
        ("curves.jsonl", '{"run": "a", "tokens": 1, "nats_per_token": 2}\n[1]'),
        ("curves.jsonl", '{"run": "a", "tokens": 1, "nats_per_token": 2}\n{"run": "a", "tokens": null, "nats_per_token": 2}'),
        ("profile.jsonl", "\n" + json.dumps({"model": "m", "axis": "t", "x": 0.5})),
        ("profile.jsonl", "\n" + json.dumps({"model": "m", "axis": "t", "x": 0.5, "nats_per_token": 1, "bins": [[0.5, 1]]})),
        ("profile.jsonl", "\n" + json.dumps({"model": "m", "axis": "t", "x": 0.5, "nats_per_token": 1, "bins": [["a", 1, 1]]})),
        ("frontier.jsonl", '\n{"model": "m", "sampler": "s"}'),
        ("frontier.jsonl", "\n[1]"),
        ("frontier.jsonl", "\n{"),
        ("samples.jsonl", '\n{"model": "m", "sampler": "s", "text": 3}'),
    ],
)
def test_a_line_that_holds_something_else_is_named(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=f"line 2 of .*{name}: .+; mend that line or remove it$") as raised:
        Results.read(tmp_path)
    assert "\n" not in str(raised.value)


def test_what_is_no_folder_and_what_are_no_notes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no folder"):
        Results.read(tmp_path / "missing")
    for content in ("[]", '{"tables": [{"title": "t", "columns": ["a"], "rows": [["1", "2"]]}]}', '{"rules": [3]}'):
        (tmp_path / "notes.json").write_text(content)
        with pytest.raises(ValueError, match="does not hold notes"):
            Results.read(tmp_path)


def test_a_report_is_of_the_models_that_the_notes_name(tmp_path: Path) -> None:
    folder, named = comparison(tmp_path / "c", texts=2), ["uniform", "autoregressive"]
    everything = Results.read(folder)
    assert everything.left_out == ()
    notes = json.loads((folder / "notes.json").read_text())
    (folder / "notes.json").write_text(json.dumps({**notes, "models": named}))
    found = Results.read(folder)
    assert found.models == sorted(named)
    assert set(found.left_out) == set(LEVELS) - set(named)
    assert [measured.model for measured in found.measurements["texts-2"]] == sorted(named)
    assert {point.model for point in found.frontier} == {*named, HELD_OUT}
    for rows, before in ((found.profile, everything.profile), (found.samples, everything.samples)):
        assert list(rows) == [row for row in before if row.model in named]
    assert found.curves == [row for row in everything.curves if row.run in named]
    (folder / "notes.json").write_text(json.dumps({**notes, "models": "uniform"}))
    with pytest.raises(ValueError, match="'uniform' is no list"):
        Results.read(folder)
