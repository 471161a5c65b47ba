"""The command line: typed dataclasses become flags through tyro, and a user's mistake becomes one line and exit code 2."""

import os
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any, TypeVar

import tyro

from textdiff.commands.bench import Bench
from textdiff.commands.generate import Generate
from textdiff.commands.perplexity import Perplexity

Kind = TypeVar("Kind")


def parse(kind: Any, argv: Sequence[str], program: str, default: Any = None, description: str | None = None) -> Any:
    """An object of type `kind` from command-line words; prints help or a usage error and exits (2) by itself."""
    extra = {} if default is None else {"default": default}
    return tyro.cli(kind, args=list(argv), prog=program, description=description, **extra)


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


Command = (
    Annotated[Generate, tyro.conf.subcommand("generate")]
    | Annotated[Perplexity, tyro.conf.subcommand("perplexity")]
    | Annotated[Bench, tyro.conf.subcommand("bench")]
)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the `textdiff` command."""
    words = sys.argv[1:] if argv is None else list(argv)
    command = parse(Command, words, "textdiff", description="Measure and sample text diffusion and autoregressive language models.")
    guarded(f"textdiff {words[0]}", command.run)


if __name__ == "__main__":
    main()
