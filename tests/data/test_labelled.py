import json
from collections import Counter
from pathlib import Path

import pytest

from textdiff.data import pydocs
from textdiff.data.labelled import Labelled, texts_by_kind
from textdiff.data.splits import bucket
from textdiff.data.tokenizer import encode, train_tokenizer

FOODS = ("Chinese", "English", "Thai")


def restaurants(path: Path, rows: int = 300) -> Path:
    """E2E-like rows: three foods, one of them rare, and rows that name none; the text names the food."""
    lines = []
    for i in range(rows):
        food = FOODS[i % 2] if i % 5 else FOODS[2] if i % 150 == 0 else ""
        named = f", food[{food}]" if food else ""
        said = f"Aromi {i} serves {food} food by the river ." if food else f"Aromi {i} stands by the river ."
        lines.append(json.dumps({"src": f"name[Aromi {i}]{named}, seafood[no], area[riverside]", "trg": said}) + "\n")
    path.write_text("".join(lines))
    return path


def test_rows_are_sorted_by_the_value_of_the_attribute_and_splits_stay_apart(tmp_path: Path) -> None:
    source = restaurants(tmp_path / "e2e.jsonl")
    texts = texts_by_kind(str(source), "food")
    assert texts.kinds == ["Chinese", "English"]  # 2 of 300 rows are Thai: no kind
    rows = [json.loads(line) for line in source.read_text().splitlines()]
    for number, kind in enumerate(texts.kinds):
        of_kind = [row for row in rows if f" food[{kind}]" in row["src"]]
        for part, splits in ((texts.train, (0,)), (texts.held_out, (1, 2))):
            assert sorted(part[number]) == sorted(row["trg"] for row in of_kind if bucket(row["src"]) in splits)


def test_the_embedded_corpus_parts_into_reference_and_docstrings() -> None:
    """Every document is of one kind; a topic is headed by an underlined title, a module's text by its name."""
    texts, splits = texts_by_kind(pydocs.NAME, ""), pydocs.load()
    assert sum(map(len, texts.train)) == len(splits.train)
    assert sum(map(len, texts.held_out)) == len(splits.validation) + len(splits.test)
    assert texts.packed
    assert any(text.startswith("Assignment statements\n****") for part in (texts.train[0], texts.held_out[0]) for text in part)
    assert any(text.startswith("asyncio.tasks\n") for part in (texts.train[1], texts.held_out[1]) for text in part)


def test_kinds_take_turns_and_rare_ones_begin_anew() -> None:
    parts = [["red red", "red fox", "red cat"], ["blue sea"]]
    tokenizer = train_tokenizer([text for part in parts for text in part], 270)
    rows = Labelled(parts, False, tokenizer, length=32)
    assert len(rows) == 6
    assert [list(row.source) for row in rows] == [[0], [1]] * 3
    assert [rows[i].tokens for i in (1, 3, 5)] == [rows[1].tokens] * 3
    assert [tokenizer.decode(list(rows[i].tokens[1:-1])) for i in (0, 2, 4)] == parts[0]
    row = rows[0]
    assert list(row.tokens) == [tokenizer.bos_token_id, *encode(tokenizer, "red red"), tokenizer.eos_token_id]
    assert list(row.target) == [False] + [True] * (len(row.tokens) - 1)
    short = Labelled(parts, False, tokenizer, length=5)
    assert list(short[0].tokens) == [tokenizer.bos_token_id, *encode(tokenizer, "red red")[:3], tokenizer.eos_token_id]
    assert Counter(tuple(row.source) for row in rows.spread(5)) == {(0,): 5, (1,): 5}


def test_packed_documents_are_cut_into_rows_of_their_kind() -> None:
    parts = [["one two three four five six seven eight " * 4], ["nine " * 40]]
    tokenizer = train_tokenizer([text for part in parts for text in part], 270)
    rows = Labelled(parts, True, tokenizer, length=16)
    for label, part in enumerate(parts):
        joined = [token for row in rows.rows[label] for token in row.tokens[1:]]
        assert tokenizer.decode(joined[:-1]) == part[0]


def test_what_has_no_two_kinds_is_refused_in_one_line(tmp_path: Path) -> None:
    source = str(restaurants(tmp_path / "e2e.jsonl"))
    with pytest.raises(ValueError, match=r"has 1 values of 'area', expected 2 or more, in prompts like area\[value\]$"):
        texts_by_kind(source, "area")
    with pytest.raises(ValueError, match=r"has 0 values of 'stars'"):
        texts_by_kind(source, "stars")
    tokenizer = train_tokenizer(["a b"], 262)
    with pytest.raises(ValueError, match=r"^of 2 kinds of text 1 have no row: the data is too small$"):
        Labelled([["a"], []], False, tokenizer, 8)
