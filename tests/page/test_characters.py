import html
from html.parser import HTMLParser

import pytest

from textdiff.page.characters import in_html, in_markdown, safe


def test_control_characters_and_marks_of_direction_become_visible() -> None:
    assert safe("a\x00b\x1b[31mc\u202ed\u2066e\x85f") == "a\ufffdb\ufffd[31mc\ufffdd\ufffde\ufffdf"
    assert safe("line\n\tnext\r\nlast 日本語 🎉") == "line\n\tnext\nlast 日本語 🎉"


def test_half_a_surrogate_pair_can_be_written() -> None:
    with pytest.raises(UnicodeEncodeError):
        "\ud83d".encode()
    assert safe("x\ud83dy\uffff").encode().decode() == "x\ufffdy\ufffd"


def test_a_parser_reads_back_what_was_escaped() -> None:
    text = "<script>alert('x')</script> & \"quotes\" &amp; <!-- -->"
    read: list[str] = []

    class Reader(HTMLParser):
        def handle_data(self, data: str) -> None:
            read.append(data)

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            if tag != "p":
                raise AssertionError(tag)
            assert attrs == [("title", text)]

    reader = Reader()
    reader.feed(f'<p title="{in_html(text)}">{in_html(text)}</p>')
    reader.close()
    assert "".join(read) == text


def test_a_markdown_cell_stays_one_cell() -> None:
    cell = in_markdown("a | b\nc <b> `d` _e_ f_g *h* [i](j) \\")
    assert cell == "a \\| b c &lt;b&gt; \\`d\\` \\_e\\_ f_g \\*h\\* \\[i\\](j) \\\\"
    assert html.unescape(cell).replace("\\", "").startswith("a | b c <b>")
