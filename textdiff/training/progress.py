"""How far a run is, for a person: a progress bar in a terminal, now and then a line elsewhere."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_SECONDS_BETWEEN_LINES = 10.0


class RunProgress:
    """Shows steps done, loss, tokens per second and time left on standard error; silent when `shown` is False."""

    def __init__(self, steps: int, shown: bool) -> None:
        self.steps, self.shown = steps, shown
        numbers = (MofNCompleteColumn(), TextColumn("{task.fields[numbers]}"), TimeRemainingColumn(), TextColumn("left"))
        columns = (TextColumn("training"), BarColumn(), *numbers)
        self._bar = Progress(*columns, console=Console(stderr=True), disable=not (shown and sys.stderr.isatty()))
        self._began, self._first, self._last_line = time.monotonic(), 0, -_SECONDS_BETWEEN_LINES

    @contextmanager
    def started(self, done: int) -> Iterator[None]:
        """Shows the bar inside the block, with `done` steps behind it."""
        self._began, self._first = time.monotonic(), done
        self._task = self._bar.add_task("training", total=self.steps, completed=done, numbers="")
        with self._bar:
            yield

    def advance(self, step: int) -> None:
        """`step` steps are done."""
        self._bar.update(self._task, completed=step)

    def numbers(self, step: int, loss: float, tokens_per_second: float) -> None:
        """The newest numbers; loss in nats per token."""
        text = f"loss {loss:.4f}  {tokens_per_second:,.0f} tokens/s"
        self._bar.update(self._task, numbers=text)
        now = time.monotonic()
        if self._bar.disable and (now - self._last_line > _SECONDS_BETWEEN_LINES or step == self.steps):
            self._last_line = now
            left = (now - self._began) / max(1, step - self._first) * (self.steps - step)
            self.say(f"step {step}/{self.steps}  {text}  {left:,.0f} s left")

    def say(self, line: str) -> None:
        """One line above the bar."""
        if not self.shown:
            return
        if self._bar.disable:
            print(line, file=sys.stderr, flush=True)
        else:
            self._bar.console.print(line, markup=False, highlight=False)
