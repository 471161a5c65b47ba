"""The measuring itself: closed forms of quartiles and ratios, the order of turns, and allocations of known size."""

from dataclasses import dataclass

import pytest
import torch

from textdiff.bench.base import Bench, Row, quartiles, ratios, require_equal

MEGABYTE = 2**20


@dataclass(frozen=True)
class Nothing(Bench):
    rounds: int = 3

    def measure(self) -> list[Row]:
        return [Row("nothing", "threads", "", *[float(torch.get_num_threads())] * 3)]


def test_quartiles_of_the_ratio_within_each_round() -> None:
    assert quartiles([5.0, 1.0, 3.0, 2.0, 4.0]) == (2.0, 3.0, 4.0)
    assert ratios([2.0, 20.0, 9.0], [1.0, 10.0, 3.0]) == (2.0, 2.0, 2.5)  # rounds ten times slower than others do not matter


def test_sides_take_turns_and_the_first_round_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, int]] = []
    clock = [0.0]
    monkeypatch.setattr(Nothing, "seconds", lambda self: clock[0])

    def side(name: str, cost: float) -> None:
        calls.append((name, len(calls) // 2))
        clock[0] += cost * (100.0 if len(calls) <= 2 else 1.0)

    times = Nothing().interleaved({"a": lambda i: side("a", 1.0), "b": lambda i: side("b", 3.0)})
    assert times == {"a": [1.0] * 3, "b": [3.0] * 3}
    assert [name for name, _ in calls] == ["a", "b", "b", "a", "a", "b", "b", "a"]


def test_peak_counts_what_lives_together_and_what_operators_hold_inside() -> None:
    values = torch.zeros(64, MEGABYTE // 64 // 4)

    def one_after_the_other() -> None:
        (values + 1).sum()
        (values + 2).sum()

    def together() -> float:
        first, second = values + 1, values + 2
        return float(first[0, 0] + second[0, 0])

    bench, slack = Nothing(), 0.01 * MEGABYTE
    assert abs(bench.peak_bytes(one_after_the_other) - MEGABYTE) < slack
    assert abs(bench.peak_bytes(together) - 2 * MEGABYTE) < slack
    assert abs(bench.peak_bytes(lambda: values.logsumexp(-1)) - MEGABYTE) < slack  # its temporary is never seen from outside
    assert bench.peak_bytes(lambda: values.mul_(2)) < slack


def test_threads_are_set_for_the_run_and_restored() -> None:
    before = torch.get_num_threads()
    assert Nothing(threads=2).run()[0].median == 2
    assert torch.get_num_threads() == before


def test_targets() -> None:
    assert Row("b", "speed", "", 1.0, 1.8, 2.0, at_least=1.8).met
    assert not Row("b", "memory", "", 0.6, 0.6, 0.6, at_most=0.5).met
    assert Row("b", "speed", "", 1.0, 1.0, 1.0).met is None


def test_unequal_sides_are_refused() -> None:
    require_equal(torch.ones(3), torch.ones(3) + 1e-6, 1e-5, "loss")
    with pytest.raises(AssertionError, match=r"loss: relative difference 0\.01"):
        require_equal(torch.ones(3), torch.ones(3) * 1.01, 1e-5, "loss")
    with pytest.raises(AssertionError, match="nan"):
        require_equal(torch.ones(3), torch.full((3,), torch.nan), 1e-5, "loss")


def test_bad_options_are_refused() -> None:
    with pytest.raises(ValueError, match="0 rounds"):
        Nothing(rounds=0)
