"""Whether a tokenizer gives texts back: what it loses (case, accents, rare characters, line breaks) costs a model nothing."""

from collections.abc import Iterator, Sequence

from transformers import PreTrainedTokenizerBase

from textdiff.data.tokenizer import Encoder

_AT_ONCE = 1024  # texts that are decoded together


def share_lost(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> float:
    """The share of texts that are not what their tokens decode to; 0 for no texts.

    A space that the tokenizer puts before a text loses nothing: it is told from the text in all texts but those that begin with one.
    """
    lost = sum(back not in (text, f" {text}") for text, back in zip(texts, _returned(tokenizer, texts), strict=True))
    return lost / max(1, len(texts))


def _returned(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> Iterator[str]:
    encode, core = Encoder(tokenizer), tokenizer.backend_tokenizer
    for start in range(0, len(texts), _AT_ONCE):
        ids = [encoded.ids.tolist() for encoded in encode(texts[start : start + _AT_ONCE])]
        yield from core.decode_batch(ids, skip_special_tokens=False)  # no cleaning up of spaces, which transformers would add
