import json
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

import datasets
import pytest
from transformers import PreTrainedTokenizerBase

from tests.data.texts import byte_level, documents, without_ends
from textdiff.batch import Example
from textdiff.data import corpora
from textdiff.data.collate import Blocks
from textdiff.data.splits import bucket
from textdiff.data.streaming import StreamBlocks, open_stream

TEXTS = documents(40)
BARE = without_ends(byte_level(), "bos_token", "eos_token")


def write(path: Path, texts: list[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def rows_of_files(folder: Path, files: int = 3) -> datasets.IterableDataset:
    for i in range(files):
        write(folder / f"train-{i}.jsonl", TEXTS[i::files])
    write(folder / "test.jsonl", ["test"])
    write(folder / "validation.jsonl", ["validation"])
    return open_stream(str(folder), "text", skip_bad_rows=False, held_out=9).rows


def rows_in_memory() -> datasets.IterableDataset:
    return datasets.Dataset.from_dict({"text": TEXTS}).to_iterable_dataset(num_shards=3)


def of_epoch(blocks: StreamBlocks, epochs: int = 1) -> Iterator[Example]:
    for example in blocks:
        if blocks.epoch >= epochs:
            return
        yield example


def target_tokens(examples: list[Example]) -> list[int]:
    return list(chain.from_iterable(example.tokens[1:] for example in examples))


@pytest.mark.parametrize("isolate", [False, True])
@pytest.mark.parametrize("tokenizer", [byte_level(), BARE], ids=["bos", "neither"])
def test_the_first_epoch_is_what_packing_in_memory_gives(tokenizer: PreTrainedTokenizerBase, isolate: bool) -> None:
    expected = Blocks(TEXTS, tokenizer, 16, isolate)
    got = list(of_epoch(StreamBlocks(rows_in_memory(), tokenizer, 16, isolate)))
    assert len(got) in (len(expected) - 1, len(expected))  # a short last block is carried into the next epoch
    assert got == [expected[i] for i in range(len(got))]


@pytest.mark.parametrize("source", ["files", "memory"])
@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("tokenizer", [byte_level(), BARE], ids=["bos", "neither"])
def test_a_resumed_stream_goes_on_with_exactly_the_next_block(
    tmp_path: Path, source: str, world: int, tokenizer: PreTrainedTokenizerBase
) -> None:
    rows = rows_of_files(tmp_path) if source == "files" else rows_in_memory()
    whole = StreamBlocks(rows, tokenizer, 16, isolate=True)
    for rank in range(world):
        uninterrupted = list(islice(whole.shard(rank, world), 120))  # several epochs of a shard
        for stop in (0, 1, 7, 30, 90):
            first = whole.shard(rank, world)
            head = list(islice(first, stop))
            state = json.loads(json.dumps(first.state_dict()))
            second = whole.shard(rank, world)
            second.load_state_dict(state)
            assert head + list(islice(second, 120 - stop)) == uninterrupted
        assert second.epoch >= 1


@pytest.mark.parametrize("world", [2, 3])
def test_shards_hold_every_document_once(tmp_path: Path, world: int) -> None:
    whole = StreamBlocks(rows_of_files(tmp_path), byte_level(), 2)  # blocks of one target: an epoch ends without a remainder
    found = []
    for rank in range(world):
        text = byte_level().decode(target_tokens(list(of_epoch(whole.shard(rank, world)))))
        found.append(text.split("[EOS]")[:-1])
    assert sorted(chain.from_iterable(found)) == sorted(TEXTS)
    assert all(found)


def test_every_epoch_holds_every_document() -> None:
    blocks = StreamBlocks(rows_in_memory(), byte_level(), 2)
    text = byte_level().decode(target_tokens(list(of_epoch(blocks, epochs=3))))
    assert sorted(text.split("[EOS]")[:-1]) == sorted(TEXTS * 3)


def test_held_out_documents_are_those_of_the_hash_and_never_trained_on(tmp_path: Path) -> None:
    texts = documents(600)
    stream = open_stream(str(write(tmp_path / "a.jsonl", texts)), "text", skip_bad_rows=False, held_out=5)
    assert stream.validation == [text for text in texts if bucket(text) == 1][:5]
    assert stream.test == [text for text in texts if bucket(text) == 2][:5]
    expected = [text for text in texts if bucket(text) == 0]
    assert list(stream.texts()) == expected
    blocks = StreamBlocks(stream.rows, byte_level(), 2, buckets=stream.buckets)
    assert byte_level().decode(target_tokens(list(of_epoch(blocks)))).split("[EOS]")[:-1] == expected


def test_a_hub_stream_is_read_by_column_and_keeps_its_own_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load_dataset(*arguments: Any, **options: Any) -> dict[str, datasets.IterableDataset]:
        asked.append((arguments, options))
        parts = {"train": [*TEXTS, " "], "validation": ["held"], "test": ["out"]}
        return {name: datasets.Dataset.from_dict({"body": texts, "n": texts}).to_iterable_dataset() for name, texts in parts.items()}

    monkeypatch.setattr(corpora.datasets, "load_dataset", load_dataset)
    stream = open_stream("org/name:part", "body", skip_bad_rows=False, held_out=9)
    assert asked == [(("org/name", "part"), {"revision": None, "streaming": True})]
    assert (list(stream.texts()), stream.validation, stream.test) == (TEXTS, ["held"], ["out"])
    with pytest.raises(ValueError, match=r"column 'text' not found; columns are \['body', 'n'\]"):
        open_stream("org/name", "text", skip_bad_rows=False, held_out=9)


def test_a_bad_row_stops_a_stream_in_one_line_or_is_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path / "train.jsonl", TEXTS)
    path.write_text(path.read_text() + '{"text": null}\n')
    write(tmp_path / "test.jsonl", ["t"])
    write(tmp_path / "valid.jsonl", ["v"])
    with pytest.raises(ValueError, match=r"train\.jsonl:41: column 'text' is null, expected text$"):
        list(open_stream(str(tmp_path), "text", skip_bad_rows=False, held_out=9).texts())
    assert list(open_stream(str(tmp_path), "text", skip_bad_rows=True, held_out=9).texts()) == TEXTS
    assert "1 bad row skipped" in caplog.text


def test_a_stream_without_text_says_so_instead_of_turning_forever(tmp_path: Path) -> None:
    blocks = StreamBlocks(datasets.Dataset.from_dict({"text": TEXTS[:1]}).to_iterable_dataset(), byte_level(), 4)
    with pytest.raises(ValueError, match="the stream holds no training text for this process"):
        next(iter(blocks.shard(1, 2)))
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(ValueError, match="leave streaming off"):
        open_stream(str(tmp_path / "a.txt"), "text", skip_bad_rows=False, held_out=9)
