"""Layers computed again for their gradient, under every mask that adaptation makes: the loss and all gradients are as without."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.backbones.stock_models import tiny
from tests.models.tiny import VOCAB, trunk
from textdiff.backbones.annealing import Annealing, GrowingBlocks, RandomEntries, WholeBatch
from textdiff.backbones.pretrained import Pretrained
from textdiff.batch import Batch
from textdiff.models.discrete import Discrete, DiscreteDiffusionLM
from textdiff.training.lora import Lora
from textdiff.vocab import Vocab

IDS = Vocab(size=64, tokens=64, mask_id=60, pad_id=0, bos_id=1, eos_id=2)
STOCK = ("gpt2", "mistral", "gemma3_text", "opt")
# what is seen of the future: nothing, one way or the other by the step, some entries, small blocks, everything
WAYS: dict[str, tuple[Annealing | None, float]] = {
    "causal": (RandomEntries(), 0.0),
    "one way or both": (WholeBatch(0.5), 0.25),
    "entries": (RandomEntries(0.5), 0.25),
    "blocks": (GrowingBlocks(0.5, largest=8), 0.25),
    "both ways": (None, 1.0),
}


def batch(packed: bool) -> Batch:
    tokens = torch.randint(3, 60, (3, 12), generator=torch.Generator().manual_seed(4))
    document = torch.tensor([[1] * 5 + [2] * 7, [1] * 12, [1, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 4]]) * packed
    attend = torch.arange(12) < torch.tensor([12, 9, 12])[:, None]
    return Batch.of(tokens, target=attend & (torch.arange(12) > 0), attend=attend, document=document)


def built(name: str, attention: str, saving: bool, annealing: Annealing | None) -> DiscreteDiffusionLM:
    stock = tiny(name)
    stock.set_attn_implementation(attention)
    backbone = Pretrained(name, gradient_checkpointing=saving)
    model: Any = Discrete(backbone=backbone, shift=True, annealing=annealing).build(IDS, backbone.wrap(stock, IDS, causal=False))
    return model


def gradients(model: DiscreteDiffusionLM, rows: Batch, progress: float, lora: Lora | None = None) -> dict[str, Tensor]:
    """Of three steps in training mode, dropout included, with the losses."""
    found: dict[str, Tensor] = {}
    with nullcontext() if lora is None else lora.applied(model, seed=0):
        model.train()
        for step in range(3):
            torch.manual_seed(step)
            loss = model(rows, seed=0, step=step, progress=progress).total
            (loss / 10).backward()
            found[f"loss {step}"] = loss.detach()
        return found | {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", STOCK)
def test_stock_models_have_the_same_loss_and_gradients(name: str, attention: str, packed: bool) -> None:
    for way, (annealing, progress) in WAYS.items():
        plain, again = (gradients(built(name, attention, saving, annealing), batch(packed), progress) for saving in (False, True))
        assert plain.keys() == again.keys()
        assert len(plain) > 20
        for key, tensor in plain.items():
            torch.testing.assert_close(again[key], tensor, msg=f"{way}: {key}")


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_ours_has_the_same_loss_and_gradients(packed: bool) -> None:
    for way, (annealing, progress) in WAYS.items():
        found = []
        for saving in (False, True):
            torch.manual_seed(0)
            model = Discrete(backbone=trunk(gradient_checkpointing=saving, dropout=0.1), shift=True, annealing=annealing).build(VOCAB)
            rows = batch(packed)
            found.append(gradients(model, rows._replace(tokens=rows.tokens % 7), progress))
        for key, tensor in found[0].items():
            torch.testing.assert_close(found[1][key], tensor, msg=f"{way}: {key}")


@pytest.mark.parametrize("embedding", [False, True])
def test_adapters_have_the_same_gradients_though_all_below_them_is_frozen(embedding: bool) -> None:
    lora = Lora(rank=2, embedding=embedding)
    plain, again = (gradients(built("gpt2", "sdpa", saving, RandomEntries()), batch(True), 0.05, lora) for saving in (False, True))
    assert sum("lora_" in name for name in again) == 16
    assert plain.keys() == again.keys()
    for key, tensor in plain.items():
        torch.testing.assert_close(again[key], tensor, msg=key)
