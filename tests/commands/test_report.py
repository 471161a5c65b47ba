import json
from pathlib import Path

import pytest

from tests.page.folders import comparison
from textdiff import plots
from textdiff.commands.report import Report
from textdiff.page import html, sections

TWO = ("autoregressive", "uniform")


def test_a_second_report_of_the_same_numbers_has_the_same_bytes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = comparison(tmp_path / "c", TWO, ("pydocs",), texts=5)
    Report(folder).run()
    said = capsys.readouterr().out
    before = [(folder / name).read_bytes() for name in ("report.html", "report.md")]
    assert "report.html" in said
    Report(folder).run()
    assert before == [(folder / name).read_bytes() for name in ("report.html", "report.md")]
    assert not list(folder.glob("*.tmp"))


def test_without_matplotlib_the_tables_stay_and_a_line_tells_how_to_get_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = comparison(tmp_path / "c", TWO, ("pydocs",), texts=5)
    Report(folder).run()
    with_pictures = (folder / "report.md").read_text()
    for module in (plots, html, sections):
        monkeypatch.setattr(module, "can_draw", lambda: False)
    capsys.readouterr()
    Report(folder).run()
    assert "textdiff[plots]" in capsys.readouterr().out
    page = (folder / "report.html").read_text()
    assert "<svg" not in page
    assert "textdiff[plots]" in page
    assert (folder / "report.md").read_text() == with_pictures


def test_models_that_the_notes_do_not_name_are_left_out_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = comparison(tmp_path / "c", (*TWO, "latent-vae"), ("pydocs",), texts=5)
    Report(folder).run()
    assert "left out" not in capsys.readouterr().out
    notes = json.loads((folder / "notes.json").read_text())
    (folder / "notes.json").write_text(json.dumps({**notes, "models": TWO}))
    Report(folder).run()
    assert "left out, because notes.json does not name them: latent-vae" in " ".join(capsys.readouterr().out.split())
    for name in ("report.html", "report.md"):
        assert "latent-vae" not in (folder / name).read_text()
        assert "uniform" in (folder / name).read_text()


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds none of"):
        Report(tmp_path).run()
    assert list(tmp_path.iterdir()) == []
