"""Two processes tell one another results and failures alike, so that neither waits for ever."""

import socket
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from torch import distributed
from torch.multiprocessing.spawn import spawn

from textdiff.evaluation.collective import from_every, from_first, rank_and_world


def failing(error: Exception) -> Any:
    raise error


def raised(work: Callable[[], Any]) -> str:
    with pytest.raises(Exception) as met:  # noqa: PT011 - which one it is, is what is told
        work()
    return f"{type(met.value).__name__}: {met.value}"


def _told(rank: int) -> list[Any]:
    return [
        from_first(lambda: f"of {rank}"),
        raised(lambda: from_first(lambda: failing(ValueError("wrong file")))),
        raised(lambda: from_first(lambda: failing(OSError("disk full")))),
        from_every(lambda: rank),
        raised(lambda: from_every(lambda: failing(ValueError("nan nats")) if rank else "fine")),
        raised(lambda: from_every(lambda: failing(KeyError("x")) if rank == 0 else "fine")),
        from_every(lambda: "still in step"),
    ]


def _of_two(rank: int, port: int, folder: Path) -> None:
    distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2, timeout=timedelta(seconds=20))
    (folder / str(rank_and_world()[0])).write_text("\n".join(map(str, _told(rank))))
    distributed.destroy_process_group()


def test_results_and_failures_reach_every_process(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    spawn(_of_two, (port, tmp_path), nprocs=2)
    first, second = ((tmp_path / str(rank)).read_text().splitlines() for rank in range(2))
    assert first[:2] == second[:2] == ["of 0", "ValueError: wrong file"]
    assert (first[2], second[2]) == ("OSError: disk full", "RuntimeError: process 0 failed: OSError: disk full")
    assert first[3] == second[3] == "[0, 1]"
    assert first[4] == second[4] == "ValueError: nan nats"
    assert (first[5], second[5]) == ("KeyError: 'x'", "RuntimeError: process 0 failed: KeyError: 'x'")
    assert first[6] == second[6] == "['still in step', 'still in step']"


def test_alone_a_process_meets_its_own_failure() -> None:
    assert (from_first(lambda: 1), from_every(lambda: 2)) == (1, [2])
    assert raised(lambda: from_first(lambda: failing(OSError("disk full")))) == "OSError: disk full"
