"""The texts of a comparison: the same ones for every model, cut without regard to any tokenizer."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from textdiff.data.splits import Splits
    from textdiff.evaluation.measuring import Texts

Record = TypeVar("Record")


def compared_texts(
    source: str, columns: Sequence[str] | None, split: str | None, convention: str, characters: int, limit: int | None
) -> "Texts":
    """Passages of at most so many characters of the documents that a source names, whole documents for 0, or its responses; at most
    `limit` of them, evenly spaced.

    `split` is train, validation, test or all; None means all of a file or folder, and validation of an embedded corpus or a hub id.
    `convention` names what is done to the data's own tokenisation. A source zero-shot:NAME stands for a data set as published tables read
    it, with its own column, split and detokenizer. Raises ValueError with one line for what cannot be had.
    """
    from textdiff.data.conventions import PREFIX, detokenizer
    from textdiff.data.conventions import convention as published
    from textdiff.data.corpora import resolve
    from textdiff.data.readers import Pair
    from textdiff.data.source import local_path
    from textdiff.data.splits import Splits
    from textdiff.data.windows import passages
    from textdiff.evaluation.measuring import Texts

    note = ""
    if source.startswith(PREFIX):
        given = published(source.removeprefix(PREFIX))
        if columns is not None or convention not in ("none", given.detokenizer) or split not in (None, given.split):
            said = f"column {given.column}, split {given.split} and detokenizer {given.detokenizer}"
            raise ValueError(f"{source} is read with {said}: leave those options out, or name {given.source} itself")
        columns, split, convention, note = (given.column,), given.split, given.detokenizer, f"; {given.note}"
        source = given.source
    clean = detokenizer(convention)
    corpus = resolve(source, columns)
    if split is None:
        split = "validation" if local_path(corpus.name) is None else "all"
    if split not in (*Splits._fields, "all"):
        raise ValueError(f"there is no split {split!r}: expected train, validation, test or all")
    texts: Sequence[str] | Sequence[Pair]
    documents: list[int] = []
    if corpus.holds_pairs:
        unit, texts = "response", [Pair(clean(pair.prompt), clean(pair.response)) for pair in _chosen(corpus.pairs(), split)]
    else:
        unit, texts = "document", [clean(text) for text in _chosen(corpus.texts(), split)]
        if characters:
            parts = [passages([text], characters) for text in texts]
            unit, texts = "passage", [passage for part in parts for passage in part]
            documents = [number for number, part in enumerate(parts) for _ in part]
    every = 1 if limit is None else max(1, math.ceil(len(texts) / limit))
    taken = texts[::every]
    if not taken:
        raise ValueError(f"the {split} split of {source} holds nothing to score: choose other data")
    cut = f" of at most {characters:,} characters" if unit == "passage" else ""
    part = f", {len(taken):,} of {len(texts):,}, evenly spaced" if every > 1 else ""
    return Texts(f"{corpus.description}; split {split}; {unit}s{cut}{part}{note}", unit, taken, convention, documents[::every])


def _chosen(splits: "Splits[Record]", split: str) -> "list[Record]":
    return [record for name, part in zip(splits._fields, splits, strict=True) if split in (name, "all") for record in part]
