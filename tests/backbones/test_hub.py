import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.backbones.stock_models import tiny
from textdiff.backbones import hub


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny("gpt2").save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["gpt2", "Qwen/Qwen2.5-7B", "meta-llama/Llama-3.2-1B"])
def test_hub_ids_are_passed_on(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert hub.resolve(name) == name


@pytest.mark.parametrize("name", ["./outputs/run1", "../run1", "/nowhere/run1", "~/nowhere-at-all", "a/b/c", "outputs/run1", "run1/"])
def test_what_can_only_be_a_path_is_refused_without_the_hub(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "outputs").mkdir()  # so outputs/run1 is a mistyped folder in it, not a hub owner's model
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"no folder {name}: check the path"):
        hub.resolve(name)


def test_files_and_empty_folders_are_refused(folder: Path) -> None:
    for name in (folder / "model.safetensors", "missing.safetensors"):
        with pytest.raises(ValueError, match="is a file, not a model folder"):
            hub.resolve(str(name))
    (folder / "empty").mkdir()
    with pytest.raises(ValueError, match=r"has no config.json"):
        hub.resolve(str(folder / "empty"))


def test_an_id_that_is_not_cached_fails_offline_with_one_line() -> None:
    with pytest.raises(ValueError, match="nobody-here/no-such-model cannot be opened") as caught:
        hub.load("nobody-here/no-such-model", "auto")
    assert "\n" not in str(caught.value)


def test_every_weight_must_be_there(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    torch.testing.assert_close(hub.load(str(folder), "float32").state_dict()["transformer.wpe.weight"], weights["transformer.wpe.weight"])
    del weights["transformer.h.1.mlp.c_fc.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 1 weights of GPT2LMHeadModel \(transformer.h.1.mlp.c_fc.weight\)"):
        hub.load(str(folder), "float32")


@pytest.mark.parametrize("size", [0, 4, 1000, -1])
def test_truncated_weights_are_one_clear_line(folder: Path, size: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match="truncated or corrupt") as caught:
        hub.load(str(folder), "float32")
    assert "\n" not in str(caught.value)


def test_pickled_weights_and_wrong_shapes_are_refused(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["transformer.wpe.weight"] = torch.zeros(3, 32)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"the weights of .* cannot be loaded"):
        hub.load(str(folder), "float32")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"never read")
    with pytest.raises(ValueError, match=r"the weights of .* cannot be loaded: .*safetensors"):
        hub.load(str(folder), "float32")


def test_remote_code_and_other_kinds_of_model_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mine", "auto_map": {"AutoConfig": "evil.Config"}}))
    (tmp_path / "evil.py").write_text("raise SystemExit('remote code ran')")
    with pytest.raises(ValueError, match="cannot be opened"):
        hub.load(str(tmp_path), "float32")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(ValueError, match="is a vit model, neither a causal nor a masked LM"):
        hub.load(str(tmp_path), "float32")


@pytest.mark.parametrize(("name", "masked"), [("bert", True), ("gpt2", False), ("modernbert", True)])
def test_the_kind_follows_the_architecture(name: str, masked: bool, tmp_path: Path) -> None:
    tiny(name).save_pretrained(tmp_path)
    assert hub.is_masked_lm(hub.load(str(tmp_path), "auto")) == masked
