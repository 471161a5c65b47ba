import math

import torch

from textdiff.prediction import HeadPrediction
from textdiff.projection import Head
from textdiff.randomness import Rng
from textdiff.state_prediction import Interpolated, Moved, Regressed, TabledState

B, L, H, V, D = 3, 5, 4, 11, 6
RNG = Rng(0, 0, torch.arange(B))
HIDDEN = RNG.normal("hidden", (L, H))
TABLE = RNG.normal("table", (V, D))[0]
HEAD = Head(RNG.normal("weight", (V, H))[1], RNG.normal("bias", (V,))[2], None)
WHERE = RNG.uniform("where", (L,)) < 0.5


def test_an_interpolated_mean_is_the_softmax_weighted_table() -> None:
    exact = (HIDDEN @ HEAD.weight.T + HEAD.bias).softmax(-1) @ TABLE
    torch.testing.assert_close(Interpolated(HIDDEN, HEAD, TABLE).state(), exact)
    torch.testing.assert_close(Interpolated(HIDDEN, HEAD, TABLE).state(WHERE), exact[WHERE])
    read_twice = Interpolated(HIDDEN, HEAD, TABLE)
    assert torch.equal(read_twice.state()[WHERE], read_twice.state(WHERE))


def test_an_interpolated_mean_passes_gradients_to_table_and_head() -> None:
    table, hidden = TABLE.clone().requires_grad_(), HIDDEN.clone().requires_grad_()
    Interpolated(hidden, HEAD, table).state(WHERE).square().sum().backward()
    assert table.grad is not None
    assert hidden.grad is not None
    assert bool((hidden.grad[WHERE] != 0).any(-1).all())
    assert bool((hidden.grad[~WHERE] == 0).all())


def test_a_regressed_vector_is_its_own_mean_and_is_rounded_by_the_head() -> None:
    belief = Regressed(HIDDEN, HEAD, TABLE)
    assert torch.equal(belief.state(), HIDDEN)
    assert torch.equal(belief.state(WHERE), HIDDEN[WHERE])
    other = RNG.normal("other", (L, H))
    torch.testing.assert_close(belief.rounded(other).logits(), HeadPrediction(other, HEAD).logits())
    torch.testing.assert_close(belief.rounded(HIDDEN).logits(WHERE), belief.logits(WHERE))


def test_a_moved_belief_has_other_vectors_the_same_tokens_and_the_calls_it_cost() -> None:
    inner, x0 = Interpolated(HIDDEN, HEAD, TABLE), RNG.normal("moved", (L, D))
    moved = Moved(inner, x0, calls=3)
    assert torch.equal(moved.state(), x0)
    assert torch.equal(moved.state(WHERE), x0[WHERE])
    assert torch.equal(moved.logits(WHERE), inner.logits(WHERE))
    assert (moved.calls, moved.shape) == (3, (B, L))


def test_a_tabled_mean_weighs_rows_by_their_probability_impossible_ones_too() -> None:
    log_prob = torch.tensor([[[0.25, 0.75, 0.0]]], dtype=torch.float64).log()
    table = torch.tensor([[1.0, 0.0], [0.0, 2.0], [math.pi, 9.0]], dtype=torch.float64)
    torch.testing.assert_close(TabledState(log_prob, table).state(), torch.tensor([[[0.25, 1.5]]], dtype=torch.float64))


def test_beliefs_about_tokens_land_on_the_likeliest_one() -> None:
    """Not on the row nearest to the mean, which may be a third token's."""
    table = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 0.2]], dtype=torch.float64)
    log_prob = torch.tensor([[[0.45, 0.5, 0.05], [0.9, 0.05, 0.05]]], dtype=torch.float64).log()
    belief = TabledState(log_prob, table)
    nearest = (belief.state()[..., None, :] - table).square().sum(-1).argmin(-1)
    assert nearest.tolist() == [[2, 0]]
    assert torch.equal(belief.landing(), table[torch.tensor([[1, 0]])])
    assert torch.equal(Moved(belief, belief.state() + 1, 1).landing(), belief.landing())
    interpolated = Interpolated(HIDDEN, HEAD, TABLE)
    assert torch.equal(interpolated.landing(), TABLE[interpolated.logits().argmax(-1)])
