"""`textdiff infill MODEL...`: how well models fill gaps of texts, and what the gaps cost them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import tyro

from textdiff.commands.device import device_named

if TYPE_CHECKING:
    from textdiff.batch import Batch, Example
    from textdiff.data.gaps import Gap, GapRows
    from textdiff.decoding import Decode
    from textdiff.evaluation.infilling import Entry, Filled


class Filler(NamedTuple):
    """A model that has been looked at; its weights are opened again when it fills."""

    name: str
    place: str  # run folder, checkpoint folder, or hub id
    rows: "GapRows"
    way: "Decode"
    sees: str  # of the text around a gap


class Gaps(NamedTuple):
    """What is filled."""

    description: str
    gaps: "Sequence[Gap]"


@dataclass(frozen=True)
class Infill:
    """Infilling: the tokens and texts of gaps that models write given the text around them, and the likelihood of what stood there."""

    models: tyro.conf.Positional[tuple[str, ...]]
    """Run folders, checkpoint folders, or hub ids; a causal model sees what comes before a gap alone."""
    data: str = "builtin:pydocs"
    """builtin:pydocs, a file, a folder, or a hub id org/name[:config][@revision]; rows with prefix, middle and suffix are gaps as they
    stand, in other texts they are drawn."""
    split: str | None = None
    """train, validation, test or all (default: all of a file or folder, else validation)."""
    columns: tuple[str, ...] | None = None
    """The text column of rows (default: recognised)."""
    words: int = 4
    """Words of a gap that is drawn."""
    characters: int = 400
    """Texts are passages of at most so many characters; 0 leaves documents whole."""
    limit: int | None = 200
    """Fill only so many gaps, taken evenly from the whole."""
    sees: Literal["both", "left"] = "both"
    """What is told of the text around a gap: left hides what comes after it, as from a causal model."""
    sampler: str | None = None
    """Any sampler of textdiff for the models that fill by noise, such as Ancestral, with options as in Threshold:tau=0.8."""
    steps: int | None = None
    """Denoising steps, for samplers that count them."""
    temperature: float | None = None
    """0 takes the most probable token (default: 0, and 1 for models that regress vectors)."""
    draws: int = 16
    """Draws for each gap's bound; an exact likelihood takes one."""
    batch_size: int = 32
    """Rows at a time; the result does not depend on it."""
    seed: int = 0
    """Of the places of gaps and of all noise."""
    device: str | None = None
    """cpu, cuda, ... (default: a GPU when there is one)."""
    json: Path | None = None
    """Also write the numbers, and every gap with what was written in it, here."""

    def run(self) -> None:
        """Check everything, then fill and score model after model; print the table."""
        from rich.console import Console
        from transformers.utils import logging

        logging.disable_progress_bar()
        from textdiff.commands.comparison_view import print_table
        from textdiff.evaluation.infilling import table
        from textdiff.report import print_labelled

        self._check()
        given = self._gaps()
        fillers = self._fillers(given.gaps)
        entries, records = [], []
        for filler in fillers:
            entry, filled = self._entry(filler)
            entries.append(entry)
            records.append(self._record(filler, entry, filled))
        console = Console(highlight=False)
        print_table(console, table(given.description, entries))
        cut = [f"{filler.name}: {filler.rows.cut} rows lost text far from their gap" for filler in fillers if filler.rows.cut]
        warm = sorted({f"{filler.way.temperature:g}" for filler in fillers})
        counted = [f"{len(given.gaps):,} gaps", *cut, f"filled at temperature {' or '.join(warm)}, each with as many tokens as it has"]
        print_labelled(console, "counted", *counted)
        if self.json is not None:
            written = {"data": given.description, "gaps": len(given.gaps), "models": records}
            self.json.write_text(json.dumps(written, indent=2) + "\n")
            print(f"wrote {self.json}")

    def _check(self) -> None:
        if not self.models:
            raise ValueError("no model is named: give run folders, checkpoint folders or hub ids")
        for name, value in (("limit", self.limit), ("draws", self.draws), ("batch_size", self.batch_size), ("words", self.words)):
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}, expected 1 or more")
        if self.characters < 0:
            raise ValueError(f"characters is {self.characters}, expected 0 for whole documents, or more")
        if self.json is not None and not self.json.parent.is_dir():
            raise ValueError(f"no folder {self.json.parent} to write {self.json.name} into: create it first")
        if self.json is not None and self.json.is_dir():
            raise ValueError(f"{self.json} is a folder: name the json file to write")

    def _gaps(self) -> Gaps:
        from textdiff.commands.compared_texts import compared_texts
        from textdiff.data.gaps import cut_gaps, read_gaps

        given = read_gaps(Path(self.data))
        if given is not None:
            every = max(1, -(-len(given) // (self.limit or len(given))))
            return Gaps(self.data, given[::every])
        found = compared_texts(self.data, self.columns, self.split, "none", self.characters, self.limit)
        texts = [text for text in found.texts if isinstance(text, str)]
        if len(texts) < len(found.texts):
            raise ValueError(f"{self.data} holds prompts with responses, and gaps are drawn in documents: name the text column")
        return Gaps(f"{self.words} word{'s' * (self.words > 1)} in {found.description}", cut_gaps(texts, self.words, self.seed))

    def _fillers(self, gaps: "Sequence[Gap]") -> list[Filler]:
        """Every model opened once, and its rows made, before any time is spent on filling."""
        from textdiff.commands.contenders import opened, short_names
        from textdiff.data.gaps import GapRows
        from textdiff.decoding import Decode, has_encoder
        from textdiff.processes.block import Block
        from textdiff.processes.left_to_right import LeftToRight

        found = []
        for place, name in zip(self.models, short_names(self.models), strict=True):
            model: Any = opened(place)
            if has_encoder(model):
                raise ValueError(f"{place} has an encoder and answers prompts, and gaps stand in the text itself: leave it out")
            causal = isinstance(model.process, LeftToRight)
            right = self.sees == "both" and not causal
            try:
                rows = GapRows(gaps, model.tokenizer, model.max_length, right)
                model.canvas(_batch(model, rows.at(0)))  # refuses a model that writes whole texts
                way = Decode(self._sampler(model, causal), _coldest(model) if self.temperature is None else self.temperature)
                way.check(model)
            except ValueError as error:
                raise ValueError(f"{place}: {error}") from error
            sees = "both sides" if right else "left"
            found.append(Filler(name, place, rows, way, "left, its block" if right and isinstance(model.process, Block) else sees))
        return found

    def _sampler(self, model: Any, causal: bool) -> Any:
        from textdiff.sampler_words import sampler_named

        if self.sampler is None or causal:
            return model.default_sampler(None if causal else self.steps)
        return sampler_named(model, self.sampler, self.steps)

    def _entry(self, filler: Filler) -> "tuple[Entry, list[Filled]]":
        from textdiff.commands.contenders import opened
        from textdiff.decoding import draw, text_of
        from textdiff.evaluation.infilling import Entry, Filled, infilling
        from textdiff.evaluation.likelihood import likelihood
        from textdiff.report import drawing, scoring

        model = opened(filler.place)
        model.to(device_named(self.device))  # type: ignore[arg-type]
        blanks = [_blank(model, row) for row in filler.rows]
        with drawing(filler.name, len(blanks)) as progress:
            drawn = draw(model, blanks, filler.way, batch_size=self.batch_size, seed=self.seed, progress=progress)
        own = [[token for token, asked in zip(row.tokens, row.target, strict=True) if asked] for row in filler.rows]
        filled = [Filled(a, b, text_of(model, a), text) for a, b, text in zip(own, drawn.ids, drawn.texts, strict=True)]
        with scoring() as bar:
            nats = likelihood(model, filler.rows, self.draws, self.batch_size, self.seed, bar, rules="tokens of gaps alone")
        return Entry(filler.name, filler.sees, infilling(filled), nats, drawn.nfe), filled

    def _record(self, filler: Filler, entry: "Entry", filled: "Sequence[Filled]") -> dict[str, Any]:
        from textdiff.spec import to_plain

        return {
            "model": filler.place,
            "sees": entry.sees,
            "sampler": to_plain(filler.way.sampler),
            "temperature": filler.way.temperature,
            "nfe": entry.nfe,
            "quality": entry.quality.as_dict(),
            "likelihood": entry.nats.as_dict(),
            "gaps": [{"own": gap.own_text, "written": gap.text} for gap in filled],
        }


def _coldest(model: Any) -> float:
    from textdiff.guidance.filters import Weighing
    from textdiff.processes.gaussian import Gaussian

    regresses = isinstance(model.process, Gaussian) and not (isinstance(model, Weighing) and model.weighs_tokens)
    return 1.0 if regresses else 0.0


def _blank(model: Any, row: "Example") -> "Example":
    """The row without what stood in its gap."""
    vocab = model.vocab
    blank = next(i for i in (vocab.mask_id, vocab.eos_id, vocab.pad_id, 0) if i is not None)
    tokens = [blank if asked else token for token, asked in zip(row.tokens, row.target, strict=True)]
    return row._replace(tokens=tokens)


def _batch(model: Any, row: "Example") -> "Batch":
    from textdiff.batch import collate

    return collate([row], model.vocab.pad_id or 0)
