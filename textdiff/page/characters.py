"""Text of any origin as a page may hold it: samples and names may hold any character."""

import html
import re

from textdiff.report import printable

_UNPAIRED = re.compile("[\ud800-\udfff\ufffe\uffff]")  # UTF-8 has no form of these, or HTML no room for them
_STEERING = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")  # turns the direction of what follows


def safe(text: str) -> str:
    """The text with U+FFFD for control characters, halves of surrogate pairs and marks that turn the direction of writing."""
    return _STEERING.sub("\ufffd", _UNPAIRED.sub("\ufffd", printable(text)))


def in_html(text: str) -> str:
    """The text as HTML shows it."""
    return html.escape(safe(text))


def in_markdown(text: str) -> str:
    """The text as a cell of a Markdown table shows it, in one line."""
    text = re.sub(r"([\\`*|\[\]~])", r"\\\1", " ".join(safe(text).split()))
    text = re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", text)  # inside a word an underscore means nothing
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
