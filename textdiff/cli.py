"""The command line: typed dataclasses become flags through tyro, and a user's mistake becomes one line and exit code 2."""

import difflib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro

from textdiff.commands.generate import Generate
from textdiff.commands.perplexity import Perplexity

Kind = TypeVar("Kind")


def parse(kind: Any, words: Sequence[str], program: str, default: Any = tyro.MISSING_NONPROP, description: str | None = None) -> Any:
    """An object of type `kind` from command-line words; prints help or a usage error and exits (2) by itself."""
    return tyro.cli(kind, args=list(words), prog=program, description=description, default=default)


def guarded(program: str, run: Callable[[], Kind]) -> Kind:
    """Run a command: ValueError and OSError are the user's to mend and end in one line and exit code 2, without a traceback.

    `TEXTDIFF_TRACEBACK=1` shows the traceback instead.
    """
    try:
        return run()
    except (ValueError, OSError) as error:
        if os.environ.get("TEXTDIFF_TRACEBACK") == "1":
            raise
        print(f"{program}: error: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def run_presets(presets: Mapping[str, Callable[[], Any]], run: Callable[[Any, str], Any], description: str) -> None:
    """The command line of a recipe script: `python recipes/quickstart.py PRESET [--train.steps N ...]`."""
    program, words = f"python {sys.argv[0]}", sys.argv[1:]
    names = ", ".join(presets)
    if not words or words[0] in ("-h", "--help"):
        print(f"usage: {program} PRESET [--help] [options]\n\n{description.strip()}\n\npresets: {names}")
        raise SystemExit(0 if words else 2)
    name = words[0]
    if name not in presets:
        close = difflib.get_close_matches(name, presets, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"the presets are {names}"
        print(f"{program}: error: there is no preset {name!r}: {hint}", file=sys.stderr)
        raise SystemExit(2)
    preset = guarded(program, presets[name])
    recipe = parse(type(preset), words[1:], f"{program} {name}", default=preset, description=presets[name].__doc__)
    guarded(f"{program} {name}", lambda: run(recipe, f"{Path(sys.argv[0]).stem}-{name}"))


Command = Annotated[Generate, tyro.conf.subcommand("generate")] | Annotated[Perplexity, tyro.conf.subcommand("perplexity")]


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the `textdiff` command."""
    words = sys.argv[1:] if argv is None else list(argv)
    command = parse(Command, words, "textdiff", description="Measure and sample text diffusion and autoregressive language models.")
    guarded(f"textdiff {words[0]}", command.run)


if __name__ == "__main__":
    main()
