"""The tables of a page as Markdown, for a README or a pull request."""

from collections.abc import Iterator, Sequence

from textdiff.evaluation.comparison_tables import Table
from textdiff.page.characters import in_markdown, safe
from textdiff.page.results import Results
from textdiff.page.sections import Section


def tables(results: Results, found: Sequence[Section]) -> str:
    """Every table with its note, below the title and the command."""
    lines = [f"# {in_markdown(results.notes.title or 'Comparison')}", ""]
    if results.notes.command:
        lines += [f"    {safe(' '.join(results.notes.command.split()))}", ""]
    for section in found:
        if section.tables or section.lines:
            lines += [f"## {in_markdown(section.title)}", ""]
            lines += [line for words in section.words for line in (in_markdown(words), "")]
        lines += [line for table in section.tables for line in _table(table)]
        lines += [*(f"- {in_markdown(line)}" for line in section.lines), *([""] if section.lines else [])]
    return "\n".join(lines).rstrip() + "\n"


def _table(table: Table) -> Iterator[str]:
    yield from (f"**{in_markdown(table.title)}**", "")
    yield _row(table.columns)
    yield "|" + "---|" * len(table.columns)
    yield from map(_row, table.rows)
    yield ""
    if table.note:
        yield from (in_markdown(table.note), "")


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(in_markdown, cells))} |"
