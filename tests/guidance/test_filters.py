import itertools
import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.samplers.watched import CHAIN, blank, oracle
from textdiff.guidance.filters import Filters
from textdiff.prediction import TablePrediction
from textdiff.randomness import Rng
from textdiff.samplers.first_hitting import FirstHitting

TABLE = torch.randn(2, 4, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2
EVERYWHERE = torch.ones(2, 4, dtype=torch.bool)


def brute_force(logits: list[float], filters: Filters) -> list[float]:
    """The filtered law of one position, in plain Python: temperature, then the k best, then the nucleus."""
    ids = range(len(logits))
    if filters.temperature == 0:
        best = max(ids, key=lambda i: (logits[i], -i))
        return [float(i == best) for i in ids]
    weight = [math.exp(value / filters.temperature) for value in logits]
    if 0 < filters.top_k < len(logits):
        least = sorted(logits, reverse=True)[filters.top_k - 1]
        weight = [w if value >= least else 0.0 for w, value in zip(weight, logits, strict=True)]
    total, kept, mass = sum(weight), set[int](), 0.0
    for i in sorted(ids, key=lambda i: (-weight[i], i)):
        if mass < filters.top_p * total:
            kept.add(i)
        mass += weight[i]
    total = sum(weight[i] for i in kept)
    return [weight[i] / total if i in kept else 0.0 for i in ids]


def law(filters: Filters, table: Tensor) -> Tensor:
    return filters.applied(TablePrediction(table)).logits(EVERYWHERE[: len(table), : table.shape[1]]).softmax(-1)


@pytest.mark.parametrize(
    "filters", [Filters(*v) for v in itertools.product((0.0, 0.5, 1.0, 3.0), (0, 1, 3, 9, 50), (0.2, 0.7, 1.0))], ids=str
)
def test_the_filtered_law_is_the_brute_force_one(filters: Filters) -> None:
    exact = [brute_force(row, filters) for row in TABLE.view(-1, 9).tolist()]
    torch.testing.assert_close(law(filters, TABLE), torch.tensor(exact, dtype=torch.float64), rtol=1e-12, atol=1e-15)


def test_banned_ids_stay_banned() -> None:
    table = TABLE.clone()
    table[..., 4] = -math.inf
    for filters in (Filters(0.0), Filters(5.0), Filters(1.0, 8), Filters(1.0, 0, 0.999), Filters(2.0, 9, 1.0)):
        assert bool((law(filters, table)[:, 4] == 0).all())


def test_ties_are_kept_by_top_k_and_broken_to_the_left_by_top_p_and_temperature_zero() -> None:
    table = torch.tensor([0.0, 1.0, 1.0, 1.0], dtype=torch.float64).view(1, 1, 4)
    assert law(Filters(top_k=2), table)[0].tolist() == pytest.approx([0, 1 / 3, 1 / 3, 1 / 3])
    assert law(Filters(top_p=0.4), table)[0].tolist() == pytest.approx([0, 1 / 2, 1 / 2, 0])
    assert law(Filters(temperature=0.0), table)[0].tolist() == [0, 1, 0, 0]


def test_the_nucleus_keeps_the_token_that_crosses_it_and_always_one() -> None:
    table = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).log().view(1, 1, 3)
    assert law(Filters(top_p=0.5), table)[0].tolist() == pytest.approx([1, 0, 0])
    assert law(Filters(top_p=0.51), table)[0].tolist() == pytest.approx([0.625, 0.375, 0])
    assert law(Filters(top_p=1e-9), table)[0].tolist() == pytest.approx([1, 0, 0])


def test_the_nucleus_is_taken_after_temperature_and_top_k() -> None:
    """At temperature 1/2 the law 0.4, 0.3, 0.3 becomes 0.47, 0.26, 0.26, and its two best alone 0.64, 0.36."""
    table = torch.tensor([0.4, 0.3001, 0.2999], dtype=torch.float64).log().view(1, 1, 3)
    assert int((law(Filters(1.0, 0, 0.45), table) > 0).sum()) == 2
    assert int((law(Filters(0.5, 0, 0.45), table) > 0).sum()) == 1
    assert int((law(Filters(0.5, 0, 0.6), table) > 0).sum()) == 2
    assert int((law(Filters(0.5, 2, 0.6), table) > 0).sum()) == 1


def test_draws_and_their_log_probabilities_follow_the_filtered_law_and_statistics_do_not() -> None:
    rows, filters = 20_000, Filters(0.7, 5, 0.9)
    pred = TablePrediction(TABLE[:1, :1].expand(rows, 1, 9))
    where = torch.ones(rows, 1, dtype=torch.bool)
    filtered = filters.applied(pred)
    exact = torch.tensor(brute_force(TABLE[0, 0].tolist(), filters), dtype=torch.float64)
    tokens, log_prob = filtered.draw(where, Rng(0, 0, torch.arange(rows)))
    torch.testing.assert_close(log_prob, exact.log()[tokens])
    share = torch.bincount(tokens, minlength=9) / rows
    assert bool(((share - exact).abs() <= 4.5 * (exact / rows).sqrt()).all())
    for ours, theirs in zip(filtered.statistics(where), pred.statistics(where), strict=True):
        assert torch.equal(ours, theirs)


def test_no_filter_is_the_denoiser_itself_and_a_filter_never_touches_the_logits_it_is_given() -> None:
    denoiser = oracle(CHAIN)
    assert Filters()(denoiser) is denoiser
    before = TABLE.clone()
    for filters in (Filters(0.0), Filters(0.5), Filters(1.0, 2), Filters(1.0, 0, 0.5)):
        law(filters, TABLE)
    assert torch.equal(TABLE, before)


def test_guided_denoiser_samples_from_the_filtered_conditionals() -> None:
    """At temperature 0 every sample of a chain is built of steps that were the most probable ones when they were taken."""
    denoiser = oracle(CHAIN)
    canvases = list(FirstHitting().trajectory(Filters(temperature=0.0)(denoiser), blank(20, 7), Rng(0, 0, torch.arange(20))))
    for before, after in pairwise(canvases):
        best = denoiser.predictor(blank(20, 7))(before.x, torch.zeros(20)).table.argmax(-1)
        changed = before.x != after.x
        assert torch.equal(after.x[changed], best[changed])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -0.1}, r"^temperature is -0.1, expected 0 \(greedy\) or more, and finite$"),
        ({"top_k": -1}, r"^top_k is -1, expected 0 \(keep all\) or more$"),
        ({"top_p": 0.0}, r"^top_p is 0.0, expected a number in \(0, 1\]$"),
        ({"top_p": 1.5}, r"^top_p is 1.5, expected a number in \(0, 1\]$"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Filters(**options)
