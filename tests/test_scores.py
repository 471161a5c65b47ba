import json
import math
from pathlib import Path

import pytest

from textdiff.evaluation.generation import GenerationQuality, exact_match
from textdiff.scores import Case, Outcome, Row, Score, Scores, fingerprint, measured, rivals

TEST = [Case("ein Hund", ("a dog", "one dog")), Case("Tee", ("tea",)), Case("rot", ("red",)), Case("in", ("in",))]
WIDE = "a dog that is far too long for any column"


def matches(quality: GenerationQuality, test: list[Case], texts: list[str]) -> dict[str, Score]:
    return {"exact match, %": Score(100 * quality.exact_match, 100 * quality.exact_match_error), "self-BLEU": Score(quality.self_bleu)}


def scored(out: Path, *texts: list[str], data: str = "pairs", test: list[Case] = TEST) -> Path:
    out.mkdir(parents=True)
    rows = [Row(f"way {number}", own, 4.0, 1.5) for number, own in enumerate(texts)]
    Scores(out, shown=True).table(Outcome(data, 1_234_000, 7, 3.0, test, rows), matches)  # type: ignore[arg-type]
    return out


def test_a_score_shows_its_error_where_it_has_one_and_nothing_where_there_is_none() -> None:
    assert [str(Score(31.256, 0.81)), str(Score(5.0)), str(Score(math.nan))] == ["31.26 ± 0.81", "5.00", ""]


def test_the_table_is_ranked_by_its_first_column_and_names_the_copied_prompt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, fair, bad = ["one dog", "tea", "red", "in"], ["a dog", "tea", "blue", "on"], ["", "", WIDE, ""]
    out = scored(tmp_path / "runs" / "mine", bad, good, fair)
    lines = [line for line in capsys.readouterr().out.splitlines() if "±" in line and "standard error" not in line]
    assert [line.split()[:4] for line in lines] == [
        ["mine", "1.23M", "way", "1"],
        ["mine", "1.23M", "way", "2"],
        ["copied", "prompt", "25.00", "±"],
        ["mine", "1.23M", "way", "0"],
    ]
    assert [float(line.split("±")[0].split()[-1]) for line in lines] == [100, 50, 25, 0]
    recorded = json.loads((out / "results.json").read_text())
    assert recorded["parameters"] == 1_234_000
    assert recorded["rows"][1]["columns"]["exact match, %"][0] == 100 * exact_match(good, [case.references for case in TEST])
    assert recorded["rows"][1]["columns"]["self-BLEU"] == [None, None]  # one text has no others to be compared with
    assert recorded["baselines"][0]["columns"]["exact match, %"][0] == 25


def test_candidates_give_the_diversity_of_their_row() -> None:
    alike, apart = [["a dog", "a dog"]] * 4, [["a dog", "the tea"]] * 4
    columns = [measured(TEST, ["a dog"] * 4, matches, found)[1]["self-BLEU"].value for found in (alike, apart)]  # type: ignore[arg-type]
    assert columns == [pytest.approx(100), 0]


def test_rivals_are_runs_on_the_same_data_test_prompts_and_columns(tmp_path: Path) -> None:
    texts = ["one dog", "tea", "red", "in"]
    runs = tmp_path / "runs"
    own = scored(runs / "own", texts)
    scored(runs / "same", texts[::-1])
    scored(runs / "other-data", texts, data="other pairs")
    scored(runs / "other-references", texts, test=[case._replace(references=("x",)) for case in TEST])
    scored(tmp_path / "elsewhere" / "same", texts)
    other = scored(runs / "other-columns", texts)
    recorded = json.loads((other / "results.json").read_text())
    recorded["rows"][0]["columns"] = {"BLEU": [1.0, None]}
    (other / "results.json").write_text(json.dumps(recorded))
    (runs / "broken").mkdir()
    (runs / "broken" / "results.json").write_text("{")
    (runs / "likelihood").mkdir()
    (runs / "likelihood" / "results.json").write_text('{"data": "pairs", "validation": {}}')
    assert list(rivals(own, json.loads((own / "results.json").read_text()))) == [(runs / "same").resolve()]


def test_the_fingerprint_knows_prompts_and_references() -> None:
    assert fingerprint(TEST) == fingerprint([Case(*case) for case in TEST])
    assert len({fingerprint(TEST), fingerprint(TEST[1:]), fingerprint([TEST[0]._replace(references=("a dog",)), *TEST[1:]])}) == 3


def test_a_hidden_report_prints_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "mine"
    out.mkdir()
    Scores(out, shown=False).closing(3.0, "--prompt TEXT")
    assert capsys.readouterr().out == ""
