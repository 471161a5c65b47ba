import pytest

from tests.models.tiny import EOS, autoregressive
from tests.samplers.test_autoregressive import uncached
from textdiff.batch import Example
from textdiff.models.own_text import OwnText

TARGET = autoregressive(seed=3)
ROWS = [Example([0, 1 + i % 5, 2, 3 + i % 3, 4, 1, 2, 3, 5], [False] + [True] * 8) for i in range(10)]


def test_rows_go_on_as_the_target_goes_on_up_to_its_end_token() -> None:
    ended = 0
    for i, row in enumerate(OwnText(rows=5, prompt=3, batch_size=2)(TARGET, ROWS, seed=0)):
        given = list(ROWS[2 * i].tokens[:3])
        expected = uncached(TARGET, given, 6)
        if EOS in expected[3:]:
            expected, ended = expected[: expected.index(EOS, 3) + 1], ended + 1
        assert list(row.tokens) == expected
        assert list(row.target) == [i >= 3 for i in range(len(expected))]
    assert ended < 5


def test_what_is_drawn_depends_on_the_seed_and_not_on_the_batch() -> None:
    one, other, third = (
        OwnText(rows=10, prompt=2, temperature=1.0, batch_size=size)(TARGET, ROWS, seed) for size, seed in ((3, 0), (10, 0), (10, 1))
    )
    assert one == other
    assert other != third


def test_a_prompt_that_is_longer_stays_whole() -> None:
    row = Example(list(range(6)), [False] * 4 + [True] * 2)
    assert OwnText(prompt=2).prompted(row).target == [False] * 4 + [True] * 2
    assert OwnText(prompt=9).prompted(row).target == [False] * 5 + [True]
    assert OwnText(prompt=2).prompted(ROWS[0], 3) == Example(ROWS[0].tokens[:5], [False, False, True, True, True])


def test_numbers_that_make_no_text_are_refused() -> None:
    with pytest.raises(ValueError, match=r"rows 8, prompt 0, .* expected rows and a temperature of 0 or more, and 1 or more of the others"):
        OwnText(rows=8, prompt=0)
    assert OwnText(rows=0)(TARGET, ROWS, 0) is ROWS


def test_documents_that_are_kept_apart_are_not_told_of_each_other() -> None:
    """The text goes on from what the last document of the beginning has of it, as the target alone goes on from that."""
    apart = [row._replace(document=[1] * 3 + [2] * 6) for row in ROWS]
    for prompt in (3, 5):
        for i, row in enumerate(OwnText(rows=10, prompt=prompt)(TARGET, apart, seed=0)):
            given = list(ROWS[i].tokens[3 if prompt == 5 else 0 : prompt])
            expected = uncached(TARGET, given, 9 - prompt)
            if EOS in expected[len(given) :]:
                expected = expected[: expected.index(EOS, len(given)) + 1]
            assert (list(row.tokens), row.document) == (expected, None)
            assert list(row.target) == [i >= len(given) for i in range(len(expected))]
