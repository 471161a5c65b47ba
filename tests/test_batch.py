import pytest
import torch

from textdiff.batch import Batch, Example, collate

EXAMPLES = [
    Example([5, 6, 7], [False, True, True], source=[9, 9]),
    Example([8], [True], document=[3]),
    Example([1, 2], [True, True], document=[1, 2], source=[4]),
]


def test_collate_pads_to_the_right_and_padding_is_neither_target_nor_seen() -> None:
    batch = collate(EXAMPLES, pad_id=0)
    assert batch.tokens.tolist() == [[5, 6, 7], [8, 0, 0], [1, 2, 0]]
    assert batch.target.int().tolist() == [[0, 1, 1], [1, 0, 0], [1, 1, 0]]
    assert batch.attend.int().tolist() == [[1, 1, 1], [1, 0, 0], [1, 1, 0]]
    assert batch.document.tolist() == [[0, 0, 0], [3, 0, 0], [1, 2, 0]]
    assert batch.source.tolist() == [[9, 9], [0, 0], [4, 0]]
    assert batch.source_attend.int().tolist() == [[1, 1], [0, 0], [1, 0]]
    assert batch.sample_id.tolist() == [0, 1, 2]
    assert batch.stratum.tolist() == [[0, 3], [1, 3], [2, 3]]


def test_collated_rows_carry_their_global_identity() -> None:
    batch = collate(EXAMPLES, pad_id=0, sample_id=[70, 80, 90], stratum=[(4, 12), (5, 12), (6, 12)])
    assert batch.sample_id.tolist() == [70, 80, 90]
    assert batch.stratum.tolist() == [[4, 12], [5, 12], [6, 12]]


def test_collating_examples_is_the_inverse_of_cutting_their_padding_off() -> None:
    batch = collate(EXAMPLES, pad_id=0)
    again = []
    for i in range(3):
        row = batch.rows(torch.tensor([i]))
        kept = row.attend[0]
        again.append(Example(row.tokens[0, kept], row.target[0, kept], row.document[0, kept], row.source[0, row.source_attend[0]]))
    assert all(torch.equal(old, new) for old, new in zip(batch, collate(again, pad_id=0), strict=True))


def test_a_batch_of_tokens_alone_equals_its_collated_examples() -> None:
    tokens = torch.tensor([[1, 2], [3, 4]])
    collated = collate([Example(row, [True, True]) for row in tokens.tolist()], pad_id=0)
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(Batch.of(tokens), collated, strict=True))


@pytest.mark.parametrize("index", [torch.tensor([2, 0]), torch.tensor([True, False, True])])
def test_rows_selects_every_field(index: torch.Tensor) -> None:
    batch = collate(EXAMPLES, pad_id=0)
    for whole, part in zip(batch, batch.rows(index), strict=True):
        assert torch.equal(part, whole[index])
