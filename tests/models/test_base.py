import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel

import textdiff
from tests.backbones.stock_models import tiny
from tests.models.tiny import VOCAB, autoregressive, diffusion, ragged, trunk
from textdiff.backbones.pretrained import Pretrained
from textdiff.models.autoregressive import AutoregressiveLM, AutoregressiveSpec
from textdiff.models.base import LanguageModel
from textdiff.models.discrete import Discrete, DiscreteDiffusionLM
from textdiff.models.objective import CrossEntropy
from textdiff.processes.base import UniformTime
from textdiff.processes.masked import Masked
from textdiff.randomness import Rng
from textdiff.schedules import Cosine
from textdiff.vocab import Vocab

BUILT = {
    "tied": lambda: diffusion(),
    "untied": lambda: diffusion(backbone=trunk(tied=False)),
    "timed": lambda: diffusion(process=Masked(Cosine()), noising=UniformTime(t_min=0.01), backbone=trunk(time_conditioning=True)),
    "shifted": lambda: diffusion(shift=True, objective=CrossEntropy(), backbone=trunk(layer_norm=True)),
    "autoregressive": lambda: autoregressive(),
    "autoregressive untied": lambda: autoregressive(backbone=trunk(tied=False)),
}
each_build = pytest.mark.parametrize("name", BUILT)


def nats(model: LanguageModel) -> torch.Tensor:
    batch = ragged()
    return model.nll(batch, Rng(0, 0, batch.sample_id))


@each_build
def test_saving_and_loading_keeps_every_bit(name: str, tmp_path: Path) -> None:
    model = BUILT[name]()
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path, use_safetensors=True)
    assert not loaded.training
    assert loaded.spec == model.spec
    assert loaded.vocab == model.vocab == VOCAB
    assert loaded.process == model.process
    theirs = loaded.state_dict()
    assert theirs.keys() == model.state_dict().keys()
    for key, value in model.state_dict().items():
        assert theirs[key].dtype == value.dtype
        assert torch.equal(theirs[key], value)
    torch.testing.assert_close(nats(loaded), nats(model), rtol=1e-6, atol=0)  # where in memory a weight lies changes the last bit
    files = {path.name for path in tmp_path.iterdir()}
    assert files == {"config.json", "generation_config.json", "model.safetensors"}


@each_build
def test_saving_what_was_loaded_writes_the_same_files(name: str, tmp_path: Path) -> None:
    model = BUILT[name]()
    model.save_pretrained(tmp_path / "first")
    type(model).from_pretrained(tmp_path / "first").save_pretrained(tmp_path / "second")
    for file in ("config.json", "generation_config.json", "model.safetensors"):
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes()


@each_build
def test_auto_classes_and_load_open_our_folders(name: str, tmp_path: Path) -> None:
    model = BUILT[name]()
    model.save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is type(model.config)
    for loaded in (AutoModel.from_pretrained(tmp_path), textdiff.load(str(tmp_path))):
        assert type(loaded) is type(model)
        torch.testing.assert_close(nats(loaded), nats(model), rtol=1e-6, atol=0)


def test_a_tied_head_is_one_tensor_after_loading_too(tmp_path: Path) -> None:
    diffusion().save_pretrained(tmp_path)
    model = DiscreteDiffusionLM.from_pretrained(tmp_path)
    assert model.backbone.head().weight is model.backbone.embedding.weight
    assert not any("output" in key for key in load_file(tmp_path / "model.safetensors"))


def test_the_configuration_is_plain_data_without_code(tmp_path: Path) -> None:
    diffusion().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_type"] == "textdiff-discrete"
    assert config["spec"]["process"] == {
        "class": "textdiff.processes.masked.Masked",
        "schedule": {"class": "textdiff.schedules.LogLinear", "eps": 0.0},
        "mask_id": -1,
    }
    assert config["vocab"]["mask_id"] == 8
    assert "auto_map" not in config


def corrupted(folder: Path, change: str) -> str:
    diffusion().save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    key = "backbone.blocks.0.attention.query.weight"
    if change == "missing":
        del weights[key]
    elif change == "unknown":
        weights["backbone.extra"] = torch.zeros(2)
    elif change == "wrong shape":
        weights[key] = weights[key][:4].clone()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    if change == "truncated":
        data = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
    if change == "absent":
        (folder / "model.safetensors").unlink()
    return str(folder)


@pytest.mark.parametrize("change", ["missing", "unknown", "wrong shape", "truncated", "absent"])
def test_weights_that_do_not_fit_are_refused_with_one_line(change: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=str(tmp_path)) as raised:
        textdiff.load(corrupted(tmp_path, change))
    assert "\n" not in str(raised.value)


@dataclass(frozen=True)
class Mine(Cosine):
    """A researcher's own schedule, outside textdiff."""


def test_classes_outside_the_trusted_packages_are_refused_until_admitted(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="outside the trusted packages"):
        diffusion(process=Masked(Mine()))
    diffusion().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["spec"]["process"]["schedule"]["class"] = f"{Mine.__module__}.Mine"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="outside the trusted packages"):
        textdiff.load(str(tmp_path))
    loaded: Any = textdiff.load(str(tmp_path), trusted=("textdiff", "tests"))
    assert type(loaded.process.schedule) is Mine


def test_fresh_weights_are_a_function_of_torchs_seed() -> None:
    def fresh(seed: int) -> list[torch.Tensor]:
        torch.manual_seed(seed)
        return list(Discrete(backbone=trunk()).build(VOCAB).parameters())

    assert all(torch.equal(a, b) for a, b in zip(fresh(0), fresh(0), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(fresh(0), fresh(1), strict=True))


def test_fresh_models_begin_near_the_uniform_law_over_what_may_be_written() -> None:
    torch.manual_seed(0)
    batch = ragged()
    for spec in (Discrete(backbone=trunk()), AutoregressiveSpec(backbone=trunk())):
        model = spec.build(VOCAB)
        assert float(model(batch, seed=0, step=0).nelbo / batch.target.sum()) == pytest.approx(math.log(7), rel=0.25)


@pytest.mark.parametrize("causal", [True, False])
def test_a_stock_trunk_is_saved_as_a_stock_folder_and_loads_as_ours(causal: bool, tmp_path: Path) -> None:
    name = "llama"
    pretrained = Pretrained(name=name)
    vocab = Vocab(size=64, tokens=60, mask_id=None if causal else 59, pad_id=0, bos_id=1, eos_id=2)
    spec = AutoregressiveSpec(backbone=pretrained) if causal else Discrete(backbone=pretrained, shift=True)
    model = spec.build(vocab, pretrained.wrap(tiny(name), vocab, causal=causal)).eval()
    model.generation_config.max_new_tokens = 5
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_type"] == "llama"
    loaded = textdiff.load(str(tmp_path))
    assert type(loaded) is (AutoregressiveLM if causal else DiscreteDiffusionLM)
    assert loaded.generation_config.max_new_tokens == 5
    assert torch.equal(nats(loaded), nats(model))
