"""A stock target of 8 tokens, what may draft for it, and what it writes at temperature 0."""

from typing import Any

import torch
from torch import Tensor

from tests.backbones.stock_models import tiny
from tests.models.tiny import diffusion, trunk
from tests.models.tiny_drafters import drafter_of
from textdiff.backbones.pretrained import Pretrained
from textdiff.batch import Batch
from textdiff.guidance.filters import Filters
from textdiff.models.autoregressive import AutoregressiveSpec
from textdiff.vocab import Vocab

NEW, ZERO = 14, Filters(0.0)
VOCAB = Vocab(size=8, tokens=8, pad_id=0, bos_id=1, eos_id=2)  # few enough for a drafter to be right by chance


def causal(layers: int) -> Any:
    """A stock Llama as a target, float64."""
    network = tiny("llama", num_hidden_layers=layers, vocab_size=8).double()
    return (
        AutoregressiveSpec(backbone=Pretrained("tiny")).build(VOCAB, Pretrained("tiny").wrap(network, VOCAB, causal=True)).double().eval()
    )


TARGET = causal(2)
DRAFTER = diffusion(Vocab(size=9, tokens=9, mask_id=8, pad_id=0), backbone=trunk(max_length=64))
FLASH = drafter_of(TARGET)
PROMPTS = torch.randint(1, 8, (4, 9), generator=torch.Generator().manual_seed(0)).unbind(0)


def plain(prompt: Tensor) -> list[int]:
    """The likeliest tokens, each from a pass over the whole row."""
    row = prompt.tolist()
    for _ in range(NEW):
        batch = Batch.of(torch.tensor([[*row, 0]]))
        where = torch.arange(len(row) + 1)[None] == len(row)
        logits = TARGET.predictor(batch)(batch.tokens, batch.sample_id).logits(where)[0]
        row.append(int(logits.index_fill(0, torch.tensor(VOCAB.unemittable), -torch.inf).argmax()))
    return row[len(prompt) :]
