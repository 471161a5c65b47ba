import json
import os
from itertools import chain, islice
from pathlib import Path

import pytest

from tests.data.texts import byte_level, documents, sentence
from textdiff import spec
from textdiff.data.collate import Blocks, Pairs
from textdiff.data.corpora import resolve
from textdiff.data.layout import Layout, scored_examples
from textdiff.data.splits import bucket
from textdiff.data.streaming import StreamBlocks
from textdiff.data.tokenizer import encode, load_tokenizer

DATA = Path(os.environ.get("TEXTDIFF_TEST_DATA", "data"))
needs_data = pytest.mark.skipif(not (DATA / "multi30k").is_dir(), reason="the real data is not here")


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"body": text}) + "\n" for text in documents(400)))
    return path


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps({"src": sentence(i), "trg": f"{i}"}) + "\n" for i in range(200)))
    return path


def test_settings_survive_plain_data() -> None:
    for data in (Layout(length=64, train_limit=3), Layout(columns=("question", "answer"), truncate=True)):
        assert spec.from_plain(json.loads(json.dumps(spec.to_plain(data)))) == data


def test_the_tokenizer_is_trained_on_the_training_texts_alone(texts: Path, pairs: Path) -> None:
    train = [text for text in documents(400) if bucket(text) == 0]
    assert list(Layout(columns=("body",)).open(str(texts)).texts()) == train
    assert list(Layout(columns=("body",), streaming=True).open(str(texts)).texts()) == train
    expected = [(sentence(i), f"{i}") for i in range(200) if bucket(sentence(i)) == 0]
    assert list(Layout().open(str(pairs)).texts()) == list(chain.from_iterable(expected))


def test_a_stream_and_a_map_hold_out_the_same_documents(texts: Path) -> None:
    layouts = (Layout(length=16, columns=("body",), streaming=flag) for flag in (False, True))
    held, streamed = (layout.open(str(texts)).examples(byte_level()) for layout in layouts)
    for one, other in ((held.validation, streamed.validation), (held.test, streamed.test)):
        assert [one[i] for i in range(len(one))] == [other[i] for i in range(len(other))]
    assert isinstance(streamed.train, StreamBlocks)
    assert isinstance(held.train, Blocks)
    assert list(islice(streamed.train, 20)) == [held.train[i] for i in range(20)]


def test_limits_keep_the_first_records(texts: Path, pairs: Path) -> None:
    data = Layout(length=8, columns=("body",), train_limit=2, held_out_limit=1).open(str(texts)).examples(byte_level())
    expected = [text for text in documents(400) if bucket(text) == 0][:2]
    assert sum(sum(data.train[i].target) for i in range(len(data.train))) == sum(len(encode(byte_level(), text)) + 1 for text in expected)
    limited = Layout(train_limit=5, held_out_limit=2).open(str(pairs)).examples(byte_level())
    assert [len(limited.train), len(limited.validation), len(limited.test)] == [5, 2, 2]


def test_truncated_prompts_are_counted_in_the_description(pairs: Path) -> None:
    assert "200 prompts truncated" in Layout(length=12, truncate=True).open(str(pairs)).examples(byte_level()).description


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": 100_000}, "training tokens, less than one block of 100000: shorten layout.length"),
        ({"columns": ("text",)}, r"column 'text' not found; columns are \['body'\]"),
        ({"length": 1}, "length is 1"),
        ({"train_limit": 0}, "a limit is 0"),
        ({"train_limit": 4, "streaming": True}, "train_limit cannot limit a stream"),
    ],
)
def test_wrong_settings_are_one_line(texts: Path, options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        Layout(**{"columns": ("body",), **options}).open(str(texts)).examples(byte_level())  # type: ignore[arg-type]
    assert "\n" not in str(raised.value)


def test_two_records_are_too_few(tmp_path: Path) -> None:
    (tmp_path / "two.jsonl").write_text('{"src": "a", "trg": "b"}\n{"src": "c", "trg": "d"}\n')
    with pytest.raises(ValueError, match="leaves no validation text"):
        Layout().open(str(tmp_path / "two.jsonl")).examples(byte_level())


def test_what_rows_hold_decides_between_blocks_and_pairs(texts: Path, pairs: Path) -> None:
    assert isinstance(Layout(columns=("body",)).open(str(texts)).examples(byte_level()).train, Blocks)
    assert isinstance(Layout().open(str(pairs)).examples(byte_level()).train, Pairs)
    with pytest.raises(ValueError, match="columns are \\['a', 'b', 'c'\\]"):
        Layout(columns=("a", "b", "c"))


def test_a_file_is_scored_whole_and_its_limit_is_spread_evenly(texts: Path, pairs: Path) -> None:
    written, asked = resolve(str(texts), ("body",)), resolve(str(pairs))
    rows, _, description = scored_examples(written, byte_level(), 16, None, None)
    assert sum(sum(row.target) for row in rows) == sum(len(encode(byte_level(), text)) + 1 for text in documents(400))
    assert sum(row.text_bytes for row in rows) == sum(len(text.encode()) for text in documents(400))
    assert "split all" in description
    few, _, description = scored_examples(asked, byte_level(), 128, None, 50)
    every, *_ = scored_examples(asked, byte_level(), 128, None, None)
    assert list(few) == list(every)[::4]
    assert "50 of 200 sequences" in description
    with pytest.raises(ValueError, match="no split 'dev'"):
        scored_examples(written, byte_level(), 16, "dev", None)


@needs_data
def test_real_pairs_decode_to_themselves() -> None:
    tokenizer = load_tokenizer(str(DATA / "tokenizers" / "gpt2"))
    data = Layout(length=256, train_limit=50, held_out_limit=50).open(str(DATA / "multi30k")).examples(tokenizer)
    rows = [json.loads(line) for line in (DATA / "multi30k" / "val.de-en.jsonl").read_text().splitlines()[:50]]
    for i, row in enumerate(rows):
        example = data.validation[i]
        response = [t for t, scored in zip(example.tokens, example.target, strict=True) if scored]
        assert tokenizer.decode(response[:-1]) == row["trg"]
        assert example.text_bytes == len(row["trg"].encode())
        assert row["src"] in tokenizer.decode(example.tokens)


@needs_data
def test_real_text_keeps_every_byte() -> None:
    tokenizer = load_tokenizer(str(DATA / "tokenizers" / "gpt2"))
    path = DATA / "text" / "wikitext2-valid.txt"
    data = Layout(length=256).open(str(path)).examples(tokenizer)
    parts = (data.train, data.validation, data.test)
    assert isinstance(data.train, Blocks)
    assert sum(part[i].text_bytes for part in parts for i in range(len(part))) == len(path.read_bytes())  # type: ignore[index,arg-type]
