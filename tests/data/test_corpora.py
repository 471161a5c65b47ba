import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

from tests.data.texts import documents, sentence
from textdiff.data import corpora, pydocs
from textdiff.data.corpora import resolve
from textdiff.data.readers import Pair
from textdiff.data.splits import bucket


def write_rows(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def all_records(source: object, **options: Any) -> list[Any]:
    return [record for part in resolve(str(source), **options).splits for record in part]


TEXTS = documents(400)


def test_a_text_file_is_cut_into_ranges_that_hold_every_character(tmp_path: Path) -> None:
    text = "".join(f"line {i} — naïve\r\n" for i in range(1000))
    path = tmp_path / "play.txt"
    path.write_bytes(text.encode())
    train, validation, test = resolve(str(path)).splits
    assert train[0] + validation[0] + test[0] == text
    assert len(validation[0]) == pytest.approx(0.05 * len(text), rel=0.05)


def test_rows_go_where_their_hash_says_in_every_format(tmp_path: Path) -> None:
    rows = [{"text": text, "n": 1} for text in TEXTS]
    table = datasets.Dataset.from_list(rows)
    sources = [write_rows(tmp_path / "a.jsonl", rows), tmp_path / "b.csv", tmp_path / "c.parquet", tmp_path / "saved"]
    table.to_csv(sources[1])
    table.to_parquet(sources[2])
    table.save_to_disk(sources[3])
    expected = tuple([text for text in TEXTS if bucket(text) == split] for split in range(3))
    found = [resolve(str(source)) for source in sources]
    for corpus in found:
        assert tuple(corpus.splits) == expected
        assert corpus.sha256 == found[0].sha256
    assert all(expected)


def test_all_responses_to_one_prompt_are_in_one_split(tmp_path: Path) -> None:
    rows = [{"prompt": sentence(i % 40), "response": f"{i}"} for i in range(400)]
    splits = resolve(str(write_rows(tmp_path / "a.jsonl", rows))).splits
    prompts = [{pair.prompt for pair in part} for part in splits]
    assert sum(map(len, prompts)) == 40
    assert sum(map(len, splits)) == 400


@pytest.mark.parametrize("names", [("prompt", "response"), ("src", "trg"), ("mr", "ref"), ("question", "answer")])
def test_pairs_are_recognised_or_named(tmp_path: Path, names: tuple[str, str]) -> None:
    path = write_rows(tmp_path / "a.jsonl", [{names[0]: "p", names[1]: "r", "other": 1}])
    columns = names if names[0] == "question" else None
    assert all_records(path, columns=columns) == [Pair("p", "r")]


def test_the_e2e_release_is_pairs(tmp_path: Path) -> None:
    (tmp_path / "trainset.csv").write_text('mr,ref\r\n"name[Aromi], area[riverside]","Aromi is ""by"" the river."\r\n')
    assert all_records(tmp_path) == [Pair("name[Aromi], area[riverside]", 'Aromi is "by" the river.')]


def test_lines_of_attributes_and_text_are_pairs(tmp_path: Path) -> None:
    for part, name in (("train", "Aromi"), ("valid", "Cotto"), ("test", "Zizzi")):
        lines = [f"name : {name} | Type : pub||{name} : a pub | and more .", f"name : {name}||{name} ."]
        (tmp_path / f"src1_{part}.txt").write_text("\n".join(lines) + "\n")
    assert [list(part) for part in resolve(str(tmp_path)).splits] == [
        [Pair(f"name : {name} | Type : pub", f"{name} : a pub | and more ."), Pair(f"name : {name}", f"{name} .")]
        for name in ("Aromi", "Cotto", "Zizzi")
    ]


def test_a_text_whose_first_line_is_no_attributes_stays_a_document(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a || b\nname : X||Y\n")
    assert [record for record in all_records(tmp_path / "a.txt") if isinstance(record, Pair)] == []
    (tmp_path / "b.txt").write_text("name : X||Y\n\nname : Y\n")
    with pytest.raises(ValueError, match=r"b\.txt:3: expected `name : value \| name : value\|\|text`"):
        resolve(str(tmp_path / "b.txt"))


@pytest.mark.parametrize("kinds", [("src", "tgt"), ("de", "en")])
def test_lines_of_parallel_files_are_pairs(tmp_path: Path, kinds: tuple[str, str]) -> None:
    files = {f"{split}.{kind}": f"{kind}1\n{kind}2\u2028{split}\n" for split in ("train", "dev", "test_2016") for kind in kinds}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "README").write_text("About the data.")
    for columns in (None, kinds, kinds[::-1]):
        first, second = columns or kinds
        assert [list(part) for part in resolve(str(tmp_path), columns).splits] == [
            [Pair(f"{first}1", f"{second}1"), Pair(f"{first}2\u2028{split}", f"{second}2\u2028{split}")]
            for split in ("train", "dev", "test_2016")
        ]
    with pytest.raises(ValueError, match=rf"holds \.{kinds[0]} and \.{kinds[1]} files, and \.fr and \.en were named"):
        resolve(str(tmp_path), ("fr", "en"))


def test_parallel_files_that_do_not_match_are_refused(tmp_path: Path) -> None:
    for name, text in {"train.de": "a\nb\n", "train.en": "a\nb\n", "test.de": "a\n", "test.en": "a\nb\n"}.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=r"test\.de has 1 lines and .*test\.en has 2: expected a line for each line"):
        resolve(str(tmp_path))
    (tmp_path / "test.en").unlink()
    with pytest.raises(ValueError, match=r"there is no .*test\.en: pairs of lines need it beside its twin"):
        resolve(str(tmp_path))
    (tmp_path / "test.de").unlink()
    (tmp_path / "train.en").write_text("a\n \n")
    with pytest.raises(ValueError, match=r"train\.en:2: the line is empty: a response needs text"):
        resolve(str(tmp_path))


def test_files_named_after_splits_are_the_splits(tmp_path: Path) -> None:
    for name, text in {
        "train.de-en.jsonl": "a",
        "val.de-en.jsonl": "b",
        "test_2016.jsonl": "c",
        "data/train-00001-of-2.jsonl": "d",
    }.items():
        write_rows(tmp_path / name, [{"text": text}])
    (tmp_path / "README.md").write_text("About the data.")
    (tmp_path / ".hidden.jsonl").write_text("broken")
    assert tuple(resolve(str(tmp_path)).splits) == (["d", "a"], ["b"], ["c"])


def test_a_missing_split_is_taken_from_train_and_given_ones_stay_whole(tmp_path: Path) -> None:
    write_rows(tmp_path / "train.jsonl", [{"text": text} for text in TEXTS])
    write_rows(tmp_path / "test.jsonl", [{"text": "kept"}])
    train, validation, test = resolve(str(tmp_path)).splits
    assert list(test) == ["kept"]
    assert list(validation) == [text for text in TEXTS if bucket(text) == 1]
    assert sorted([*train, *validation]) == sorted(TEXTS)


def test_text_files_of_a_folder_are_documents(tmp_path: Path) -> None:
    for i, text in enumerate(TEXTS[:50]):
        (tmp_path / f"{i:02}.txt").write_text(text)
    assert sorted(all_records(tmp_path)) == sorted(TEXTS[:50])


BAD_ROWS = {
    "not JSON, unterminated string starting at (character 10): expected one object per line": b'{"text": "cut of',
    "not JSON, expecting value (character 1): expected one object per line": b"plain words",
    "expected one JSON object per line, got list": b'["text"]',
    "byte 0xe9 is not UTF-8: convert the file to UTF-8": '{"text": "caf\xe9"}'.encode("latin-1"),
    "column 'text' is null, expected text": b'{"text": null}',
    "column 'text' is int, expected text": b'{"text": 3}',
    "column 'text' not found; columns are ['body']": b'{"body": "x"}',
    "column 'text' holds half of a surrogate pair, which is not text": b'{"text": "\\ud800"}',
    "not a row: nested too deeply": b"[" * 100_000,
}


@pytest.mark.parametrize("reason", BAD_ROWS)
def test_a_bad_row_is_named_with_its_line_or_skipped_and_counted(tmp_path: Path, reason: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "good"}\n\n' + BAD_ROWS[reason] + b'\n{"text": "also good"}\n')
    with pytest.raises(ValueError) as raised:  # noqa: PT011 (the whole message is compared)
        resolve(str(path))
    assert str(raised.value) == f"{path}:3: {reason}"
    corpus = resolve(str(path), skip_bad_rows=True)
    assert sorted(map(str, [*corpus.splits.train, *corpus.splits.validation, *corpus.splits.test])) == ["also good", "good"]
    assert corpus.description.endswith(f"1 bad row skipped, the first at {path}:3: {reason}")


def make(name: str, data: bytes) -> Callable[[Path], str]:
    def write(folder: Path) -> str:
        (folder / name).write_bytes(data)
        return str(folder / name)

    return write


REFUSED: dict[str, tuple[Callable[[Path], str], str]] = {
    "latin-1 text": (make("a.txt", "one\ncaf\xe9\n".encode("latin-1")), r"a\.txt:2: byte 0xe9 is not UTF-8"),
    "empty text": (make("a.txt", b" \n"), "is empty"),
    "empty rows": (make("a.jsonl", b""), "holds no readable row"),
    "empty csv": (make("a.csv", b""), "holds no readable row"),
    "short csv row": (make("a.csv", b"text,n\nx,1\ny\n"), r"a\.csv:3: 1 cells, expected the 2 of the header"),
    "open quote": (make("a.csv", b'text,n\n"x,1\n'), r"a\.csv:2: not CSV: unexpected end of data"),
    "not parquet": (make("a.parquet", b"text"), "is not a readable parquet file"),
    "blank documents": (make("a.jsonl", b'{"text": " "}\n'), "holds no readable training text"),
    "empty response": (make("a.jsonl", b'{"src": "x", "trg": ""}\n'), r"a\.jsonl:1: column 'trg' is empty"),
    "missing column": (make("a.jsonl", b'{"body": "x", "n": 1}\n'), r"column 'text' not found; columns are \['body', 'n'\]"),
    "unknown suffix": (make("a.pdf", b"x"), r"has suffix '\.pdf'"),
    "empty folder": (str, "holds no .txt"),
    "absent file": (lambda folder: str(folder / "no.jsonl"), "there is no file or folder"),
    "absent relative path": (lambda folder: "./no/folder", "there is no file or folder"),
    "absent data file": (lambda folder: "data/no.txt", "there is no file or folder"),
    "not an id": (lambda folder: "wikitext", "neither a file or folder here nor a hub id"),
    "unknown builtin": (lambda folder: "builtin:nothing", "the embedded corpora are builtin:pydocs and builtin:dates"),
    "hub out of reach": (lambda folder: "org/name:config@main", "as a hub id it failed"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_read_is_refused_in_one_line(tmp_path: Path, case: str) -> None:
    source, message = REFUSED[case]
    with pytest.raises(ValueError, match=message) as raised:
        resolve(source(tmp_path))
    assert "\n" not in str(raised.value)


def test_what_looks_like_a_path_never_reaches_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpora.datasets, "load_dataset", lambda *a, **k: pytest.fail("the hub was asked"))
    for source in ("./org/name", "org/name.jsonl", "~/no/such", "folder/", "../x", "a/b/c"):
        with pytest.raises(ValueError, match="file or folder"):
            resolve(source)


def test_a_hub_id_is_loaded_with_its_config_and_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(*arguments: Any, **options: Any) -> datasets.DatasetDict:
        asked.append((arguments, options))
        parts = {"train": TEXTS[:5], "validation": TEXTS[5:7], "test": TEXTS[7:8]}
        return datasets.DatasetDict({name: datasets.Dataset.from_dict({"text": texts}) for name, texts in parts.items()})

    monkeypatch.setattr(corpora.datasets, "load_dataset", load_dataset)
    corpus = resolve("org/name:raw-v1@refs/pr/3")
    assert asked == [(("org/name", "raw-v1"), {"revision": "refs/pr/3", "streaming": False})]
    assert tuple(corpus.splits) == (TEXTS[:5], TEXTS[5:7], TEXTS[7:8])


def test_a_local_folder_wins_over_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_rows(tmp_path / "org" / "name" / "train.jsonl", [{"text": "here"}])
    monkeypatch.chdir(tmp_path)
    assert all_records("org/name") == ["here"]


def test_the_hash_of_a_corpus_knows_its_records_and_their_splits(tmp_path: Path) -> None:
    one = resolve(str(write_rows(tmp_path / "1" / "train.jsonl", [{"text": "a"}, {"text": "b"}])))
    same = resolve(str(write_rows(tmp_path / "2" / "train.jsonl", [{"text": "a"}, {"text": "b"}])))
    write_rows(tmp_path / "3" / "train.jsonl", [{"text": "a"}])
    moved = resolve(str(write_rows(tmp_path / "3" / "test.jsonl", [{"text": "b"}]).parent))
    assert one.sha256 == same.sha256 != moved.sha256


def test_the_embedded_corpus_names_its_python() -> None:
    corpus = resolve(pydocs.NAME)
    assert pydocs.python() in corpus.description
    assert corpus.sha256[:16] in corpus.description
    assert "\n" not in corpus.description
