"""The texts of a comparison: the same ones for every model, cut without regard to any tokenizer."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeVar

if TYPE_CHECKING:
    from textdiff.data.readers import Pair
    from textdiff.data.splits import Splits
    from textdiff.evaluation.measuring import Texts

Record = TypeVar("Record")


class _Asked(NamedTuple):
    """What of a source is read, and how."""

    source: str
    columns: Sequence[str] | None
    split: str | None
    convention: str
    note: str = ""


def compared_texts(
    source: str, columns: Sequence[str] | None, split: str | None, convention: str, characters: int, limit: int | None
) -> "Texts":
    """Passages of at most so many characters of the documents that a source names, whole documents for 0, or its responses; at most
    `limit` of them, evenly spaced.

    `split` is train, validation, test or all; None means all of a file or folder, and validation of an embedded corpus or a hub id.
    `convention` names what is done to the data's own tokenisation. A source zero-shot:NAME stands for a data set as published tables read
    it, with its own column, split and detokenizer. Raises ValueError with one line for what cannot be had.
    """
    from textdiff.data.corpora import resolve
    from textdiff.data.source import local_path
    from textdiff.data.splits import Splits

    asked = _as_published(_Asked(source, columns, split, convention))
    corpus = resolve(asked.source, asked.columns)
    split = asked.split or ("validation" if local_path(corpus.name) is None else "all")
    if split not in (*Splits._fields, "all"):
        raise ValueError(f"there is no split {split!r}: expected train, validation, test or all")
    if corpus.holds_pairs:
        found = _responses(corpus.pairs(), split, asked.convention)
    else:
        found = _passages(corpus.texts(), split, asked.convention, characters)
    if not found.texts:
        raise ValueError(f"the {split} split of {asked.source} holds nothing to score: choose other data")
    cut = f" of at most {characters:,} characters" if found.unit == "passage" else ""
    found = _thinned(found, limit)
    return found._replace(description=f"{corpus.description}; split {split}; {found.unit}s{cut}{found.description}{asked.note}")


def _as_published(asked: _Asked) -> _Asked:
    """A source zero-shot:NAME with its convention filled in; any other as it is."""
    from textdiff.data.conventions import PREFIX, convention

    if not asked.source.startswith(PREFIX):
        return asked
    given = convention(asked.source.removeprefix(PREFIX))
    if asked.columns is not None or asked.convention not in ("none", given.detokenizer) or asked.split not in (None, given.split):
        said = f"column {given.column}, split {given.split} and detokenizer {given.detokenizer}"
        raise ValueError(f"{asked.source} is read with {said}: leave those options out, or name {given.source} itself")
    return _Asked(given.source, (given.column,), given.split, given.detokenizer, f"; {given.note}")


def _responses(pairs: "Splits[Pair]", split: str, convention: str) -> "Texts":
    """Every pair of a split."""
    from textdiff.data.conventions import detokenizer
    from textdiff.data.readers import Pair
    from textdiff.evaluation.measuring import Texts

    clean = detokenizer(convention)
    return Texts("", "response", [Pair(clean(pair.prompt), clean(pair.response)) for pair in _chosen(pairs, split)], convention)


def _passages(texts: "Splits[str]", split: str, convention: str, characters: int) -> "Texts":
    """Every document of a split, cut into passages where `characters` is not 0."""
    from textdiff.data.conventions import detokenizer
    from textdiff.data.windows import passages
    from textdiff.evaluation.measuring import Texts

    clean = detokenizer(convention)
    documents = [clean(text) for text in _chosen(texts, split)]
    if not characters:
        return Texts("", "document", documents, convention)
    parts = [passages([text], characters) for text in documents]
    numbers = [number for number, part in enumerate(parts) for _ in part]
    return Texts("", "passage", [passage for part in parts for passage in part], convention, numbers)


def _thinned(found: "Texts", limit: int | None) -> "Texts":
    """At most `limit` texts, evenly spaced, which the description then says."""
    every = 1 if limit is None else math.ceil(len(found.texts) / limit)
    if every <= 1:
        return found
    taken, total = found.texts[::every], len(found.texts)
    part = f", {len(taken):,} of {total:,}, evenly spaced"
    return found._replace(description=found.description + part, texts=taken, documents=found.documents[::every])


def _chosen(splits: "Splits[Record]", split: str) -> "list[Record]":
    return [record for name, part in zip(splits._fields, splits, strict=True) if split in (name, "all") for record in part]
