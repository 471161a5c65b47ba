"""What the maths must know of a tokenizer: how many ids there are and which of them are not text."""

from dataclasses import dataclass, field
from typing import Any

MASK_TOKEN = "[MASK]"


@dataclass(frozen=True)
class Vocab:
    """The ids of one tokenizer and the rows of the model that scores them."""

    size: int = field(metadata={"help": "rows of the embedding and of the head"})
    tokens: int = field(metadata={"help": "ids the tokenizer knows; ids from here to `size` are padding rows"})
    mask_id: int | None = None
    pad_id: int | None = None
    bos_id: int | None = None
    eos_id: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.tokens <= self.size:
            raise ValueError(f"the tokenizer has {self.tokens} ids but the model has {self.size} rows: resize the embeddings first")
        for name in ("mask_id", "pad_id", "bos_id", "eos_id"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < self.size:
                raise ValueError(f"{name} is {value}, outside the {self.size} rows of the model")

    @classmethod
    def of(cls, tokenizer: Any, size: int | None = None) -> "Vocab":
        """The vocabulary of a Hugging Face tokenizer; `size` is the number of model rows when it is larger."""
        tokens = len(tokenizer)
        return cls(
            size=max(tokens, size or 0),
            tokens=tokens,
            mask_id=tokenizer.mask_token_id,
            pad_id=tokenizer.pad_token_id,
            bos_id=tokenizer.bos_token_id,
            eos_id=tokenizer.eos_token_id,
        )

    @property
    def unemittable(self) -> tuple[int, ...]:
        """Ids that no sampler may write and no likelihood counts: [MASK], a dedicated [PAD], and rows beyond the tokenizer."""
        special = {self.mask_id, self.pad_id} - {None, self.eos_id, self.bos_id}
        return tuple(sorted({int(i) for i in special if i is not None} | set(range(self.tokens, self.size))))


def name_ends(tokenizer: Any) -> None:
    """Where BOS or EOS is not named, the [CLS] and [SEP] of a BERT tokenizer serve as such (in place)."""
    if tokenizer.bos_token is None and tokenizer.cls_token is not None:
        tokenizer.bos_token = tokenizer.cls_token
    if tokenizer.eos_token is None and tokenizer.sep_token is not None:
        tokenizer.eos_token = tokenizer.sep_token


def add_mask_token(tokenizer: Any) -> bool:
    """Give the tokenizer a [MASK] token if it has none (in place); True when one was added."""
    if tokenizer.mask_token_id is not None:
        return False
    tokenizer.add_special_tokens({"mask_token": MASK_TOKEN})
    return True
