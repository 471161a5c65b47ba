from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.data.texts import byte_level
from tests.models.tiny import trunk
from textdiff import families
from textdiff.batch import Batch, Example, collate
from textdiff.data.collate import Pairs
from textdiff.data.readers import Pair
from textdiff.data.tokenizer import encode
from textdiff.decoding import Decode, draw, text_of
from textdiff.families import Family
from textdiff.guidance.filters import Filters
from textdiff.models.base import LanguageModel
from textdiff.processes.base import Denoiser
from textdiff.randomness import Rng
from textdiff.samplers.base import Canvas, Sampler
from textdiff.samplers.confidence import Greedy
from textdiff.vocab import Vocab

FILL = 6
PROMPTS = ["the cat", "a dog ran to the red house", "tea", "old friends drink"]
KINDS = [families.masked, families.uniform, families.autoregressive]
VECTORS = [families.diffuseq, families.genie, families.modern, partial(families.latent, response_length=FILL)]


def built(family: Family) -> LanguageModel:
    torch.manual_seed(0)
    model = family.model.build(Vocab.of(byte_level()))
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    model.tokenizer = byte_level()
    return model


def blanks(prompts: list[str] = PROMPTS, encoder: bool = False) -> list[Example]:
    return list(Pairs([Pair(prompt, "") for prompt in prompts], byte_level(), 64, encoder, fill=FILL))


@pytest.mark.parametrize("kind", KINDS)
def test_texts_are_what_the_sampler_writes_row_by_row_whatever_the_batch(kind: Any) -> None:
    family = kind(trunk(max_length=64))
    model, rows = built(family), blanks()
    found = [draw(model, rows, family.varied, 3, batch_size=size, seed=5) for size in (1, 3, 64)]
    assert found[0].texts == found[1].texts == found[2].texts
    assert len({drawn.nfe for drawn in found}) == 1
    for i, row in enumerate(rows):
        batch = collate([row], model.vocab.pad_id or 0, sample_id=[i])
        tokens = family.varied.of(model).sample(Filters(family.varied.temperature)(model), batch, Rng(5, 3, batch.sample_id))[0]  # type: ignore[arg-type]
        ids = tokens[batch.target[0]].tolist()
        end = ids.index(model.vocab.eos_id) if model.vocab.eos_id in ids else len(ids)
        assert found[0].texts[i] == byte_level().decode([t for t in ids[:end] if t != model.vocab.bos_id])


@pytest.mark.parametrize("kind", KINDS)
def test_draws_differ_by_number_and_the_greedy_one_is_always_the_same(kind: Any) -> None:
    family = kind(trunk(max_length=64))
    model, rows = built(family), blanks()
    assert draw(model, rows, family.varied, 1).texts != draw(model, rows, family.varied, 2).texts
    if kind is not families.uniform:  # which begins in noise
        assert draw(model, rows, family.single, 1).texts == draw(model, rows, family.single, 2).texts


@pytest.mark.parametrize("kind", VECTORS)
def test_models_of_vectors_answer_and_leave_the_prompt_alone(kind: Any) -> None:
    family = kind(trunk(layers=4, max_length=64))
    model, rows = built(family), blanks(encoder=family.encoder)
    decode = replace(family.varied, temperature=1.0, sampler=replace(family.varied.sampler, steps=3))
    found = [draw(model, rows, decode, number, batch_size=size, seed=5).texts for number, size in ((3, 64), (3, 1), (4, 64))]
    assert found[0] == found[1]
    assert found[0] != found[2]
    assert any(found[0])
    batch = collate(rows, model.vocab.pad_id or 0)
    tokens = decode.of(model).sample(Filters(decode.temperature)(model), batch, Rng(5, 3, batch.sample_id))  # type: ignore[arg-type]
    assert torch.equal(tokens[~batch.target], batch.tokens[~batch.target])
    assert [text_of(model, row[target].tolist()) for row, target in zip(tokens, batch.target, strict=True)] == found[0]
    greedy = replace(decode, temperature=0.0)
    if kind is families.modern:  # which weighs the vectors of tokens
        assert draw(model, rows, greedy, 3, seed=5).texts != found[0]
    else:
        with pytest.raises(ValueError, match="this model draws vectors"):
            greedy.check(model)


def test_network_calls_are_counted_as_the_samplers_do() -> None:
    family = families.masked(trunk(max_length=64))
    model, rows = built(family), blanks()
    assert draw(model, rows, Decode(Greedy(steps=2))).nfe == 2
    assert draw(model, rows, Decode(Greedy(steps=200))).nfe == FILL  # one call for each target at most
    family = families.autoregressive(trunk(max_length=64))
    model = built(family)
    written = [len(encode(byte_level(), text)) + 1 for text in draw(model, rows, family.single).texts]
    assert draw(model, rows, family.single).nfe <= sum(min(size, FILL) for size in written) / len(rows) + 1


def test_a_text_ends_before_its_first_eos_and_shows_no_special_token() -> None:
    model = built(families.masked(trunk(max_length=64)))
    vocab, ids = model.vocab, encode(byte_level(), "the cat")
    assert text_of(model, [vocab.bos_id or 0, *ids, vocab.eos_id or 0, *ids, vocab.eos_id or 0]) == "the cat"
    assert text_of(model, [vocab.eos_id or 0, *ids]) == ""
    assert text_of(model, ids) == "the cat"


def test_what_is_decoded_has_nothing_to_do_with_what_stands_at_the_targets() -> None:
    """The state at the targets is the process's to fill: other blanks, other ids there, the same texts."""
    for kind in KINDS:
        family = kind(trunk(max_length=64))
        model, rows = built(family), blanks()
        other = [row._replace(tokens=[7 if scored else i for i, scored in zip(row.tokens, row.target, strict=True)]) for row in rows]
        assert draw(model, rows, family.varied).texts == draw(model, other, family.varied).texts


@dataclass(frozen=True)
class Latents(Sampler):
    """Ends in a state of three vectors, whatever the length of the rows."""

    def trajectory(self, denoiser: Denoiser, batch: Batch, rng: Rng) -> Iterator[Canvas]:
        calls = torch.full((len(batch.tokens),), 4)
        yield Canvas(rng.normal("latents", (3, 2)), 0.0, calls, torch.ones(len(calls), 3, dtype=torch.bool))


def test_a_state_of_another_shape_is_decoded_by_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = built(families.masked(trunk(max_length=64))), blanks(["a"] * 4)
    wanted = encode(byte_level(), "cat")

    def decode(x0: Tensor) -> Tensor:
        assert x0.shape[1:] == (3, 2)
        response = torch.tensor([*wanted, *[model.vocab.eos_id or 0] * FILL])[:FILL]
        return torch.cat([torch.tensor(rows[0].tokens[:-FILL]), response]).expand(len(x0), -1)

    monkeypatch.setattr(model, "decode", decode)
    drawn = draw(model, rows, Decode(Latents()), batch_size=3)
    assert (drawn.texts, drawn.nfe) == (["cat"] * 4, 4)


def test_a_temperature_below_zero_is_refused_and_filters_act_on_beliefs() -> None:
    with pytest.raises(ValueError, match=r"temperature is -1\.0, expected 0"):
        Decode(Greedy(), -1.0)
    family = families.masked(trunk(max_length=64))
    model, rows = built(family), blanks()
    batch = collate(rows, model.vocab.pad_id or 0)
    sharp = Greedy(4).sample(Filters(0.5)(model), batch, Rng(0, 0, batch.sample_id))  # type: ignore[arg-type]
    ids = sharp[0][batch.target[0]].tolist()
    assert draw(model, rows, Decode(Greedy(4), 0.5)).texts[0] == text_of(model, ids)
