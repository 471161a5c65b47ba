"""`textdiff frontier MODEL... --scorer SCORER`: sample quality against network calls for a list of samplers, as a table and a figure."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import tyro

from textdiff.commands.device import device_named

if TYPE_CHECKING:
    from textdiff.decoding import Decode
    from textdiff.evaluation.frontier import Files, Point
    from textdiff.evaluation.generative_perplexity import Scorer

_NOISE = "float64"  # of all random numbers that choose tokens: Rng.uniform, Prediction.draw


class Writer(NamedTuple):
    """A model that has been looked at; its weights are opened again when it writes."""

    name: str
    place: str  # run folder, checkpoint folder, or hub id
    ways: "dict[str, Decode]"  # how it writes, by the words for it
    tokenizer: Any
    cut: str  # digest of the tokenizer
    weights: str  # digest


class Judging(NamedTuple):
    """What all rows of a folder share."""

    scorer: "Scorer"
    real: dict[str, list[str]]  # held-out text of the same length, by the digest of the tokenizer that cut it
    settings: dict[str, Any]


@dataclass(frozen=True)
class Frontier:
    """Generative perplexity, entropy, repetition and diversity of texts that models write unprompted, beside the network calls that they
    take and held-out text of the same length."""

    models: tyro.conf.Positional[tuple[str, ...]]
    """Run folders, checkpoint folders, or hub ids."""
    scorer: str
    """The causal model that scores the texts: run folder, checkpoint folder, or hub id."""
    samplers: tuple[str, ...] = ()
    """Any samplers of textdiff, with options as in Ancestral:steps=8 or Greedy:steps=16,temperature=0.7; causal and diffusion models each
    take theirs (default: each model's own, at 4, 8, 16, 32, 64 and 128 steps)."""
    texts: int = 64
    """Texts of each model and sampler; self-BLEU and MAUVE depend on their number."""
    length: int = 64
    """Tokens of a text, by its model's tokenizer; EOS may end it earlier."""
    data: str = "builtin:pydocs"
    """Held-out text to compare with: builtin:pydocs, a file, a folder, or a hub id org/name[:config][@revision]."""
    split: str | None = None
    """train, validation, test or all (default: all of a file or folder, else validation)."""
    columns: tuple[str, ...] | None = None
    """The text column of rows (default: recognised)."""
    mauve: Path | None = None
    """Folder of the network for MAUVE, such as GPT-2, as save_pretrained writes it (default: no MAUVE)."""
    batch_size: int = 64
    """Texts at a time; seconds per text depend on it, texts do not."""
    seed: int = 0
    """The same seed gives the same texts; all rows share it."""
    out: Path = Path("runs/frontier")
    """Folder of the result; what is finished in it is not drawn again."""
    device: str | None = None
    """cpu, cuda, ... (default: a GPU when there is one)."""

    def run(self) -> None:
        """Check everything, draw and score row after row, then show all rows of the folder."""
        from transformers.utils import logging

        logging.disable_progress_bar()
        self._check()
        writers, scorer = self._writers(), self._scorer()
        judging = self._judging(writers, scorer)
        files = self._files(writers, judging)
        for writer in writers:
            self._add_held_out(writer, judging, files)
        for writer in writers:
            self._add_samples(writer, judging, files)
        self._report(files.points())

    def _check(self) -> None:
        if not self.models:
            raise ValueError("no model is named: give run folders, checkpoint folders or hub ids")
        for name, value, least in (("texts", self.texts, 2), ("length", self.length, 1), ("batch_size", self.batch_size, 1)):
            if value < least:
                raise ValueError(f"{name} is {value}, expected {least} or more")
        twice = [words for i, words in enumerate(self.samplers) if words in self.samplers[:i]]
        if twice:
            raise ValueError(f"{twice[0]} is given twice: name each sampler once")
        if self.out.exists() and not self.out.is_dir():
            raise ValueError(f"{self.out} is a file: give the result a folder of its own with --out")

    def _writers(self) -> list[Writer]:
        """Every model opened once and every sampler tried on it, before any time is spent on drawing."""
        from textdiff.commands.contenders import opened, short_names
        from textdiff.commands.unprompted import blank_text, ways_of
        from textdiff.evaluation.identity import model_digest, tokenizer_digest

        found = []
        for place, name in zip(self.models, short_names(self.models), strict=True):
            model = opened(place)
            ways = ways_of(model, place, blank_text(model, place, self.length), self.samplers)
            found.append(Writer(name, place, ways, model.tokenizer, tokenizer_digest(model.tokenizer), model_digest(model)))
        idle = [words for words in self.samplers if not any(words in writer.ways for writer in found)]
        if idle:
            raise ValueError(f"{idle[0]} suits none of {', '.join(self.models)}: leave it out, or name a model for it")
        return found

    def _scorer(self) -> "Scorer":
        from textdiff.commands.contenders import opened, short_names
        from textdiff.decoding import has_encoder
        from textdiff.evaluation.generative_perplexity import Scorer

        model = opened(self.scorer)
        if has_encoder(model):
            raise ValueError(f"the scorer {self.scorer} has an encoder and scores answers to prompts: name a model that reads one row")
        scorer = Scorer(model, short_names([self.scorer])[0])
        model.to(device_named(self.device))  # type: ignore[arg-type]
        return scorer

    def _judging(self, writers: Sequence[Writer], scorer: "Scorer") -> Judging:
        from textdiff.commands.compared_texts import compared_texts
        from textdiff.evaluation.frontier import held_out
        from textdiff.evaluation.identity import model_digest

        found = compared_texts(self.data, self.columns, self.split, "none", 0, None)
        documents = [text for text in found.texts if isinstance(text, str)]
        if len(documents) < len(found.texts):
            raise ValueError(f"{self.data} holds prompts with responses, and samples are compared with documents: name the text column")
        real = {writer.cut: held_out(documents, writer.tokenizer, self.length, self.texts) for writer in writers}
        settings = {
            "scorer_weights": model_digest(scorer.model),
            "data": found.description,
            **{name: getattr(self, name) for name in ("texts", "length", "batch_size", "seed")},
            "mauve": None if self.mauve is None else str(self.mauve),
            "device": device_named(self.device).type,
        }
        return Judging(scorer, real, settings)

    def _files(self, writers: Sequence[Writer], judging: Judging) -> "Files":
        """The folder's files; raises ValueError where what is in them was drawn or scored otherwise than is asked for now."""
        from textdiff.evaluation.frontier import Files

        self.out.mkdir(parents=True, exist_ok=True)
        files = Files(self.out)
        files.check(judging.settings)
        for writer in writers:
            for words in writer.ways:
                files.check({"weights": writer.weights}, (writer.name, words))
        return files

    def _add_held_out(self, writer: Writer, judging: Judging, files: "Files") -> None:
        """Held-out text cut by a model's tokenizer, unless it is there."""
        from textdiff.evaluation.frontier import HELD_OUT, Costs, Point, Quality

        if any(point.model == HELD_OUT and point.drawn["tokenizer"] == writer.cut for point in files.points()):
            return
        real, scorer = judging.real[writer.cut], judging.scorer
        quality = Quality.of(real, real, scorer, self.mauve, self.batch_size)
        words, drawn = f"in tokens of {writer.name}", {**judging.settings, "tokenizer": writer.cut}
        costs = Costs(nfe=0.0, dtype="-", seconds_per_text=0.0)
        files.add(Point.of_texts(quality, HELD_OUT, words, scorer.name, costs, drawn), real)

    def _add_samples(self, writer: Writer, judging: Judging, files: "Files") -> None:
        """What is not there yet of one model."""
        from textdiff.commands.contenders import opened
        from textdiff.commands.unprompted import blank_text
        from textdiff.decoding import draw
        from textdiff.evaluation.frontier import Costs, Point, Quality

        finished = {point.key for point in files.points()}
        todo = {words: way for words, way in writer.ways.items() if (writer.name, words) not in finished}
        if not todo:
            return
        model = opened(writer.place)
        model.to(device_named(self.device))  # type: ignore[arg-type]
        blanks = [blank_text(model, writer.place, self.length)] * self.texts
        dtype = f"{str(next(model.parameters()).dtype).removeprefix('torch.')}, noise {_NOISE}"
        drawn = {**judging.settings, "tokenizer": writer.cut, "weights": writer.weights}
        real, scorer = judging.real[writer.cut], judging.scorer
        for words, way in todo.items():
            with _shown(f"{writer.name}, {words}", self.texts) as progress:
                found = draw(model, blanks, way, batch_size=self.batch_size, seed=self.seed, progress=progress)
                quality = Quality.of(found.texts, real, scorer, self.mauve, self.batch_size)
            costs = Costs(found.nfe, dtype, found.seconds / self.texts)
            files.add(Point.of_texts(quality, writer.name, words, scorer.name, costs, drawn), found.texts)

    def _report(self, points: "Sequence[Point]") -> None:
        from rich.console import Console

        from textdiff.commands.comparison_view import print_table
        from textdiff.evaluation.frontier import table, warnings
        from textdiff.page.frontier_figure import frontier
        from textdiff.page.style import Looks, png
        from textdiff.plots import can_draw
        from textdiff.report import print_labelled

        console = Console(highlight=False)
        print_table(console, table(points))
        print_labelled(console, "scored", *sorted({point.rules for point in points}))
        for line in warnings(points):
            print_labelled(console, "warning", line)
        looks = Looks(tuple(sorted({point.model for point in points})))
        picture = frontier(points, looks) if can_draw() else None
        if picture:
            png(picture, self.out / "frontier.png")
        print_labelled(console, "wrote", f"{self.out}/ frontier.jsonl samples.jsonl{' frontier.png' if picture else ''}")


@contextmanager
def _shown(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar over texts on standard error while the block lasts, in terminals only."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True, highlight=False)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=total)
        yield lambda rows: bar.advance(task, rows)
