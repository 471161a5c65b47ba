"""What the processes of an evaluation tell one another; alone, a process tells itself.

Where one process fails while the others wait for its word, they would wait for ever: so the word is either a result or the failure, which
then ends all of them. The process that failed raises what it met; the others a ValueError of the same words, or a RuntimeError that names
anything else.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from torch import distributed

Result = TypeVar("Result")


class _Outcome(NamedTuple):
    """What became of a process's work."""

    result: Any
    failure: str | None = None
    of_input: bool = False  # the failure is a ValueError

    def on_another(self, rank: int) -> Any:
        """The result of process number `rank`, or its failure raised on another one."""
        if self.failure is None:
            return self.result
        raise ValueError(self.failure) if self.of_input else RuntimeError(f"process {rank} failed: {self.failure}")


def rank_and_world() -> tuple[int, int]:
    """The number of this process and how many there are."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def from_every(work: Callable[[], Result]) -> list[Result]:
    """The results of `work` of all processes, in their order; a failure anywhere is raised everywhere."""
    _, world = rank_and_world()
    if world == 1:
        return [work()]
    own, error = _attempt(work)
    outcomes: list[Any] = [None] * world
    distributed.all_gather_object(outcomes, own)
    if error is not None:
        raise error
    return [outcome.on_another(number) for number, outcome in enumerate(outcomes)]


def from_first(work: Callable[[], Result]) -> Result:
    """The result of `work`, done by the first process, on every process; its failure is raised everywhere."""
    rank, world = rank_and_world()
    if world == 1:
        return work()
    own, error = _attempt(work) if rank == 0 else (None, None)
    told: list[Any] = [own]
    distributed.broadcast_object_list(told)
    if error is not None:
        raise error
    result: Result = told[0].on_another(0)
    return result


def _attempt(work: Callable[[], Any]) -> tuple[_Outcome, Exception | None]:
    try:
        return _Outcome(work()), None
    except ValueError as error:
        return _Outcome(None, str(error), of_input=True), error
    except Exception as error:  # whatever it is, the others must not wait for what will not come
        return _Outcome(None, f"{type(error).__name__}: {error}"), error
