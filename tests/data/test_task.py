import json
import os
from itertools import chain, islice
from pathlib import Path

import pytest

from tests.data.texts import byte_level, documents, sentence
from textdiff import spec
from textdiff.data.collate import Blocks
from textdiff.data.splits import bucket
from textdiff.data.streaming import StreamBlocks
from textdiff.data.task import PairData, TextData
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
    for data in (TextData(length=64, train_limit=3), PairData("a.jsonl", columns=("question", "answer"), truncate=True)):
        assert spec.from_plain(json.loads(json.dumps(spec.to_plain(data)))) == data


def test_the_tokenizer_is_trained_on_the_training_texts_alone(texts: Path, pairs: Path) -> None:
    train = [text for text in documents(400) if bucket(text) == 0]
    assert list(TextData(str(texts), column="body").texts()) == train
    assert list(TextData(str(texts), column="body", streaming=True).texts()) == train
    expected = [(sentence(i), f"{i}") for i in range(200) if bucket(sentence(i)) == 0]
    assert list(PairData(str(pairs)).texts()) == list(chain.from_iterable(expected))


def test_a_stream_and_a_map_hold_out_the_same_documents(texts: Path) -> None:
    held, streamed = (TextData(str(texts), length=16, column="body", streaming=flag).load(byte_level()) for flag in (False, True))
    for one, other in ((held.validation, streamed.validation), (held.test, streamed.test)):
        assert [one[i] for i in range(len(one))] == [other[i] for i in range(len(other))]
    assert isinstance(streamed.train, StreamBlocks)
    assert isinstance(held.train, Blocks)
    assert list(islice(streamed.train, 20)) == [held.train[i] for i in range(20)]


def test_limits_keep_the_first_records(texts: Path, pairs: Path) -> None:
    data = TextData(str(texts), length=8, column="body", train_limit=2, held_out_limit=1).load(byte_level())
    expected = [text for text in documents(400) if bucket(text) == 0][:2]
    assert sum(sum(data.train[i].target) for i in range(len(data.train))) == sum(len(encode(byte_level(), text)) + 1 for text in expected)
    limited = PairData(str(pairs), train_limit=5, held_out_limit=2).load(byte_level())
    assert [len(limited.train), len(limited.validation), len(limited.test)] == [5, 2, 2]


def test_truncated_prompts_are_counted_in_the_description(pairs: Path) -> None:
    assert "200 prompts truncated" in PairData(str(pairs), max_length=12, truncate=True).load(byte_level()).description


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": 100_000}, "training tokens, less than one block of length 100000: shorten it"),
        ({"column": "text"}, r"column 'text' not found; columns are \['body'\]"),
        ({"length": 1}, "length is 1"),
        ({"train_limit": 0}, "a limit is 0"),
        ({"train_limit": 4, "streaming": True}, "train_limit cannot limit a stream"),
    ],
)
def test_wrong_settings_are_one_line(texts: Path, options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        TextData(**{"source": str(texts), "column": "body", **options}).load(byte_level())  # type: ignore[arg-type]
    assert "\n" not in str(raised.value)


def test_documents_are_no_pairs_and_two_records_are_too_few(texts: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text\n" * 99)
    with pytest.raises(ValueError, match="holds documents, expected pairs"):
        PairData(str(tmp_path / "a.txt")).load(byte_level())
    (tmp_path / "two.jsonl").write_text('{"src": "a", "trg": "b"}\n{"src": "c", "trg": "d"}\n')
    with pytest.raises(ValueError, match="leaves no validation text"):
        PairData(str(tmp_path / "two.jsonl")).load(byte_level())


@needs_data
@pytest.mark.parametrize("encoder", [False, True])
def test_real_pairs_decode_to_themselves(encoder: bool) -> None:
    tokenizer = load_tokenizer(str(DATA / "tokenizers" / "gpt2"))
    data = PairData(str(DATA / "multi30k"), max_length=256, encoder=encoder, train_limit=50, held_out_limit=50).load(tokenizer)
    rows = [json.loads(line) for line in (DATA / "multi30k" / "val.de-en.jsonl").read_text().splitlines()[:50]]
    for i, row in enumerate(rows):
        example = data.validation[i]
        response = [t for t, scored in zip(example.tokens, example.target, strict=True) if scored]
        assert tokenizer.decode(response[:-1]) == row["trg"]
        assert example.text_bytes == len(row["trg"].encode())
        assert row["src"] in tokenizer.decode(example.source if encoder else example.tokens)


@needs_data
def test_real_text_keeps_every_byte() -> None:
    tokenizer = load_tokenizer(str(DATA / "tokenizers" / "gpt2"))
    path = DATA / "text" / "wikitext2-valid.txt"
    data = TextData(str(path), length=256).load(tokenizer)
    parts = (data.train, data.validation, data.test)
    assert isinstance(data.train, Blocks)
    assert sum(part[i].text_bytes for part in parts for i in range(len(part))) == len(path.read_bytes())  # type: ignore[index,arg-type]
