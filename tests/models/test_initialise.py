import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.backbones.stock_models import tiny
from tests.models.tiny import VOCAB, autoregressive, diffusion, logits
from tests.tiny_runs import stock_bert, stock_gpt2
from textdiff.backbones.annealing import GrowingBlocks, RandomEntries, WholeBatch
from textdiff.backbones.pretrained import Pretrained
from textdiff.batch import Batch
from textdiff.data.tokenizer import load_tokenizer
from textdiff.models.autoregressive import AutoregressiveSpec
from textdiff.models.discrete import Discrete, DiscreteDiffusionLM
from textdiff.models.embedding import EmbeddingDiffusion
from textdiff.models.initialise import model_from
from textdiff.models.loading import load
from textdiff.randomness import Rng
from textdiff.vocab import Vocab

ROW = torch.tensor([[0, 17, 9, 44, 40]])


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stock_gpt2(tmp_path_factory.mktemp("stock") / "gpt2")


@pytest.fixture
def adapted(gpt2: Path) -> Any:
    tokenizer = load_tokenizer(str(gpt2))
    model = model_from(str(gpt2), Discrete(annealing=RandomEntries()), tokenizer).eval()
    model.tokenizer = tokenizer
    return model


def head_logits(model: Any, ahead: Tensor | bool = True, tokens: Tensor = ROW) -> Tensor:
    """(1, L, V) of the trunk in its own order, no shift."""
    with torch.no_grad():
        return model.backbone.head()(model.backbone(tokens, model.backbone.context(Batch.of(tokens), ahead)))


def test_an_adapted_model_begins_with_the_logits_of_the_causal_one(adapted: DiscreteDiffusionLM, gpt2: Path) -> None:
    stock = AutoModelForCausalLM.from_pretrained(gpt2).eval()(ROW).logits.detach()
    for ahead in (False, torch.zeros(5, 5, dtype=torch.bool)):
        torch.testing.assert_close(head_logits(adapted, ahead)[..., :300], stock, rtol=0, atol=1e-5)
    assert float((head_logits(adapted)[..., :300] - stock).abs().max()) > 0.1


def test_without_a_spare_row_the_mask_gets_the_mean_of_all(adapted: DiscreteDiffusionLM, gpt2: Path) -> None:
    old = AutoModelForCausalLM.from_pretrained(gpt2).get_input_embeddings().weight
    table = adapted.backbone.trunk.get_input_embeddings().weight
    assert (adapted.vocab.mask_id, adapted.vocab.size, len(table)) == (300, 301, 301)
    torch.testing.assert_close(table[300], old.mean(0))
    assert table is adapted.backbone.trunk.get_output_embeddings().weight


def test_a_spare_row_becomes_the_mask_and_the_others_are_never_written(gpt2: Path, tmp_path: Path) -> None:
    stock = tiny("llama", vocab_size=304)
    stock.save_pretrained(tmp_path)
    load_tokenizer(str(gpt2)).save_pretrained(tmp_path)
    model = model_from(str(tmp_path), Discrete(), load_tokenizer(str(tmp_path))).eval()
    assert (model.vocab.mask_id, model.vocab.tokens, model.vocab.size) == (300, 301, 304)
    assert torch.equal(model.backbone.trunk.get_input_embeddings().weight, stock.get_input_embeddings().weight)
    noisy = torch.tensor([[0, 300, 300, 300]])
    belief = model.predictor(Batch.of(noisy))(noisy, torch.ones(1, dtype=torch.float64)).logits().detach()
    assert belief[..., 300:].eq(-torch.inf).all()
    written = model.generate(ROW, max_new_tokens=20, max_denoising_steps=2, seed=0).sequences
    assert int(written.max()) < 300


@pytest.mark.parametrize("annealing", [RandomEntries(0.2), WholeBatch(), GrowingBlocks(largest=64), None])
def test_what_was_adapted_opens_again_bidirectional_by_transformers_and_by_us(annealing: Any, gpt2: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(gpt2))
    model = model_from(str(gpt2), Discrete(annealing=annealing), tokenizer).eval()
    model.tokenizer = tokenizer
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["model_type"], config["is_causal"]) == ("gpt2", False)
    assert config["textdiff"]["vocab"]["mask_id"] == 300
    assert config["textdiff"]["spec"]["shift"] is True
    ours = load(str(tmp_path))
    assert ours.spec == model.spec
    assert ours.spec.annealing == annealing
    plain, reader = AutoModelForCausalLM.from_pretrained(tmp_path).eval(), AutoTokenizer.from_pretrained(tmp_path)
    assert reader.mask_token_id == 300
    torch.testing.assert_close(plain(ROW).logits.detach(), head_logits(model))
    torch.testing.assert_close(head_logits(ours), head_logits(model))
    changed = torch.cat([ROW[:, :-1], ROW[:, -1:] + 1], dim=1)
    for found in (plain(changed).logits.detach(), head_logits(ours, tokens=changed)):
        assert float((found - head_logits(model))[:, 0].abs().max()) > 1e-3  # the first position sees the last
    batch = Batch.of(ROW, target=torch.arange(5)[None] > 0)
    rng = Rng(0, 0, batch.sample_id)
    torch.testing.assert_close(ours.nll(batch, rng), model.nll(batch, rng))


def test_an_autoregressive_model_of_ours_without_a_mask_token_gets_one(gpt2: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(gpt2))
    source = autoregressive(Vocab.of(tokenizer)).float()
    source.tokenizer = tokenizer
    source.save_pretrained(tmp_path / "source")
    given = load_tokenizer(str(tmp_path / "source"))
    model = model_from(str(tmp_path / "source"), Discrete(annealing=RandomEntries()), given)
    model.tokenizer = given
    assert (given.mask_token_id, model.vocab.mask_id, model.vocab.size, model.spec.shift) == (300, 300, 301, True)
    old, new = source.backbone.embedding.weight, model.backbone.embedding.weight
    assert torch.equal(new[:300], old)
    torch.testing.assert_close(new[300], old.mean(0))
    torch.testing.assert_close(head_logits(model, ahead=False)[..., :300], logits(source, ROW).detach())
    model.save_pretrained(tmp_path / "model")
    assert load(str(tmp_path / "model")).tokenizer.mask_token_id == 300


def test_what_looks_both_ways_already_is_not_annealed(adapted: DiscreteDiffusionLM, tmp_path: Path) -> None:
    adapted.save_pretrained(tmp_path / "adapted")
    for folder in (tmp_path / "adapted", stock_bert(tmp_path / "bert")):
        tokenizer = load_tokenizer(str(folder))
        with pytest.raises(ValueError, match="looks both ways already: set annealing to None, or begin from a causal LM"):
            model_from(str(folder), Discrete(annealing=RandomEntries()), tokenizer)
        model = model_from(str(folder), Discrete(), tokenizer)
        assert model.spec.shift == (folder.name == "adapted")


def test_an_adapted_model_may_be_moved_and_adapted_further(adapted: DiscreteDiffusionLM, tmp_path: Path) -> None:
    adapted.save_pretrained(tmp_path / "first")
    shutil.move(tmp_path / "first", tmp_path / "moved")
    model = model_from(str(tmp_path / "moved"), Discrete(), load_tokenizer(str(tmp_path / "moved")))
    assert model.vocab == adapted.vocab
    assert isinstance(model.spec.backbone, Pretrained)
    torch.testing.assert_close(head_logits(model), head_logits(adapted))


def test_models_that_do_not_begin_from_other_weights_say_so(gpt2: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(gpt2))
    with pytest.raises(ValueError, match="EmbeddingDiffusion models do not begin from other weights: leave --init out"):
        model_from(str(gpt2), EmbeddingDiffusion(), tokenizer)
    EmbeddingDiffusion(backbone=autoregressive().spec.backbone).build(VOCAB).save_pretrained(tmp_path)
    for spec in (Discrete(), AutoregressiveSpec()):
        with pytest.raises(ValueError, match="is a EmbeddingDiffusionLM: begin from a discrete diffusion or an autoregressive model"):
            model_from(str(tmp_path), spec, tokenizer)


def test_a_diffusion_model_of_ours_goes_on_as_one(tmp_path: Path) -> None:
    class Ids:
        def __len__(self) -> int:
            return VOCAB.tokens

    source = diffusion(shift=True)
    source.save_pretrained(tmp_path)
    model = model_from(str(tmp_path), Discrete(), Ids())
    assert model.spec.shift
    torch.testing.assert_close(logits(model.double(), ROW % 6), logits(source, ROW % 6), rtol=1e-5, atol=1e-5)
