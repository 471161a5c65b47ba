import json
from pathlib import Path

import pytest

from tests.page.folders import comparison
from textdiff.evaluation.comparison import pairings
from textdiff.page.results import Results
from textdiff.page.sections import sections

THREE = ("autoregressive", "uniform", "latent-vae")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return Results.read(comparison(tmp_path_factory.mktemp("page") / "c", THREE, ("pydocs",), texts=20))


def test_numbers_carry_their_meaning(results: Results) -> None:
    likelihood, differences = sections(results)[1].tables
    by_model = {row[0]: dict(zip(likelihood.columns, row, strict=True)) for row in likelihood.rows}
    assert [row[0] for row in likelihood.rows] == list(THREE)  # the best first
    said = {"autoregressive": ("", "exact", "-"), "uniform": ("≤ ", "upper bound", "16"), "latent-vae": ("≈ ", "estimate", "16")}
    for model, (mark, kind, draws) in said.items():
        row = by_model[model]
        for column in ("nats/token", "perplexity (95 %)", "bits/byte (95 %)", "bits/character"):
            assert row[column].startswith(mark)
            assert row[column].removeprefix(mark)[0].isdigit()
        assert (row["kind"], row["draws"], row["all parameters"]) == (kind, draws, "1,234,560")
    assert "trained parameters" in likelihood.note
    assert by_model["uniform"]["training seed"] == "one: 3"
    assert by_model["autoregressive"]["training seed"] == "one, unknown"
    found = pairings([m for name in THREE for m in results.measurements["pydocs"] if m.model == name])
    assert [row[-1] for row in differences.rows] == [pair.claim.words for pair in found]


def test_numbers_are_those_of_the_texts(results: Results) -> None:
    (measured,) = (m for m in results.measurements["pydocs"] if m.model == "uniform")
    nats = sum(score.nats for score in measured.scores) / sum(score.tokens for score in measured.scores)
    assert f"≤ {nats:.4f} ±" in sections(results)[1].tables[0].rows[1][1]


def test_all_parts_come_in_order_with_a_picture_and_a_table_each(results: Results) -> None:
    found = sections(results)
    assert [section.title for section in found] == [
        "Results",
        "Likelihood of pydocs",
        "Training",
        "Sample quality and network calls",
        "Calibration",
        "Loss by noise and by position",
        "Samples",
        "How it was counted",
    ]
    assert [len(section.pictures) for section in found] == [0, 1, 1, 1, 3, 3, 0, 0]
    assert all(section.tables for section in found[:6])


def test_ends_of_training_say_what_they_are(results: Results) -> None:
    (table,) = sections(results)[2].tables
    rows = {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    assert [rows[model]["kind"] for model in THREE] == ["exact", "upper bound", "estimate"]
    assert [rows[model]["nats/token"][:2] for model in THREE] == ["3.", "≤ ", "≈ "]


def test_axes_say_whose_time_and_which_position_they_show(results: Results) -> None:
    calibration, loss = sections(results)[4:6]
    labels = {picture.name: picture.figure.axes[0].get_xlabel() for picture in loss.pictures}
    assert labels["loss0"].startswith("token number in the passage")
    assert "each model's own noise schedule" in labels["loss1"]
    assert labels["loss2"].startswith("masked share of the tokens")
    assert [table.note for table in loss.tables] == [f"columns: {label}" for label in labels.values()]
    assert all(label in picture.caption for label, picture in zip(labels.values(), calibration.pictures, strict=True))


def test_samples_of_the_sampler_with_most_calls_stand_beside_one_another(tmp_path: Path) -> None:
    folder = comparison(tmp_path / "c", ("masked-exact-count", "uniform"), ("pydocs",), texts=2)
    rows = [
        {"model": model, "sampler": f"Ancestral:steps={steps}", "text": f"{model} {steps} {i}"}
        for model in ("uniform", "masked-exact-count")
        for steps in (4, 128, 16)
        for i in range(5)
    ]
    (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (section,) = (section for section in sections(Results.read(folder)) if section.title == "Samples")
    assert [[sample.text for sample in group] for group in section.samples] == [
        [f"masked-exact-count 128 {i}", f"uniform 128 {i}"] for i in range(3)
    ]
    assert "24 further texts" in section.words[0]


def test_tables_that_were_made_anew_are_not_shown_twice(tmp_path: Path) -> None:
    folder = comparison(tmp_path / "c", THREE, ("texts-2",), texts=5)
    old = [
        {"title": title, "columns": ["a"], "rows": [["1"]], "note": ""} for title in ("texts/2: likelihood", "texts/2: families over seeds")
    ]
    (folder / "notes.json").write_text(json.dumps({"title": "t", "command": "", "rules": [], "tables": old}))
    titles = [table.title for section in sections(Results.read(folder)) for table in section.tables]
    assert titles.count("texts-2: likelihood") == 1
    assert "texts/2: likelihood" not in titles
    assert "texts/2: families over seeds" in titles


def test_one_text_has_no_interval_and_is_shown_all_the_same(tmp_path: Path) -> None:
    folder = comparison(tmp_path / "c", THREE, ("pydocs",), texts=1)
    found = sections(Results.read(folder))[1]
    assert not any("nan" in cell or " to " in cell for row in found.tables[0].rows for cell in row)
    assert len(found.pictures) == 1
