"""The command line: typed dataclasses become flags through tyro, and a user's mistake becomes one line and exit code 2."""

import contextlib
import difflib
import io
import itertools
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro

from textdiff.commands.bench import Bench
from textdiff.commands.choose import Choose
from textdiff.commands.compare import Compare
from textdiff.commands.frontier import Frontier
from textdiff.commands.generate import Generate
from textdiff.commands.infill import Infill
from textdiff.commands.perplexity import Perplexity
from textdiff.commands.report import Report
from textdiff.commands.speculate import Speculate

Kind = TypeVar("Kind")


def parse(kind: Any, words: Sequence[str], program: str, default: Any = tyro.MISSING_NONPROP, description: str | None = None) -> Any:
    """An object of type `kind` from command-line words; prints help, or an error in one line, and exits (0 or 2) by itself."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(kind, args=list(words), prog=program, description=description, default=default)
    except SystemExit as stop:
        if stop.code:
            print(f"{program}: error: {_usage_error(said.getvalue())} (see --help)", file=sys.stderr)
        raise


def _usage_error(box: str) -> str:
    """What tyro says in a box of several lines, in one: the paragraph after the title, and the nearest option where it names one."""
    lines = [line.strip(" │╭╮╰╯─") for line in re.sub(r"\x1b\[[0-9;]*m", "", box).splitlines()]
    lines = ["" if set(line) <= {"-"} else line for line in lines]
    title = next((i for i, line in enumerate(lines) if line), -1)
    said = " ".join(itertools.takewhile(bool, itertools.dropwhile(lambda line: not line, lines[title + 1 :])))
    near = next((lines[i + 1].split()[0] for i, line in enumerate(lines[:-1]) if line == "Perhaps you meant:" and lines[i + 1]), None)
    return (said or "the command line cannot be read") + (f": did you mean {near}?" if near else "")


def guarded(program: str, run: Callable[[], Kind]) -> Kind:
    """Run a command: ValueError and OSError are the user's to mend and end in one line and exit code 2, without a traceback.

    `TEXTDIFF_TRACEBACK=1` shows the traceback instead.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a sample may hold what the terminal's encoding lacks
    try:
        return run()
    except (ValueError, OSError) as error:
        if os.environ.get("TEXTDIFF_TRACEBACK") == "1":
            raise
        print(f"{program}: error: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from None
    except (RuntimeError, MemoryError) as error:
        if not (isinstance(error, MemoryError) or "memory" in str(error)):  # torch's word on every device
            raise
        print(f"{program}: error: out of memory: lower the batch size, the count or the length", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def run_presets(presets: Mapping[str, Callable[[], Any]], run: Callable[[Any, str], Any], description: str) -> None:
    """The command line of a recipe script: `python recipes/quickstart.py PRESET [--train.steps N ...]`."""
    program, words = f"python {sys.argv[0]}", sys.argv[1:]
    names = ", ".join(presets)
    if not words or words[0] in ("-h", "--help"):
        print(f"usage: {program} PRESET [--help] [options]\n\n{description.strip()}\n\npresets: {names}")
        if words:
            raise SystemExit(0)
        print(f"{program}: error: name a preset: {names}", file=sys.stderr)
        raise SystemExit(2)
    name = words[0]
    if name not in presets:
        close = difflib.get_close_matches(name, presets, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"the presets are {names}"
        print(f"{program}: error: there is no preset {name!r}: {hint}", file=sys.stderr)
        raise SystemExit(2)
    preset = guarded(program, presets[name])
    recipe = parse(type(preset), words[1:], f"{program} {name}", default=preset, description=presets[name].__doc__)
    guarded(f"{program} {name}", lambda: run(recipe, f"{Path(sys.argv[0]).stem}-{name}"))


Command = (
    Annotated[Generate, tyro.conf.subcommand("generate")]
    | Annotated[Perplexity, tyro.conf.subcommand("perplexity")]
    | Annotated[Compare, tyro.conf.subcommand("compare")]
    | Annotated[Choose, tyro.conf.subcommand("choose")]
    | Annotated[Infill, tyro.conf.subcommand("infill")]
    | Annotated[Frontier, tyro.conf.subcommand("frontier")]
    | Annotated[Report, tyro.conf.subcommand("report")]
    | Annotated[Speculate, tyro.conf.subcommand("speculate")]
    | Annotated[Bench, tyro.conf.subcommand("bench")]
)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the `textdiff` command."""
    words = sys.argv[1:] if argv is None else list(argv)
    command = parse(Command, words, "textdiff", description="Measure, compare and sample text diffusion and other language models.")
    guarded(f"textdiff {words[0]}", command.run)


if __name__ == "__main__":
    main()
