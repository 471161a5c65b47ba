from pathlib import Path

import evaluate
import pytest

from textdiff.evaluation.modules import diversity, generation


def test_evaluate_loads_both_files_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate.config, "HF_MODULES_CACHE", str(tmp_path / "modules"))  # where it copies them to, once per process
    metric = evaluate.load(generation.__file__, cache_dir=str(tmp_path))
    assert metric.compute(predictions=["a b c d"], references=["a b c d"])["bleu"] == pytest.approx(100)
    measurement = evaluate.load(diversity.__file__, cache_dir=str(tmp_path))
    assert measurement.compute(predictions=[["a b c d", "a b c d"]])["div_4"] == 0.5
