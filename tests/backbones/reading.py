"""Reading left to right, a piece at a time, and taking some of it back."""

import torch
from torch import Tensor

from textdiff.models.autoregressive import CausalPredictor

# columns of each piece, and how many of them each row keeps
ROUNDS = [(6, [6, 2, 4]), (4, [1, 4, 2]), (5, [1, 5, 3]), (1, [1, 1, 1]), (3, [1, 3, 0]), (4, [4, 1, 4])]


def read_and_taken_back(predictor: CausalPredictor, tokens: Tensor, rounds: list[tuple[int, list[int]]]) -> list[Tensor]:
    """The hidden states of each row's tokens, read in pieces of some columns of which each row then keeps its own number; what comes
    beyond those is another text, of ids below 6."""
    seen = torch.zeros(len(tokens), dtype=torch.long)
    rows: list[list[Tensor]] = [[] for _ in tokens]
    for width, kept in rounds:
        column = torch.arange(width)
        place = (seen[:, None] + column).clamp_max(tokens.shape[1] - 1)
        keeps = torch.tensor(kept)
        piece = torch.where(column < keeps[:, None], tokens.gather(1, place), (tokens.gather(1, place) + 1) % 6)
        hidden = predictor.read_each(piece).hidden
        for row, n in enumerate(kept):
            rows[row].append(hidden[row, :n])
        predictor.crop(width - keeps)
        seen = seen + keeps
    return [torch.cat(parts) for parts in rows]
