from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import pytest

from tests.data.texts import byte_level, documents, without_ends, word_piece
from textdiff.batch import Example, collate
from textdiff.data.denoising import Denoising, Spans
from textdiff.data.tokenizer import encode

DOCUMENTS = [*documents(40), "ein [MASK] zwei [EOS] drei é ü 漢字 " * 5]  # special tokens by name are text like any other


def span(row: Example) -> list[int]:
    """The targets up to their first EOS."""
    target = [token for token, scored in zip(row.tokens, row.target, strict=True) if scored]
    return target[: target.index(byte_level().eos_token_id)]


def restored(row: Example, mask_id: int) -> list[int]:
    """The source with its one [MASK] replaced by the span."""
    (place,) = (i for i, token in enumerate(row.source) if token == mask_id)
    return [*row.source[:place], *span(row), *row.source[place + 1 :]]


def pieces(texts: Sequence[str], spans: Spans) -> list[list[int]]:
    """Every piece of every document, short ones too."""
    found = [encode(byte_level(), text) for text in texts]
    return [ids[i : i + spans.length] for ids in found for i in range(0, len(ids), spans.length)]


@pytest.mark.parametrize("fill", [False, True])
@pytest.mark.parametrize("spans", [Spans(2, 2), Spans(3, 2, 0.9), Spans(10, 4), Spans(17, 5, 0.01), Spans(64, 16), Spans(500, 2, 0.5)])
def test_the_span_in_the_place_of_the_mask_is_the_paragraph(spans: Spans, fill: bool) -> None:
    rows, every = Denoising(DOCUMENTS, byte_level(), spans, fill, draws=3), pieces(DOCUMENTS, spans)
    kept = [ids for ids in every if len(ids) >= spans.shortest]
    assert [restored(row, byte_level().mask_token_id) for row in rows] == kept * 3
    assert rows.left_out == len(every) - len(kept)
    for row in rows:
        assert row.tokens[0] == byte_level().bos_token_id
        assert list(row.target) == [False] + [True] * (len(row.tokens) - 1)
        assert set(row.tokens[1 + len(span(row)) :]) == {byte_level().eos_token_id}
        assert len(row.tokens) == (spans.fill + 1 if fill else len(span(row)) + 2)
        assert len(row.source) <= spans.source_length
        assert byte_level().mask_token_id not in row.tokens
    longest = max(len(ids) for ids in kept)
    assert longest < spans.length or max(len(row.source) for row in rows) == spans.source_length


@pytest.mark.parametrize("share", ["0.3", "0.29", "0.07", "0.5", "0.999", "0.0001"])
def test_the_share_is_of_the_tokens_rounded_down_and_at_least_one(share: str) -> None:
    spans = Spans(share=float(share))
    assert [spans.size(n) for n in range(2, 3_000)] == [max(1, int(Fraction(share) * n)) for n in range(2, 3_000)]


def test_genies_numbers() -> None:
    """Paragraphs of 512 tokens: 153 are missing, and the response has 154 positions."""
    spans = Spans(length=512)
    assert (spans.size(512), spans.fill, spans.source_length) == (153, 154, 360)


def place(row: Example) -> int:
    return list(row.source).index(byte_level().mask_token_id)


def chi_square(counts: Counter[Any], cells: list[Any]) -> float:
    wanted = sum(counts.values()) / len(cells)
    assert set(counts) <= set(cells)
    return sum((counts[cell] - wanted) ** 2 / wanted for cell in cells)


def test_every_place_is_equally_likely_over_draws_and_over_paragraphs() -> None:
    text = "the cat sat on a mat"
    n = len(encode(byte_level(), text))
    spans = Spans(n, 2)
    places = list(range(n - spans.size(n) + 1))
    assert 4 < len(places) < 15
    over_draws = [place(row) for row in Denoising([text], byte_level(), spans, True, draws=4_000)]
    over_paragraphs = [place(row) for row in Denoising([text] * 4_000, byte_level(), spans, True)]
    for found in (over_draws, over_paragraphs):
        assert chi_square(Counter(found), places) < 36  # 99.9 % of the chi-square law with 14 degrees of freedom, of fewer less
        pairs = [(a, b) for a in places for b in places]  # one after the other says nothing
        following = Counter(zip(found[::2], found[1::2], strict=True))
        assert chi_square(following, pairs) < len(pairs) - 1 + 3.5 * (2 * (len(pairs) - 1)) ** 0.5


def test_a_row_is_a_function_of_seed_draw_and_paragraph_alone() -> None:
    spans = Spans(20, 5)
    rows = Denoising(DOCUMENTS, byte_level(), spans, True, draws=3, seed=5)
    once = len(rows.paragraphs)
    assert list(rows) == list(Denoising(DOCUMENTS, byte_level(), spans, True, draws=3, seed=5))
    assert [rows[i] for i in reversed(range(len(rows)))] == list(rows)[::-1]
    assert rows[:once] == list(Denoising(DOCUMENTS, byte_level(), spans, True, draws=1, seed=5))
    others = (rows[once : 2 * once], rows[2 * once :], Denoising(DOCUMENTS, byte_level(), spans, True, seed=6)[:])
    for other in others:
        assert 0.5 < sum(place(a) != place(b) for a, b in zip(rows[:once], other, strict=True)) / once < 1


def test_bytes_are_those_of_the_span() -> None:
    for row in Denoising(DOCUMENTS[:-1], byte_level(), Spans(20, 5), True):
        assert row.text_bytes == len(byte_level().decode(span(row)).encode())


def test_padding_of_a_batch_is_not_read() -> None:
    rows = Denoising(DOCUMENTS, byte_level(), Spans(20, 5), False)[:]
    batch = collate(rows, byte_level().pad_token_id)
    assert len({len(row.source) for row in rows}) > 5
    for row, source, attend, tokens, target in zip(
        rows, batch.source, batch.source_attend, batch.tokens, batch.target & batch.attend, strict=True
    ):
        assert source[attend].tolist() == list(row.source)
        assert tokens[target].tolist() == list(row.tokens[1:])


def test_a_blank_row_is_the_same_for_every_span() -> None:
    rows = Denoising(DOCUMENTS, byte_level(), Spans(20, 5), True)
    for row in rows:
        other = row._replace(tokens=[*row.tokens[:1], *[7] * (len(row.tokens) - 1)], text_bytes=1)
        assert rows.blank(row) == rows.blank(other)
        assert (rows.blank(row).source, rows.blank(row).target) == (row.source, row.target)


def test_what_leaves_nothing_is_refused_in_one_line() -> None:
    for options in ({"length": 10, "shortest": 11}, {"shortest": 1}):
        with pytest.raises(ValueError, match=r"^length is \d+ and shortest \d+: expected 2 <= shortest <= length$"):
            Spans(**options)
    for share in (0.0, 1.0, -0.1, float("nan")):
        with pytest.raises(ValueError, match=r"^share is .*, expected a part of a paragraph between 0 and 1$"):
            Spans(share=share)
    for lacking in (without_ends(byte_level(), "mask_token"), without_ends(byte_level(), "eos_token"), word_piece()):
        with pytest.raises(ValueError, match=r"^the tokenizer lacks a mask token, .* or an EOS token, which ends it: choose another$"):
            Denoising(["a b c"], lacking, Spans(), True)
