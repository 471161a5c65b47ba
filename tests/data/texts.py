"""Small inputs shared by the tests of the data layer."""

import random
from functools import cache

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from textdiff.data.tokenizer import train_tokenizer

WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "dog", "ran", "to", "red", "house", "where", "old", "friends", "drink", "tea"]


def sentence(seed: int, words: int = 12) -> str:
    draw = random.Random(seed)
    return " ".join(draw.choice(WORDS) for _ in range(words)) + f" {seed}."


def documents(number: int) -> list[str]:
    return [sentence(i, 3 + i % 20) for i in range(number)]


@cache
def byte_level() -> PreTrainedTokenizerBase:
    return train_tokenizer(documents(200), 300)


@cache
def word_piece() -> PreTrainedTokenizerBase:
    """A BERT-like tokenizer that lowercases: its ids do not know their bytes."""
    vocabulary = {
        token: i for i, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "##s", "caf", "##e", "."])
    }
    core = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    core.normalizer, core.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    core.decoder = decoders.WordPiece()
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    return PreTrainedTokenizerFast(tokenizer_object=core, **special)


def without_ends(tokenizer: PreTrainedTokenizerBase, *names: str) -> PreTrainedTokenizerBase:
    """The same tokenizer with its BOS or EOS unnamed."""
    core = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    kept = {name: token for name, token in tokenizer.special_tokens_map.items() if name not in names}
    return PreTrainedTokenizerFast(tokenizer_object=core, clean_up_tokenization_spaces=False, **kept)
