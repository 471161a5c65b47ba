"""A trained model is honest: its likelihood stands above the entropy of a known source, and close to it."""

import json
import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

RECIPE = runpy.run_path(str(Path(__file__).parent.parent / "recipes" / "markov.py"))


def _trained(preset: str, out: Path, **changes: Any) -> dict[str, float]:
    recipe = RECIPE[preset]()
    settings = {name: changes.pop(name) for name in ("steps", "batch_size") if name in changes}
    RECIPE["run"](replace(recipe, train=replace(recipe.train, **settings), out=out, **changes), preset)
    numbers: dict[str, float] = json.loads((out / "results.json").read_text())
    return numbers


@pytest.mark.slow
@pytest.mark.parametrize(("preset", "percent"), [("autoregressive", 0.3), ("masked", 1.5), ("uniform", 4.0), ("hybrid", 4.0)])
def test_likelihood_stands_just_above_the_exact_entropy(preset: str, percent: float, tmp_path: Path) -> None:
    numbers = _trained(preset, tmp_path)
    assert numbers["parameters"] < (650_000 if percent < 2 else 950_000)  # the last two are told the noise level
    assert numbers["gap"] > -3 * numbers["standard_error"]
    assert 100 * numbers["gap"] / numbers["entropy"] < percent


def test_an_untrained_model_is_far_above(tmp_path: Path) -> None:
    numbers = _trained("masked", tmp_path, steps=1, batch_size=4, test_sequences=64, draws=4)
    assert numbers["gap"] / numbers["entropy"] > 0.1
