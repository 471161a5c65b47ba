from typing import Any

import pytest
import torch
from transformers import DynamicCache
from transformers.cache_utils import DFlashCache

from tests.models.tiny import autoregressive
from tests.models.tiny_drafters import drafter_of, stock, taught
from textdiff.batch import Batch
from textdiff.models.dflash import assistant

OPTIONS: dict[str, Any] = {"eos_token_id": 2, "pad_token_id": 0}


def learnt(name: str) -> tuple[Any, Any, list[int]]:
    """A stock model, a drafter that has seen its greedy text, and how many tokens each of its passes reads."""
    model = stock(name)
    trunk, sizes = model.backbone.trunk, []
    rows = trunk.generate(torch.arange(3, 19)[:, None], max_new_tokens=15, min_new_tokens=15, do_sample=False, **OPTIONS)
    drafter = taught(drafter_of(model), rows, 60)
    trunk.register_forward_pre_hook(lambda module, args, given: sizes.append(given["input_ids"].shape[1]), with_kwargs=True)
    return trunk, drafter, sizes


@pytest.mark.parametrize("name", ["llama", "mistral", "gpt2"])
def test_greedy_text_is_that_of_the_stock_model_alone(name: str) -> None:
    trunk, drafter, sizes = learnt(name)
    fewer = 0
    for number, new in enumerate((1, 2, 7, 12, 15)):
        ids = torch.arange(3 + number, 4 + number + number % 2)[None]  # of one token: as the rows begin that it has learnt from
        options = {**OPTIONS, "max_new_tokens": new, "do_sample": False, "attention_mask": torch.ones_like(ids)}
        alone = trunk.generate(ids, **options)
        plain = len(sizes)
        sizes.clear()
        drafted = trunk.generate(ids, assistant_model=assistant(drafter), speculation_type="dflash", **options)
        assert torch.equal(drafted, alone)
        fewer += plain - len(sizes)
        sizes.clear()
    assert fewer > 0  # drafts were right now and then


def test_it_says_what_the_drafter_says_when_text_comes_in_parts() -> None:
    """Three tokens of text, then two more, behind which a block was written and dropped."""
    model = stock("llama")
    drafter = drafter_of(model, seed=3)
    tokens = torch.tensor([[1, 9, 4, 33, 7, 5]])
    with torch.no_grad(), drafter.listening() as heard:
        model.backbone(tokens, model.backbone.context(Batch.of(tokens)))
    features = heard.features
    assert features is not None
    flash, cache, predictor = assistant(drafter), DFlashCache(), drafter.predictor(Batch.of(tokens))
    cache.activate_past_recording()
    embed, block = model.backbone.trunk.get_input_embeddings(), drafter.most + 1
    for first, last in ((0, 3), (3, 5)):
        if first:
            cache.crop(-block)
        noise = embed(torch.tensor([[int(tokens[0, last])] + [0] * drafter.most]))
        positions = torch.arange(first, last + block)[None]
        with torch.no_grad():
            said = flash(noise, features[:, first:last], positions, torch.ones(1, last + block), cache).last_hidden_state
            predictor = predictor.extend(features[:, first:last])
            expected = predictor(tokens[:, last : last + 1].expand(1, block), torch.ones(1)).hidden
        torch.testing.assert_close(said, expected)


def test_a_drafter_of_our_own_trunk_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no stock model, whose generate takes no assistant: use Speculative\(FromFeatures\(\)\)"):
        assistant(drafter_of(autoregressive()))
    assert issubclass(DFlashCache, DynamicCache)
