"""How a comparison is measured: all sides in one process, in turns, and as ratios.

Absolute times say more about the machine and its other users than about the code, so a result is the median over rounds of a ratio
within a round, with its quartiles.
"""

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import torch
from rich.table import Table
from torch import nn
from torch.profiler import ProfilerActivity, profile

Action = Callable[[int], object]  # one run of one side in the given round


@dataclass(frozen=True)
class Row:
    """One comparison: how many times as fast (or as large) ours is as the other side, lower quartile, median and upper quartile."""

    bench: str
    quantity: str
    versus: str
    low: float
    median: float
    high: float
    at_least: float | None = None
    at_most: float | None = None

    @property
    def met(self) -> bool | None:
        """Whether the median meets its target; None without a target."""
        if self.at_least is not None:
            return self.median >= self.at_least
        return None if self.at_most is None else self.median <= self.at_most


@dataclass(frozen=True)
class Bench:
    """What every bench is told: where it runs, how often, and on how many threads."""

    rounds: int = 9
    device: str = "cpu"
    threads: int = 1  # more are slower and noisier on a shared machine
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.threads < 1:
            raise ValueError(f"a bench of {self.rounds} rounds on {self.threads} threads measures nothing: give 1 or more of each")
        if self.device.startswith("cuda") and not torch.cuda.is_available():
            raise ValueError(f"device is {self.device!r} and torch sees no GPU: use 'cpu'")

    def run(self) -> list[Row]:
        """Measure; raises AssertionError when the sides do not compute the same thing, which would make the comparison void."""
        with _threads(self.threads):
            return self.measure()

    def measure(self) -> list[Row]:
        """The comparisons of one bench."""
        raise NotImplementedError

    def sizes(self) -> str:
        """The sizes measured, in one line."""
        raise NotImplementedError

    def place(self, module: nn.Module) -> None:
        """Move a model to the device of the bench."""
        nn.Module.to(module, self.device)

    def seconds(self) -> float:
        """A clock: CPU time of this process where it runs on one thread, so that other processes' turns do not count, else wall time."""
        if self.device == "cpu":
            return time.process_time() if self.threads == 1 else time.perf_counter()
        torch.cuda.synchronize()
        return time.perf_counter()

    def interleaved(self, sides: Mapping[str, Action]) -> dict[str, list[float]]:
        """Seconds of every side in every round; each round begins with another side, and round 0 is not measured."""
        names, times = list(sides), {name: [0.0] * self.rounds for name in sides}
        for i in range(self.rounds + 1):
            for name in names[i % len(names) :] + names[: i % len(names)]:
                start = self.seconds()
                sides[name](i)
                times[name][i - 1] = self.seconds() - start  # round 0 writes the last entry, which is measured last
        return times

    def peak_bytes(self, action: Callable[[], object]) -> int:
        """Most bytes allocated at once during `action` beyond what was allocated when it began.

        On a CPU the profiler reports every call of torch's allocator, temporaries inside operators included; the resident size of the
        process would also show what the C library keeps after a free.
        """
        if self.device != "cpu":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            action()
            return torch.cuda.max_memory_allocated() - before
        os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # else the profiler announces itself on stderr
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            action()
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "trace.json")
            profiler.export_chrome_trace(path)
            with open(path, encoding="utf-8") as file:
                events = json.load(file)["traceEvents"]
        allocations = sorted(
            (event["ts"], event["args"]["Ev Idx"], event["args"]["Bytes"]) for event in events if event["name"] == "[memory]"
        )
        now, peak = 0, 0
        for _, _, size in allocations:
            now += size
            peak = max(peak, now)
        return peak


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile."""
    low, median, high = torch.tensor(values, dtype=torch.float64).quantile(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)).tolist()
    return low, median, high


def ratios(numerator: Sequence[float], denominator: Sequence[float]) -> tuple[float, float, float]:
    """Quartiles of the ratio within each round."""
    return quartiles([a / b for a, b in zip(numerator, denominator, strict=True)])


def require_equal(ours: torch.Tensor, other: torch.Tensor, tolerance: float, what: str) -> None:
    """Raise AssertionError when two tensors differ by more than `tolerance` of the norm of the first."""
    difference = float((ours - other).norm() / ours.norm().clamp_min(1e-30))
    if not difference <= tolerance:
        raise AssertionError(
            f"{what}: relative difference {difference:.2g}, so the sides do not compute the same thing and no ratio is given"
        )


def table(bench: Bench, rows: Sequence[Row]) -> Table:
    """The rows for a terminal, with the conditions they were measured under."""
    clock = "CPU time" if bench.device == "cpu" and bench.threads == 1 else "wall time"
    conditions = (
        f"{bench.sizes()}\n{bench.device}, {bench.threads} thread(s), torch {torch.__version__}, {bench.rounds} rounds in turns, {clock}"
    )
    result = Table("bench", "quantity", "ours against", "ratio (quartiles)", "target", "", caption=conditions, caption_justify="left")
    for row in rows:
        target = "" if row.met is None else f">= {row.at_least}" if row.at_least is not None else f"<= {row.at_most}"
        spread = f"{row.median:.2f} ({row.low:.2f}-{row.high:.2f})" if row.low != row.high else f"{row.median:.2f}"
        result.add_row(row.bench, row.quantity, row.versus, spread, target, {None: "", True: "met", False: "missed"}[row.met])
    return result


def to_json(bench: Bench, rows: Sequence[Row]) -> str:
    """The same as JSON: the options of the bench, torch's version and the rows."""
    options = {"bench": type(bench).__name__, **asdict(bench), "torch": torch.__version__}
    return json.dumps({"options": options, "rows": [{**asdict(row), "met": row.met} for row in rows]}, indent=2)
