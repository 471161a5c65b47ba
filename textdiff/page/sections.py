"""What a page says, in the order in which it says it; how it looks is another matter."""

import math
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from textdiff.evaluation import frontier as quality
from textdiff.evaluation.comparison import Standing, pairings
from textdiff.evaluation.comparison_tables import Table, pairs, perplexity, rules
from textdiff.evaluation.measurement import Measurement
from textdiff.page import figures, frontier_figure, profile_figures
from textdiff.page.results import Evaluation, Place, Results, Sample
from textdiff.page.style import Looks, Picture
from textdiff.plots import can_draw

_BIT = math.log(2)  # nats
_NONE = "-"
_LIKELIHOOD = (
    "± is one standard error over texts; all parameters are those kept with a model, embeddings among them; trained parameters, where a "
    "table counts those, are the same without what training does not change itself, such as frozen embeddings or a running mean of weights"
)
_MOST = 12  # models whose pairs are all listed
_BESIDE = 3  # samples of a model
NO_PICTURES = "Pictures are left out: they are drawn by matplotlib (pip install 'textdiff[plots]')."


class Section(NamedTuple):
    """A heading with what stands below it."""

    title: str
    words: Sequence[str] = ()  # paragraphs
    pictures: Sequence[Picture] = ()
    tables: Sequence[Table] = ()
    lines: Sequence[str] = ()  # a list
    samples: Sequence[Sequence[Sample]] = ()  # those of a group stand beside one another


def sections(results: Results) -> list[Section]:
    """The whole page. Without matplotlib it has no pictures."""
    looks, drawn = Looks(tuple(results.models)), can_draw()
    found = [*_likelihoods(results, looks, drawn), *_training(results, looks, drawn), *_frontier(results, looks, drawn)]
    found += [*_profile(results, looks, drawn), *_samples(results)]
    return [*_own_tables(results, found), *found, *_rules(results)]


def _likelihoods(results: Results, looks: Looks, drawn: bool) -> Iterator[Section]:
    said = set(results.notes.rules)
    for number, (data, measurements) in enumerate(results.measurements.items()):
        standings = sorted((Standing.of(found) for found in measurements), key=lambda found: found.nats["text_bytes"].value)
        ordered = [standing.measurement for standing in standings]
        several = 1 < len(ordered) <= _MOST
        tables = [likelihood_table(data, standings), *([pairs(data, pairings(ordered))] if several else [])]
        pictures = [figures.intervals(data, number, standings, looks)] if drawn else []
        counted = [line for line in rules(data, ordered) if line not in said]
        yield Section(f"Likelihood of {data}", _warnings(ordered), pictures, tables, counted)


def _warnings(measurements: Sequence[Measurement]) -> list[str]:
    """What the numbers of a data set must not be read as."""
    kinds, words = {found.kind for found in measurements}, []
    if "upper bound" in kinds and "exact" in kinds:
        words.append("≤ stands before upper bounds: a bound above an exact value does not prove a model worse.")
    if "estimate" in kinds:
        words.append("≈ stands before estimates, which may err to either side.")
    words.append("Each row is one training run; what another seed would give is not part of its interval.")
    return words


def likelihood_table(data: str, standings: Sequence[Standing]) -> Table:
    """A row for each model, in the order given."""
    words = any("words" in standing.nats for standing in standings)
    columns = ["model", "nats/token", "perplexity (95 %)", "bits/byte (95 %)", "bits/character", *(["word perplexity"] if words else [])]
    columns += ["kind", "draws", "network calls", "all parameters", "training seed"]
    return Table(f"{data}: likelihood", tuple(columns), [_row(standing, words) for standing in standings], _LIKELIHOOD)


def _row(standing: Standing, words: bool) -> tuple[str, ...]:
    found, nats, mark = standing.measurement, standing.nats, figures.sign(standing.measurement.kind)
    tokens, of_bytes = nats["tokens"], nats["text_bytes"]
    # a bound's interval is that of the bound
    ppl = [perplexity(end) for end in (tokens.value, tokens.low, tokens.high)]
    bits = [f"{end / _BIT:.4f}" for end in (of_bytes.value, of_bytes.low, of_bytes.high)]
    return (
        found.model,
        f"{mark}{tokens.value:.4f}" + (f" ± {tokens.error:.4f}" if math.isfinite(tokens.error) else ""),
        mark + ppl[0] + (f" ({ppl[1]} to {ppl[2]})" if math.isfinite(tokens.low) else ""),
        mark + bits[0] + (f" ({bits[1]} to {bits[2]})" if math.isfinite(of_bytes.low) else ""),
        f"{mark}{nats['characters'].value / _BIT:.4f}",
        *([mark + perplexity(nats["words"].value) if "words" in nats else _NONE] if words else []),
        found.kind,
        _NONE if found.kind == "exact" else f"{found.draws:,}",
        f"{found.forwards:,}",
        f"{found.parameters:,}",
        "one, unknown" if found.training_seed is None else f"one: {found.training_seed}",
    )


def _training(results: Results, looks: Looks, drawn: bool) -> Iterator[Section]:
    rows = [row for row in results.curves if math.isfinite(row.nats_per_token)]
    if rows:
        runs = {run: [row for row in rows if row.run == run] for run in sorted({row.run for row in rows})}
        ends = [max(found, key=lambda row: row.tokens) for found in runs.values()]
        cells = [(end.run, *_end(end, results.kinds.get(end.run, ""))) for end in ends]
        columns = ("run", "training tokens", "seconds", "nats/token", "standard error", "kind")
        table = Table("ends of training", columns, cells, "")
        yield Section("Training", (), [figures.training(rows, results.kinds, looks)] if drawn else [], [table])


def _end(end: Evaluation, kind: str) -> tuple[str, ...]:
    loss = f"{figures.sign(kind)}{end.nats_per_token:.4f}"
    return f"{end.tokens:,.0f}", _number(end.seconds, 0), loss, _number(end.error, 4), kind or "not known"


def _frontier(results: Results, looks: Looks, drawn: bool) -> Iterator[Section]:
    points = list(results.frontier)
    if points:
        picture = frontier_figure.frontier(points, looks) if drawn else None
        pictures = [picture] if picture else []
        counted = sorted({f"generative perplexity, {point.scorer}: {point.rules}" for point in points if point.rules})
        yield Section("Sample quality and network calls", quality.warnings(points), pictures, [quality.table(points)], counted)


def _profile(results: Results, looks: Looks, drawn: bool) -> Iterator[Section]:
    axes = list(dict.fromkeys(row.axis for row in results.profile))
    by_axis = {axis: [row for row in results.profile if row.axis == axis] for axis in axes}
    sure = {axis: [row for row in rows if math.isfinite(row.accuracy)] for axis, rows in by_axis.items()}
    if any(sure.values()):
        pictures = [
            profile_figures.calibration(axis, number, rows, looks)
            for number, (axis, rows) in enumerate(sure.items())
            if drawn and any(row.bins for row in rows)
        ]
        tables = [table for axis, rows in sure.items() if rows for table in _sureness(axis, rows)]
        words = ["A model is calibrated where of the tokens it gives a chance c to its first choice a share c is right."]
        yield Section("Calibration", words, pictures, tables)
    if axes:
        pictures = [profile_figures.losses(axis, number, rows, looks) for number, (axis, rows) in enumerate(by_axis.items()) if drawn]
        tables = [_loss(axis, rows) for axis, rows in by_axis.items()]
        yield Section("Loss by noise and by position", (), pictures, tables)


def _loss(axis: str, rows: Sequence[Place]) -> Table:
    return _pivot(f"{profile_figures.unit(axis)} by {axis}", rows, "nats_per_token", 3, _columns_mean(axis))


def _sureness(axis: str, rows: Sequence[Place]) -> Iterator[Table]:
    columns = _columns_mean(axis)
    yield _pivot(f"accuracy by {axis}", rows, "accuracy", 3, columns)
    yield _pivot(f"mean confidence by {axis}", rows, "confidence", 3, columns)
    if any(math.isfinite(row.calibration_error) for row in rows):
        note = f"over equal bins of confidence; {columns}".removesuffix("; ")
        yield _pivot(f"expected calibration error by {axis}", rows, "calibration_error", 3, note)


def _columns_mean(axis: str) -> str:
    """What the numbers above the columns are, where that is known."""
    meaning = profile_figures.meaning(axis)
    return "" if meaning == axis else f"columns: {meaning}"


def _pivot(title: str, rows: Sequence[Place], field: str, places: int, note: str) -> Table:
    """A row for each model and a column for each place."""
    found = {(row.model, row.x): row._asdict()[field] for row in rows}
    at = sorted({row.x for row in rows})
    models = sorted({row.model for row in rows})
    cells = [(model, *(_number(found.get((model, x), math.nan), places) for x in at)) for model in models]
    return Table(title, ("model", *(f"{x:g}" for x in at)), cells, note)


def _samples(results: Results) -> Iterator[Section]:
    """The first texts of each sampler of each model, the n-th of all beside one another."""
    by_source: dict[tuple[str, str], list[Sample]] = {}
    for sample in results.samples:
        by_source.setdefault((sample.model, sample.sampler), []).append(sample)
    chosen = _most_calls(results, by_source)
    groups = [[chosen[name][place] for name in sorted(chosen) if place < len(chosen[name])] for place in range(_BESIDE)]
    groups = [group for group in groups if group]
    if groups:
        left = len(results.samples) - sum(map(len, groups))
        rest = "" if not left else f" {left:,} further texts are in samples.jsonl."
        yield Section(
            "Samples", [f"The first {len(groups)} of each model, from the sampler with the most network calls.{rest}"], samples=groups
        )


def _most_calls(results: Results, found: dict[tuple[str, str], list[Sample]]) -> dict[str, list[Sample]]:
    """Of each model the texts of one sampler."""
    calls = {(point.model, point.sampler): point.nfe for point in results.frontier}
    best: dict[str, tuple[str, str]] = {}
    for key in found:
        if key[0] not in best or calls.get(key, -1.0) > calls.get(best[key[0]], -1.0):
            best[key[0]] = key
    return {model: found[key] for model, key in best.items()}


def _own_tables(results: Results, after: Sequence[Section]) -> Iterator[Section]:
    """The tables of `notes.json` that are not made anew from the raw numbers: what whoever wrote it would say first."""
    made = {_folded(table.title) for section in after for table in section.tables}
    tables = [table for table in results.notes.tables if _folded(table.title) not in made]
    if tables:
        yield Section("Results", tables=tables)


def _rules(results: Results) -> Iterator[Section]:
    if results.notes.rules:
        yield Section("How it was counted", lines=results.notes.rules)


def _folded(title: str) -> str:
    """Names of data sets in titles and in names of files differ in punctuation only."""
    return re.sub(r"[\W_]+", "", title)


def _number(value: float, places: int) -> str:
    return f"{value:,.{places}f}" if math.isfinite(value) else _NONE
