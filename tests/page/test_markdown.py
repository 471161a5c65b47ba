import re
from pathlib import Path

from tests.page.folders import comparison
from textdiff.page.markdown import tables
from textdiff.page.results import Results
from textdiff.page.sections import sections


def test_every_table_reads_back_cell_by_cell(tmp_path: Path) -> None:
    results = Results.read(comparison(tmp_path / "c", ("autoregressive", "uniform"), ("pydocs",), texts=5))
    found = sections(results)
    lines = tables(results, found).splitlines()
    assert lines[0] == "# Nine families &lt;on&gt; pydocs"
    expected = [(table.columns, table.rows) for section in found for table in section.tables]
    blocks, current = [], []
    for line in [*lines, ""]:
        if line.startswith("|"):
            current.append([cell.strip().replace("\\", "") for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
        elif current:
            blocks.append(current)
            current = []
    assert len(blocks) == len(expected) > 5
    for block, (columns, rows) in zip(blocks, expected, strict=True):
        assert block[0] == list(columns)
        assert block[1] == ["---"] * len(columns)
        assert block[2:] == [list(row) for row in rows]


def test_what_must_not_be_misread_stands_beside_the_tables(tmp_path: Path) -> None:
    results = Results.read(comparison(tmp_path / "c", ("autoregressive", "uniform"), ("pydocs",), texts=20))
    assert "≤ stands before upper bounds: a bound above an exact value does not prove a model worse." in tables(results, sections(results))
