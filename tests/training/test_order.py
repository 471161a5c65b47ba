import pytest

from tests.training.tiny import unequal_examples
from textdiff.batch import Example
from textdiff.training.order import IndexedOrder, Placement, StreamOrder


class Counting:
    """A stream of one-token rows 1, 2, ... n."""

    def __init__(self, n, rank=0, world=1):
        self.n, self.rank, self.world, self.position = n, rank, world, 0

    def shard(self, rank, world):
        return Counting(self.n, rank, world)

    def __iter__(self):
        while self.position * self.world + self.rank < self.n:
            self.position += 1
            yield Example([1 + (self.position - 1) * self.world + self.rank], [True])
        self.position = 0

    def state_dict(self):
        return {"position": self.position}

    def load_state_dict(self, state):
        self.position = state["position"]


def rows_of(batches):
    return [tuple(batch.tokens[i][batch.attend[i]].tolist()) for batch in batches for i in range(len(batch.tokens))]


def test_every_epoch_reads_every_example_once_and_drops_none():
    examples = [Example([i], [True]) for i in range(10)]
    order = IndexedOrder(examples, Placement(4, 1, 0, 1), seed=3, pad_id=0)
    read = [row[0] for step in range(5) for row in rows_of(order.window(step))]
    assert sorted(read[:10]) == sorted(read[10:]) == list(range(10))
    assert read[:10] != read[10:]


@pytest.mark.parametrize(("world", "accumulation"), [(1, 4), (2, 2), (4, 1), (2, 1)])
def test_cutting_changes_neither_rows_nor_ids_nor_strata(world, accumulation):
    examples = unequal_examples()
    whole = IndexedOrder(examples, Placement(8, 1, 0, 1), seed=3, pad_id=0)
    for step in (0, 2, 7):
        parts = [IndexedOrder(examples, Placement(8, accumulation, rank, world), 3, 0).window(step) for rank in range(world)]
        batches = [batch for part in parts for batch in part]
        (reference,) = whole.window(step)
        assert rows_of(batches) == rows_of([reference])
        assert [i for batch in batches for i in batch.sample_id.tolist()] == list(range(step * 8, step * 8 + 8))
        assert [s for batch in batches for s in batch.stratum.tolist()] == reference.stratum.tolist() == [[i, 8] for i in range(8)]


def test_order_does_not_depend_on_what_was_read_before():
    examples = unequal_examples()
    fresh, used = (IndexedOrder(examples, Placement(8, 1, 0, 1), 3, 0) for _ in range(2))
    for step in (9, 1, 4):
        used.window(step)
    assert rows_of(fresh.window(5)) == rows_of(used.window(5))


def test_uneven_cut_is_refused():
    with pytest.raises(ValueError, match="multiple of 6"):
        Placement(8, 3, 0, 2)


def test_stream_goes_on_from_its_state_across_epochs():
    uncut = StreamOrder(Counting(7), Placement(2, 1, 0, 1), 0)
    read = [rows_of(uncut.window(step)) for step in range(8)]
    assert [row[0] for rows in read for row in rows] == [1 + i % 7 for i in range(16)]
    for k in range(8):
        first, second = (StreamOrder(Counting(7), Placement(2, 1, 0, 1), 0) for _ in range(2))
        head = [rows_of(first.window(step)) for step in range(k)]
        second.load_state_dict(first.state_dict())
        assert head + [rows_of(second.window(step)) for step in range(k, 8)] == read


def test_stream_is_split_by_process():
    parts = [StreamOrder(Counting(8), Placement(4, 1, rank, 2), 0).window(0) for rank in range(2)]
    assert [rows_of(part) for part in parts] == [[(1,), (3,)], [(2,), (4,)]]
    assert parts[1][0].sample_id.tolist() == [2, 3]


def test_empty_sources_are_refused():
    with pytest.raises(ValueError, match="no training examples"):
        IndexedOrder([], Placement(4, 1, 0, 1), 0, 0)
    with pytest.raises(ValueError, match="no example"):
        StreamOrder(Counting(0), Placement(4, 1, 0, 1), 0).window(0)
