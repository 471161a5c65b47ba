"""A tokenizer loses what its tokens do not give back: case, accents, unknown characters, runs of white space."""

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.data.texts import byte_level, documents, word_piece
from textdiff.evaluation.round_trip import share_lost

ODD = ["", " ", "two  spaces\n", " a space before", "größer 東京 🙂", "[MASK] is text", "end \n"]


def bytes_of(**parts: object) -> PreTrainedTokenizerFast:
    """A tokenizer of single bytes with other parts."""
    core = Tokenizer.from_str(byte_level().backend_tokenizer.to_str())
    for name, part in parts.items():
        setattr(core, name, part)
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="[EOS]", clean_up_tokenization_spaces=True)


def test_bytes_lose_nothing() -> None:
    assert share_lost(byte_level(), [*documents(30), *ODD]) == 0
    assert share_lost(bytes_of(), ["it 's , not . cleaned up", *ODD]) == 0  # whatever the tokenizer's own decode would tidy
    assert share_lost(byte_level(), []) == 0


def test_a_space_put_before_every_text_loses_nothing() -> None:
    prefixed = bytes_of(pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=True))
    assert prefixed.decode(prefixed("the cat")["input_ids"]) == " the cat"
    assert share_lost(prefixed, ["the cat", " the cat", *ODD[1:]]) == 0


def test_the_share_is_of_the_texts_that_change() -> None:
    lower = bytes_of(normalizer=normalizers.Lowercase())
    assert share_lost(lower, ["the cat", "The cat", "a dog", "a Dog"]) == 0.5
    accents = bytes_of(normalizer=normalizers.NFC())
    assert share_lost(accents, ["caf\u00e9", "cafe\u0301", "a", "b"]) == 0.25


def test_unknown_words_and_case_and_spaces_are_lost() -> None:
    assert share_lost(word_piece(), ["the cat", "The cat", "the mat", "the  cat"]) == 0.75


def test_unknown_characters_are_lost() -> None:
    letters = {letter: i for i, letter in enumerate(["<unk>", *"abc "])}
    core = Tokenizer(models.WordLevel(letters, unk_token="<unk>"))
    core.pre_tokenizer, core.decoder = pre_tokenizers.Split("", "isolated"), decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>")
    assert share_lost(tokenizer, ["a cab", "a cad"]) == 0.5
