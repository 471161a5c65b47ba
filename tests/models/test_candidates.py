from typing import Any

import pytest
import torch

from tests.backbones.stock_models import tiny
from tests.models.tiny import autoregressive, diffusion
from textdiff.models.candidates import drafted_generate
from textdiff.samplers.confidence import Greedy
from textdiff.samplers.drafting import AnyOrder, Drafting, LeftToRightChunks
from textdiff.vocab import Vocab

DRAFTER = diffusion(Vocab(size=65, tokens=65, mask_id=64))  # one id more than the target
OPTIONS: dict[str, Any] = {"eos_token_id": 2, "pad_token_id": 0}


@pytest.mark.parametrize("name", ["llama", "mistral", "gpt2"])
@pytest.mark.parametrize("drafting", [LeftToRightChunks(), AnyOrder(Greedy(steps=2))], ids=str)
def test_greedy_text_is_that_of_the_stock_model_alone(name: str, drafting: Drafting) -> None:
    target: Any = tiny(name).double()
    for number, new in enumerate((1, 2, 7, 12)):
        ids = torch.randint(3, 60, (1, 3 + number), generator=torch.Generator().manual_seed(number))
        options = {**OPTIONS, "max_new_tokens": new, "do_sample": False}
        alone = target.generate(ids, **options)
        assert torch.equal(drafted_generate(target, DRAFTER, ids, drafting, longest=4, **options), alone)
    assert "_get_candidate_generator" not in vars(target)


def test_the_sampled_first_token_follows_the_stock_model() -> None:
    target: Any = tiny("llama").double()
    ids, n = torch.tensor([[1, 9]]), 500
    torch.manual_seed(0)
    options = {**OPTIONS, "max_new_tokens": 2, "do_sample": True, "top_k": 5, "temperature": 1.5}
    drawn = torch.stack([drafted_generate(target, DRAFTER, ids, LeftToRightChunks(), longest=2, **options)[0, 2] for _ in range(n)])
    best, index = (target(ids).logits[0, -1].detach() / 1.5).topk(5)
    expected = best.softmax(-1) * n
    count = (drawn[:, None] == index).sum(0)
    assert int(count.sum()) == n
    assert float(((count - expected) ** 2 / expected).sum()) < 18.5  # 4 degrees of freedom, exceeded once in a thousand


def test_a_drafter_that_is_causal_is_refused_before_anything_is_written() -> None:
    target = tiny("llama")
    with pytest.raises(ValueError, match="drafts with noise over the tokens of whole rows"):
        drafted_generate(target, autoregressive(), torch.tensor([[1, 9]]), LeftToRightChunks(), **OPTIONS)
