import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.models.tiny import EOS, autoregressive, diffusion, lone, ragged
from tests.models.tiny_drafters import drafter_of, stock
from textdiff.backbones.features import listening, sources_of, spread
from textdiff.batch import Batch
from textdiff.models.anchors import Anchors, draw_anchors
from textdiff.models.feature_drafter import Anchored, FeatureDrafter, fingerprint
from textdiff.randomness import Rng

TARGET = autoregressive(seed=3)


def packed(seed: int = 0) -> Batch:
    """Two rows of two documents each, kept apart."""
    tokens = torch.randint(0, 6, (2, 12), generator=torch.Generator().manual_seed(seed))
    document = torch.tensor([[1] * 5 + [2] * 7, [1] * 8 + [2] * 4])
    target = torch.arange(12) > 0
    return Batch.of(tokens, target=target.expand(2, 12), document=document)


def test_blocks_begin_at_different_places_and_ask_about_targets_behind_them_in_their_document() -> None:
    for batch in (ragged(), packed()):
        anchors = draw_anchors(batch, 4, 3, Rng(0, 0, batch.sample_id))
        for row in range(len(batch.tokens)):
            used = [i for i in range(4) if bool(anchors.asked[row, i].any())]
            places = anchors.place[row, used].tolist()
            assert len(set(places)) == len(places)
            possible = [
                i
                for i in range(batch.tokens.shape[1] - 1)
                if batch.target[row, i + 1] and batch.attend[row, i] and batch.document[row, i] == batch.document[row, i + 1]
            ]
            assert len(places) == min(4, len(possible))
            assert set(places) <= set(possible)
            for number, place in zip(used, places, strict=True):
                expected = [
                    place + k < batch.tokens.shape[1]
                    and bool(batch.target[row, place + k])
                    and bool(batch.document[row, place + k] == batch.document[row, place])
                    for k in (1, 2, 3)
                ]
                assert anchors.asked[row, number].tolist() == expected


def test_every_place_is_drawn_equally_often() -> None:
    n = 20_000
    batch = Batch.of(torch.zeros(n, 9, dtype=torch.long), target=(torch.arange(9) > 2).expand(n, 9))
    count = torch.bincount(draw_anchors(batch, 2, 3, Rng(0, 0, batch.sample_id)).place.flatten(), minlength=9)
    assert count[[0, 1, 8]].tolist() == [0, 0, 0]
    expected = 2 * n / 6
    assert float(((count[2:8] - expected) ** 2 / expected).sum()) < 20.5  # 5 degrees of freedom, once in a thousand


def beliefs(drafter: FeatureDrafter, batch: Batch, place: int) -> Tensor:
    """What is said of the tokens after `place` of each row, (B, K, H)."""
    rows = len(batch.tokens)
    anchors = Anchors(torch.full((rows, 1), place), torch.ones(rows, 1, drafter.most, dtype=torch.bool))
    with torch.no_grad(), drafter.listening() as heard:
        drafter.target.backbone(batch.tokens, drafter.target.backbone.context(batch))
    assert heard.features is not None
    with torch.no_grad():
        return drafter._drafted(batch, anchors, heard.features)[:, 0, 1:]


@pytest.mark.parametrize("target", [TARGET, stock("llama"), stock("gpt2")], ids=["own", "llama", "gpt2"])
def test_a_block_sees_its_first_token_and_all_before_it_and_nothing_behind(target: Any) -> None:
    drafter = drafter_of(target, seed=2)
    tokens = torch.randint(3, 6, (1, 10), generator=torch.Generator().manual_seed(1))
    before = beliefs(drafter, Batch.of(tokens), 5)
    for place in range(10):
        changed = tokens.clone()
        changed[0, place] = 1
        after = beliefs(drafter, Batch.of(changed), 5)
        assert torch.equal(before, after) == (place > 5), place


def test_a_block_sees_its_own_document_only() -> None:
    drafter, batch = drafter_of(TARGET, seed=2), packed()
    before = beliefs(drafter, batch, 8)
    changed = batch._replace(tokens=batch.tokens.clone())
    changed.tokens[:, :5] = (changed.tokens[:, :5] + 1) % 6  # all of the first row's first document, a part of the second row's
    after = beliefs(drafter, changed, 8)
    assert torch.equal(before[0], after[0])
    assert torch.equal(before[1], after[1])  # its second document begins at 8
    changed.tokens[:, 7] = (changed.tokens[:, 7] + 1) % 6
    assert not torch.equal(before[0], beliefs(drafter, changed, 8)[0])


@pytest.mark.parametrize("teacher", [0, 3, 32])
def test_the_loss_is_the_weighted_cross_entropy_of_each_row_written_out(teacher: int) -> None:
    objective = Anchored(anchors=3, decay=2.0, teacher=teacher)
    drafter, batch = drafter_of(TARGET, objective=objective), ragged()
    loss = drafter(batch, seed=1, step=2)
    anchors = draw_anchors(batch, 3, drafter.most, Rng(1, 2, batch.sample_id))
    head, total, accepted = drafter.head, 0.0, 0.0
    for row in range(4):
        one = lone(batch, row)
        with torch.no_grad():
            hidden = TARGET.backbone(one.tokens, TARGET.backbone.context(one))[0]
        nats = weights = passed = 0.0
        blocks = [i for i in range(3) if bool(anchors.asked[row, i].any())]
        for i in blocks:
            place, run = int(anchors.place[row, i]), 1.0
            log_q = head(beliefs(drafter, one, place)[0]).log_softmax(-1)
            for k in range(drafter.most):
                if not anchors.asked[row, i, k]:
                    run = 0.0
                    continue
                p = head(hidden[place + k][None])[0].softmax(-1)
                if teacher:
                    best, index = p.topk(min(teacher, 7))
                    p = torch.zeros_like(p).scatter(0, index, best / best.sum())
                else:
                    p = torch.nn.functional.one_hot(one.tokens[0, place + k + 1], len(p)).to(p.dtype)
                some, weight = p > 0, 2.718281828459045 ** (-k / 2.0)
                nats, weights = nats - weight * float((p[some] * log_q[k][some]).sum()), weights + weight
                run *= float(torch.minimum(p, log_q[k].exp()).sum())
                passed += run
        targets = int(batch.target[row].sum())
        total, accepted = total + nats / weights * targets, accepted + passed / len(blocks) * targets
    assert float(loss.total.detach()) == pytest.approx(total, rel=1e-6)
    assert float(loss.metrics["accepted"]) == pytest.approx(accepted, rel=1e-6)
    assert int(loss.tokens) == int(batch.target.sum())


def test_the_loss_of_a_batch_is_the_sum_over_its_rows() -> None:
    drafter, batch = drafter_of(TARGET), ragged()
    together = drafter(batch, seed=0, step=5)
    apart = [drafter(lone(batch, row), seed=0, step=5) for row in range(4)]
    torch.testing.assert_close(together.total, sum(loss.total for loss in apart))
    torch.testing.assert_close(together.metrics["accepted"], sum(loss.metrics["accepted"] for loss in apart))


def test_the_target_is_not_trained_and_everything_else_is() -> None:
    drafter = drafter_of(TARGET)
    drafter(ragged(), 0, 0).total.backward()
    assert all(parameter.grad is None for parameter in TARGET.parameters())
    assert all(parameter.grad is not None and bool(parameter.grad.any()) for parameter in drafter.parameters())
    theirs = {id(parameter) for parameter in TARGET.parameters()}
    assert not theirs & {id(parameter) for parameter in drafter.parameters()}


def test_a_checkpoint_holds_the_drafter_alone_and_belongs_to_its_target(tmp_path: Path) -> None:
    drafter, batch = drafter_of(TARGET), ragged()
    drafter.save_pretrained(tmp_path)
    assert load_file(tmp_path / "model.safetensors").keys() == dict(drafter.named_parameters()).keys()
    followed = json.loads((tmp_path / "config.json").read_text())["spec"]["target"]
    assert (followed["name"], followed["fingerprint"]) == ("target", fingerprint(TARGET))
    again = FeatureDrafter.from_pretrained(tmp_path).double()
    with pytest.raises(ValueError, match=r"the drafter is not attached to its target: drafter\.attach\(textdiff\.load\('target'\)\)"):
        again(batch, 0, 0)
    assert torch.equal(again.attach(TARGET)(batch, 0, 0).total, drafter(batch, 0, 0).total)
    with pytest.raises(ValueError, match=r"trained for target with the weights \w{16} and was given a model with \w{16}: name that model"):
        again.attach(autoregressive(seed=4))
    with pytest.raises(ValueError, match="belongs to the causal model target and was given a DiscreteDiffusionLM"):
        again.attach(diffusion())
    with pytest.raises(ValueError, match="a drafter has no likelihood of its own: score its target, target"):
        again.nll(batch, Rng(0, 0, batch.sample_id))


def test_the_fingerprint_is_that_of_the_weights_in_any_number_format() -> None:
    one, other = autoregressive(seed=3), autoregressive(seed=3)
    assert fingerprint(one.float()) == fingerprint(other.double()) == fingerprint(other.bfloat16())
    with torch.no_grad():
        next(one.parameters()).mul_(1.1)
    assert fingerprint(one) != fingerprint(other)


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma3_text", "opt", "gpt_neox", "olmo2", "phi", "falcon"])
def test_features_are_the_hidden_states_that_transformers_puts_out(name: str) -> None:
    model, tokens = stock(name), torch.tensor([[1, 9, 4, 33, 7]])
    with torch.no_grad(), listening(sources_of(model.backbone, (0, 1))) as heard:
        model.backbone(tokens, model.backbone.context(Batch.of(tokens)))
        states = model.backbone.trunk(tokens, output_hidden_states=True).hidden_states
    torch.testing.assert_close(heard.features, torch.cat(states[1:], dim=-1))
    with torch.no_grad(), listening(sources_of(model.backbone, (0,))) as heard:
        pass
    assert heard.features is None


def test_the_layers_that_are_read_go_evenly_to_the_last() -> None:
    assert [spread(count, 12) for count in (1, 2, 3, 5)] == [(11,), (1, 11), (1, 6, 11), (1, 4, 6, 9, 11)]
    assert spread(3, 2) == (0, 1)
    assert spread(3, 4) == (1, 2, 3)


def test_numbers_that_make_no_drafter_are_refused() -> None:
    with pytest.raises(ValueError, match="expected 1 anchor or more, a decay above 0"):
        Anchored(decay=0)
    with pytest.raises(ValueError, match="a block of 2 tokens or more"):
        drafter_of(TARGET, block=1)
    assert EOS not in TARGET.vocab.unemittable
