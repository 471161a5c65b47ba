"""`textdiff bench`: the project's claims about speed, memory and variance, measured on this machine as ratios."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro


@dataclass(frozen=True)
class Bench:
    """Measure textdiff against what it replaces: interleaved runs in one process, medians of ratios with quartiles."""

    what: tyro.conf.Positional[Literal["training", "embedding", "sampling", "likelihood", "all"]] = "all"
    """Which comparison."""
    rounds: int | None = None
    """Rounds per comparison (default: each comparison's own)."""
    device: str = "cpu"
    """cpu or cuda."""
    model: str | None = None
    """A trained masked model for the comparison of likelihoods, such as runs/quickstart-masked (default: bytes, trained here)."""
    json: Path | None = None
    """Also write the rows here."""

    def run(self) -> None:
        """Print a table for each comparison."""
        from rich.console import Console

        from textdiff.bench.base import Bench as Comparison
        from textdiff.bench.base import table, to_json
        from textdiff.bench.embedding import EmbeddingBench
        from textdiff.bench.likelihood import LikelihoodBench
        from textdiff.bench.sampling import SamplingBench
        from textdiff.bench.training import TrainingBench

        kinds: dict[str, type[Comparison]] = {
            "training": TrainingBench,
            "embedding": EmbeddingBench,
            "sampling": SamplingBench,
            "likelihood": LikelihoodBench,
        }
        if self.model is not None and self.what != "likelihood":
            raise ValueError(f"a model was given for the bench {self.what!r}, which trains its own: leave it out, or bench likelihood")
        options: dict[str, Any] = {} if self.rounds is None else {"rounds": self.rounds}
        options |= {} if self.model is None else {"model": self.model}
        written = []
        for name in kinds if self.what == "all" else (self.what,):
            bench = kinds[name](device=self.device, **options)
            rows = bench.run()
            Console().print(table(bench, rows))
            written.append(json.loads(to_json(bench, rows)))
        if self.json is not None:
            self.json.write_text(json.dumps(written, indent=2) + "\n")
            print(f"wrote {self.json}")
