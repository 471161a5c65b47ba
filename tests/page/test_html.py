import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.page.folders import NASTY, comparison
from textdiff.page.characters import safe
from textdiff.page.html import page
from textdiff.page.results import Results
from textdiff.page.sections import sections

VOID = {"meta", "br", "hr", "img", "link"}
THREE = ("autoregressive", "masked-exact-count", "latent-vae")


class Reader(HTMLParser):
    """What is in a page, and whether every element is closed where it should be."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.ids: list[str] = []
        self.text: dict[str, list[str]] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.tags.append((tag, found))
        self.ids += [found["id"]] if "id" in found else []
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.text.setdefault(self.open[-1], []).append(data)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return comparison(tmp_path_factory.mktemp("page") / "c", THREE, ("pydocs",), texts=10)


@pytest.fixture(scope="module")
def written(folder: Path) -> str:
    results = Results.read(folder)
    return page(results, sections(results))


@pytest.fixture(scope="module")
def read(written: str) -> Reader:
    reader = Reader()
    reader.feed(written)
    reader.close()
    return reader


def test_every_element_is_closed_and_every_id_is_one_elements(read: Reader) -> None:
    assert read.open == []
    assert len(read.ids) == len(set(read.ids))
    pointed = [found[name][1:] for _, found in read.tags for name in ("href", "xlink:href") if found.get(name, "").startswith("#")]
    assert pointed
    assert set(pointed) <= set(read.ids)


def test_the_page_asks_for_nothing_and_runs_nothing(written: str, read: Reader) -> None:
    assert not {tag for tag, _ in read.tags} & {"script", "link", "iframe", "object", "embed", "img", "image"}
    for tag, found in read.tags:
        assert not [name for name in found if name.startswith("on")], tag
        assert all(found[name].startswith("#") for name in ("href", "src", "xlink:href") if name in found), tag
    assert re.findall(r"url\((?!#)", written) == []
    assert "@import" not in written
    assert any("Content-Security-Policy" in found.get("http-equiv", "") for _, found in read.tags)


def test_every_clip_path_that_is_named_is_there(written: str, read: Reader) -> None:
    named = set(re.findall(r"url\(#([^)]+)\)", written))
    assert named
    assert named <= set(read.ids)


def test_pictures_are_told_in_words_and_take_the_pages_colours(written: str, read: Reader) -> None:
    pictures = [found for tag, found in read.tags if tag == "svg"]
    assert len(pictures) == 7
    assert all(found["role"] == "img" and len(found["aria-label"]) > 20 for found in pictures)
    for name in ("--ink", "--faint", "--ground"):
        assert written.count(f"var({name})") > 3
        assert written.count(f"{name}:") == 3  # light, dark, printed
    drawings = re.sub(r"<style>.*?</style>", "", written, flags=re.DOTALL)
    assert "#24292f" not in drawings
    assert "dc:date" not in drawings


def test_samples_are_read_back_as_they_were_made_safe(read: Reader) -> None:
    texts = ["".join(read.text["pre"])]
    assert texts[0].count(safe(NASTY)) == len(THREE)
    assert "\x1b" not in texts[0]
    assert "<script>" in texts[0]  # as text, not as an element


def test_the_same_numbers_give_the_same_bytes(folder: Path, written: str) -> None:
    results = Results.read(folder)
    assert page(results, sections(results)).encode() == written.encode()


def test_tables_have_heads_for_their_columns_and_rows(written: str, read: Reader) -> None:
    tags = [tag for tag, _ in read.tags]
    assert tags.count("table") == tags.count("caption") == tags.count("thead") > 5
    assert [found for tag, found in read.tags if tag == "th" and found.get("scope") not in ("col", "row")] == []
    assert '<td class="number">≤ ' in written
