"""What a person sees of a comparison: how far it is, and its tables."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table as Grid

from textdiff.evaluation.comparison_tables import Table
from textdiff.evaluation.scoring import Running
from textdiff.report import print_labelled


def print_table(console: Console, table: Table) -> None:
    """A table with its title above and its note below."""

    grid = Grid(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True, show_edge=False)
    for column in table.columns:
        grid.add_column(column, no_wrap=True)
    for row in table.rows:
        grid.add_row(*row)
    wide = Console(quiet=console.quiet, highlight=False, width=1000)  # a number that is cut short says something else
    console.print(table.title, style="bold", markup=False)
    wide.print(grid, crop=False, soft_wrap=True)
    console.print()
    print_labelled(console, "note", *table.note.split("; "))
    console.print()


@contextmanager
def measuring(what: str, shown: bool) -> Iterator[Callable[[Running], None]]:
    """A progress bar with the running estimate while a measurement lasts; without a terminal a line at its end. All on standard error."""
    console = Console(stderr=True, highlight=False)
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[numbers]}"), TimeRemainingColumn())
    begun, said = time.perf_counter(), ""
    with Progress(
        TextColumn("{task.description}"), *columns, console=console, transient=True, disable=not (shown and console.is_terminal)
    ) as bar:
        task = bar.add_task(what, total=None, numbers="")

        def progress(running: Running) -> None:
            nonlocal said
            said = f"{running.nats_per_token:.4f} ± {running.error:.4f} nats/token"
            bar.update(task, completed=running.done, total=running.total, numbers=said)

        yield progress
    if shown:
        print(f"{what}: {said or 'measured before'}, {time.perf_counter() - begun:.0f} s", file=sys.stderr, flush=True)
