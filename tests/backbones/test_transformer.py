from dataclasses import replace

import pytest
import torch
from torch import Tensor

from textdiff.backbones import attention_masks
from textdiff.backbones.base import FinishedCache, KeyValueCache
from textdiff.backbones.transformer import Transformer, TransformerConfig
from textdiff.batch import Batch
from textdiff.vocab import Vocab

LENGTH = 7
TINY = TransformerConfig(width=32, layers=2, heads=4, max_length=24)


def built(config: TransformerConfig = TINY, causal: bool = False, std: float | None = 0.2) -> Transformer:
    """A float64 trunk; weights are drawn anew with `std` so that every token matters, or left at their initial values for None."""
    torch.manual_seed(0)
    backbone = config.build(Vocab(size=64, tokens=64), causal)
    backbone.apply(backbone.init_weights)
    for parameter in backbone.parameters():
        if std is not None and parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=std)
    return backbone.double().eval()


def rows(count: int, length: int = LENGTH, seed: int = 0) -> Tensor:
    return torch.randint(0, 64, (count, length), generator=torch.Generator().manual_seed(seed))


def hidden(backbone: Transformer, batch: Batch, noise: Tensor | None = None) -> Tensor:
    with torch.no_grad():
        return backbone(batch.tokens, backbone.context(batch), noise)


def differs(backbone: Transformer, tokens: Tensor) -> Tensor:
    """(L, L) bool: row i's hidden state moves when token j of the one row is replaced."""
    length = tokens.shape[1]
    changed = tokens.repeat(length, 1)
    changed[torch.arange(length), torch.arange(length)] = (tokens[0] + 30) % 64
    before = hidden(backbone, Batch.of(tokens.repeat(length, 1)))
    return (hidden(backbone, Batch.of(changed)) != before).any(-1).T


@pytest.mark.parametrize("config", [TINY, replace(TINY, layer_norm=True), replace(TINY, tied=False, mlp_ratio=2.0)])
@pytest.mark.parametrize("causal", [True, False])
def test_a_position_sees_the_past_or_everything(config: TransformerConfig, causal: bool) -> None:
    everything = torch.ones(LENGTH, LENGTH).bool()
    assert torch.equal(differs(built(config, causal), rows(1)), everything.tril() if causal else everything)


@pytest.mark.parametrize("causal", [True, False])
def test_packed_documents_come_out_as_they_do_alone(causal: bool) -> None:
    backbone = built(causal=causal)
    parts = [rows(1, n, seed=n) for n in (5, 1, 4)]
    tokens = torch.cat([*parts, torch.zeros(1, 2, dtype=torch.long)], dim=1)
    document = torch.tensor([[1] * 5 + [2] + [3] * 4 + [0] * 2])
    packed = hidden(backbone, Batch.of(tokens, attend=document > 0, document=document))
    for number, part in enumerate(parts, start=1):
        torch.testing.assert_close(packed[document == number], hidden(backbone, Batch.of(part))[0], atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("causal", [True, False])
def test_right_padding_changes_no_real_row(causal: bool) -> None:
    backbone, tokens = built(causal=causal), rows(1)
    padded = torch.cat([torch.cat([tokens, rows(1, 3, seed=5)], dim=1), rows(1, LENGTH + 3, seed=1)])
    attend = torch.ones(2, LENGTH + 3, dtype=torch.bool)
    attend[0, LENGTH:] = False
    together = hidden(backbone, Batch.of(padded, attend=attend))
    torch.testing.assert_close(together[:1, :LENGTH], hidden(backbone, Batch.of(tokens)), atol=1e-12, rtol=1e-12)
    assert together.isfinite().all()


@pytest.mark.parametrize("config", [TINY, replace(TINY, encoder_layers=1)])
@pytest.mark.parametrize("pieces", [[1] * 7, [4, 1, 2], [3, 4], [7]])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_reading_with_a_cache_equals_reading_at_once(
    config: TransformerConfig, pieces: list[int], dtype: torch.dtype, tolerance: float
) -> None:
    backbone, tokens = built(config, causal=True).to(dtype), rows(3)
    source = rows(3, 4, seed=9) if config.encoder_layers else None
    batch, cache = Batch.of(tokens, source=source), KeyValueCache(LENGTH)
    context = backbone.context(batch)
    with torch.no_grad():
        parts = [backbone(piece, context, cache=cache) for piece in tokens.split(pieces, dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), hidden(backbone, batch), atol=tolerance, rtol=tolerance)
    assert cache.length == LENGTH


@pytest.mark.parametrize("config", [TINY, replace(TINY, time_conditioning=True, encoder_layers=1, gradient_checkpointing=True)])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_blocks_read_after_finished_ones_come_out_as_in_whole_rows(
    config: TransformerConfig, training: bool, dtype: torch.dtype, tolerance: float
) -> None:
    """Packed and padded rows, two blocks of 3 and one token; each cache is read from twice, a draft and then the real tokens."""
    backbone, tokens = built(config).to(dtype).train(training), rows(2)
    document = torch.tensor([[1, 1, 2, 2, 2, 2, 2], [1, 1, 1, 1, 1, 0, 0]])
    source = rows(2, 4, seed=9) if config.encoder_layers else None
    batch = Batch.of(tokens, attend=document > 0, document=document, source=source)
    context, noise = backbone.context(batch), torch.tensor([0.3, 0.8])
    parts, layers = [], []
    with torch.no_grad():
        everything = torch.arange(LENGTH)
        whole = backbone(tokens, context.at(everything, attention_masks.blockwise(batch.attend, document, 3)), noise)
        for start in (0, 3, 6):
            stop = min(start + 3, LENGTH)
            mask = attention_masks.blockwise(batch.attend[:, :stop], document[:, :stop], 3, start)
            here = context.at(everything[start:stop], mask)
            backbone(rows(2, stop - start, seed=4), here, noise, FinishedCache(layers))
            cache = FinishedCache(layers)
            assert cache.length == start
            parts.append(backbone(tokens[:, start:stop], here, noise, cache))
            assert cache.length == stop
            layers = cache.layers
    torch.testing.assert_close(torch.cat(parts, dim=1)[batch.attend], whole[batch.attend], atol=tolerance, rtol=tolerance)


def test_a_context_is_read_at_any_columns() -> None:
    """A row read twice side by side, each half seeing itself alone, is the row twice."""
    backbone, batch = built(), Batch.of(rows(2))
    half = torch.arange(2 * LENGTH) // LENGTH
    context = backbone.context(batch).at(torch.arange(LENGTH).repeat(2), (half[:, None] == half).expand(2, 1, -1, -1))
    with torch.no_grad():
        both = backbone(batch.tokens.repeat(1, 2), context)
    torch.testing.assert_close(both, hidden(backbone, batch).repeat(1, 2, 1))


def test_time_is_ignored_at_initialisation_and_heard_after() -> None:
    backbone, batch = built(replace(TINY, time_conditioning=True), std=None), Batch.of(rows(2))
    early, late = torch.tensor([0.1, 0.1]), torch.tensor([0.9, 0.9])
    assert torch.equal(hidden(backbone, batch, early), hidden(backbone, batch, late))
    for block in backbone.blocks:
        assert not block.modulation.weight.any()  # every gate is 0: a block passes its input on unchanged (adaLN-zero)
        torch.nn.init.normal_(block.modulation.weight, std=0.2)
    moved = hidden(backbone, batch, early) != hidden(backbone, batch, late)
    assert moved.any(-1).all()
    mixed = hidden(backbone, batch, torch.tensor([0.1, 0.9]))  # each row hears its own time
    torch.testing.assert_close(mixed, torch.stack([hidden(backbone, batch, early)[0], hidden(backbone, batch, late)[1]]))
    with pytest.raises(ValueError, match="conditioned on time: pass the noise level"):
        hidden(backbone, batch)


def test_fresh_modulations_change_nothing_and_a_closed_gate_leaves_the_identity() -> None:
    timed, plain = (built(replace(TINY, time_conditioning=on), std=None) for on in (True, False))
    plain.load_state_dict(timed.state_dict(), strict=False)
    batch, noise = Batch.of(rows(2)), torch.tensor([0.3, 0.7])
    torch.testing.assert_close(hidden(timed, batch, noise), hidden(plain, batch))
    width = TINY.width
    for block in timed.blocks:
        assert block.modulation is not None
        for gate in (2, 5):
            block.modulation.bias.data[gate * width : (gate + 1) * width] = -1
    with torch.no_grad():
        expected = timed.final_norm(timed.embedding(batch.tokens))
    torch.testing.assert_close(hidden(timed, batch, noise), expected)


@pytest.mark.parametrize("causal", [True, False])
def test_cross_attention_reads_the_attended_source_and_nothing_else(causal: bool) -> None:
    backbone, tokens, source = built(replace(TINY, encoder_layers=2), causal), rows(2), rows(2, 5, seed=3)
    attend = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]).bool()
    base = hidden(backbone, Batch.of(tokens, source=source, source_attend=attend))
    for row, place in ((0, 0), (0, 2), (0, 3), (0, 4), (1, 4)):
        changed = source.clone()
        changed[row, place] = (changed[row, place] + 30) % 64
        moved = (hidden(backbone, Batch.of(tokens, source=changed, source_attend=attend)) != base).any(-1)
        assert moved[row].all() == attend[row, place]
        assert not moved[1 - row].any()
    alone = hidden(backbone, Batch.of(tokens[:1], source=source[:1, :3]))
    torch.testing.assert_close(base[:1], alone, atol=1e-12, rtol=1e-12)
    with pytest.raises(ValueError, match="has an encoder but the batch has no source"):
        backbone.context(Batch.of(tokens))


def test_a_context_keeps_a_subset_of_rows() -> None:
    backbone, index = built(replace(TINY, encoder_layers=1)), torch.tensor([2, 0])
    attend = torch.ones(3, LENGTH).bool()
    attend[1, 4:] = False
    batch = Batch.of(rows(3), attend=attend, source=rows(3, 4, seed=1), source_attend=torch.rand(3, 4) < 0.9)
    with torch.no_grad():
        some = backbone(batch.tokens[index], backbone.context(batch).rows(index))
    torch.testing.assert_close(some, hidden(backbone, batch)[index])


def test_the_head_is_the_embedding_only_when_tied() -> None:
    tied, untied = built(), built(replace(TINY, tied=False))
    state, rest = hidden(tied, Batch.of(rows(1)))[0], hidden(untied, Batch.of(rows(1)))[0]
    torch.testing.assert_close(tied.head()(state), state @ tied.embedding.weight.T)
    torch.testing.assert_close(untied.head()(rest), rest @ untied.output.weight.T)
    assert tied.output is None
    banned = tied.head((3, 5))(state)
    assert banned[:, [3, 5]].eq(-torch.inf).all()
    assert banned.isfinite().sum() == 62 * LENGTH


@pytest.mark.parametrize("options", [{}, {"time_conditioning": True}, {"encoder_layers": 1}])
def test_gradient_checkpointing_gives_equal_gradients(options: dict[str, object]) -> None:
    gradients, noise = [], torch.tensor([0.2, 0.8])
    for checkpointed in (False, True):
        backbone = built(replace(TINY, gradient_checkpointing=checkpointed, **options)).train()
        calls = []
        backbone.blocks[0].attention_norm.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        batch = Batch.of(rows(2), source=rows(2, 4, seed=1) if "encoder_layers" in options else None)
        backbone(batch.tokens, backbone.context(batch), noise).square().sin().sum().backward()
        assert len(calls) == 1 + checkpointed
        gradients.append({name: p.grad for name, p in backbone.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() == {name for name, _ in backbone.named_parameters()}
    for name in gradients[0]:
        torch.testing.assert_close(gradients[0][name], gradients[1][name])


def test_a_source_without_an_encoder_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing to read it"):
        built().context(Batch.of(rows(2), source=rows(2, 4, seed=1)))


def test_layer_norm_centres_its_output() -> None:
    state = hidden(built(replace(TINY, layer_norm=True), std=None), Batch.of(rows(2)))
    torch.testing.assert_close(state.mean(-1), torch.zeros(2, LENGTH).double(), atol=1e-12, rtol=0)
    state = hidden(built(std=None), Batch.of(rows(2)))
    torch.testing.assert_close(state.square().mean(-1), torch.ones(2, LENGTH).double(), atol=0.01, rtol=0)
    assert state.mean(-1).abs().min() > 1e-6


def test_initial_scales_are_those_of_gpt2() -> None:
    backbone = built(replace(TINY, width=128, layers=8), std=None)
    block = backbone.blocks[3]
    scales = {backbone.embedding: 0.02, block.mlp[0]: 0.02, block.mlp[2]: 0.005, block.attention.out: 0.005}
    for module, std in scales.items():
        assert float(module.weight.detach().std()) == pytest.approx(std, rel=0.05)


def test_positions_are_relative() -> None:
    """Rotary positions: without a mask the hidden states of a row do not depend on where the row starts."""
    backbone, tokens = built(), rows(1)
    context = backbone.context(Batch.of(tokens))
    shifted = context._replace(rotation=backbone._rotation(torch.arange(5, 5 + LENGTH)[None]))
    with torch.no_grad():
        torch.testing.assert_close(backbone(tokens, shifted), backbone(tokens, context), atol=1e-5, rtol=1e-5)
    reversed_rows = hidden(backbone, Batch.of(tokens.flip(1))).flip(1)
    assert (reversed_rows - hidden(backbone, Batch.of(tokens))).abs().max() > 0.01  # but they do depend on the order


def test_places_count_targets_and_others_apart_in_each_document() -> None:
    """A packed document comes out as it does alone, and blank targets after prompts of any length stand at the same places."""
    backbone = built(replace(TINY, place_embedding=True))
    target = torch.tensor([[False, True, True, False, True, False, True, True]])
    document = torch.tensor([[1, 1, 1, 1, 2, 2, 2, 2]])
    context = backbone.context(Batch.of(rows(1, 8), target=target, document=document))
    far = backbone.max_length
    assert context.place is not None
    assert context.place.tolist() == [[far, 0, 1, far + 1, 0, far, 1, 2]]


def test_a_source_that_does_not_fit_is_refused() -> None:
    backbone = built(replace(TINY, encoder_layers=1, place_embedding=True))
    with pytest.raises(ValueError, match="a source of 25 tokens exceeds the model's max_length of 24"):
        backbone.context(Batch.of(rows(1, 4), source=rows(1, 25)))


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="25 tokens exceed the model's max_length of 24"):
        built().context(Batch.of(rows(1, 25)))
    with pytest.raises(ValueError, match="width 30 must be an even multiple of heads 4"):
        replace(TINY, width=30)
