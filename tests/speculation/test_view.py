import io
import re
from typing import Any

import pytest
from rich.console import Console

from tests.speculation.tiny_target import DRAFTER, NEW, PROMPTS, TARGET, ZERO, plain
from textdiff.samplers.confidence import Greedy
from textdiff.samplers.drafting import AnyOrder, LeftToRightChunks
from textdiff.samplers.speculative import Adaptive, DraftLength
from textdiff.speculation.view import frames, show
from textdiff.speculation.ways import Drafted


@pytest.mark.parametrize(("drafting", "length"), [(LeftToRightChunks(), DraftLength(5)), (AnyOrder(Greedy(2)), Adaptive(6))], ids=str)
def test_the_frames_of_a_row_are_the_row(drafting: Any, length: DraftLength) -> None:
    """What is refused is not what is written there, and what is accepted is."""
    passed, way = 0, Drafted(TARGET, ZERO, NEW, DRAFTER, drafting, length)
    for prompt in PROMPTS:
        found = list(frames(way, prompt, 0))
        written = plain(prompt)
        assert [token for frame in found for token in (*frame.accepted, *frame.own)] == written
        for frame in found:
            assert frame.before == [*prompt.tolist(), *written][: len(frame.before)]
            assert len(frame.own) == 1
            assert not frame.refused or frame.refused[0] != frame.own[0]
        tested, accepted = int(found[-1].counts.tested.sum()), int(found[-1].counts.accepted.sum())
        assert sum(len(frame.accepted) for frame in found) == accepted
        assert sum(bool(frame.refused) for frame in found) == tested - accepted
        passed += accepted
    assert passed > 5


class Letters:
    """A tokenizer of 8 letters."""

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        return "".join(chr(0x100 + i) for i in ids)


def test_what_is_refused_is_struck_through_in_a_terminal_and_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("textdiff.speculation.view._FRAME", 0.0)
    way = Drafted(TARGET, ZERO, NEW, DRAFTER, LeftToRightChunks(), DraftLength(5))
    row = Letters().decode([*PROMPTS[0].tolist(), *plain(PROMPTS[0])])
    terminal = Console(file=io.StringIO(), force_terminal=True, width=200, color_system="standard")
    file = Console(file=io.StringIO(), force_terminal=False, width=200)
    for console in (terminal, file):
        show(console, way, PROMPTS[0], 0, Letters())
    live, still = (console.file.getvalue() for console in (terminal, file))  # type: ignore[attr-defined]
    refused = next(frame.refused for frame in frames(way, PROMPTS[0], 0) if frame.refused)
    assert re.search(rf"\x1b\[[\d;]*9;31m{Letters().decode(refused)}", live)  # 9: struck through
    assert "\x1b" not in still
    assert still.splitlines()[0] == row
    assert re.sub(r"\x1b\[[\d;?]*\w", "", live).rstrip().splitlines()[-2].strip() == row
