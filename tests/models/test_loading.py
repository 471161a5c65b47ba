import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

import textdiff
from tests.models.tiny import VOCAB, autoregressive, diffusion
from tests.tiny_runs import stock_bert, stock_gpt2
from textdiff.backbones.pretrained import Pretrained
from textdiff.batch import Batch
from textdiff.data.tokenizer import load_tokenizer
from textdiff.models.autoregressive import AutoregressiveLM, AutoregressiveSpec
from textdiff.models.discrete import Discrete, DiscreteDiffusionLM
from textdiff.models.initialise import model_from
from textdiff.models.loading import around_stock, load
from textdiff.processes.masked import Masked
from textdiff.randomness import Rng
from textdiff.samplers.confidence import Greedy
from textdiff.schedules import Cosine


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stock_gpt2(tmp_path_factory.mktemp("stock") / "gpt2")


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stock_bert(tmp_path_factory.mktemp("stock") / "bert")


def logits(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    prediction: torch.Tensor = model.predictor(Batch.of(tokens))(tokens, torch.zeros(len(tokens), dtype=torch.float64)).logits()
    return prediction.detach()


def test_a_stock_causal_model_becomes_autoregressive_with_its_own_logits(gpt2: Path) -> None:
    model = load(str(gpt2))
    assert isinstance(model, AutoregressiveLM)
    assert not model.training
    tokens = torch.tensor([[5, 9, 2, 17, 40]])
    stock = AutoModelForCausalLM.from_pretrained(gpt2).eval()(tokens).logits.detach()
    torch.testing.assert_close(logits(model, tokens)[:, 1:], stock[:, :-1], atol=1e-5, rtol=1e-5)


def test_a_stock_masked_model_becomes_a_masked_denoiser_with_its_own_logits(bert: Path) -> None:
    model = load(str(bert))
    assert isinstance(model, DiscreteDiffusionLM)
    assert not model.spec.shift
    tokens = torch.tensor([[2, 5, 4, 7, 3]])  # [CLS] the [MASK] ##s [SEP]
    stock = AutoModelForMaskedLM.from_pretrained(bert).eval()(tokens).logits.detach()
    kept = [i for i in range(11) if i not in model.vocab.unemittable]
    torch.testing.assert_close(logits(model, tokens)[..., kept], stock[..., kept], atol=1e-5, rtol=1e-5)


def test_cls_and_sep_stand_for_bos_and_eos_and_both_readers_of_a_tokenizer_agree(bert: Path) -> None:
    vocab, tokenizer = load(str(bert)).vocab, load_tokenizer(str(bert))
    assert (vocab.bos_id, vocab.eos_id) == (2, 3) == (tokenizer.bos_token_id, tokenizer.eos_token_id)


def test_an_adapted_folder_keeps_spec_vocabulary_weights_and_generation_defaults(gpt2: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(gpt2))
    spec = Discrete(process=Masked(Cosine()), shift=True)
    model = around_stock(Pretrained(name=str(gpt2)), tokenizer, spec).eval()
    model.tokenizer = tokenizer
    model.generation_config = model.generation_config.updated(max_new_tokens=7, sampler_config=Greedy(steps=3))
    model.save_pretrained(tmp_path / "saved")
    for place in (tmp_path / "saved", tmp_path / "moved"):
        if not place.exists():
            shutil.move(tmp_path / "saved", place)  # nothing may point back to where it came from
        loaded: Any = load(str(place))
        assert loaded.spec == model.spec
        assert loaded.vocab == model.vocab
        assert loaded.generation_config.max_new_tokens == 7
        assert loaded.generation_config.sampler_config == model.generation_config.sampler_config
        assert loaded.tokenizer.mask_token_id == 300
        tokens = torch.tensor([[0, 300, 9, 300, 40]])
        torch.testing.assert_close(logits(loaded, tokens), logits(model, tokens), rtol=1e-5, atol=1e-6)
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "moved")
    assert saved.get_input_embeddings().weight.shape[0] == 301  # one row for [MASK]
    original = AutoModelForCausalLM.from_pretrained(gpt2)
    assert torch.equal(saved.get_input_embeddings().weight[:300], original.get_input_embeddings().weight)


def test_a_runs_folder_opens_as_its_model(tmp_path: Path) -> None:
    diffusion().save_pretrained(tmp_path / "run" / "model")
    assert isinstance(load(str(tmp_path / "run")), DiscreteDiffusionLM)
    assert load(str(tmp_path / "run")).tokenizer is None  # ours may be saved without one


def changed(folder: Path, change: Any) -> str:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(change(config)))
    return str(folder)


WRONG_CONFIGS = {
    "no spec": (lambda c: {**c, "spec": None}, "does not describe a DiscreteDiffusionLM"),
    "spec of the other kind": (
        lambda c: {**c, "spec": {"class": "textdiff.models.autoregressive.AutoregressiveSpec"}},
        "does not describe",
    ),
    "spec that is a list": (lambda c: {**c, "spec": [1]}, "does not describe"),
    "vocabulary that is a spec": (lambda c: {**c, "vocab": c["spec"]}, "does not describe"),
    "unknown field": (lambda c: {**c, "spec": {**c["spec"], "shfit": True}}, "no field 'shfit'; did you mean 'shift'"),
    "class of elsewhere": (lambda c: {**c, "spec": {"class": "os.system"}}, "outside the trusted packages"),
    "class that is no data": (lambda c: {**c, "spec": {"class": "textdiff.models.loading.load"}}, "is not a dataclass"),
    "class that is gone": (lambda c: {**c, "spec": {"class": "textdiff.models.gone.Gone"}}, "cannot be imported"),
    "another architecture": (lambda c: {**c, "model_type": "resnet"}, "neither a causal nor a masked LM"),
    "no architecture": (lambda c: {}, "cannot be opened"),
}


@pytest.mark.parametrize("name", WRONG_CONFIGS)
def test_a_configuration_that_is_not_ours_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    change, message = WRONG_CONFIGS[name]
    diffusion().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message) as raised:
        load(changed(tmp_path, change))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "block",
    [None, 7, {}, {"model_type": "textdiff-discrete"}, {"model_type": "textdiff-discrete", "spec": {"class": "os.path"}, "vocab": 1}],
)
def test_a_block_that_is_not_ours_is_refused_in_one_line(block: Any, gpt2: Path, tmp_path: Path) -> None:
    shutil.copytree(gpt2, tmp_path / "copy")
    with pytest.raises(ValueError, match=r"textdiff block|does not describe|outside the trusted") as raised:
        load(changed(tmp_path / "copy", lambda config: {**config, "textdiff": block}))
    assert "\n" not in str(raised.value)


def without(config: Any, *path: str) -> Any:
    inner = config
    for name in path[:-1]:
        inner = inner[name]
    del inner[path[-1]]
    return config


FORGOTTEN = {
    "shift": (
        lambda c: without(c, "textdiff", "spec", "shift"),
        "does not say from which output a position is read: restore the spec's shift",
    ),
    "mask id": (lambda c: without(c, "textdiff", "vocab", "mask_id"), "has the mask_id None, its tokenizer 300: restore them"),
    "direction": (lambda c: without(c, "is_causal"), "says is_causal: true, which a DiscreteDiffusionLM is not: restore is_causal"),
    "everything": (
        lambda c: without(c, "textdiff"),
        "says is_causal: false, and no textdiff block says what the model is: restore the block",
    ),
}


@pytest.mark.parametrize("name", FORGOTTEN)
@pytest.mark.parametrize("shift", [True, False])
def test_what_an_adapted_folder_must_say_cannot_be_forgotten(name: str, shift: bool, gpt2: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(gpt2))
    model = around_stock(Pretrained(name=str(gpt2)), tokenizer, Discrete(shift=shift)).eval()
    model.tokenizer = tokenizer
    model.save_pretrained(tmp_path)
    loaded: Any = load(str(tmp_path))
    assert (loaded.spec.shift, loaded.vocab.mask_id, loaded.backbone.trunk.config.is_causal) == (shift, 300, False)
    stock = AutoModelForCausalLM.from_pretrained(tmp_path)  # a plain reader keeps the same three
    kept = stock.config.textdiff
    assert (kept["spec"]["shift"], kept["vocab"]["mask_id"], stock.config.is_causal) == (shift, 300, False)
    forget, message = FORGOTTEN[name]
    with pytest.raises(ValueError, match=message) as raised:
        load(changed(tmp_path, forget))
    assert "\n" not in str(raised.value)


def test_a_plain_reader_that_saves_again_forgets_nothing(gpt2: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(gpt2))
    model = around_stock(Pretrained(name=str(gpt2)), tokenizer, Discrete(shift=True)).eval()
    model.tokenizer = tokenizer
    model.save_pretrained(tmp_path / "ours")
    AutoModelForCausalLM.from_pretrained(tmp_path / "ours").save_pretrained(tmp_path / "again")
    tokenizer.save_pretrained(tmp_path / "again")
    again: Any = load(str(tmp_path / "again"))
    tokens = torch.tensor([[0, 300, 9, 300, 40]])
    assert (again.spec, again.vocab) == (model.spec, model.vocab)
    assert torch.equal(logits(again, tokens), logits(load(str(tmp_path / "ours")), tokens))


def test_a_tokenizer_is_never_made_up(gpt2: Path, tmp_path: Path) -> None:
    """Where the files are missing transformers gives an empty tokenizer, which would read every text as nothing."""
    shutil.copytree(gpt2, tmp_path / "without", ignore=shutil.ignore_patterns("tokenizer*"))
    with pytest.raises(ValueError, match="has no tokenizer files"):
        load(str(tmp_path / "without"))
    shutil.copytree(gpt2, tmp_path / "cut")
    os.truncate(tmp_path / "cut" / "tokenizer.json", 500)
    with pytest.raises(ValueError, match=r"tokenizer files of .*cut cannot be read") as raised:
        load(str(tmp_path / "cut"))
    assert "\n" not in str(raised.value)


def test_ours_begin_from_ours_weight_by_weight_and_keep_what_the_spec_says(tmp_path: Path) -> None:
    class Ids:
        def __len__(self) -> int:
            return VOCAB.tokens

    for source in (diffusion(), autoregressive()):
        source.save_pretrained(tmp_path / source.config.model_type)
        shift = isinstance(source, AutoregressiveLM)
        spec = Discrete(process=Masked(Cosine()), shift=shift)
        model = model_from(str(tmp_path / source.config.model_type), spec, Ids())
        assert model.spec == Discrete(process=Masked(Cosine()), backbone=source.spec.backbone, shift=shift)
        assert model.vocab == VOCAB
        for name, tensor in model.backbone.state_dict().items():
            assert torch.equal(tensor, source.backbone.state_dict()[name].to(tensor.dtype)), name


def test_a_causal_model_turned_to_diffusion_reads_the_same_output_for_the_same_token(tmp_path: Path) -> None:
    """With everything after a position masked off by length, the shifted denoiser of an AR trunk predicts what the AR model predicts."""

    class Ids:
        def __len__(self) -> int:
            return VOCAB.tokens

    source = autoregressive()
    source.save_pretrained(tmp_path)
    denoiser = model_from(str(tmp_path), Discrete(shift=True), Ids()).double().eval()
    row = torch.tensor([[0, 3]])  # from one token the trunk sees the same whichever way it may look; position 1 is read from it
    ours = logits(denoiser, row)
    alone = logits(denoiser, torch.tensor([[0]]))
    assert torch.allclose(alone[:, 0], logits(source, row)[:, 1], atol=1e-6)
    assert ours.shape == (1, 2, VOCAB.size)


def test_a_tokenizer_of_other_ids_and_a_masked_model_left_to_right_are_refused(gpt2: Path, bert: Path) -> None:
    with pytest.raises(ValueError, match=r"the tokenizer has 11 ids and .* was trained with 300: leave --tokenizer out"):
        model_from(str(gpt2), Discrete(), load_tokenizer(str(bert)))
    with pytest.raises(ValueError, match="is a masked LM and cannot be trained left to right: begin from a causal LM"):
        model_from(str(bert), AutoregressiveSpec(), load_tokenizer(str(bert)))


def test_begun_from_a_stock_masked_model_the_denoiser_has_its_likelihood(bert: Path) -> None:
    model, stock = model_from(str(bert), Discrete(), load_tokenizer(str(bert))).eval(), load(str(bert))
    batch = Batch.of(torch.tensor([[2, 5, 6, 7, 5, 10, 3]]))
    rng = Rng(0, 0, batch.sample_id)
    assert torch.equal(model.nll(batch, rng), stock.nll(batch, rng))


def test_the_public_name_is_this_function() -> None:
    assert textdiff.load is load
    with pytest.raises(ValueError, match="the name of the model is empty"):
        load(" ")
