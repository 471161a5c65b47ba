"""Who may look at whom: boolean masks (True = may attend) as data, functions of the batch alone."""

import torch
from torch import Tensor


def causal(length: int, device: torch.device) -> Tensor:
    """(L, L): a query sees itself and earlier keys."""
    return torch.ones(length, length, dtype=torch.bool, device=device).tril()


def same_document(document: Tensor) -> Tensor:
    """(B, 1, L, L): query and key carry the same document number."""
    return (document[:, :, None] == document[:, None, :])[:, None]


def padding(attend: Tensor) -> Tensor:
    """(B, 1, 1, L): keys that are not padding."""
    return attend[:, None, None, :]


def combined(attend: Tensor, document: Tensor, is_causal: bool, ahead: Tensor | None = None) -> Tensor | None:
    """One mask (B, 1, L, L) of padding, documents and direction, or None when nothing but the direction restricts attention.

    `ahead` (L, L) narrows what a bidirectional mask shows of the future to its True entries. The diagonal is always on: a padding row
    attends to itself instead of to nothing, which softmax could not normalise.
    """
    padded, packed = not bool(attend.all()), bool(document.any())
    if not padded and not packed and (is_causal or ahead is None):
        return None
    return stock(attend, document, is_causal, None, ahead)


def blockwise(attend: Tensor, document: Tensor, size: int, first: int = 0) -> Tensor:
    """(B, 1, L - first, L): queries from position `first` on see their own and earlier blocks of `size`, padding and documents kept apart.

    Blocks are counted from the start of the row; the diagonal is always on.
    """
    rows, length = attend.shape
    attend, document = _distinct(attend, document)
    index = torch.arange(length, device=attend.device)
    block = index // size
    allow = block[first:, None] >= block[None]
    allow = allow & padding(attend) & same_document(document)[:, :, first:]
    return (allow | (index[first:, None] == index[None])).expand(rows, -1, -1, -1)


def noisy_and_clean(attend: Tensor, document: Tensor, size: int) -> Tensor:
    """(B, 1, 2L, 2L) for rows [xt ; x0]: block diffusion's training mask (BD3-LM, Arriola et al. 2025).

    A noisy block sees itself and the clean blocks before it; a clean block sees itself and the clean blocks before it.
    """
    clean = blockwise(*_distinct(attend, document), size)
    block = torch.arange(attend.shape[1], device=attend.device) // size
    same = block[:, None] == block[None]
    noisy = torch.cat([clean & same, clean & ~same], dim=-1)
    return torch.cat([noisy, torch.cat([torch.zeros_like(clean), clean], dim=-1)], dim=-2).expand(len(attend), -1, -1, -1)


def _distinct(attend: Tensor, document: Tensor) -> tuple[Tensor, Tensor]:
    """The first row for all where neither padding nor documents tell rows apart: one mask then serves them, at a fraction of the memory."""
    alike = bool(attend.all()) and not bool(document.any())
    return (attend[:1], document[:1]) if alike else (attend, document)


def apart(document: Tensor, attend: Tensor) -> Tensor:
    """Document numbers (B, L) in which padding on the left is a document of its own: positions begin behind it."""
    return document.masked_fill(attend.cumsum(1) == 0, -1)


def positions(document: Tensor) -> Tensor:
    """(B, L) long: 0, 1, 2, ... within each run of one document number."""
    index = torch.arange(document.shape[1], device=document.device).expand_as(document)
    starts = torch.zeros_like(document)
    starts[:, 1:] = torch.where(document[:, 1:] != document[:, :-1], index[:, 1:], 0)
    return index - starts.cummax(1).values


def own_block(length: int, size: int, device: torch.device) -> Tensor:
    """(L, L): query and key lie in the same block of `size`, counted from the start of the row."""
    block = torch.arange(length, device=device) // size
    return block[:, None] == block[None]


def stock(attend: Tensor, document: Tensor, is_causal: bool, window: int | None = None, ahead: Tensor | None = None) -> Tensor:
    """(B, 1, L, L): padding, documents, direction and sliding window in the conventions of stock models; never None.

    `ahead` (L, L) opens entries of a causal mask one by one: random while annealing from causal to bidirectional (DiffuGPT,
    arXiv 2410.17891), the own block for block-causal attention. A causal window of w has w keys; a two-way one reaches w to each side.
    """
    rows, length, device = *attend.shape, attend.device
    attend, document = _distinct(attend, document)
    index = torch.arange(length, device=device)
    distance = index[:, None] - index[None]
    allow = distance >= 0 if window is None else (distance >= 0) & (distance < window)
    if not is_causal:
        within = torch.ones_like(allow) if window is None else distance.abs() <= window
        allow = allow | (within if ahead is None else within & ahead)
    allow = allow & padding(attend) & same_document(document)
    return (allow | (distance == 0)).expand(rows, -1, -1, -1)


def windowed(mask: Tensor, columns: Tensor, window: int | None) -> Tensor:
    """(B, 1, n, keys): `mask` within a sliding window, in the conventions of stock models, for tokens at the positions `columns` (n,).

    The last n keys are the tokens themselves and those before them the first of the row. The window reaches w to each side between tokens
    that see each other, as in their own block, and has w keys where only the later one sees the earlier.
    """
    if window is None:
        return mask
    n, keys = mask.shape[2:]
    seen = _distinct_rows(mask)
    places = torch.cat([torch.arange(keys - n, device=columns.device), columns])
    distance = (columns[:, None] - places).abs()
    mutual = torch.zeros_like(seen)
    mutual[..., keys - n :] = seen[..., keys - n :] & seen[..., keys - n :].transpose(-1, -2)
    return (seen & ((distance < window) | (mutual & (distance == window)))).expand_as(mask)


def _distinct_rows(mask: Tensor) -> Tensor:
    """The first row for all where they are one piece of memory."""
    return mask[:1] if mask.stride(0) == 0 else mask


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """The mask as what is added to attention scores: 0 where allowed, the most negative number of `dtype` elsewhere."""
    seen = _distinct_rows(mask)
    return torch.zeros(seen.shape, dtype=dtype, device=mask.device).masked_fill_(~seen, torch.finfo(dtype).min).expand_as(mask)


def places(kind: Tensor, document: Tensor) -> Tensor:
    """How many True positions of `kind` (B, L) stand before each position in its document, (B, L)."""
    before = kind.long().cumsum(1) - kind.long()
    first = positions(document) == 0
    return before - before.where(first, 0).cummax(1).values
