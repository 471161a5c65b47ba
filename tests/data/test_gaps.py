"""Gaps are the same words for every tokenizer, and rows hold them with the text around them, nearest first."""

import json
import re
from pathlib import Path

import pytest

from tests.data.texts import byte_level, sentence, without_ends, word_piece
from textdiff.data.gaps import Gap, GapRows, cut_gaps, read_gaps
from textdiff.data.tokenizer import train_tokenizer

TEXTS = [sentence(i, 5 + i) for i in range(20)]


def held(row: object, tokenizer: object) -> str:
    return tokenizer.decode([token for token, asked in zip(row.tokens, row.target, strict=True) if asked])  # type: ignore[attr-defined]


def test_a_gap_is_a_run_of_whole_words_with_a_word_on_each_side() -> None:
    for words in (1, 3):
        for gap in cut_gaps(TEXTS, words):
            middle = gap.text[gap.start : gap.stop]
            assert len(middle.split()) == words
            assert gap.text[: gap.start].split() + middle.split() + gap.text[gap.stop :].split() == gap.text.split()
            assert gap.text[: gap.start].strip()
            assert gap.text[gap.stop :].strip()


def test_every_place_is_drawn_alike_and_keyed_by_the_text() -> None:
    """A text of 7 words has 4 places for a gap of 2: each a quarter of 400 draws within four standard errors (35)."""
    text = "a b c d e f g"
    starts = [cut_gaps([""] * number + [text], 2)[0].start for number in range(400)]
    counts = [starts.count(start) for start in (1, 3, 5, 7)]
    assert sum(counts) == 400
    assert all(abs(count - 100) < 35 for count in counts)
    assert cut_gaps([text] * 9, 2, seed=1) != cut_gaps([text] * 9, 2, seed=0)
    assert cut_gaps([text] * 9, 2)[3] == cut_gaps([text] * 4, 2)[3]


def test_texts_that_are_too_short_have_none() -> None:
    assert [gap.text for gap in cut_gaps(["a b c", "a b", "", "x y z w"], 1)] == ["a b c", "x y z w"]
    with pytest.raises(ValueError, match="no text has 5 words"):
        cut_gaps(["a b c d"], 3)
    with pytest.raises(ValueError, match="gaps of 0 words"):
        cut_gaps(["a b c d"], 0)


def test_the_targets_are_the_gap_whatever_the_tokenizer() -> None:
    gaps = cut_gaps(TEXTS, 2)
    for row, gap in zip(GapRows(gaps, byte_level(), 256), gaps, strict=True):
        assert held(row, byte_level()) == gap.text[gap.start : gap.stop]
        assert row.text_bytes == gap.stop - gap.start
        assert byte_level().decode(list(row.tokens[1:])) == gap.text
        assert row.tokens[0] == byte_level().bos_token_id
    (gap,) = cut_gaps(["the cats . café cat the"], 1)
    row = GapRows([gap], word_piece(), 32)[0]
    assert held(row, word_piece()).replace(" ", "") == re.sub(r"\s|é", lambda m: "e" if m[0] == "é" else "", gap.text[gap.start : gap.stop])


def test_a_gap_between_bytes_of_tokens_takes_whole_tokens() -> None:
    text = "the cat drinks"
    row = GapRows([Gap(text, 5, 6)], word_piece(), 16)[0]
    assert held(row, word_piece()) == "cat"


@pytest.mark.parametrize("length", [2, 5, 6, 13, 27, 40])
def test_a_long_row_keeps_what_is_nearest_to_the_gap(length: int) -> None:
    """Of all stretches of BOS and the text that fit and hold the gap, the longest, and of those the one with the gap nearest its middle."""
    tokenizer, text = train_tokenizer([], 260), "abcdefghijklmnopqrstuvwxyz"  # a token for each byte
    whole = [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False).input_ids]
    size = min(length, len(whole))
    for place in range(1, len(text)):
        stretches = [(start, start + size) for start in range(len(whole) - size + 1) if start <= place and place + 1 < start + size]
        stretches += [(place + 2 - size, place + 2)]
        start, stop = min(stretches, key=lambda cut: (abs((place + 1 - cut[0]) - (cut[1] - place - 2)), cut[0]))
        rows = GapRows([Gap(text, place, place + 1)], tokenizer, length)
        assert list(rows[0].tokens) == whole[start:stop]
        assert [token for token, asked in zip(rows[0].tokens, rows[0].target, strict=True) if asked] == [whole[place + 1]]
        assert rows.cut == (size < len(whole))


def test_what_comes_after_can_be_hidden() -> None:
    gaps = cut_gaps(TEXTS, 2)
    for row, gap in zip(GapRows(gaps, byte_level(), 256, right=False), gaps, strict=True):
        assert byte_level().decode(list(row.tokens[1:])) == gap.text[: gap.stop]
        assert row.target[-1]


def test_without_a_start_the_text_begins_the_row() -> None:
    gaps = cut_gaps(TEXTS, 1)
    tokenizer = without_ends(byte_level(), "bos_token", "eos_token")
    assert tokenizer.decode(list(GapRows(gaps, tokenizer, 256)[0].tokens)) == gaps[0].text


def test_a_gap_that_fills_the_row_is_refused() -> None:
    with pytest.raises(ValueError, match=r"gap 1 has \d+ tokens and rows have 3"):
        GapRows([Gap("a bcdqxz e", 1, 8)], byte_level(), 3)


def test_rows_may_hold_their_gaps(tmp_path: Path) -> None:
    path = tmp_path / "gaps.jsonl"
    path.write_text(json.dumps({"prefix": "a b", "middle": " c", "suffix": " d"}) + "\n")
    assert read_gaps(path) == [Gap("a b c d", 3, 5)]
    (tmp_path / "texts.jsonl").write_text(json.dumps({"text": "a b"}) + "\n")
    assert read_gaps(tmp_path / "texts.jsonl") is None
    assert read_gaps(tmp_path / "none.jsonl") is None
    path.write_text(path.read_text() + json.dumps({"prefix": "a b", "middle": "", "suffix": " d"}) + "\n")
    with pytest.raises(ValueError, match=r"gaps.jsonl:2: the middle is empty"):
        read_gaps(path)
    path.write_text(json.dumps({"prefix": "a b", "middle": " c", "suffix": None}) + "\n")
    with pytest.raises(ValueError, match=r"gaps.jsonl:1: no text under suffix"):
        read_gaps(path)
