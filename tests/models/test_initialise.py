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
from textdiff.backbones.transformer import TransformerConfig
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
    model = model_from(str(gpt2), Discrete(annealing=RandomEntries(), shift=True), tokenizer).eval()
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
    model = model_from(str(gpt2), Discrete(annealing=annealing, shift=True), tokenizer).eval()
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
    model = model_from(str(tmp_path / "source"), Discrete(annealing=RandomEntries(), shift=True), given)
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
        model = model_from(str(folder), Discrete(shift=folder.name == "adapted"), tokenizer)
        assert model.spec.annealing is None


def test_an_adapted_model_may_be_moved_and_adapted_further(adapted: DiscreteDiffusionLM, tmp_path: Path) -> None:
    adapted.save_pretrained(tmp_path / "first")
    shutil.move(tmp_path / "first", tmp_path / "moved")
    model = model_from(str(tmp_path / "moved"), Discrete(shift=True), load_tokenizer(str(tmp_path / "moved"))).eval()
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


class Ids:
    """All that must be known of a tokenizer that has a mask token."""

    def __len__(self) -> int:
        return VOCAB.tokens


def test_a_diffusion_model_of_ours_goes_on_as_one(tmp_path: Path) -> None:
    source = diffusion(shift=True)
    source.save_pretrained(tmp_path)
    model = model_from(str(tmp_path), Discrete(shift=True), Ids())
    assert model.spec.shift
    torch.testing.assert_close(logits(model.double(), ROW % 6), logits(source, ROW % 6), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shift", [True, False])
def test_a_causal_model_is_read_where_the_spec_says(shift: bool, gpt2: Path) -> None:
    """The belief about position l is the trunk's output at l - 1, or at l."""
    model = model_from(str(gpt2), Discrete(shift=shift), load_tokenizer(str(gpt2))).eval()
    belief = model.predictor(Batch.of(ROW))(ROW, torch.ones(1, dtype=torch.float64)).logits().detach()[..., :300]
    expected = head_logits(model)[..., :300]
    at = torch.tensor([0, 0, 1, 2, 3]) if shift else torch.arange(5)  # nothing is before the first
    torch.testing.assert_close(belief, expected[:, at])


@pytest.mark.parametrize(
    ("shift", "instead"), [(True, "output at l - 1, not its own output"), (False, "own output, not its output at l - 1")]
)
def test_a_diffusion_model_goes_on_with_the_shift_it_was_trained_with(shift: bool, instead: str, gpt2: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(gpt2))
    adapted = model_from(str(gpt2), Discrete(shift=shift), tokenizer)
    adapted.tokenizer = tokenizer
    adapted.save_pretrained(tmp_path / "stock")
    diffusion(shift=shift).save_pretrained(tmp_path / "ours")
    for folder, ids in ((tmp_path / "stock", tokenizer), (tmp_path / "ours", Ids())):
        with pytest.raises(ValueError, match=f"was trained to read position l from its {instead}: set shift to {shift}"):
            model_from(str(folder), Discrete(shift=not shift), ids)
        assert model_from(str(folder), Discrete(shift=shift), ids).spec.shift is shift


@pytest.mark.parametrize("kind", [Discrete, AutoregressiveSpec])
@pytest.mark.parametrize("stock", [True, False])
def test_layers_are_computed_again_where_the_spec_says_so(stock: bool, kind: Any, gpt2: Path, tmp_path: Path) -> None:
    """Each layer runs twice in a step of training, and once with the option left out."""
    if not stock:
        autoregressive().float().save_pretrained(tmp_path)
    place = gpt2 if stock else tmp_path
    for saving, expected in ((False, 1), (True, 2)):
        ids = load_tokenizer(str(gpt2)) if stock else Ids()
        model = model_from(str(place), kind(backbone=TransformerConfig(gradient_checkpointing=saving)), ids)
        assert model.spec.backbone.gradient_checkpointing is saving
        runs: list[int] = []
        last = model.backbone.trunk.transformer.h[1].mlp if stock else model.backbone.blocks[1].mlp
        last.register_forward_pre_hook(lambda *call, runs=runs: runs.append(1))
        model(Batch.of(ROW % 6, target=torch.arange(5)[None] > 0), 0, 0).total.backward()
        assert len(runs) == expected


def test_only_what_is_trained_is_probed(gpt2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = load_tokenizer(str(gpt2))
    model = model_from(str(gpt2), Discrete(annealing=RandomEntries()), tokenizer)
    model.tokenizer = tokenizer
    model.save_pretrained(tmp_path)
    asked: list[str] = []
    monkeypatch.setattr(RandomEntries, "check", lambda self, backbone: asked.append("check"))
    opened = load(str(tmp_path))
    opened.generate(ROW, max_new_tokens=2, max_denoising_steps=1, seed=0)
    assert asked == []
    opened.train()
    assert asked == ["check"]


@pytest.mark.parametrize("name", ["gpt_neo", "bloom"])
def test_a_trunk_that_cannot_be_annealed_is_refused_where_training_begins(name: str, gpt2: Path, tmp_path: Path) -> None:
    tiny(name, vocab_size=300, bos_token_id=0, eos_token_id=0).save_pretrained(tmp_path)
    load_tokenizer(str(gpt2)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"stays causal in 2 layers|takes no explicit attention mask, which RandomEntries needs"):
        model_from(str(tmp_path), Discrete(annealing=RandomEntries()), load_tokenizer(str(tmp_path)))
