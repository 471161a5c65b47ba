"""Adapters: what they may change, that the row of [MASK] learns beside them, and that what is saved is a model without them."""

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from accelerate import Accelerator
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from tests.backbones.stock_models import tiny
from tests.models.tiny import MASK, PAD, TEXT, VOCAB, autoregressive, trunk
from tests.tiny_runs import stock_gpt2
from tests.training.test_rates import newest, ours, rows, weights
from tests.training.tiny import measure, quick
from textdiff.batch import Batch
from textdiff.data.tokenizer import load_tokenizer
from textdiff.models.base import LanguageModel
from textdiff.models.discrete import Discrete
from textdiff.models.initialise import model_from
from textdiff.models.loading import load
from textdiff.training.loop import train
from textdiff.training.lora import Lora
from textdiff.training.rates import Rates

TWO = Lora(rank=2, alpha=4)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Stock models with a tokenizer of 300 ids: one tied table, two tables, and a spare row for [MASK]."""
    place = tmp_path_factory.mktemp("stock")
    stock_gpt2(place / "gpt2")
    for name, changes in (("llama", {"tie_word_embeddings": False}), ("qwen2", {"tie_word_embeddings": True, "vocab_size": 304})):
        tiny(name, **{"vocab_size": 300, **changes}).save_pretrained(place / name)
        load_tokenizer(str(place / "gpt2")).save_pretrained(place / name)
    return {name: place / name for name in ("gpt2", "llama", "qwen2")}


def adapted(folder: Path) -> LanguageModel:
    tokenizer = load_tokenizer(str(folder))
    model = model_from(str(folder), Discrete(shift=True), tokenizer)
    model.tokenizer = tokenizer
    return model


def train_it(accelerator: Accelerator, out: Path, model: LanguageModel, lora: Lora = TWO, evaluate: Any = measure, **changes: Any) -> None:
    def save(folder: Path, weights: dict[str, Tensor]) -> None:
        model.save_pretrained(folder, state_dict=weights)

    text = rows(high=TEXT if model.vocab == VOCAB else 300)
    train(accelerator, quick(**{"lora": lora, "learning_rate": 3e-2, **changes}), model, text, PAD, out, evaluate, save)


def table_of(model: LanguageModel) -> Tensor:
    table = model.backbone.embedding if model.backbone.trunk is None else model.backbone.trunk.get_input_embeddings()
    weight: Tensor = table.weight  # type: ignore[union-attr, assignment]
    return weight


def belief(model: LanguageModel, tokens: Tensor) -> Tensor:
    times = torch.ones(len(tokens), dtype=torch.float64)
    logits: Tensor = model.eval().predictor(Batch.of(tokens))(tokens, times).logits().detach()  # type: ignore[operator]
    return logits


@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen2", "ours"])
def test_only_linear_layers_move_by_their_rank_and_of_the_table_the_row_of_the_mask(
    name: str, folders: dict[str, Path], accelerator: Accelerator, tmp_path: Path
) -> None:
    model = ours() if name == "ours" else adapted(folders[name])
    before, mask = weights(model), model.vocab.mask_id
    train_it(accelerator, tmp_path, model, evaluate=lambda model, stop: {"adapters": float(sum("lora_A" in n for n in model.state_dict()))})
    after, moved = weights(model), set()
    assert before.keys() == after.keys()
    for key, tensor in before.items():
        change = after[key] - tensor
        if model.get_parameter(key) is table_of(model):
            assert change.any(1).nonzero().tolist() == [[mask]]
        elif change.any():
            assert int(torch.linalg.matrix_rank(change, rtol=1e-4)) <= 2 < min(change.shape), key
            moved.add(key)
    layers = {key for key, tensor in before.items() if tensor.dim() == 2 and len(tensor) != model.vocab.size and "wpe" not in key}
    assert moved == layers
    rows_of_log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert rows_of_log[-1]["evaluation"] == {"adapters": len(layers)}
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen2"])
def test_the_saved_folder_is_the_sum_without_adapters(
    name: str, folders: dict[str, Path], accelerator: Accelerator, tmp_path: Path
) -> None:
    model = adapted(folders[name])
    keys = load_file(folders[name] / "model.safetensors").keys()
    seen: list[Tensor] = []
    tokens = torch.tensor([[0, 300, 5, 300, 9]])

    def evaluate(model: Any, should_stop: Any) -> dict[str, float]:
        seen.append(belief(model, tokens))
        model.train()
        return {}

    train_it(accelerator, tmp_path, model, evaluate=evaluate)
    files = load_file(tmp_path / "model" / "model.safetensors")
    assert files.keys() == keys
    reloaded, stock = load(str(tmp_path)), AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    assert all(torch.equal(parameter, reloaded.get_parameter(key)) for key, parameter in model.named_parameters())
    torch.testing.assert_close(belief(reloaded, tokens), seen[0])  # adapters beside the weights, averaged
    logits = stock(tokens).logits.detach()
    torch.testing.assert_close(logits[:, :-1, :300], seen[0][:, 1:, :300])
    assert float((belief(adapted(folders[name]), tokens)[..., :300] - seen[0][..., :300]).abs().max()) > 0.05


@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen2"])
def test_the_adapters_beside_it_fit_the_model_the_run_began_from(
    name: str, folders: dict[str, Path], accelerator: Accelerator, tmp_path: Path
) -> None:
    model, tokens = adapted(folders[name]), torch.tensor([[0, 300, 5, 300, 9]])
    train_it(accelerator, tmp_path, model)
    base = AutoModelForCausalLM.from_pretrained(folders[name])
    if len(base.get_input_embeddings().weight) < 301:
        base.resize_token_embeddings(301, mean_resizing=False)
    base.config.is_causal = False
    beside = PeftModel.from_pretrained(base, tmp_path / "model" / "adapter").eval()
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    torch.testing.assert_close(beside(tokens).logits[..., :300], merged(tokens).logits[..., :300])
    assert {path.suffix for path in (tmp_path / "model" / "adapter").iterdir()} <= {".json", ".safetensors", ".md"}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["gpt2", "ours"])
def test_fresh_adapters_change_nothing_and_leave_nothing_behind(name: str, folders: dict[str, Path]) -> None:
    model = ours() if name == "ours" else adapted(folders[name])
    tokens = torch.tensor([[0, 3, MASK, 4, MASK]])
    before, expected, parts = weights(model), belief(model, tokens), [set(vars(module)) for module in model.modules()]
    for seed in range(2):
        with TWO.applied(model, seed):
            assert torch.equal(belief(model, tokens), expected)
            trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
            assert {name.rsplit(".", 3)[1] for name in trained} == {"lora_A", "lora_B"}
        assert all(torch.equal(tensor, before[name]) for name, tensor in weights(model).items())
        assert [set(vars(module)) for module in model.modules()] == parts


def test_a_resumed_run_goes_on_bit_for_bit_and_only_with_the_same_adapters(
    folders: dict[str, Path], accelerator: Accelerator, tmp_path: Path
) -> None:
    changes = {"checkpoint_every": 3}
    train_it(accelerator, tmp_path, adapted(folders["gpt2"]), **changes)
    whole, average = load_file(tmp_path / "model" / "model.safetensors"), newest(tmp_path, "ema")
    assert all("lora_" in name or "wte" in name for name in average)
    shutil.rmtree(max((tmp_path / "checkpoints").iterdir()))
    for other in (Lora(2, alpha=8), Lora(2, 4, ("c_attn",)), Lora()):
        with pytest.raises(ValueError, match=r"was started with lora\.\w+ = .*: give the old value to resume"):
            train_it(accelerator, tmp_path, adapted(folders["gpt2"]), other, resume=True, **changes)
    train_it(accelerator, tmp_path, adapted(folders["gpt2"]), resume=True, **changes)
    again = load_file(tmp_path / "model" / "model.safetensors")
    assert all(torch.equal(tensor, again[name]) for name, tensor in whole.items())


@pytest.mark.parametrize("lora", [TWO, Lora(rank=2, alpha=4, embedding=True)])
@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen2"])
def test_a_checkpoint_holds_what_is_trained_alone(
    name: str, lora: Lora, folders: dict[str, Path], accelerator: Accelerator, tmp_path: Path
) -> None:
    """Adapters, buffers, and of the table the row of [MASK], in weights, average and moments alike; resumed, it is the whole."""
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    for out in (straight, resumed):
        train_it(accelerator, out, adapted(folders[name]), lora, checkpoint_every=3)
    shutil.rmtree(max((resumed / "checkpoints").iterdir()))
    train_it(accelerator, resumed, adapted(folders[name]), lora, checkpoint_every=3, resume=True)
    for part in ("model", "ema", "optimizer"):
        found, again = newest(straight, part), newest(resumed, part)
        assert found.keys() == again.keys()
        assert all(torch.equal(tensor, again[key]) for key, tensor in found.items())
        others = {key: tensor for key, tensor in found.items() if "lora_" not in key and not key.startswith("step/")}
        assert {len(tensor) for tensor in others.values()} == ({len(table_of(adapted(folders[name])))} if lora.embedding else {1})
        assert len(others) == (2 if part == "optimizer" else 1)
    one, other = (load_file(out / "model" / "model.safetensors") for out in (straight, resumed))
    assert all(torch.equal(tensor, other[key]) for key, tensor in one.items())


def test_what_was_trained_beside_other_weights_is_not_put_beside_these(
    folders: dict[str, Path], accelerator: Accelerator, tmp_path: Path
) -> None:
    train_it(accelerator, tmp_path, adapted(folders["gpt2"]))
    model = adapted(folders["gpt2"])
    model.backbone.trunk.transformer.h[1].ln_1.bias.data[3] += 1e-3  # type: ignore[union-attr, operator, index]
    with pytest.raises(ValueError, match=r"began from other weights than it is given now.*: give the model it began from"):
        train_it(accelerator, tmp_path, model, resume=True, steps=8)


def test_a_checkpoint_that_holds_all_weights_is_resumed_too(folders: dict[str, Path], accelerator: Accelerator, tmp_path: Path) -> None:
    """As checkpoints of adapters were before they left the others out."""
    straight, old = tmp_path / "straight", tmp_path / "old"
    train_it(accelerator, straight, adapted(folders["gpt2"]), checkpoint_every=3)
    with patch("textdiff.training.run.Begun", lambda model, parts: None):
        train_it(accelerator, old, adapted(folders["gpt2"]), checkpoint_every=3)
    assert len(newest(old, "model")) > 2 * len(newest(straight, "model"))
    shutil.rmtree(max((old / "checkpoints").iterdir()))
    train_it(accelerator, old, adapted(folders["gpt2"]), checkpoint_every=3, resume=True)
    assert all(torch.equal(tensor, newest(old, "ema")[key]) for key, tensor in newest(straight, "ema").items())
    assert newest(old, "model").keys() == newest(straight, "model").keys()


def test_targets_are_ends_of_names_and_rates_hold_for_adapters_too(accelerator: Accelerator, tmp_path: Path) -> None:
    for number, (lora, rates, moving) in enumerate(
        [
            (Lora(2, targets=("attention.query", "mlp.0")), Rates(), ("query", "mlp.0")),
            (TWO, Rates(mask_row=0, attention=0), ("mlp.0", "mlp.2")),
            (TWO, Rates(mask_row=0, rest=0), ("query", "key_value", "out")),
        ]
    ):
        model = ours()
        before = weights(model)
        train_it(accelerator, tmp_path / str(number), model, lora, rates=rates)
        moved = {name for name, tensor in weights(model).items() if not torch.equal(tensor, before[name])}
        ends = tuple(f"{end}.weight" for end in moving)
        expected = {name for name in before if name.endswith(ends)}
        assert moved == expected | ({"backbone.embedding.weight"} if rates.mask_row else set())


def test_the_whole_embedding_learns_where_asked(accelerator: Accelerator, tmp_path: Path) -> None:
    for tied in (True, False):
        model = ours(backbone=trunk(tied=tied))
        before = weights(model)
        train_it(accelerator, tmp_path / str(tied), model, Lora(2, embedding=True), rates=Rates(mask_row=0))
        moved = (table_of(model) != before["backbone.embedding.weight"]).any(1)
        assert moved.nonzero()[:, 0].tolist() == [row for row in range(len(moved)) if row != MASK]
        assert tied or torch.equal(model.get_parameter("backbone.output.weight"), before["backbone.output.weight"])


def test_an_autoregressive_model_is_adapted_too(accelerator: Accelerator, tmp_path: Path) -> None:
    model = autoregressive().float()
    before = weights(model)
    train_it(accelerator, tmp_path, model)
    assert not torch.equal(weights(model)["backbone.blocks.0.mlp.0.weight"], before["backbone.blocks.0.mlp.0.weight"])


def test_what_cannot_be_adapted_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    message = r"lora.targets names 'q_proj', which no linear layer .*; they are called 0, 2, key_value, out, query$"
    with pytest.raises(ValueError, match=message), Lora(2, targets=("query", "q_proj")).applied(ours(), seed=0):
        pass
    with pytest.raises(ValueError, match=r"lora.rank is -1 and lora.alpha 32: expected"):
        Lora(rank=-1)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert Lora() == Lora(0)
    with pytest.raises(ValueError, match=r"the peft package, which is not installed: install textdiff\[adapters\]"):
        Lora(rank=2)
