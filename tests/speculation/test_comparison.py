from typing import Any

import pytest
import torch
from torch import Tensor

from tests.models.tiny import autoregressive, trunk
from tests.speculation.tiny_target import NEW, PROMPTS, TARGET, plain
from textdiff.bench.base import Bench
from textdiff.speculation.comparison import Same, compared, same
from textdiff.speculation.ways import Written
from textdiff.vocab import Vocab


def test_rows_are_told_apart_and_ties_from_other_differences() -> None:
    written = [Written(torch.tensor(plain(prompt)), NEW, 0, torch.zeros(0), torch.zeros(0)) for prompt in PROMPTS[:3]]
    changed = written[1]._replace(tokens=torch.where(torch.arange(NEW) == 4, (written[1].tokens + 1) % 7 + 1, written[1].tokens))
    assert same(TARGET, PROMPTS[:3], written, written) == Same(3, 0, 3)
    assert same(TARGET, PROMPTS[:3], written, [written[0], changed, written[2]]) == Same(2, 0, 3)
    level = autoregressive(Vocab(size=8, tokens=8), backbone=trunk())
    level.backbone.get_parameter("embedding.weight").data.zero_()  # every token is as likely as any other
    assert same(level, PROMPTS[:3], written, [written[0], changed, written[2]]) == Same(2, 1, 3)


def test_speed_is_a_ratio_to_the_faster_plain_way(monkeypatch: pytest.MonkeyPatch) -> None:
    costs, clock = {"one": 3.0, "two": 2.0, "three": 1.0}, [0.0]
    nothing = torch.zeros(0, dtype=torch.long)

    def side(name: str) -> Any:
        def way(prompt: Tensor, seed: int) -> Written:
            clock[0] += costs[name]
            return Written(prompt, 1, 0, nothing, nothing)

        return way

    monkeypatch.setattr(Bench, "seconds", lambda self: clock[0])
    lines = compared(Bench(rounds=2), {name: side(name) for name in costs}, ["one", "two"], TARGET, PROMPTS[:2], chance=True)
    assert {line.name: line.speed[1] for line in lines} == {"one": pytest.approx(2 / 3), "two": 1.0, "three": 2.0}
    assert [(line.tokens, line.passes, line.same) for line in lines] == [(18, 2, None)] * 3
