"""Train, validation and test: which record belongs where, as a function of the record alone."""

import hashlib
from collections.abc import Sequence
from typing import Generic, NamedTuple, TypeVar

Record = TypeVar("Record")
VALIDATION_SHARE = TEST_SHARE = 0.05


class Splits(NamedTuple, Generic[Record]):
    """Three disjoint sequences of records."""

    train: Sequence[Record]
    validation: Sequence[Record]
    test: Sequence[Record]


def bucket(key: str) -> int:
    """0 (train), 1 (validation) or 2 (test) by a hash of the key: equal keys never part, and growing data moves no old record."""
    place = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64
    if place < 1 - VALIDATION_SHARE - TEST_SHARE:
        return 0
    return 1 if place < 1 - TEST_SHARE else 2


def cut(text: str) -> Splits[str]:
    """One running text as three contiguous ranges, cut after a line's end (or in a line, when none follows); no character is lost."""
    first = _line_end(text, round(len(text) * (1 - VALIDATION_SHARE - TEST_SHARE)))
    second = _line_end(text, max(first, round(len(text) * (1 - TEST_SHARE))))
    ranges = (text[:first], text[first:second], text[second:])
    return Splits(*([part] if part else [] for part in ranges))


def _line_end(text: str, at: int) -> int:
    """The first place from `at` on where a line has just ended, or `at`."""
    found = text.find("\n", max(at - 1, 0))
    return at if found < 0 else found + 1
