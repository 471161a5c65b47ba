"""Between text and ids: train a byte-level BPE, load any Hugging Face tokenizer, and encode data the one way it is encoded.

Data never contains special tokens: the text "[MASK]" in a document is seven characters, not the mask id.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers  # AutoTokenizer is reached when a function runs: see textdiff/__init__.py
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from textdiff.data.source import first_line, local_path
from textdiff.vocab import MASK_TOKEN, name_ends

_SPECIAL = {"pad_token": "[PAD]", "bos_token": "[BOS]", "eos_token": "[EOS]", "mask_token": MASK_TOKEN}
_BATCH = 256  # documents encoded at a time


class Encoded(NamedTuple):
    """A text as ids, and the UTF-8 bytes of the text that each id stands for."""

    ids: NDArray[np.int64]  # (N,)
    sizes: NDArray[np.int64]  # (N,), their sum is the text's length in bytes


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE (Sennrich et al. 2016; Radford et al. 2019) with [PAD] [BOS] [EOS] [MASK]: every UTF-8 text survives a round trip.

    `vocab_size` counts the special tokens; a short text may fill less of it. Raises ValueError below 260: 256 bytes and 4 special tokens.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    smallest = len(alphabet) + len(_SPECIAL)
    if vocab_size < smallest:
        raise ValueError(f"vocab_size is {vocab_size}, expected at least {smallest}: 256 bytes and {len(_SPECIAL)} special tokens")
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=list(_SPECIAL.values()), initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=core, clean_up_tokenization_spaces=False, **_SPECIAL
    )


def load_tokenizer(name_or_path: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a local folder or of a hub id; raises ValueError with one line when there is none.

    Where BOS or EOS is not named, the [CLS] and [SEP] of a BERT tokenizer serve as such; no token is added.
    """
    path = local_path(name_or_path)
    if path is not None and path.is_file():
        raise ValueError(f"{name_or_path} is a file: name the folder that holds tokenizer.json")
    try:
        tokenizer: PreTrainedTokenizerBase = transformers.AutoTokenizer.from_pretrained(
            name_or_path if path is None else str(path.absolute())
        )
    except Exception as error:  # the Rust parser and the hub client raise bare Exceptions for what is always the user's wrong name or file
        where = "as a hub id it failed" if path is None else "it holds no readable tokenizer"
        raise ValueError(f"no tokenizer from {name_or_path!r}, {where}: {first_line(error)}") from error
    if not tokenizer.is_fast:
        raise ValueError(f"the tokenizer of {name_or_path!r} has no tokenizer.json: convert it to a fast tokenizer first")
    name_ends(tokenizer)
    return tokenizer


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The ids of a text: no special token is added, and none is recognised in the text."""
    ids: list[int] = _call(tokenizer, [text])["input_ids"][0]
    return ids


class Encoder:
    """Many texts as ids, as `encode` gives them, with their bytes: of the id itself when byte-level, else of the text it covers."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.table = token_bytes(tokenizer).numpy() if is_byte_level(tokenizer) else None

    def __call__(self, texts: Sequence[str]) -> Iterator[Encoded]:
        """The texts in order."""
        for start in range(0, len(texts), _BATCH):
            batch = texts[start : start + _BATCH]
            encoding = _call(self.tokenizer, list(batch), return_offsets_mapping=True)
            for text, ids, offsets in zip(batch, encoding["input_ids"], encoding["offset_mapping"], strict=True):
                yield _sized(text, np.asarray(ids, dtype=np.int64), offsets, self.table)


def is_byte_level(tokenizer: PreTrainedTokenizerBase) -> bool:
    """True when ids stand for bytes, as in the BPE of GPT-2."""
    decoder = tokenizer.backend_tokenizer.decoder
    if decoder is None:
        return False
    state = json.loads(decoder.__getstate__())
    return any(part["type"] == "ByteLevel" for part in state.get("decoders", [state]))


def token_bytes(tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """(V,) long: UTF-8 bytes that each id of a byte-level tokenizer stands for, 0 for special tokens; raises ValueError for others."""
    if not is_byte_level(tokenizer):
        raise ValueError("this tokenizer is not byte-level: the bytes of an id depend on its text, count them with Encoder")
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    result = torch.zeros(max(vocabulary.values()) + 1, dtype=torch.long)
    added: dict[int, Any] = tokenizer.added_tokens_decoder
    special = set(tokenizer.all_special_ids)
    for token, index in vocabulary.items():
        if index in added:  # stored as text, not in the byte alphabet
            result[index] = 0 if added[index].special or index in special else len(token.encode())
        else:
            result[index] = 0 if index in special else len(token)  # one character of the alphabet per byte
    return result


def _call(tokenizer: PreTrainedTokenizerBase, texts: list[str], **options: bool) -> Any:
    return tokenizer(
        texts,
        add_special_tokens=False,
        split_special_tokens=True,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
        **options,
    )


def _sized(text: str, ids: NDArray[np.int64], offsets: Sequence[tuple[int, int]], table: NDArray[np.int64] | None) -> Encoded:
    total = len(text.encode())
    if table is not None:
        sizes = table[ids]
        if sizes.sum() == total:  # not so when a normaliser or a prefix space changed the text first
            return Encoded(ids, sizes)
    ends = np.maximum.accumulate(np.asarray([end for _, end in offsets], dtype=np.int64)) if len(ids) else ids
    if len(ends):
        ends[-1] = len(text)
    widths = np.concatenate([[0], np.cumsum([len(character.encode()) for character in text], dtype=np.int64)])
    return Encoded(ids, np.diff(widths[ends], prepend=0))
