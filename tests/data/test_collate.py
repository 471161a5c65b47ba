from itertools import chain
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from tests.data.texts import byte_level, documents, without_ends, word_piece
from textdiff.backbones.attention_masks import positions
from textdiff.batch import Example, collate
from textdiff.data.collate import Blocks, Pairs
from textdiff.data.readers import Pair
from textdiff.data.tokenizer import encode, load_tokenizer

TEXTS = [*documents(23), "é" * 9 + "😀" * 5]


def targets(example: Example) -> list[int]:
    return [token for token, scored in zip(example.tokens, example.target, strict=True) if scored]


def stream(tokenizer: PreTrainedTokenizerBase, texts: list[str] = TEXTS) -> list[int]:
    eos = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    return list(chain.from_iterable(encode(tokenizer, text) + eos for text in texts))


@pytest.mark.parametrize("length", [2, 7, 32, 10_000])
def test_the_targets_of_all_blocks_are_the_stream_and_the_context_is_bos(length: int) -> None:
    blocks = Blocks(TEXTS, byte_level(), length)
    rows = [blocks[i] for i in range(len(blocks))]
    assert list(chain.from_iterable(map(targets, rows))) == stream(byte_level())
    assert {row.tokens[0] for row in rows} == {byte_level().bos_token_id}
    assert {row.target[0] for row in rows} == {False}
    assert {len(row.tokens) for row in rows[:-1]} <= {length}
    assert blocks.tokens == len(stream(byte_level()))


def test_a_tokenizer_without_bos_starts_blocks_with_eos() -> None:
    tokenizer = without_ends(byte_level(), "bos_token")
    blocks = Blocks(TEXTS, tokenizer, 16)
    assert {blocks[i].tokens[0] for i in range(len(blocks))} == {tokenizer.eos_token_id}
    assert list(chain.from_iterable(targets(blocks[i]) for i in range(len(blocks)))) == stream(tokenizer)


@pytest.mark.parametrize("length", [2, 7, 16])
def test_without_bos_and_eos_the_token_before_a_block_is_its_context(length: int) -> None:
    tokenizer = without_ends(byte_level(), "bos_token", "eos_token")
    blocks, whole = Blocks(TEXTS, tokenizer, length), stream(tokenizer)
    assert list(chain.from_iterable(targets(blocks[i]) for i in range(len(blocks)))) == whole[1:]
    assert [blocks[i].tokens[0] for i in range(len(blocks))] == whole[: -1 : length - 1]


@pytest.mark.parametrize("length", [2, 5, 64])
def test_the_bytes_of_all_blocks_are_those_of_the_text(length: int, tmp_path: Path) -> None:
    word_piece().save_pretrained(tmp_path)
    for tokenizer in (byte_level(), load_tokenizer(str(tmp_path))):
        blocks = Blocks(TEXTS, tokenizer, length)
        assert sum(blocks[i].text_bytes for i in range(len(blocks))) == sum(len(text.encode()) for text in TEXTS)


def test_the_bytes_of_a_block_are_those_its_targets_decode_to() -> None:
    blocks = Blocks(["plain words only"] * 9, byte_level(), 6)
    for i in range(len(blocks)):
        text = byte_level().decode([t for t in targets(blocks[i]) if t != byte_level().eos_token_id])
        assert blocks[i].text_bytes == len(text)


def test_isolated_documents_are_numbered_from_one_and_change_after_eos() -> None:
    eos = byte_level().eos_token_id
    blocks = Blocks(TEXTS, byte_level(), 24, isolate=True)
    for i in range(len(blocks)):
        example, number, expected = blocks[i], 1, [1]
        for token in example.tokens[1:]:
            expected.append(number)
            number += token == eos
        assert example.document == expected
    plain = Blocks(TEXTS, byte_level(), 24)
    assert [plain[i]._replace(document=None) for i in range(len(plain))] == [blocks[i]._replace(document=None) for i in range(len(blocks))]


def test_positions_restart_in_each_document_of_a_padded_batch() -> None:
    blocks = Blocks(["the cat", "a dog"], byte_level(), 100, isolate=True)
    batch = collate([blocks[0], Example([1, 5], [False, True], [1, 1])], pad_id=0)
    first = len(encode(byte_level(), "the cat")) + 2  # BOS and EOS with it
    place = positions(batch.document)[0]
    assert torch.equal(place[:first], torch.arange(first))
    assert int(place[first]) == 0


def test_slices_and_iteration_give_what_single_indices_give() -> None:
    blocks = Blocks(TEXTS, byte_level(), 16)
    rows = [blocks[i] for i in range(len(blocks))]
    assert list(blocks) == rows
    assert (blocks[2:9:3], blocks[-1]) == (rows[2:9:3], rows[-1])


def test_a_block_needs_room_for_a_target_and_an_index_inside() -> None:
    with pytest.raises(ValueError, match="length is 1, expected at least 2"):
        Blocks(TEXTS, byte_level(), 1)
    with pytest.raises(IndexError):
        Blocks(TEXTS, byte_level(), 10_000)[1]
    assert len(Blocks([], byte_level(), 8)) == 0


def test_a_prompt_is_context_and_the_response_with_its_eos_is_target() -> None:
    tokenizer = byte_level()
    prompt, response = encode(tokenizer, "the cat"), encode(tokenizer, "sät")
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    row = Pairs([Pair("the cat", "sät")], tokenizer, 64)[0]
    assert row.tokens == [bos, *prompt, eos, *response, eos]
    assert targets(row) == [*response, eos]
    assert row.target == [False] * (len(prompt) + 2) + [True] * (len(response) + 1)
    row = Pairs([Pair("the cat", "sät")], tokenizer, 64, encoder=True)[0]
    assert (row.source, row.tokens, targets(row)) == (prompt, [bos, *response, eos], [*response, eos])
    assert row.text_bytes == 4


@pytest.mark.parametrize("encoder", [False, True])
def test_a_pair_that_is_too_long_is_named_or_loses_the_end_of_its_prompt(encoder: bool) -> None:
    long, short = Pair("the cat sat on the mat " * 9, "yes"), Pair("the", "no")
    with pytest.raises(ValueError, match=r"^pair 2 \('the cat sat on the mat [^\n]*raise it or truncate$"):
        Pairs([short, long], byte_level(), 24, encoder)
    pairs = Pairs([short, long], byte_level(), 24, encoder, truncate=True)
    assert pairs.truncated == 1
    row = pairs[1]
    assert targets(row) == [*encode(byte_level(), "yes"), byte_level().eos_token_id]
    assert len(row.source if encoder else row.tokens) == 24
    prompt = encode(byte_level(), long.prompt)
    kept = list(row.source) if encoder else list(row.tokens[1 : row.tokens.index(byte_level().eos_token_id)])
    assert kept == prompt[: len(kept)]
    with pytest.raises(ValueError, match=r"^pair 1 \('yes'\): the response has \d+ tokens and does not fit"):
        Pairs([Pair("yes", long.prompt)], byte_level(), 24, encoder, truncate=True)


@pytest.mark.parametrize("encoder", [False, True])
def test_a_pair_that_just_fits_is_kept(encoder: bool) -> None:
    pair = Pair("the cat", "sat on a mat")
    length = len(Pairs([pair], byte_level(), 1000, encoder)[0].tokens)
    assert len(Pairs([pair], byte_level(), length, encoder)) == 1
    with pytest.raises(ValueError, match="pair 1"):
        Pairs([pair], byte_level(), length - 1, encoder)


@pytest.mark.parametrize("encoder", [False, True])
def test_filled_rows_have_as_many_targets_each_of_them_the_response_then_eos(encoder: bool) -> None:
    tokenizer, long, short = byte_level(), Pair("the cat", "sät on a mat"), Pair("a dog", "ran")
    fill = len(encode(tokenizer, long.response)) + 3
    plain, filled = (Pairs([long, short], tokenizer, 64, encoder, fill=size) for size in (None, fill))
    assert filled.truncated == 0
    for before, row in zip(plain, filled, strict=True):
        ends = [tokenizer.eos_token_id] * (fill - len(targets(before)))
        assert targets(row) == targets(before) + ends
        context = len(before.tokens) - len(targets(before))
        assert list(row.tokens) == [*before.tokens[:context], *targets(row)]
        assert list(row.target) == [False] * context + [True] * fill
        assert (row.source, row.text_bytes) == (before.source, before.text_bytes)
    batch = collate([filled[0], filled[1]], pad_id=tokenizer.pad_token_id)
    assert not bool((batch.tokens[batch.target] == tokenizer.pad_token_id).any())


@pytest.mark.parametrize("encoder", [False, True])
def test_a_response_needs_room_for_its_eos_or_loses_its_end(encoder: bool) -> None:
    tokenizer, pair = byte_level(), Pair("the cat", "sät on a mat")
    response = encode(tokenizer, pair.response)
    assert targets(Pairs([pair], tokenizer, 64, encoder, fill=len(response) + 1)[0]) == [*response, tokenizer.eos_token_id]
    with pytest.raises(ValueError, match=rf"^pair 1 \('the cat'\): the response has {len(response)} tokens, fill \d+ leaves \d+"):
        Pairs([pair], tokenizer, 64, encoder, fill=len(response))
    cut = Pairs([pair], tokenizer, 64, encoder, truncate=True, fill=2)
    assert targets(cut[0]) == [response[0], tokenizer.eos_token_id]
    assert (cut.truncated, cut[0].text_bytes) == (1, 1)


def test_with_fill_a_prompt_has_what_the_fill_leaves() -> None:
    long = Pair("the cat sat on the mat " * 9, "yes")
    row = Pairs([long], byte_level(), 24, truncate=True, fill=8)[0]
    assert (len(row.tokens), sum(row.target)) == (24, 8)
    for fill in (0, 24):
        with pytest.raises(ValueError, match=f"fill is {fill}, expected 1 target or more, and less than max_length 24"):
            Pairs([long], byte_level(), 24, fill=fill)


def test_pairs_need_an_eos() -> None:
    with pytest.raises(ValueError, match="no EOS token"):
        Pairs([Pair("a", "b")], without_ends(byte_level(), "eos_token"), 16)
