"""A comparison in words and numbers: tables for a terminal and for a page, and the rules behind them."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from textdiff.evaluation.comparability import differing_context
from textdiff.evaluation.comparison import FEWEST_SEEDS, RESAMPLES, TESTED, Family, Pairing, Standing, family_pairings, pairings
from textdiff.evaluation.measurement import Measurement
from textdiff.evaluation.seeds import interval
from textdiff.evaluation.statistics import FEWEST_DOCUMENTS, Estimate, drawn, nats_per, ratio

_NONE = "-"
_MEANING = "± is one standard error; perplexity is exp(nats/token), word perplexity exp(nats/word), where white space parts words"
_SHOWN = {"tokens": "token", "text_bytes": "byte"}
_BIT = math.log(2)  # nats
_ADJUSTED = "adjusted by Holm over the pairs of this data set, not across data sets: each has its own 5 % chance of a false claim"
TEST = (
    f"p: two-sided studentised bootstrap of the paired difference in bits/byte, for its being 0; {_ADJUSTED}; "
    f"not below {1 / (RESAMPLES + 1):.4f}"
)
SEEDS_TEST = (
    f"p: Welch's t-test between seeds, which takes runs as independent and normal, with the variance over texts added; {_ADJUSTED}; "
    f"a claim needs {FEWEST_SEEDS} seeds of each family"
)


class Table(NamedTuple):
    """What `notes.json` of a comparison holds."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    note: str


class Compared(NamedTuple):
    """The comparison on one data set."""

    tables: list[Table]
    rules: list[str]
    numbers: dict[str, Any]  # plain data


def compared(data: str, measurements: Sequence[Measurement], families: Mapping[str, Sequence[str]] | None = None) -> Compared:
    """Models side by side, and every pair of them; with `families`, the names of the runs of each by its own, every pair of those instead.

    Raises ValueError for runs that cannot stand for one family.
    """
    standings = [Standing.of(measurement) for measurement in measurements]
    standings.sort(key=lambda found: found.nats[TESTED].value)
    tables, numbers = [likelihoods(data, standings)], {"data": data, "models": [standing.as_dict() for standing in standings]}
    if families is None:
        found = pairings([standing.measurement for standing in standings])
        tables += [pairs(data, found)] if found else []
    else:
        named = {measurement.model: measurement for measurement in measurements}
        groups = [Family(name, tuple(named[run] for run in runs)) for name, runs in families.items()]
        groups.sort(key=lambda family: nats_per(family.averaged(), TESTED))
        found = family_pairings(groups)
        tables += [over_seeds(data, groups), *([family_pairs(data, found)] if found else [])]
        numbers["families"] = [family.as_dict() for family in groups]
    return Compared(tables, rules(data, measurements), {**numbers, "pairs": [pairing.as_dict() for pairing in found]})


def likelihoods(data: str, standings: Sequence[Standing]) -> Table:
    """A row for each model."""
    columns = ("model", "nats/token", "perplexity", "bits/byte", "bits/character", "word perplexity", "kind", "calls", "seeds")
    rows = [_row(standing) for standing in standings]
    return Table(f"{data}: likelihood", columns, rows, _MEANING)


def _row(standing: Standing) -> tuple[str, ...]:
    found, nats = standing.measurement, standing.nats
    seed = "unknown" if found.training_seed is None else found.training_seed
    return (
        found.model,
        _error(nats["tokens"]),
        perplexity(nats["tokens"].value),
        _error(nats["text_bytes"], _BIT),
        f"{nats['characters'].value / _BIT:.4f}",
        perplexity(nats["words"].value) if "words" in nats else _NONE,
        found.kind,
        f"{found.forwards:,}",
        f"one ({seed})",
    )


def pairs(data: str, found: Sequence[Pairing]) -> Table:
    """A row for each pair of models."""
    columns = ("difference", "nats/token (95 %)", "bits/byte (95 %)", "p", "statement")
    rows = [
        (f"{one.a.model} - {one.b.model}", _apart(one, "tokens"), _apart(one, "text_bytes", _BIT), _p(one.p), one.claim.words)
        for one in found
    ]
    return Table(f"{data}: differences on the same texts", columns, rows, "; ".join([TEST, *_reasons(found)]))


def over_seeds(data: str, found: Sequence[Family]) -> Table:
    """A row for each family: its mean over seeds with the interval between them, beside the error over texts."""
    columns = ("family", "seeds", "nats/token", "bits/byte", "bits/byte, texts", "kind")
    rows = []
    for family in found:
        tokens, bits = (interval([nats / unit for nats in family.values(per)]) for per, unit in (("tokens", 1.0), (TESTED, _BIT)))
        mean, count = family.averaged(), len(family.runs)
        shown = "one seed" if count == 1 else f"{count}" if count >= FEWEST_SEEDS else f"{count}, too few"
        rows.append((family.name, shown, str(tokens), str(bits), _error(ratio(mean, TESTED, RESAMPLES), _BIT), mean.kind))
    note = "± of nats/token and bits/byte is half a 95 % interval between training seeds (Student's t), of texts one standard error"
    return Table(f"{data}: families over training seeds", columns, rows, note)


def family_pairs(data: str, found: Sequence[Pairing]) -> Table:
    """A row for each pair of families, with both intervals of their difference."""
    columns = ("difference", "bits/byte, seeds (95 %)", "bits/byte, texts (95 %)", "p", "statement")
    rows = [(f"{one.a.model} - {one.b.model}", _gap(one), _apart(one, "text_bytes", _BIT), _p(one.p), one.claim.words) for one in found]
    return Table(f"{data}: families on the same texts", columns, rows, "; ".join([SEEDS_TEST, *_reasons(found)]))


def rules(data: str, measurements: Sequence[Measurement]) -> list[str]:
    """How the numbers of one data set were counted, a line for each rule."""
    first = measurements[0]
    contexts = differing_context(measurements)
    bounds = sorted({f"{m.draws} draws for each window (noise seed {m.seed})" for m in measurements if m.kind == "upper bound"})
    unit = drawn(first)
    errors = f"errors, intervals and p-values are over {unit}s, taken as independent draws of one law"
    if first.rules.unit == "passage" != unit:
        errors += ", a document's passages together"
    elif first.rules.unit == "passage":
        errors += f", for fewer than {FEWEST_DOCUMENTS} documents: what passages of one share is left out"
    return [
        first.data if first.data.startswith(f"{data}:") else f"{data}: {first.data}",
        *_grouped(measurements, _extent),
        errors,
        *_grouped(measurements, _counting),
        *_grouped(measurements, _windows),
        *_grouped([m for m in measurements if m.lost], _losing),
        *([f"upper bounds are means of {', '.join(bounds)}"] if bounds else []),
        *([contexts] if contexts else []),
        *(f"{m.model}: {m.outcome}" for m in measurements if m.outcome),
    ]


def _extent(found: Measurement) -> str:
    of_bytes, characters, words = [sum(column) for column in list(zip(*found.scores, strict=True))[3:6]]
    return f"counted {len(found.scores):,} {found.rules.unit}s, {of_bytes:,} bytes, {characters:,} characters, {words:,} words"


def _counting(found: Measurement) -> str:
    start, end = found.rules.start, found.rules.end
    before = "the first token of a text is its context" if start is None else f"{start} stands before a text as context and does not count"
    if found.rules.fill is not None:
        after = f"EOS fills each response up to {found.rules.fill} tokens, which all count"
    else:
        after = "EOS after each text counts" if end else "no EOS counts"
    return f"every token of a text counts once: {before}; {after}; padding is neither read nor counted, texts are not packed together"


def _losing(found: Measurement) -> str:
    return f"the tokenizer of {found.model} loses text: {100 * found.lost:.3g} % of the texts do not come back from their tokens"


def _windows(found: Measurement) -> str:
    rules = found.rules
    detokenizer = f"detokenizer: {rules.detokenizer}"
    if rules.unit == "response":
        return f"rows of at most {rules.length} tokens, the prompt is context; {detokenizer}"
    later = (
        f"windows of {rules.length} tokens; those after a text's first count {rules.stride} after {rules.length - rules.stride} of context"
    )
    return f"{later}; {detokenizer}"


def _grouped(measurements: Sequence[Measurement], words: Callable[[Measurement], str]) -> list[str]:
    """What is said of each measurement, once, with the models' names where it is not the same for all."""
    said: dict[str, list[str]] = {}
    for measurement in measurements:
        said.setdefault(words(measurement), []).append(measurement.model)
    return list(said) if len(said) == 1 else [f"{line} ({', '.join(models)})" for line, models in said.items()]


def _reasons(found: Sequence[Pairing]) -> list[str]:
    """Why a column has gaps."""
    return sorted({f"no difference per {unit}: {one.refused[per]}" for one in found for per, unit in _SHOWN.items() if per in one.refused})


def perplexity(nats: float) -> str:
    """exp of nats per token or word."""
    value = math.exp(nats) if nats < 700 else math.inf
    return f"{value:.2f}" if value < 1e6 else f"{value:.3g}"


def _error(found: Estimate, unit: float = 1.0) -> str:
    return f"{found.value / unit:.4f} ± {found.error / unit:.4f}"


def _apart(pairing: Pairing, per: str, unit: float = 1.0) -> str:
    return _interval(pairing.nats[per].value, pairing.nats[per].low, pairing.nats[per].high, unit) if per in pairing.nats else _NONE


def _gap(pairing: Pairing) -> str:
    if pairing.between is None or TESTED not in pairing.between:
        return _NONE
    found = pairing.between[TESTED]
    return _interval(found.mean, found.mean - found.half_width, found.mean + found.half_width, _BIT)


def _interval(value: float, low: float, high: float, unit: float) -> str:
    inside = f"{low / unit:+.4f} to {high / unit:+.4f}" if low < high and math.isfinite(high - low) else "no interval"
    return f"{value / unit:+.4f} ({inside})"


def _p(value: float) -> str:
    return _NONE if math.isnan(value) else f"{value:.4f}"
