"""Block diffusion on stock trunks in use: it writes, fills in, trains, is saved and opened, and is refused where it cannot be."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from tests.models.stock_blocks import EOS, FEW, LENGTH, MASK, PAD, alone, belief, blocks, padded, stock
from tests.tiny_runs import stock_gpt2
from textdiff.batch import Batch
from textdiff.data.tokenizer import load_tokenizer
from textdiff.guidance.classifier_free import ClassifierFree
from textdiff.models.discrete import Discrete
from textdiff.models.initialise import model_from
from textdiff.models.loading import load
from textdiff.models.objective import CrossEntropy
from textdiff.processes.base import TokenProcess
from textdiff.processes.block import Block
from textdiff.processes.masked import Masked
from textdiff.processes.uniform import Uniform
from textdiff.randomness import Rng
from textdiff.samplers.blockwise import Blockwise
from textdiff.samplers.confidence import Greedy, Threshold
from textdiff.samplers.first_hitting import FirstHitting


@pytest.mark.parametrize("name", FEW)
@pytest.mark.parametrize("inner", [Masked(), Uniform()], ids=["masked", "uniform"])
def test_ragged_prompts_generate_what_they_generate_alone(name: str, inner: TokenProcess) -> None:
    model, prompts = blocks(name, 4, inner, shift=True), [[1, 33, 4, 12, 5, 31], [1], [1, 5, 43]]
    rows = torch.tensor([[*p, *[PAD] * (6 - len(p))] for p in prompts])
    together = model.generate(rows, (rows != PAD).long(), max_new_tokens=11, max_denoising_steps=3, seed=2)
    on_the_left = torch.tensor([[*[PAD] * (6 - len(p)), *p] for p in prompts])
    left = model.generate(on_the_left, (on_the_left != PAD).long(), max_new_tokens=11, max_denoising_steps=3, seed=2)
    first = model.generate(torch.tensor(prompts[:1]), max_new_tokens=11, max_denoising_steps=3, seed=2)
    assert together.sequences is not None
    assert left.sequences is not None
    assert first.sequences is not None
    assert torch.equal(first.sequences[0], together.sequences[0])
    assert torch.equal(left.sequences[:, 6:], together.sequences[:, 6:])
    for row in together.sequences[:, 6:].tolist():
        end = row.index(EOS) + 1 if EOS in row else 11
        assert all(i not in (PAD, MASK) and i < 60 for i in row[:end])
        assert all(i == PAD for i in row[end:])


@pytest.mark.parametrize("name", FEW)
@pytest.mark.parametrize("size", [1, 3])
def test_greedy_generation_and_infilling_are_those_of_the_uncached_pass(name: str, size: int) -> None:
    """Block by block with whole rows and no cache: commit the most probable tokens of the block in one step."""
    model = blocks(name, size, shift=True)
    given = torch.tensor([[1, 33, MASK, 17, MASK, MASK, 9, 4, MASK, MASK, MASK]])
    row = given
    for start in range(0, LENGTH, size):
        found = belief(model, Batch.of(row), row, torch.ones(1, dtype=torch.float64))
        here = torch.arange(LENGTH) // size == start // size
        row = torch.where((row == MASK) & here, found.argmax(-1), row)
    filled = model.generate(given, max_new_tokens=0, temperature=0.0, sampler=Blockwise(Greedy(steps=1))).sequences
    assert filled is not None
    assert torch.equal(filled, row)
    assert bool((filled != MASK).all())


@pytest.mark.parametrize("inner", [FirstHitting(), Threshold(), Greedy(steps=2)], ids=lambda sampler: type(sampler).__name__)
def test_samplers_and_filters_run_in_blocks(inner: Any) -> None:
    model, prompt = blocks("qwen3", 4, shift=True), torch.tensor([[1, 33, 4]])
    out = model.generate(prompt, max_new_tokens=13, temperature=0.7, top_p=0.9, top_k=5, seed=1, sampler=Blockwise(inner))
    again = model.generate(prompt, max_new_tokens=13, temperature=0.7, top_p=0.9, top_k=5, seed=1, sampler=Blockwise(inner))
    assert out.sequences is not None
    assert again.sequences is not None
    assert torch.equal(out.sequences, again.sequences)
    assert bool((out.sequences < 60).all())
    only = model.generate(prompt, max_new_tokens=13, top_k=1, seed=1, sampler=Blockwise(FirstHitting())).sequences
    assert only is not None
    row = torch.cat([prompt, torch.full((1, 13), MASK)], dim=1)
    first = belief(model, Batch.of(row), row, torch.ones(1, dtype=torch.float64))[0, 3].argmax()
    assert int(only[0, 3]) == int(first)  # the one token left of the first block


def test_guidance_that_needs_whole_rows_is_refused_as_on_our_own_trunk() -> None:
    with pytest.raises(ValueError, match="this guidance steers noise over tokens of whole rows and the model's process is Block"):
        ClassifierFree(2.0)(blocks("llama", 4))


@pytest.mark.parametrize("checkpointed", [False, True])
def test_gradients_of_rows_alone_add_up_to_those_of_the_batch(checkpointed: bool) -> None:
    model = stock("gemma3_text", Block(Masked(), 3), shift=True, objective=CrossEntropy()).train()
    batch = padded(False)
    stratum = torch.tensor([[2, 8], [0, 8], [7, 8]])

    def gradients(parts: list[Batch]) -> list[Tensor]:
        model.zero_grad()
        for part in parts:
            model(part, seed=0, step=3).total.backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    batch = batch._replace(stratum=stratum)
    whole = gradients([batch])
    if checkpointed:
        model.backbone.trunk.activation_checkpointing_enable()
    parts = gradients([batch] if checkpointed else [alone(batch, row) for row in range(3)])
    assert len(whole) > 10
    assert any(bool(part.any()) for part in whole)
    for one, two in zip(parts, whole, strict=True):
        torch.testing.assert_close(one, two)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stock_gpt2(tmp_path_factory.mktemp("stock") / "gpt2")


def test_a_causal_checkpoint_becomes_a_block_model_that_is_saved_and_opened_whole(gpt2: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(gpt2))
    model: Any = model_from(str(gpt2), Discrete(process=Block(Masked(), size=4), shift=True), tokenizer).eval()
    model.tokenizer = tokenizer
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["model_type"], config["is_causal"]) == ("gpt2", False)
    assert config["textdiff"]["spec"]["process"]["size"] == 4
    loaded: Any = load(str(tmp_path))
    assert loaded.spec == model.spec
    tokens = torch.tensor([[0, 17, 9, 44, 40, 21, 7]])
    batch = Batch.of(tokens, target=torch.arange(7)[None] > 0)
    rng = Rng(0, 0, batch.sample_id)
    torch.testing.assert_close(loaded.nll(batch, rng), model.nll(batch, rng))
    assert torch.equal(*(m.generate(tokens, max_new_tokens=9, seed=1).sequences for m in (loaded, model)))
    plain = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        inside = model.backbone.head()(model.backbone(tokens, model.backbone.context(Batch.of(tokens))))
        torch.testing.assert_close(plain(tokens).logits, inside)
    first = tokens[:, :4]  # read alone by transformers, the first block is what it is as a block
    xt = torch.where(torch.arange(4) > 1, 300, first)
    found = belief(loaded, Batch.of(tokens), torch.cat([xt, tokens[:, 4:]], dim=1), torch.ones(1, dtype=torch.float64))[0, :4]
    with torch.no_grad():
        expected = plain(xt).logits[0]
    torch.testing.assert_close(found[1:, :300].log_softmax(-1), expected[:-1, :300].log_softmax(-1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "title"), [("distilbert", "DistilBertForMaskedLM"), ("bloom", "BloomForCausalLM")])
def test_what_does_not_read_blocks_is_refused_in_one_line(name: str, title: str) -> None:
    message = f"^{title} reads a block after cached ones otherwise than in a whole row, or not at all: choose another trunk$"
    with pytest.raises(ValueError, match=message):
        blocks(name, 4)
