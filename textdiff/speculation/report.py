"""A comparison in words and numbers: sizes, costs, a table for each temperature, and one row as it is written."""

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

from textdiff.bench.base import Bench, ratios
from textdiff.guidance.filters import Filters
from textdiff.randomness import Rng
from textdiff.report import print_labelled
from textdiff.samplers.drafting import LeftToRightChunks, drawn
from textdiff.scores import parameters
from textdiff.speculation.comparison import compared, same, table
from textdiff.speculation.opening import Models
from textdiff.speculation.plan import PLAIN, Compare
from textdiff.speculation.view import show
from textdiff.speculation.ways import Alone, blank

_BY_CHANCE = "drawn by chance: each way follows the target's law, and no two write the same text"


def report(console: Console, settings: Compare, models: Models, prompts: Sequence[Tensor], data: str, out: Path) -> None:
    """The sizes, a table for each temperature, and one row as it is written."""
    bench = settings.bench()
    for label, model in zip(("target", "drafter", "assistant", "flash"), models, strict=True):
        if model is not None:
            print_labelled(console, label, f"{type(model).__name__}, {parameters(model):,} parameters")
    costs = _costs(bench, settings, models, prompts[0])
    words = " and ".join(f"{cost:.1f} calls of the {role}" for role, cost in costs.items())
    print_labelled(console, "cost", f"one token of the target takes as long as {words}")
    print_labelled(console, "rule", LeftToRightChunks().reason)
    if models.target.backbone.trunk is None:
        print_labelled(console, "without", "transformers' own generate, assistant and prompt lookup: the target is no stock model")
    numbers = {}
    for temperature in settings.temperatures:
        ways = settings.ways(models, temperature)
        plain = [name for name in PLAIN if name in ways]
        lines = compared(bench, ways, plain, models.target, prompts, chance=temperature > 0)
        caption = _caption(bench, settings, temperature, len(prompts))
        exact = f"in float64: {_exact(settings, models, prompts)}" if temperature == 0 else _BY_CHANCE
        numbers[f"temperature {temperature}"] = [asdict(line) for line in lines]
        console.print()
        console.print(table(lines, f"{caption}\n{exact}"), crop=False, soft_wrap=True)
    out.mkdir(parents=True, exist_ok=True)
    sizes = {role: None if model is None else parameters(model) for role, model in zip(Models._fields, models, strict=True)}
    (out / "results.json").write_text(json.dumps({"parameters": sizes, "cost": costs, "data": data} | numbers, indent=2) + "\n")
    console.print()
    show(console, settings.watched(models), prompts[0], 0, models.target.tokenizer)


def _caption(bench: Bench, settings: Compare, temperature: float, prompts: int) -> str:
    clock = "CPU time" if bench.device == "cpu" and bench.threads == 1 else "wall time"
    size = f"{prompts} held-out prompts of {settings.prompt_length} tokens, {settings.new} new ones each, temperature {temperature:g}"
    way = "per pass: tokens written per pass of the target; speed: in tokens per second of the faster plain way"
    return f"{size}\n{way}\n{bench.device}, {bench.threads} thread(s), float32, {bench.rounds} rounds in turns, {clock}"


def _exact(settings: Compare, models: Models, prompts: Sequence[Tensor]) -> str:
    """How many rows every way writes as the plain one does when weights and sums are float64, in words."""
    doubled = models.changed(lambda model: copy.deepcopy(model).double())
    ways = settings.ways(doubled, 0.0)
    rows = {name: [way(prompt, 0) for prompt in prompts] for name, way in ways.items()}
    first = next(iter(rows.values()))
    found = {name: same(doubled.target, prompts, first, other) for name, other in rows.items()}
    different = [f"{name} {one}" for name, one in found.items() if one.rows < one.of]
    return "; ".join(different) if different else f"all {len(prompts)} rows are the same, token for token, whichever way they are written"


@torch.no_grad()
def _costs(bench: Bench, settings: Compare, models: Models, prompt: Tensor) -> dict[str, float]:
    """How many drafts in one call take as long as one token of the target alone, at the middle of a row, for each drafter."""
    likeliest = Filters(0.0)
    longest, alone = max(settings.lengths), Alone(models.target, likeliest, settings.new)
    row = torch.cat([prompt, prompt.new_zeros(settings.new // 2)])
    middle = blank(row, longest)
    sides: dict[str, Callable[[int], object]] = {"target": lambda i: alone(prompt, i)}

    def chunk(i: int) -> None:
        for _ in range(settings.new):
            LeftToRightChunks()(likeliest(models.drafter), middle, Rng(0, i, middle.sample_id))

    sides["drafter"] = chunk
    if models.flash is not None:
        flash = models.flash
        predictor = flash.predictor(middle)
        with flash.listening() as heard:
            flash.target.backbone(row[None], flash.target.backbone.context(blank(row, 0)))
        assert heard.features is not None
        told = predictor.extend(heard.features)
        block, everything = row[-1:].expand(1, flash.most + 1), torch.arange(flash.most + 1, device=row.device)[None] > 0

        def at_once(i: int) -> None:
            for _ in range(settings.new):
                pred = told(block, torch.ones(1, dtype=torch.float64, device=row.device))
                drawn(likeliest.applied(pred), everything, Rng(0, i, middle.sample_id))

        sides["flash"] = at_once
    times = bench.interleaved(sides)
    return {role: ratios(times["target"], taken)[1] for role, taken in times.items() if role != "target"}
