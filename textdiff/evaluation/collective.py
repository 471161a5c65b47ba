"""What the processes of an evaluation tell one another; alone, a process tells itself."""

from collections.abc import Callable
from typing import Any, TypeVar

from torch import distributed

Result = TypeVar("Result")


def rank_and_world() -> tuple[int, int]:
    """The number of this process and how many there are."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def everyones(value: Result) -> list[Result]:
    """The values of all processes, in their order."""
    _, world = rank_and_world()
    if world == 1:
        return [value]
    values: list[Any] = [None] * world
    distributed.all_gather_object(values, value)
    return values


def from_first(work: Callable[[], Result]) -> Result:
    """The result of `work`, done by the first process, on every process; a ValueError is raised on every process too."""
    rank, world = rank_and_world()
    if world == 1:
        return work()
    outcome: list[Any] = [None, None]
    if rank == 0:
        try:
            outcome = [work(), None]
        except ValueError as error:
            outcome = [None, str(error)]
    distributed.broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise ValueError(outcome[1])
    result: Result = outcome[0]
    return result
