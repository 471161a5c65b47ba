import itertools

import pytest
import torch

from textdiff.backbones import attention_masks as masks

LENGTH = 7
ATTEND = torch.tensor([[1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 0, 0, 0]]).bool()
DOCUMENT = torch.tensor([[1, 1, 1, 2, 2, 3, 3], [1, 1, 2, 2, 2, 0, 0], [0, 0, 0, 0, 0, 0, 0]])


def by_definition(is_causal: bool, window: int | None = None, ahead: torch.Tensor | None = None) -> torch.Tensor:
    """The mask entry by entry: who may look at whom, in words."""
    mask = torch.zeros(3, 1, LENGTH, LENGTH, dtype=torch.bool)
    for b, q, k in itertools.product(range(3), range(LENGTH), range(LENGTH)):
        past = k <= q and (window is None or q - k < window)
        opened = not is_causal and (ahead is None or bool(ahead[q, k])) and (window is None or abs(q - k) <= window)
        readable = bool(ATTEND[b, k]) and bool(DOCUMENT[b, q] == DOCUMENT[b, k])
        mask[b, 0, q, k] = q == k or ((past or opened) and readable)
    return mask


@pytest.mark.parametrize("is_causal", [True, False])
def test_combined_is_padding_documents_and_direction(is_causal: bool) -> None:
    assert torch.equal(masks.combined(ATTEND, DOCUMENT, is_causal), by_definition(is_causal))


@pytest.mark.parametrize("is_causal", [True, False])
def test_combined_is_none_when_only_the_direction_restricts(is_causal: bool) -> None:
    assert masks.combined(torch.ones(2, 5).bool(), torch.zeros(2, 5).long(), is_causal) is None


@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("window", [None, 1, 3])
def test_stock_is_the_definition_with_windows(is_causal: bool, window: int | None) -> None:
    assert torch.equal(masks.stock(ATTEND, DOCUMENT, is_causal, window), by_definition(is_causal, window))


@pytest.mark.parametrize("window", [None, 3])
def test_stock_opens_the_future_entry_by_entry(window: int | None) -> None:
    ahead = torch.rand(LENGTH, LENGTH, generator=torch.Generator().manual_seed(0)) < 0.5
    assert torch.equal(masks.stock(ATTEND, DOCUMENT, False, window, ahead), by_definition(False, window, ahead))
    closed = masks.stock(ATTEND, DOCUMENT, False, window, torch.zeros_like(ahead))
    assert torch.equal(closed, masks.stock(ATTEND, DOCUMENT, True, window))


def test_blocks_are_opened_futures() -> None:
    block = torch.arange(LENGTH) // 3
    mask = masks.stock(ATTEND[:1], torch.zeros_like(DOCUMENT[:1]), False, ahead=block[:, None] == block[None])
    assert torch.equal(mask[0, 0], block[:, None] >= block[None])


def test_every_row_of_every_mask_sees_itself() -> None:
    nothing = torch.zeros(1, LENGTH).bool()
    for mask in (
        masks.combined(nothing, DOCUMENT[2:], False),
        masks.stock(nothing, DOCUMENT[2:], True, 1),
        masks.blockwise(nothing, DOCUMENT[2:], 3),
        masks.noisy_and_clean(nothing, DOCUMENT[2:], 1),
    ):
        assert torch.equal(mask[0, 0], torch.eye(mask.shape[-1]).bool())


@pytest.mark.parametrize("size", [1, 2, 3, 7, 9])
@pytest.mark.parametrize("first", [0, 1, 6])
def test_blockwise_queries_see_their_own_and_earlier_blocks(size: int, first: int) -> None:
    expected = torch.zeros(3, 1, LENGTH, LENGTH, dtype=torch.bool)
    for b, q, k in itertools.product(range(3), range(LENGTH), range(LENGTH)):
        readable = bool(ATTEND[b, k]) and bool(DOCUMENT[b, q] == DOCUMENT[b, k])
        expected[b, 0, q, k] = q == k or (k // size <= q // size and readable)
    assert torch.equal(masks.blockwise(ATTEND, DOCUMENT, size, first), expected[:, :, first:])


@pytest.mark.parametrize("size", [1, 2, 3, 7, 9])
def test_noisy_blocks_see_themselves_and_clean_ones_before_them(size: int) -> None:
    expected = torch.zeros(3, 1, 2 * LENGTH, 2 * LENGTH, dtype=torch.bool)
    for b, q, k in itertools.product(range(3), range(2 * LENGTH), range(2 * LENGTH)):
        (query, query_is_clean), (key, key_is_clean) = ((i % LENGTH, i >= LENGTH) for i in (q, k))
        if key_is_clean:
            allowed = key // size <= query // size if query_is_clean else key // size < query // size
        else:
            allowed = not query_is_clean and key // size == query // size
        readable = bool(ATTEND[b, key]) and bool(DOCUMENT[b, query] == DOCUMENT[b, key])
        expected[b, 0, q, k] = q == k or (allowed and readable)
    assert torch.equal(masks.noisy_and_clean(ATTEND, DOCUMENT, size), expected)


def test_a_window_over_whole_rows_is_that_of_stock_models() -> None:
    """At both ends: blocks of one token have the causal window, one block the two-way one."""
    index = torch.arange(LENGTH)
    for size, causal in ((1, True), (LENGTH, False)):
        found = masks.windowed(masks.blockwise(ATTEND, DOCUMENT, size), index, 3)
        assert torch.equal(found[ATTEND[:, None]], masks.stock(ATTEND, DOCUMENT, causal, 3)[ATTEND[:, None]])


@pytest.mark.parametrize("size", [1, 2, 3, 9])
@pytest.mark.parametrize("first", [0, 3, 6])
def test_windows_follow_positions_in_pairs_and_after_cached_tokens(size: int, first: int) -> None:
    def near(q: int, k: int, together: bool) -> bool:
        return abs(q - k) <= 3 if together else abs(q - k) < 3

    columns = torch.arange(first, LENGTH)
    attend, document = torch.ones(1, LENGTH, dtype=torch.bool), torch.zeros(1, LENGTH, dtype=torch.long)
    after = masks.blockwise(attend, document, size, first)
    cached = masks.windowed(after, columns, 3)
    for i, k in itertools.product(range(LENGTH - first), range(LENGTH)):
        q = first + i
        mutual = k >= first and q // size == k // size
        assert bool(cached[0, 0, i, k]) == (bool(after[0, 0, i, k]) and near(q, k, mutual))
    both = masks.noisy_and_clean(attend, document, size)
    paired = masks.windowed(both, torch.arange(LENGTH).repeat(2), 3)
    for q, k in itertools.product(range(2 * LENGTH), range(2 * LENGTH)):
        query, key = q % LENGTH, k % LENGTH
        mutual = query // size == key // size and (q < LENGTH) == (k < LENGTH)
        assert bool(paired[0, 0, q, k]) == (bool(both[0, 0, q, k]) and near(query, key, mutual))


def test_rows_that_nothing_tells_apart_share_one_mask() -> None:
    attend, document = torch.ones(4, 5).bool(), torch.zeros(4, 5).long()
    for mask, single in (
        (masks.blockwise(attend, document, 2), masks.blockwise(attend[:1], document[:1], 2)),
        (masks.noisy_and_clean(attend, document, 2), masks.noisy_and_clean(attend[:1], document[:1], 2)),
    ):
        assert mask.shape[0] == 4
        assert mask.stride(0) == 0  # the rows are one piece of memory
        assert torch.equal(mask[3], single[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_an_additive_mask_gives_the_softmax_over_the_allowed(dtype: torch.dtype) -> None:
    mask = masks.stock(ATTEND, DOCUMENT, True)
    scores = torch.randn(3, 2, LENGTH, LENGTH)
    weights = (scores.to(dtype) + masks.additive(mask, dtype)).float().softmax(-1)
    expected = scores.to(dtype).float().masked_fill(~mask, -torch.inf).softmax(-1)
    torch.testing.assert_close(weights, expected)


def test_positions_restart_in_every_run() -> None:
    expected = torch.tensor([[0, 1, 2, 0, 1, 0, 1], [0, 1, 0, 1, 2, 0, 1], [0, 1, 2, 3, 4, 5, 6]])
    assert torch.equal(masks.positions(DOCUMENT), expected)
