"""The runs of a comparison of families: two budgets, a folder for each run, and how fast it was by its own log."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

TOKENS, SECONDS = "equal tokens", "equal seconds"
SAME = 0.05  # share by which steps may differ for one run to stand for both budgets


class Run(NamedTuple):
    """One training."""

    family: str
    budget: str
    seed: int
    steps: int
    folder: Path

    @property
    def name(self) -> str:
        """What the run is called beside the others of its budget."""
        return self.folder.name


class Pace(NamedTuple):
    """How far a run was."""

    step: int
    tokens: int
    seconds: float  # of training steps; evaluations and checkpoints are not counted


def paces(log: Path) -> list[Pace]:
    """One for each row of training numbers in a run's log; raises ValueError for a log that holds none."""
    found = [Pace(0, 0, 0.0)]
    try:
        for row in map(json.loads, log.read_text().splitlines()):
            if "tokens_per_second" in row:
                took = (row["tokens"] - found[-1].tokens) / row["tokens_per_second"]
                found.append(Pace(row["step"], row["tokens"], found[-1].seconds + took))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{log} does not say how long the run took ({error}): train it again in another folder") from error
    if len(found) == 1:
        raise ValueError(f"{log} does not say how long the run took: train it again in another folder")
    return found[1:]


def at_equal_tokens(out: Path, families: Sequence[str], seeds: Sequence[int], steps: int) -> list[Run]:
    """Seed by seed, so that what was stopped early has whole seeds."""
    return [Run(family, TOKENS, seed, steps, _folder(out, TOKENS, family, seed)) for seed in seeds for family in families]


def at_equal_seconds(out: Path, runs: Sequence[Run], seconds: float) -> list[Run]:
    """The runs of the second budget, given those of the first: of each family as many steps as `seconds` are worth at the pace of its
    first seed, so that seeds differ in nothing else. Where that is about as many as before, the run is the same one."""
    first = {run.family: paces(run.folder / "log.jsonl")[-1] for run in runs if run.seed == runs[0].seed}
    found = []
    for run in runs:
        pace = first[run.family]
        steps = max(1, round(pace.step * seconds / pace.seconds))
        if abs(steps - run.steps) <= SAME * run.steps:
            found.append(run._replace(budget=SECONDS))
        else:
            found.append(run._replace(budget=SECONDS, steps=steps, folder=_folder(out, SECONDS, run.family, run.seed)))
    return found


def _folder(out: Path, budget: str, family: str, seed: int) -> Path:
    return out / budget.replace(" ", "-") / f"{family}-{seed}"
