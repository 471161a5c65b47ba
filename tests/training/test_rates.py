"""Parts of a model that learn at rates of their own or not at all, against runs in which everything learns alike."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import Tensor

from tests.backbones.stock_models import CAUSAL, MASKED, tiny
from tests.models.tiny import MASK, PAD, VOCAB, autoregressive, diffusion, trunk
from tests.training.tiny import TinyModel, measure, quick, save_weights
from textdiff.backbones.pretrained import Pretrained
from textdiff.batch import Example
from textdiff.models.base import LanguageModel
from textdiff.models.discrete import Discrete
from textdiff.models.embedding import EmbeddingDiffusion
from textdiff.training.loop import train
from textdiff.training.order import IndexedOrder, Placement
from textdiff.training.rates import Rates, attention_weights, divided
from textdiff.vocab import Vocab

ALIKE = Rates()
TABLE = "backbone.embedding.weight"
STOCK = Vocab(size=64, tokens=64, mask_id=60, bos_id=1, eos_id=2)


def rows(count: int = 16, high: int = 7) -> list[Example]:
    generator = torch.Generator().manual_seed(2)
    return [Example(torch.randint(1, high, (6,), generator=generator).tolist(), [False] + [True] * 5) for _ in range(count)]


def ours(**options: Any) -> LanguageModel:
    return diffusion(**options).float()


def stock(name: str) -> LanguageModel:
    return Discrete(shift=True).build(STOCK, Pretrained(name=name).wrap(tiny(name), STOCK, causal=False))


def trained(accelerator: Accelerator, out: Path, model: LanguageModel, rates: Rates = ALIKE, **changes: Any) -> dict[str, Tensor]:
    """The weights after a short run with decay, a warm-up and a cosine, without averaging."""
    settings = quick(**{"rates": rates, "ema": 0.0, "weight_decay": 0.3, **changes})
    train(accelerator, settings, model, rows(), PAD, out, measure, save_weights)
    return weights(model)


def weights(model: LanguageModel) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def moves(before: dict[str, Tensor], after: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: after[name] - before[name] for name in before}


def newest(out: Path, name: str) -> dict[str, Tensor]:
    return load_file(max((out / "checkpoints").iterdir()) / f"{name}.safetensors")


@pytest.mark.parametrize("name", [*CAUSAL, *MASKED])
def test_without_its_attention_weights_no_position_of_a_stock_model_sees_another(name: str) -> None:
    model = tiny(name)
    tokens = torch.tensor([[7, 9, 11, 13]])
    changed = torch.tensor([[7, 10, 11, 13]])

    def difference() -> Tensor:
        return (model(tokens).logits - model(changed).logits).detach()[0].abs().amax(-1)

    assert difference()[2:].max() > 1e-3
    inside = attention_weights(model)
    for layer, parameter in model.named_parameters():
        if layer in inside:
            parameter.data.zero_()
    assert float(difference()[[0, 2, 3]].max()) == 0
    assert name in MASKED or float(difference()[1]) > 1e-3  # BERT's attention holds a layer norm that all passes through


def test_attention_is_what_is_called_so_and_no_more() -> None:
    kept = {"attention.query", "attention.key_value", "attention.out"}
    assert attention_weights(ours()) == {f"backbone.blocks.{i}.{name}.weight" for i in range(2) for name in kept}
    named = {name.partition(".layers.")[2].partition(".")[2] for name in attention_weights(stock("llama"))}
    assert named == {f"self_attn.{name}_proj.weight" for name in "qkvo"}


@pytest.mark.parametrize("make", [ours, lambda: stock("gpt2")], ids=["ours", "gpt2"])
@pytest.mark.parametrize("rates", [Rates(attention=0), Rates(mask_row=0, rest=0), Rates(attention=0, rest=0)], ids=str)
def test_what_is_frozen_stays_bit_for_bit_and_has_no_state(make: Any, rates: Rates, accelerator: Accelerator, tmp_path: Path) -> None:
    model = make()
    before, inside = weights(model), attention_weights(model)
    after = trained(accelerator, tmp_path, model, rates, ema=0.9)
    table = next(name for name, parameter in model.named_parameters() if len(parameter) == model.vocab.size)
    for name, tensor in before.items():
        learns = (rates.attention if name in inside else rates.rest) > 0 or (name == table and rates.mask_row > 0)
        assert learns != torch.equal(after[name], tensor), name
        assert learns == (f"exp_avg/{name}" in newest(tmp_path, "optimizer")), name
        assert learns == (name in newest(tmp_path, "ema")), name
    if not rates.rest and rates.mask_row:
        assert (after[table] != before[table]).any(1).nonzero().tolist() == [[model.vocab.mask_id]]
    assert all(parameter.requires_grad for parameter in model.parameters())  # the next run may train it all


@pytest.mark.parametrize("rates", [Rates(attention=0), Rates(attention=0, rest=0), Rates(mask_row=0)], ids=str)
def test_the_gradient_norm_is_of_what_is_trained(rates: Rates, accelerator: Accelerator, tmp_path: Path) -> None:
    trained(accelerator, tmp_path, ours(), rates, steps=1)
    model = ours()
    (batch,) = IndexedOrder(rows(), Placement(8, 1, 0, 1), 0, PAD).window(0)
    loss = model.train()(batch, 0, 0, 0.0)
    (loss.total / loss.tokens).backward()
    inside, expected = attention_weights(model), 0.0
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        rate = torch.full((len(parameter), 1), rates.attention if name in inside else rates.rest)
        if name == TABLE:
            rate[MASK] = rates.mask_row
        expected += float(
            parameter.grad.flatten(1 if parameter.dim() > 1 else 0).reshape(len(parameter), -1)[rate[:, 0] > 0].square().sum()
        )
    found = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[0])["gradient_norm"]
    assert found == pytest.approx(expected**0.5, rel=1e-5)


def test_multipliers_of_everything_are_a_multiplier_of_the_learning_rate(accelerator: Accelerator, tmp_path: Path) -> None:
    """Bit for bit, schedule and decay included: so 1 is what it was before there were any."""
    plain = trained(accelerator, tmp_path / "plain", ours())
    twice = trained(accelerator, tmp_path / "twice", ours(), Rates(2, 2, 2), learning_rate=0.5e-2)
    assert all(torch.equal(plain[name], twice[name]) for name in plain)


@pytest.mark.parametrize("only", [Rates(0, 1, 0), Rates(1, 0, 0), Rates(0, 0, 1)], ids=str)
def test_a_part_alone_moves_as_with_that_learning_rate(only: Rates, accelerator: Accelerator, tmp_path: Path) -> None:
    half = Rates(only.mask_row / 2, only.attention / 2, only.rest / 2)
    one = trained(accelerator, tmp_path / "one", ours(), half)
    two = trained(accelerator, tmp_path / "two", ours(), only, learning_rate=0.5e-2)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert any(not torch.equal(one[name], before) for name, before in weights(ours()).items())


@pytest.mark.parametrize("make", [ours, lambda: stock("gpt2"), lambda: ours(backbone=trunk(tied=False))], ids=["ours", "gpt2", "untied"])
def test_in_one_step_each_part_moves_its_multiple_of_what_it_would(make: Any, accelerator: Accelerator, tmp_path: Path) -> None:
    rates, model = Rates(mask_row=8, attention=0.25, rest=0.5), make()
    before, inside, mask = weights(model), attention_weights(model), model.vocab.mask_id
    settings = {"steps": 1, "warmup": 0}
    plain = moves(before, trained(accelerator, tmp_path / "plain", make(), **settings))
    found = moves(before, trained(accelerator, tmp_path / "parts", model, rates, **settings))
    table = model.get_parameter(TABLE) if model.backbone.trunk is None else model.backbone.trunk.get_input_embeddings().weight
    for name, parameter in model.named_parameters():
        expected = plain[name] * (0.25 if name in inside else 0.5)
        if parameter is table:
            assert float(plain[name][mask].abs().max()) > 1e-3
            expected[mask] = plain[name][mask] * 8
        torch.testing.assert_close(found[name], expected, atol=3e-7, rtol=2e-5, msg=name)


@pytest.mark.parametrize("rates", [Rates(mask_row=8, attention=0.25), Rates(attention=0, rest=0), Rates(mask_row=0)], ids=str)
def test_a_resumed_run_goes_on_bit_for_bit(rates: Rates, accelerator: Accelerator, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"checkpoint_every": 3, "ema": 0.9}
    whole = trained(accelerator, tmp_path, ours(), rates, **changes)
    files = {name: newest(tmp_path, name) for name in ("model", "ema", "optimizer")}
    shutil.rmtree(max((tmp_path / "checkpoints").iterdir()))
    again = trained(accelerator, tmp_path, ours(), rates, resume=True, **changes)
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    for name, tensors in files.items():
        assert all(torch.equal(tensor, newest(tmp_path, name)[key]) for key, tensor in tensors.items())
    with pytest.raises(ValueError, match=r"was started with rates\.\w+ = .*, now it is None: give the old value"):
        trained(accelerator, tmp_path, ours(), resume=True, **changes)


def test_a_run_begun_before_there_were_rates_and_adapters_goes_on(accelerator: Accelerator, tmp_path: Path) -> None:
    assert not {"rates", "lora"} & quick().essential().keys()
    assert quick(rates=Rates(rest=0)).essential()["rates"] == {"mask_row": 1.0, "attention": 1.0, "rest": 0}


@pytest.mark.parametrize("numbers", [(-1, 1, 1), (0, 0, 0)])
def test_rates_that_make_no_sense_are_refused(numbers: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError, match="expected multipliers of the learning rate, none below 0 and not all 0"):
        Rates(*numbers)


def test_a_part_that_is_not_there_is_refused() -> None:
    bare: Any = autoregressive(Vocab(size=9, tokens=9, bos_id=0, eos_id=6))
    vectors: Any = EmbeddingDiffusion(backbone=trunk()).build(VOCAB)
    blind: Any = TinyModel()
    cases = ((bare, Rates(mask_row=2), "AutoregressiveLM has no embedding of \\[MASK\\]"), (vectors, Rates(mask_row=0), "no embedding of"))
    for model, rates, message in (*cases, (blind, Rates(attention=2), "no layer of TinyModel is an attention: leave rates.attention at")):
        flags = [parameter.requires_grad for parameter in model.parameters()]
        with pytest.raises(ValueError, match=message), divided(model, rates, adapters=False):
            pass
        assert flags == [parameter.requires_grad for parameter in model.parameters()]
    with pytest.raises(ValueError, match="nothing of AutoregressiveLM is left to train"), divided(bare, Rates(1, 0, 0), adapters=False):
        pass
