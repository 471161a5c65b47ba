import numpy as np

from tests.data.texts import byte_level, sentence
from textdiff.data.windows import Windows
from textdiff.evaluation.scoring import Plan, Rows
from textdiff.evaluation.stopping import looks


def rows() -> Rows:
    texts = ["" if i % 7 == 0 else sentence(i, 1 + 5 * i % 37) for i in range(200)]
    windows = Windows(texts, byte_level(), 32, 8)
    return Rows.of(windows, windows.text_of)


def test_every_row_is_in_one_batch_of_rows_of_like_length_and_long_ones_do_not_come_last() -> None:
    found = rows()
    plan = Plan.of(found, 16, seed=0, target_se=None)
    assert sorted(np.concatenate(plan.batches)) == list(range(len(found.examples)))
    assert plan.looks == [(len(plan.texts), len(plan.batches))]
    by_width = sorted(found.widths.tolist())
    padded = sum(by_width[min(start + 15, len(by_width) - 1)] * len(by_width[start : start + 16]) for start in range(0, len(by_width), 16))
    assert sum(found.widths[batch].max() * len(batch) for batch in plan.batches) == padded  # the least there is
    means = [found.widths[batch].mean() for batch in plan.batches]
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.5


def test_a_target_parts_the_rows_by_whole_texts_in_an_order_that_is_keyed_by_their_numbers() -> None:
    found = rows()
    plan, other = (Plan.of(found, 16, seed, target_se=0.1) for seed in (0, 1))
    counted = [i for i in range(200) if i % 7]
    assert sorted(plan.texts) == sorted(other.texts) == counted
    assert plan.texts.tolist() != other.texts.tolist()
    assert [texts for texts, _ in plan.looks] == looks(len(counted), 0.1)
    for texts, batches in plan.looks:
        scored = np.concatenate(plan.batches[:batches])
        assert sorted(scored) == np.flatnonzero(np.isin(found.text_of, plan.texts[:texts])).tolist()
    half = Plan.of(Rows(*(field[: np.searchsorted(found.text_of, 100)] for field in found)), 16, 0, 0.1)  # type: ignore[index]
    assert half.texts.tolist() == [i for i in plan.texts if i < 100]
