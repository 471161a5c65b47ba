import json
import math
from pathlib import Path
from typing import Any

import pytest

from textdiff.evaluation import lines
from textdiff.evaluation.lines import Fields, number


def test_rows_come_back_as_they_were_written(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"text": "line\u2028\nnext, half \ud83d", "x": 1}, {"text": "", "x": None}]
    lines.write(tmp_path / "a.jsonl", rows)
    assert lines.read(tmp_path / "a.jsonl", dict) == rows
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]
    assert lines.read(tmp_path / "b.jsonl", dict) == []


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"x": 1', "no JSON (Expecting ',' delimiter at character 8)"),
        (b"[1, 2]", "[1, 2], expected an object with names"),
        (b'{"x": "\xff"}', "no UTF-8 at byte 8"),
        (b'{"y": 1}', "x is missing"),
        (b'{"x": "many"}', 'x is "many", expected a number'),
        (b'{"x": true}', "x is true, expected a number"),
        (b'{"x": NaN}', "x is NaN, expected a number"),
    ],
)
def test_a_mistake_is_told_in_one_line_by_the_number_of_its_line(tmp_path: Path, line: bytes, said: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"x": 0}\n\n' + line + b'\n{"x": 1}\n')
    with pytest.raises(ValueError, match="line 3 of") as raised:
        lines.read(path, lambda row: Fields(row).finite("x"))
    assert str(raised.value) == f"line 3 of {path}: {said}; mend that line or remove it"


def test_numbers_that_no_float_holds_do_not_exist() -> None:
    for value in (None, math.inf, math.nan, json.loads("1" + "0" * 400)):
        assert math.isnan(number("x", value))
    assert number("x", 10**20) == 1e20


def test_fields_tell_what_may_be_missing() -> None:
    fields = Fields({"text": "a", "none": None, "two": 2})
    assert (fields.text("text"), fields.number("two"), fields.optional("two")) == ("a", 2.0, 2.0)
    assert math.isnan(fields.number("none"))
    assert math.isnan(fields.optional("missing"))
    for ask, name in ((fields.number, "missing"), (fields.text, "missing"), (fields.finite, "none"), (fields.text, "two")):
        with pytest.raises(ValueError, match=f"^{name} is"):
            ask(name)
