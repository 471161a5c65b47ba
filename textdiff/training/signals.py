"""Stopping cleanly: Ctrl-C, SIGTERM and a time limit end a run after the step in progress, on every process at once."""

import os
import signal
import sys
import threading
import time
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator

_SAME_KEY_PRESS = 1.0  # seconds; a launcher passes Ctrl-C on to processes that the terminal has already told


class StopRequest:
    """Collects reasons to stop while it is entered.

    `exit_code` is None until the processes agree to stop, then 130 after Ctrl-C, 143 after SIGTERM, 0 at the time limit.
    """

    def __init__(self, accelerator: Accelerator, max_seconds: float | None) -> None:
        self.accelerator = accelerator
        self.deadline = None if max_seconds is None else time.monotonic() + max_seconds
        self.exit_code: int | None = None
        self._signals: set[int] = set()
        self._first_interrupt: float | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():  # Python delivers signals nowhere else
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if number == signal.SIGINT and self._first_interrupt is not None and now - self._first_interrupt > _SAME_KEY_PRESS:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)  # dies of the signal, so the shell sees it
        if number == signal.SIGINT and self._first_interrupt is None:
            self._first_interrupt = now
            if self.accelerator.is_main_process:
                shown = "\x1b[?25h" if sys.stderr.isatty() else ""  # a second Ctrl-C must not leave the cursor hidden
                print(f"{shown}stopping after this step; Ctrl-C again quits now", file=sys.stderr, flush=True)
        self._signals.add(number)

    def should_stop(self) -> bool:
        """Whether any process was asked to stop. With several processes this is a collective call: each must make it equally often."""
        late = self.deadline is not None and time.monotonic() > self.deadline
        reasons = (signal.SIGTERM in self._signals, signal.SIGINT in self._signals, late)
        votes = torch.tensor(reasons, dtype=torch.float32, device=self.accelerator.device)
        terminated, interrupted, late_somewhere = self.accelerator.reduce(votes, reduction="sum").tolist()
        if terminated:
            self.exit_code = 128 + signal.SIGTERM
        elif interrupted:
            self.exit_code = 128 + signal.SIGINT
        elif late_somewhere:
            self.exit_code = 0
        return self.exit_code is not None
