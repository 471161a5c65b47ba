import os
import random
import shutil
from pathlib import Path

import pytest

from tests.data.texts import byte_level, documents, sentence, without_ends, word_piece
from textdiff.data.tokenizer import Encoder, encode, is_byte_level, load_tokenizer, token_bytes, train_tokenizer

GPT2 = Path(os.environ.get("TEXTDIFF_TEST_DATA", "data")) / "tokenizers" / "gpt2"


def random_text(seed: int) -> str:
    draw = random.Random(seed)
    ranges = [(0, 0x20), (0x20, 0x7F), (0x80, 0x800), (0x800, 0xD800), (0xE000, 0x10000), (0x10000, 0x110000)]
    return "".join(chr(draw.randrange(*draw.choice(ranges))) for _ in range(200))


@pytest.mark.parametrize("seed", range(20))
def test_any_unicode_survives_the_round_trip_and_its_bytes_add_up(seed: int) -> None:
    text = random_text(seed)
    ids = encode(byte_level(), text)
    assert byte_level().decode(ids) == text
    assert int(token_bytes(byte_level())[ids].sum()) == len(text.encode())


@pytest.mark.parametrize("text", ["[MASK]", "a [PAD][EOS] [MASK]b", "[BOS]"])
def test_special_tokens_spelled_in_the_text_stay_text(text: str) -> None:
    tokenizer = byte_level()
    ids = encode(tokenizer, text)
    assert not set(ids) & set(tokenizer.all_special_ids)
    assert tokenizer.decode(ids) == text


def test_the_vocabulary_is_specials_then_bytes_and_training_repeats() -> None:
    tokenizer = byte_level()
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.mask_token_id) == (0, 1, 2, 3)
    assert len(tokenizer) == 300
    assert train_tokenizer(documents(200), 300).get_vocab() == tokenizer.get_vocab()


def test_a_vocabulary_without_room_for_the_bytes_is_refused() -> None:
    with pytest.raises(ValueError, match="vocab_size is 259, expected at least 260"):
        train_tokenizer(["text"], 259)


def test_saved_and_loaded_it_encodes_the_same(tmp_path: Path) -> None:
    byte_level().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "an_unknown_one"}')
    loaded = load_tokenizer(str(tmp_path))
    text = random_text(1) + "[MASK]"
    assert encode(loaded, text) == encode(byte_level(), text)
    assert loaded.special_tokens_map == byte_level().special_tokens_map


def test_the_bytes_of_other_tokenizers_are_those_of_the_text_they_cover() -> None:
    texts = ["The CATS  café.\n", "cat", "", "😀 the 😀😀", "   "]
    encoded = list(Encoder(word_piece())(texts))
    for text, (ids, sizes) in zip(texts, encoded, strict=True):
        assert sizes.sum() == (len(text.encode()) if len(ids) else 0)
    # the | cat | s | caf | e | . + newline; a space belongs to the token after it
    assert encoded[0].sizes.tolist() == [3, 4, 1, 5, 2, 2]
    with pytest.raises(ValueError, match="not byte-level"):
        token_bytes(word_piece())


def test_cls_and_sep_serve_as_bos_and_eos(tmp_path: Path) -> None:
    word_piece().save_pretrained(tmp_path)
    loaded = load_tokenizer(str(tmp_path))
    assert (loaded.bos_token, loaded.eos_token, len(loaded)) == ("[CLS]", "[SEP]", len(word_piece()))


def test_many_texts_are_encoded_as_one_is() -> None:
    texts = [sentence(i) for i in range(300)]
    assert [e.ids.tolist() for e in Encoder(byte_level())(texts)] == [encode(byte_level(), text) for text in texts]


@pytest.mark.parametrize("name", ["./no/such/folder", "/nowhere/tokenizer", "missing.json", "not a name", "org/not-on-this-machine"])
def test_a_wrong_name_is_one_line(name: str) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]+$"):
        load_tokenizer(name)


def test_a_broken_folder_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^no tokenizer from [^\n]+$"):
        load_tokenizer(str(tmp_path))
    byte_level().save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match=r"^no tokenizer from [^\n]+$"):
        load_tokenizer(str(tmp_path))


def test_a_local_folder_wins_over_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    byte_level().save_pretrained(tmp_path / "gpt2")
    monkeypatch.chdir(tmp_path)
    assert len(load_tokenizer("gpt2")) == 300
    shutil.rmtree(tmp_path / "gpt2")


@pytest.mark.skipif(not GPT2.is_dir(), reason="the GPT-2 tokenizer is not here")
@pytest.mark.parametrize("text", ["a<|endoftext|>b<|mask_token|>c", random_text(3), "naïve  café\n\n\n"])
def test_gpt2_keeps_its_special_tokens_out_of_the_data(text: str) -> None:
    tokenizer = load_tokenizer(str(GPT2))
    ids = encode(tokenizer, text)
    assert tokenizer.decode(ids) == text
    assert max(ids) < 50256
    assert is_byte_level(tokenizer)
    assert int(token_bytes(tokenizer)[ids].sum()) == len(text.encode())


def test_unnaming_an_end_keeps_the_ids() -> None:
    bare = without_ends(byte_level(), "bos_token", "eos_token")
    assert (bare.bos_token_id, bare.eos_token_id) == (None, None)
    assert encode(bare, "the cat") == encode(byte_level(), "the cat")
