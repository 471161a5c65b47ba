"""`textdiff report FOLDER`: a comparison's raw numbers as a page and as tables."""

from dataclasses import dataclass
from pathlib import Path

import tyro


@dataclass(frozen=True)
class Report:
    """One HTML page that needs nothing else, and its tables as Markdown, from the raw numbers in a folder; the same numbers give the same
    files."""

    folder: tyro.conf.Positional[Path]
    """Output folder of textdiff compare, textdiff frontier or recipes/compare_families.py."""

    def run(self) -> None:
        """Write report.html and report.md into the folder."""
        from rich.console import Console

        from textdiff.page.html import page
        from textdiff.page.markdown import tables
        from textdiff.page.results import Results
        from textdiff.page.sections import NO_PICTURES, sections
        from textdiff.plots import can_draw
        from textdiff.report import print_labelled

        results = Results.read(self.folder)
        found = sections(results)
        _write(self.folder / "report.html", page(results, found))
        _write(self.folder / "report.md", tables(results, found))
        console = Console(highlight=False)
        print_labelled(console, "page", f"{self.folder / 'report.html'} ({', '.join(section.title for section in found)})")
        print_labelled(console, "tables", str(self.folder / "report.md"))
        if results.left_out:
            print_labelled(console, "note", f"left out, because notes.json does not name them: {', '.join(results.left_out)}")
        if not can_draw():
            print_labelled(console, "note", NO_PICTURES)


def _write(path: Path, text: str) -> None:
    """A file is replaced whole or not at all."""
    working = path.with_name(path.name + ".tmp")
    working.write_bytes(text.encode("utf-8"))
    working.replace(path)
