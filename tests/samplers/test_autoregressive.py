import itertools

import pytest
import torch
from torch import Tensor

from tests.models.tiny import EOS, PAD, TEXT, VOCAB, autoregressive, trunk
from tests.samplers.watched import blank
from textdiff.batch import Batch
from textdiff.guidance.filters import Filters
from textdiff.models.autoregressive import AutoregressiveLM
from textdiff.randomness import Rng
from textdiff.samplers.autoregressive import Autoregressive
from textdiff.vocab import Vocab

NEVER_ENDS = Autoregressive()


def continued(prompts: list[list[int]], new: int | list[int]) -> Batch:
    """Right-padded rows of a prompt and `new` targets each, or as many as `new` says of each row."""
    lengths, count = torch.tensor([len(prompt) for prompt in prompts]), torch.tensor(new).expand(len(prompts))
    width = int((lengths + count).max())
    column = torch.arange(width)
    tokens = torch.full((len(prompts), width), PAD)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = torch.tensor(prompt)
    attend = column < (lengths + count)[:, None]
    return Batch.of(tokens, target=attend & (column >= lengths[:, None]), attend=attend)


def uncached(model: AutoregressiveLM, prompt: list[int], new: int) -> list[int]:
    """Greedy decoding that reads the whole row again for every token."""
    row = list(prompt)
    for _ in range(new):
        batch = Batch.of(torch.tensor([[*row, 0]]))
        where = torch.zeros(1, len(row) + 1, dtype=torch.bool)
        where[0, -1] = True
        row.append(int(model.predictor(batch)(batch.tokens, batch.sample_id).logits(where).argmax()))
    return row


def test_cached_greedy_sampling_is_uncached_argmax_in_a_ragged_batch_too() -> None:
    model, prompts = autoregressive(seed=3), [[0, 3, 1, 4], [0], [0, 5, 2]]
    batch = continued(prompts, 8)
    samples = NEVER_ENDS.sample(Filters(temperature=0.0)(model), batch, Rng(0, 0, batch.sample_id))
    for row, prompt in enumerate(prompts):
        assert samples[row, : len(prompt) + 8].tolist() == uncached(model, prompt, 8)
    assert bool((samples[~batch.attend] == PAD).all())


def test_a_row_alone_has_the_tokens_and_the_calls_it_has_in_a_ragged_batch() -> None:
    model, prompts = autoregressive(), [[0, 3, 1, 4], [0], [0, 5, 2]]
    together = continued(prompts, 6)
    *_, last = NEVER_ENDS.trajectory(model, together, Rng(5, 0, together.sample_id))
    assert last.nfe.tolist() == [6, 6, 6]
    for row, prompt in enumerate(prompts):
        single = continued([prompt], 6)._replace(sample_id=torch.tensor([row]))
        *_, alone = NEVER_ENDS.trajectory(model, single, Rng(5, 0, single.sample_id))
        assert torch.equal(alone.x[0], last.x[row, : len(prompt) + 6])
        assert alone.nfe.tolist() == [6]


def enumerated(model: AutoregressiveLM, start: int, new: int, states: int) -> tuple[Tensor, Tensor]:
    """Every continuation of `start` and its exact probability."""
    rows = torch.tensor([[start, *rest] for rest in itertools.product(range(states), repeat=new)])
    target = torch.ones_like(rows, dtype=torch.bool)
    target[:, 0] = False
    return rows, (-model.nll(Batch.of(rows, target=target), Rng(0, 0, torch.arange(len(rows))))).exp()


def test_the_law_of_three_tokens_is_the_enumerated_one() -> None:
    model = autoregressive(Vocab(size=5, tokens=5), backbone=trunk(width=8, layers=1))
    _, probability = enumerated(model, 0, 3, 5)
    assert float(probability.sum()) == pytest.approx(1)
    n = 40_000
    batch = Batch.of(torch.zeros(n, 4, dtype=torch.long), target=(torch.arange(4) > 0).expand(n, 4))
    samples = NEVER_ENDS.sample(model, batch, Rng(0, 0, batch.sample_id))
    code = (samples[:, 1:] * torch.tensor([25, 5, 1])).sum(1)
    expected = probability * n
    chi_square = float(((torch.bincount(code, minlength=125) - expected) ** 2 / expected).sum())
    assert bool((expected > 5).all())
    assert chi_square < 174.7  # 124 degrees of freedom, exceeded once in a thousand


def test_a_drawn_end_token_ends_a_row_and_a_given_one_does_not() -> None:
    model = autoregressive(seed=3)
    batch = continued([[0, EOS, 3]] * 200, 6)
    *_, last = Autoregressive(eos_id=EOS).trajectory(model, batch, Rng(0, 0, batch.sample_id))
    endless = NEVER_ENDS.sample(model, batch, Rng(0, 0, batch.sample_id))
    ended = 0
    for row in range(200):
        new = endless[row, 3:].tolist()
        length = new.index(EOS) + 1 if EOS in new else 6
        ended += EOS in new[:5]
        assert last.x[row].tolist() == [0, EOS, 3, *new[:length], *[PAD] * (6 - length)]
        assert int(last.nfe[row]) == length
    assert ended > 20


def test_sampling_stops_when_every_row_has_ended() -> None:
    model = autoregressive(seed=3)
    certain = torch.zeros(VOCAB.size, 16, dtype=torch.float64)
    model.backbone.embedding.weight.data = certain  # every logit is equal, so greedy draws id 0
    batch = continued([[1], [1, 2]], 20)
    canvases = list(Autoregressive(eos_id=0).trajectory(Filters(temperature=0.0)(model), batch, Rng(0, 0, batch.sample_id)))
    assert len(canvases) == 3  # the start and two columns: where the shorter and where the longer prompt ends
    assert canvases[-1].nfe.tolist() == [1, 1]


def test_known_tokens_between_targets_are_read_and_stay() -> None:
    """Given the middle token, the last one follows p(. | first, middle)."""
    model = autoregressive(Vocab(size=5, tokens=5), backbone=trunk(width=8, layers=1))
    n = 20_000
    tokens, target = torch.tensor([0, 0, 2, 0]).repeat(n, 1), torch.tensor([False, True, False, True]).expand(n, 4)
    batch = Batch.of(tokens, target=target)
    samples = NEVER_ENDS.sample(model, batch, Rng(0, 0, batch.sample_id))
    assert bool((samples[:, 2] == 2).all())
    rows, probability = enumerated(model, 0, 3, 5)
    given = probability[rows[:, 2] == 2].view(5, 5)  # first free token, last free token
    law = probability.view(5, 5, 5).sum((1, 2))[:, None] * given / given.sum(1, keepdim=True)
    count = torch.bincount(samples[:, 1] * 5 + samples[:, 3], minlength=25).view(5, 5)
    assert float(((count - law * n) ** 2 / (law * n)).sum()) < 51.2  # 24 degrees of freedom, one in a thousand


def test_unemittable_ids_are_never_drawn() -> None:
    model = autoregressive()
    batch = continued([[0]] * 500, 10)
    samples = NEVER_ENDS.sample(model, batch, Rng(0, 0, batch.sample_id))
    assert int(samples.max()) < TEXT


def test_a_first_token_without_anything_before_it_is_refused() -> None:
    with pytest.raises(ValueError, match="begin each row with a prompt or a BOS token"):
        NEVER_ENDS.sample(autoregressive(), blank(1, 3), Rng(0, 0, torch.arange(1)))
