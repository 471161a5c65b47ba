import itertools
from collections.abc import Iterator

import pytest

from tests.data.texts import byte_level, documents, sentence, without_ends, word_piece
from textdiff.data.tokenizer import encode
from textdiff.data.windows import Extent, Windows, passages

TEXTS = ["", "a", sentence(1, 3), sentence(2, 40), "  ", sentence(3, 17), "déjà vu 🦉 " * 9]
SHAPES = [(2, 1), (5, 1), (5, 2), (5, 4), (16, 8), (16, 15), (400, 200)]


def rolling(tokens: list[int], prefix: int, max_seq_len: int, context_len: int) -> Iterator[tuple[list[int], list[int]]]:
    """(input, targets) of each window, as lm-eval makes them: the input is all tokens before the last target."""
    done = min(max_seq_len, len(tokens))
    yield [prefix, *tokens[: done - 1]], tokens[:done]
    while done < len(tokens):
        end = min(len(tokens), done + max_seq_len - context_len + 1)
        yield tokens[end - max_seq_len - 1 : end - 1], tokens[done:end]
        done = end


def sliding(tokens: list[int], length: int, stride: int) -> Iterator[tuple[list[int], int]]:
    """(row, counted tokens at its end) of each window, as the perplexity guide of transformers makes them."""
    before = 0
    for begin in range(0, len(tokens), stride):
        end = min(begin + length, len(tokens))
        yield tokens[begin:end], end - before
        before = end
        if end == len(tokens):
            break


def windows_of(windows: Windows, text: int) -> list[tuple[list[int], list[bool]]]:
    return [(list(windows[i].tokens), list(windows[i].target)) for i in range(len(windows)) if windows.text_of[i] == text]


@pytest.mark.parametrize("end", [False, True])
@pytest.mark.parametrize(("length", "stride"), SHAPES)
def test_every_token_counts_once_after_the_context_that_lm_eval_gives_it(length: int, stride: int, end: bool) -> None:
    tokenizer = byte_level()
    windows = Windows(TEXTS, tokenizer, length, stride, end)
    assert windows.text_of.tolist() == sorted(windows.text_of)
    for number, text in enumerate(TEXTS):
        tokens = [*encode(tokenizer, text), *([tokenizer.eos_token_id] if end else [])]
        expected = [
            ([*context, targets[-1]], [False] * (len(context) + 1 - len(targets)) + [True] * len(targets))
            for context, targets in (rolling(tokens, tokenizer.bos_token_id, length - 1, length - stride) if tokens else [])
        ]
        assert windows_of(windows, number) == expected


@pytest.mark.parametrize(("length", "stride"), SHAPES)
def test_but_for_the_last_they_are_the_windows_of_the_perplexity_guide(length: int, stride: int) -> None:
    tokenizer = byte_level()
    windows = Windows(TEXTS, tokenizer, length, stride)
    for number, text in enumerate(TEXTS):
        expected = list(sliding([tokenizer.bos_token_id, *encode(tokenizer, text)], length, stride))
        found = windows_of(windows, number)
        if len(expected[0][0]) > 1:
            assert len(found) == len(expected)
            for (tokens, target), (row, counted) in itertools.islice(zip(found, expected, strict=True), len(found) - 1):
                assert tokens == row
                assert sum(target) == min(counted, len(row) - 1)  # the guide, too, cannot score what nothing stands before


def test_text_and_bytes_are_counted_once() -> None:
    windows = Windows(TEXTS, byte_level(), 7, 3, end=True)
    for number, text in enumerate(TEXTS):
        rows = [windows[i] for i in range(len(windows)) if windows.text_of[i] == number]
        assert sum(row.text_bytes for row in rows) == len(text.encode())
        written = [token for row in rows for token, target in zip(row.tokens, row.target, strict=True) if target]
        assert byte_level().decode(written[:-1]) == text
        assert written[-1] == byte_level().eos_token_id
    assert Extent.of("déjà vu\n 🦉") == (len("déjà vu\n 🦉".encode()), 10, 3)


def test_what_stands_before_a_text() -> None:
    assert Windows(["a b"], byte_level(), 9).start == "[BOS]"
    ends = without_ends(byte_level(), "bos_token")
    assert (Windows(["a b"], ends, 9).start, Windows(["a b"], ends, 9)[0].tokens[0]) == ("[EOS]", ends.eos_token_id)
    bare = without_ends(byte_level(), "bos_token", "eos_token")
    windows, ids = Windows(["the cat", "", "a"], bare, 9), encode(bare, "the cat")
    assert (windows.start, windows.text_of.tolist()) == (None, [0])
    assert (windows[0].tokens, windows[0].target) == (ids, [False, *[True] * (len(ids) - 1)])
    with pytest.raises(ValueError, match="no EOS token to count after each text: leave end out"):
        Windows(["a"], bare, 9, end=True)


def test_a_tokenizer_that_does_not_know_its_bytes_counts_the_same_text() -> None:
    text = "the cats. " * 7
    windows = Windows([text], without_ends(word_piece(), "cls_token", "sep_token"), 5, 2)
    assert sum(sum(row.target) for row in windows) == len(encode(word_piece(), text)) - 1


def test_senseless_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="length is 1, expected at least 2"):
        Windows(["a"], byte_level(), 1)
    for stride in (0, 8, 9):
        with pytest.raises(ValueError, match=f"stride is {stride}, expected 1 to 7"):
            Windows(["a"], byte_level(), 8, stride)


@pytest.mark.parametrize("characters", [1, 7, 30, 1000])
def test_passages_are_the_text_cut_where_it_says(characters: int) -> None:
    texts = ["\n".join(documents(20)), "x" * 50, "\n\n\n \t\n" * 9, "", "two words", "🦉" * 31 + " " + "a\n" * 40]
    for text in texts:
        found = passages([text], characters)
        assert "".join(found) == text
        assert max(map(len, found)) <= characters
        assert text == "" or min(map(len, found)) > 0
        ends = list(itertools.accumulate(map(len, found)))
        for begin, end in zip([0, *ends], ends[:-1], strict=False):  # by every possible end, best kind first
            fits = range(begin + 1, min(begin + characters, len(text)) + 1)
            lines = [place for place in fits if text[place - 1] == "\n"]
            spaces = [place for place in fits if text[place - 1].isspace()]
            assert end == max(lines or spaces or fits)
    assert passages(texts, characters) == [passage for text in texts for passage in passages([text], characters)]


def test_passages_of_no_characters_are_refused() -> None:
    with pytest.raises(ValueError, match="passages of 0 characters were asked for, expected 1 or more"):
        passages(["a"], 0)
