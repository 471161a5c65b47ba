from typing import Any

import pytest
import torch
from torch import Tensor

from tests.backbones.stock_models import tiny
from tests.models.tiny import autoregressive, diffusion
from textdiff.models.candidates import drafted_generate
from textdiff.samplers.confidence import Greedy
from textdiff.samplers.drafting import AnyOrder, FromText, LeftToRightChunks
from textdiff.vocab import Vocab

DRAFTER = diffusion(Vocab(size=65, tokens=65, mask_id=64))  # one id more than the target
OPTIONS: dict[str, Any] = {"eos_token_id": 2, "pad_token_id": 0}


@pytest.mark.parametrize("name", ["llama", "mistral", "gpt2"])
@pytest.mark.parametrize("drafting", [LeftToRightChunks(), AnyOrder(Greedy(steps=2))], ids=str)
def test_greedy_text_is_that_of_the_stock_model_alone(name: str, drafting: FromText) -> None:
    target: Any = tiny(name).double()
    for number, new in enumerate((1, 2, 7, 12)):
        ids = torch.randint(3, 60, (1, 3 + number), generator=torch.Generator().manual_seed(number))
        options = {**OPTIONS, "max_new_tokens": new, "do_sample": False}
        alone = target.generate(ids, **options)
        assert torch.equal(drafted_generate(target, DRAFTER, ids, drafting, longest=4, **options), alone)
    assert "_get_candidate_generator" not in vars(target)


def best_three(target: Any, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Chances and ids of the next token among the three likeliest, at temperature 1.5."""
    best, index = (target(ids).logits[0, -1].detach() / 1.5).topk(3)
    return best.softmax(-1), index


def test_two_sampled_tokens_follow_the_stock_model() -> None:
    """Both stand in one draft: a law told for the wrong place would show in the second."""
    target: Any = tiny("llama").double()
    ids, n = torch.tensor([[1, 9]]), 500
    torch.manual_seed(0)
    options = {**OPTIONS, "max_new_tokens": 3, "do_sample": True, "top_k": 3, "temperature": 1.5}
    drawn = torch.stack([drafted_generate(target, DRAFTER, ids, LeftToRightChunks(), longest=2, **options)[0, 2:4] for _ in range(n)])
    expected, count = [], []
    for one, first in zip(*best_three(target, ids), strict=True):
        for two, second in zip(*best_three(target, torch.cat([ids, first.view(1, 1)], dim=1)), strict=True):
            expected.append(float(one * two) * n)
            count.append(int((drawn == torch.stack([first, second])).all(1).sum()))
    assert sum(count) == n
    assert min(expected) > 5
    assert sum((a - b) ** 2 / b for a, b in zip(count, expected, strict=True)) < 26.2  # 8 degrees of freedom, once in a thousand


def test_a_drafter_that_is_causal_is_refused_before_anything_is_written() -> None:
    target = tiny("llama")
    with pytest.raises(ValueError, match="drafts with noise over the tokens of whole rows"):
        drafted_generate(target, autoregressive(), torch.tensor([[1, 9]]), LeftToRightChunks(), **OPTIONS)
