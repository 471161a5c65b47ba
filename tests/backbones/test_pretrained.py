import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from tests.backbones.stock_models import CAUSAL, MASKED, tiny
from textdiff.backbones import pretrained
from textdiff.backbones.base import KeyValueCache
from textdiff.backbones.pretrained import Pretrained, PretrainedBackbone
from textdiff.batch import Batch
from textdiff.vocab import Vocab

EVERY_WAY = [(name, causal) for name in CAUSAL for causal in (True, False)] + [(name, False) for name in MASKED]
LENGTH = 7  # longer than the windows of 4, within reach of two layers of them


def rows(count: int, length: int = LENGTH, seed: int = 0) -> Tensor:
    return torch.randint(3, 64, (count, length), generator=torch.Generator().manual_seed(seed))


def hidden(backbone: PretrainedBackbone, batch: Batch) -> Tensor:
    with torch.no_grad():
        return backbone(batch.tokens, backbone.context(batch))


def differs(backbone: PretrainedBackbone, tokens: Tensor) -> Tensor:
    """(L, L) bool: row i's hidden state moves when token j of the one row is replaced."""
    length = tokens.shape[1]
    changed = tokens.repeat(length, 1)
    changed[torch.arange(length), torch.arange(length)] = (tokens[0] - 3 + 30) % 61 + 3
    before = hidden(backbone, Batch.of(tokens.repeat(length, 1)))
    return (hidden(backbone, Batch.of(changed)) != before).any(-1).T


@pytest.mark.parametrize(("name", "causal"), EVERY_WAY)
def test_the_head_at_asked_positions_gives_the_stock_logits(name: str, causal: bool) -> None:
    backbone, tokens = PretrainedBackbone(tiny(name), causal), rows(3)
    where = torch.rand(tokens.shape) < 0.4
    with torch.no_grad():
        expected = backbone.trunk(tokens).logits
    torch.testing.assert_close(backbone.head()(hidden(backbone, Batch.of(tokens))[where]), expected[where])


@pytest.mark.parametrize("name", CAUSAL)
def test_a_causal_trunk_sees_exactly_the_past(name: str) -> None:
    sees = differs(PretrainedBackbone(tiny(name), causal=True), rows(1))
    assert torch.equal(sees, torch.ones(LENGTH, LENGTH).tril().bool())


@pytest.mark.parametrize("name", [*CAUSAL, *MASKED])
def test_a_bidirectional_trunk_sees_everything(name: str) -> None:
    assert differs(PretrainedBackbone(tiny(name), causal=False), rows(1)).all()


@pytest.mark.parametrize(("name", "causal"), EVERY_WAY)
def test_right_padding_changes_no_real_row(name: str, causal: bool) -> None:
    backbone, tokens = PretrainedBackbone(tiny(name), causal), rows(1)
    alone = hidden(backbone, Batch.of(tokens))
    padded = torch.cat([torch.cat([tokens, torch.zeros(1, 3, dtype=torch.long)], dim=1), rows(1, LENGTH + 3, seed=1)])
    attend = torch.ones(2, LENGTH + 3, dtype=torch.bool)
    attend[0, LENGTH:] = False
    together = hidden(backbone, Batch.of(padded, attend=attend))
    torch.testing.assert_close(together[:1, :LENGTH], alone, atol=2e-5, rtol=1e-4)
    assert together.isfinite().all()


@pytest.mark.parametrize("attention", [None, "eager"])
@pytest.mark.parametrize(("name", "causal"), EVERY_WAY)
def test_packed_documents_come_out_as_they_do_alone(name: str, causal: bool, attention: str | None) -> None:
    backbone = PretrainedBackbone(tiny(name, attn_implementation=attention), causal)
    parts = [rows(1, n, seed=n) for n in (LENGTH, 2, 5)]
    tokens = torch.cat([*parts, torch.zeros(1, 2, dtype=torch.long)], dim=1)
    document = torch.tensor([[1] * LENGTH + [2] * 2 + [3] * 5 + [0] * 2])
    packed = hidden(backbone, Batch.of(tokens, attend=document > 0, document=document))
    for number, part in enumerate(parts, start=1):
        torch.testing.assert_close(packed[document == number], hidden(backbone, Batch.of(part))[0], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", [*CAUSAL, *MASKED])
def test_a_saved_bidirectional_trunk_is_one_when_loaded(name: str, tmp_path: object) -> None:
    backbone, tokens = PretrainedBackbone(tiny(name), causal=False), rows(2)
    backbone.trunk.save_pretrained(tmp_path)
    loaded = Pretrained(str(tmp_path)).load()
    with torch.no_grad():
        torch.testing.assert_close(loaded(tokens).logits, backbone.trunk(tokens).logits)
    if name in CAUSAL:
        assert loaded.config.is_causal is False
        back = differs(PretrainedBackbone(loaded, causal=True), rows(1))
        assert torch.equal(back, torch.ones(LENGTH, LENGTH).tril().bool())


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma3_text", "gpt2"])
def test_annealing_starts_causal_and_ends_bidirectional(name: str) -> None:
    causal, both, tokens = PretrainedBackbone(tiny(name), True), PretrainedBackbone(tiny(name), False), rows(2)
    batch = Batch.of(tokens)
    for share, reference in ((0.0, causal), (1.0, both)):
        ahead = torch.full((LENGTH, LENGTH), share).bool()
        with torch.no_grad():
            annealed = both(tokens, both.context(batch, ahead=ahead))
        torch.testing.assert_close(annealed, hidden(reference, batch), atol=2e-5, rtol=1e-4)


def test_the_stock_forward_projects_no_position_and_is_left_as_it_was() -> None:
    backbone, tokens = PretrainedBackbone(tiny("llama"), causal=True), rows(2)
    shapes = []
    output = backbone.trunk.get_output_embeddings()
    handle = output.register_forward_hook(lambda module, args, result: shapes.append(result.shape))
    hidden(backbone, Batch.of(tokens))
    assert shapes == [(2, 0, 64)]
    with pytest.raises(IndexError):
        backbone(tokens + 64, backbone.context(Batch.of(tokens)))
    handle.remove()
    assert backbone.trunk(tokens).logits.shape == (2, LENGTH, 64)
    assert not output._forward_pre_hooks


def test_stock_generate_continues_with_the_argmax_of_the_head() -> None:
    backbone, tokens = PretrainedBackbone(tiny("qwen3"), causal=True), rows(1)
    out = backbone.trunk.generate(tokens, max_new_tokens=4, do_sample=False, eos_token_id=None, pad_token_id=0)
    greedy = backbone.head()(hidden(backbone, Batch.of(out))[0, LENGTH - 1 : -1]).argmax(-1)
    assert torch.equal(out[0, LENGTH:], greedy)


def test_a_context_keeps_a_subset_of_rows() -> None:
    backbone, tokens = PretrainedBackbone(tiny("gemma3_text"), causal=False), rows(3)
    document = torch.tensor([[1, 1, 1, 2, 2, 2, 2], [1, 2, 2, 2, 2, 3, 3], [1] * LENGTH])
    batch, index = Batch.of(tokens, document=document), torch.tensor([2, 0])
    with torch.no_grad():
        some = backbone(tokens[index], backbone.context(batch).rows(index))
    torch.testing.assert_close(some, hidden(backbone, batch)[index])


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert"])
def test_resize_adds_mean_rows_and_keeps_ties_and_the_old_logits(name: str) -> None:
    backbone, tokens = PretrainedBackbone(tiny(name), causal=False), rows(2)
    before, tied = backbone.trunk(tokens).logits, backbone.trunk.config.tie_word_embeddings
    backbone.resize(66)
    weight, output = backbone.trunk.get_input_embeddings().weight, backbone.trunk.get_output_embeddings()
    torch.testing.assert_close(backbone.trunk(tokens).logits[..., :64], before)
    assert (weight is output.weight) == tied
    for table in (weight, output.weight):
        torch.testing.assert_close(table[64:], table[:64].mean(0).expand(2, -1))
    assert backbone.rows == backbone.trunk.config.vocab_size == 66
    with pytest.raises(ValueError, match=rf"64 rows, {type(backbone.trunk).__name__} 66: build it with Vocab.of"):
        backbone.resize(64)


def test_build_gives_every_id_a_row_and_uses_spare_ones(tmp_path: object) -> None:
    tiny("gpt2").save_pretrained(tmp_path)
    spare = Pretrained(str(tmp_path)).build(Vocab(size=64, tokens=60, mask_id=59), causal=False)
    assert torch.equal(spare.trunk.get_input_embeddings().weight, tiny("gpt2").get_input_embeddings().weight)
    grown = Pretrained(str(tmp_path)).build(Vocab(size=65, tokens=65, mask_id=64), causal=False)
    assert grown.rows == 65
    assert grown.head((64,))(hidden(grown, Batch.of(rows(1)))[0])[:, 64].eq(-torch.inf).all()


@pytest.mark.parametrize("name", ["gpt2", "qwen3_moe", "gemma3_text", "granite", "bert"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_pass_every_probe(name: str, dtype: torch.dtype) -> None:
    backbone = PretrainedBackbone(tiny(name).to(dtype), causal=False)
    tokens = rows(1)
    with torch.no_grad():
        ours, stock = backbone.head()(hidden(backbone, Batch.of(tokens))), backbone.trunk(tokens).logits.float()
    torch.testing.assert_close(ours, stock, rtol=0.02, atol=0.02 * float(stock.abs().max()))
    assert torch.isfinite(ours).all()


def test_gradient_checkpointing_gives_equal_gradients() -> None:
    gradients = []
    for checkpointed in (False, True):
        trunk = tiny("llama").train()
        backbone = Pretrained("unused", gradient_checkpointing=checkpointed).wrap(trunk, Vocab(size=64, tokens=64), causal=False)
        batch = Batch.of(rows(2))
        calls = 0

        def count(module: nn.Module, args: object, output: object) -> None:
            nonlocal calls
            calls += 1

        trunk.get_submodule("model.layers.0.input_layernorm").register_forward_hook(count)
        backbone(batch.tokens, backbone.context(batch)).square().sum().backward()
        assert calls == 1 + checkpointed
        gradients.append([p.grad for p in trunk.parameters() if p.grad is not None])
    assert gradients[0]
    for one, two in zip(*gradients, strict=True):
        torch.testing.assert_close(one, two)


@pytest.mark.parametrize(
    ("name", "causal", "message"),
    [
        ("gpt_neo", False, r"GPTNeoForCausalLM stays causal in 2 layers, the first transformer.h.0 \(GPTNeoBlock\)"),
        ("lfm2", False, r"Lfm2ForCausalLM stays causal in 1 layers, the first model.layers.1"),
        ("llama4_text", False, "Llama4ForCausalLM stays causal in 2 layers"),  # chunked: only where padding makes it write its mask out
        ("gemma2", True, r"Gemma2ForCausalLM bends its logits \(a soft cap\)"),
        ("bert", True, "BertForMaskedLM is a masked LM, bidirectional by construction"),
    ],
)
def test_what_cannot_serve_is_refused(name: str, causal: bool, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PretrainedBackbone(tiny(name), causal)


def test_a_soft_cap_is_found_behind_small_logits() -> None:
    trunk = tiny("gemma2")
    with torch.no_grad():
        trunk.get_output_embeddings().weight.mul_(1e-3)
    with pytest.raises(ValueError, match="soft cap"):
        PretrainedBackbone(trunk, causal=True)


def test_an_unknown_logit_scale_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrained, "_logit_scale", lambda trunk: 1.0)
    with pytest.raises(ValueError, match=r"GraniteForCausalLM multiplies its logits by 0.125"):
        PretrainedBackbone(tiny("granite"), causal=True)


def test_a_causal_model_that_leaks_is_refused() -> None:
    trunk = tiny("llama")
    for layer in trunk.model.layers:
        layer.self_attn.register_forward_pre_hook(_look_everywhere, with_kwargs=True)
    with pytest.raises(ValueError, match="lets a position see later tokens"):
        PretrainedBackbone(trunk, causal=True)


def _look_everywhere(module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> tuple[object, object]:
    return args, {**kwargs, "is_causal": False}


@pytest.mark.parametrize("causal", [True, False])
def test_bloom_works_unpacked_and_refuses_packing(causal: bool) -> None:
    backbone = PretrainedBackbone(tiny("bloom"), causal)
    assert bool(differs(backbone, rows(1))[0, -1]) == (not causal)
    with pytest.raises(ValueError, match="BloomForCausalLM cannot keep packed documents apart"):
        backbone.context(Batch.of(rows(1), document=torch.ones(1, LENGTH, dtype=torch.long)))


def test_batches_that_do_not_fit_are_refused() -> None:
    backbone = PretrainedBackbone(tiny("roberta"), causal=False)
    assert backbone.max_length == 62  # RoBERTa's positions start behind its padding id
    hidden(backbone, Batch.of(rows(1, 62)))
    with pytest.raises(ValueError, match="63 tokens exceed the model's max_length of 62"):
        backbone.context(Batch.of(rows(1, 63)))
    with pytest.raises(ValueError, match="has no encoder: put the batch's source before"):
        backbone.context(Batch.of(rows(1), source=rows(1)))
    with pytest.raises(ValueError, match=r"keeps its own key-value cache: ask for it with `cache\(length\)`"):
        backbone(rows(1), backbone.context(Batch.of(rows(1))), cache=KeyValueCache(8))
    with pytest.raises(ValueError, match="dtype 'int8' is not one of"):
        Pretrained("gpt2", dtype="int8")


def test_transformers_alone_reads_what_was_saved(tmp_path: object) -> None:
    trunk: PreTrainedModel = PretrainedBackbone(tiny("llama"), causal=False).trunk
    trunk.save_pretrained(tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(plain(rows(1)).logits, trunk(rows(1)).logits)
