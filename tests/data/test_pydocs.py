import json
from pathlib import Path

import pytest

from textdiff.data import pydocs
from textdiff.data.splits import Splits


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A standard library of three modules and some debris."""
    folder = tmp_path / "library"
    (folder / "package" / "tests").mkdir(parents=True)
    filler = "It is said at length, so that the document is long enough to be read and not dropped for its size. " * 2
    (folder / "b.py").write_text(f'"""Module b.\n\n{filler}\n\nShared words."""\nclass C:\n    def f(self):\n        """Method f."""\n')
    (folder / "a.py").write_text(f'"""Module a.\n\nShared words.\n\n{filler.upper()}"""\nif 0:\n    "\\d"\n')
    (folder / "package" / "__init__.py").write_text('"""Too short."""')
    (folder / "package" / "tests" / "t.py").write_text(f'"""{filler.lower()}"""')
    (folder / "broken.py").write_text("def (")
    monkeypatch.setattr(pydocs, "_topics", lambda: {"Z": "Topic z. " + filler.title(), "A": "Topic a.\n\n    code\n\n" + filler.swapcase()})
    monkeypatch.setattr(pydocs.sysconfig, "get_paths", lambda: {"stdlib": str(folder)})
    monkeypatch.setenv("TEXTDIFF_CACHE", str(tmp_path / "cache"))
    return folder


def extracted(library: Path) -> dict[str, str]:
    return pydocs._extract(library, pydocs._modules(library))


def test_documents_are_topics_then_modules_by_name_without_tests_or_short_ones(library: Path) -> None:
    assert list(extracted(library)) == ["topic A", "topic Z", "module a", "module b"]


def test_a_module_is_one_document_in_source_order_and_a_paragraph_stays_where_it_is_first(library: Path) -> None:
    documents = extracted(library)
    assert documents["module b"].startswith("b\nModule b.\n\nIt is said")
    assert documents["module b"].endswith("\n\nC.f\nMethod f.\n")
    assert "Shared words." in documents["module a"]
    assert "Shared words." not in documents["module b"]
    assert documents["topic A"].startswith("Topic a.\n\n    code\n\n")  # indentation is kept


def test_the_cache_gives_the_same_and_is_not_read_when_the_library_changed(library: Path) -> None:
    first = pydocs.load()
    (cache,) = (library.parent / "cache").iterdir()
    stored = json.loads(cache.read_text())
    stored["documents"] = {"module other": "planted"}
    stored["sha256"] = pydocs._digest(stored["documents"])
    cache.write_text(json.dumps(stored))
    assert [text for part in pydocs.load() for text in part] == ["planted"]  # it is read
    (library / "b.py").write_text((library / "b.py").read_text() + "\n")
    assert pydocs.load() == first


@pytest.mark.parametrize(
    "damage", [b"", b"{", b"[]", b"null", b'{"documents": {}, "sha256": ""}', b'{"documents": 1}', b"\xff", b"[" * 100_000]
)
def test_a_damaged_cache_is_computed_anew(library: Path, damage: bytes) -> None:
    first = pydocs.load()
    (cache,) = (library.parent / "cache").iterdir()
    good = cache.read_bytes()
    cache.write_bytes(damage)
    assert pydocs.load() == first
    assert cache.read_bytes() == good


def test_a_flipped_letter_in_the_cache_is_noticed(library: Path) -> None:
    first = pydocs.load()
    (cache,) = (library.parent / "cache").iterdir()
    cache.write_bytes(cache.read_bytes().replace(b"Method f", b"Method g"))
    assert pydocs.load() == first


def test_a_cache_folder_that_cannot_be_used_costs_only_time(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (library.parent / "file").write_text("")
    monkeypatch.setenv("TEXTDIFF_CACHE", str(library.parent / "file" / "below"))
    assert sum(map(len, pydocs.load())) == 4


@pytest.fixture(scope="module")
def running() -> Splits[str]:
    return pydocs.load()


def test_the_running_python_gives_english_whose_splits_share_no_paragraph(running: Splits[str]) -> None:
    parts = [{" ".join(p.split()) for text in part for p in text.split("\n\n") if len(p) > 80} for part in running]
    assert not parts[0] & parts[1] | parts[0] & parts[2] | parts[1] & parts[2]
    assert sum(len(text) for part in running for text in part) > 1_000_000
    assert all(part for part in running)
    assert " the " in running.train[0]
