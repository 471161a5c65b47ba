import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from textdiff.vocab import MASK_TOKEN, Vocab, add_mask_token


def tokenizer(**special: str) -> PreTrainedTokenizerFast:
    words = ["<s>", "</s>", "[PAD]", "a", "b"]
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, "a")), **special)


def test_ids_are_read_from_the_tokenizer() -> None:
    vocab = Vocab.of(tokenizer(bos_token="<s>", eos_token="</s>", pad_token="[PAD]"), size=8)
    assert vocab == Vocab(size=8, tokens=5, mask_id=None, pad_id=2, bos_id=0, eos_id=1)


def test_a_model_never_has_fewer_rows_than_the_tokenizer_ids() -> None:
    assert Vocab.of(tokenizer(), size=3).size == 5
    assert Vocab.of(tokenizer()).size == 5


def test_a_mask_token_is_added_once() -> None:
    added = tokenizer()
    assert add_mask_token(added)
    assert not add_mask_token(added)
    assert added.mask_token == MASK_TOKEN
    assert Vocab.of(added) == Vocab(size=6, tokens=6, mask_id=5)


def test_unemittable_ids_are_mask_dedicated_pad_and_padding_rows() -> None:
    assert Vocab(size=8, tokens=6, mask_id=5, pad_id=2).unemittable == (2, 5, 6, 7)
    assert Vocab(size=8, tokens=6, mask_id=0, pad_id=2).unemittable == (0, 2, 6, 7)
    assert Vocab(size=6, tokens=6).unemittable == ()


def test_a_pad_that_is_also_the_end_token_can_be_written() -> None:
    assert Vocab(size=6, tokens=6, mask_id=5, pad_id=1, eos_id=1).unemittable == (5,)


def test_too_few_rows_and_ids_outside_them_are_refused() -> None:
    with pytest.raises(ValueError, match="6 ids but the model has 5 rows"):
        Vocab(size=5, tokens=6)
    with pytest.raises(ValueError, match="mask_id is 6, outside the 6 rows"):
        Vocab(size=6, tokens=6, mask_id=6)
