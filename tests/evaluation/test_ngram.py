import math
import time

import numpy as np
import pytest

from textdiff.batch import Example
from textdiff.evaluation.ngram import Baseline, Trigram, Trigrams, Unigram, _discounts, nats_per_token, trigrams
from textdiff.vocab import Vocab

VOCAB = Vocab(size=7, tokens=6, mask_id=0, pad_id=1, bos_id=2, eos_id=3)
EMITTED = [2, 3, 4, 5]  # not [MASK], not [PAD], not the row beyond the tokenizer


def block(*tokens: int) -> Example:
    return Example(tokens=[2, *tokens], target=[False] + [True] * len(tokens))


TRAIN = [block(4, 5, 4, 5, 3), block(4, 4, 5, 3)]


def probabilities(model: Baseline, second: int, first: int, size: int = VOCAB.size) -> np.ndarray:
    return model.probability(Trigrams(np.full(size, second), np.full(size, first), np.arange(size)))


@pytest.mark.parametrize("kind", [Unigram, Trigram])
@pytest.mark.parametrize("train", [TRAIN, TRAIN[:1], [block(5)], []], ids=["two", "one", "token", "nothing"])
def test_every_context_has_a_distribution_over_the_ids_that_text_can_hold(
    kind: type[Unigram] | type[Trigram], train: list[Example]
) -> None:
    model = kind(train, VOCAB)
    for second in range(VOCAB.size + 1):
        for first in range(VOCAB.size + 1):
            law = probabilities(model, second, first)
            assert law.sum() == pytest.approx(1, abs=1e-12)
            assert (law[EMITTED] > 0).all()
            assert law[[0, 1, 6]].sum() == 0


def test_contexts_are_the_two_tokens_before_and_only_targets_count() -> None:
    pair = Example(tokens=[2, 5, 3, 4, 3], target=[False, False, False, True, True])
    grams = trigrams([block(4), pair], VOCAB)
    assert [list(column) for column in grams] == [[7, 5, 3], [2, 3, 4], [4, 4, 3]]


def test_the_unigram_is_its_smoothed_frequency() -> None:
    counts = {4: 4, 5: 3, 3: 2, 2: 0}  # and 1/2 for each of these four ids: 4.5, 3.5, 2.5 and 0.5 of 11
    model = Unigram(TRAIN, VOCAB)
    for token, count in counts.items():
        assert model.table[token] == pytest.approx((count + 0.5) / 11)
    expected = -(math.log(4.5 / 11) + math.log(2.5 / 11)) / 2
    assert nats_per_token(model, [block(4, 3)], VOCAB) == pytest.approx(expected)


def test_the_trigram_by_hand() -> None:
    # One row 2 | 4 5 4 5 3 with S = "not begun". Trigrams, once each: S24 245 454 545 -> 45 is followed by 4 and 3: 454 453; 545.
    # Trigrams: (S,2,4) (2,4,5) (4,5,4) (5,4,5) (4,5,3). All counts are 1: n1 = 5, n2 = 0, Y = 1, D(1) = 1.
    #   P3(. | 4 5): c = 2, both units freed: P3 = P2(. | 5).
    # Bigram types by left neighbours: 24:1 (S), 45:2 (2 and 5), 54:1, 53:1. n1 = 3, n2 = 1, Y = 3/5, D(1) = 1 - 2 * 3/5 * 1/3 = 3/5.
    #   P2(4 | 5) = (1 - 3/5) / 2 + (6/5) / 2 P1(4) = 0.2 + 0.6 P1(4)
    # Unigram types by left neighbours: 4:2 (2 and 5), 5:1, 3:1. n1 = 2, n2 = 1, Y = 1/2, D(1) = 1 - 2 * 1/2 * 1/2 = 1/2, D(2) = 2.
    #   freed = 2 + 1/2 + 1/2 = 3 of 4; P1(4) = 0/4 + 3/4 * 1/4 = 3/16
    model = Trigram([block(4, 5, 4, 5, 3)], VOCAB)
    assert probabilities(model, 4, 5)[4] == pytest.approx(0.2 + 0.6 * 3 / 16)
    # P2(5 | 4): c = 2, D(2) = 2 - 3 * 3/5 * 0 / 1 = 2, all freed: P1(5) = (1 - 1/2) / 4 + 3/16 = 5/16; a context never met backs off to it
    assert probabilities(model, 2, 4)[5] == pytest.approx(5 / 16)
    assert probabilities(model, 3, 4)[5] == pytest.approx(5 / 16)


def test_the_discounts_by_hand() -> None:
    # n1..n4 = 4, 2, 1, 1: Y = 4 / (4 + 2 * 2) = 1/2; 1 - 2 Y 2/4, 2 - 3 Y 1/2, 3 - 4 Y 1/1
    assert _discounts(np.array([1, 1, 1, 1, 2, 2, 3, 4, 9, 9])).tolist() == pytest.approx([0, 0.5, 1.25, 1])


def markov_blocks(transition: np.ndarray, blocks: int, length: int, seed: int) -> list[Example]:
    """Blocks of a second-order chain: token 2 + ((a + 2 b) mod 4 with probability 0.85, else uniform)."""
    draw, rows, state = np.random.default_rng(seed), [], (0, 1)
    for _ in range(blocks):
        tokens = []
        for _ in range(length):
            state = (state[1], int(draw.choice(4, p=transition[state])))
            tokens.append(2 + state[1])
        rows.append(block(*tokens))
    return rows


def test_on_a_second_order_chain_the_trigram_reaches_the_entropy_rate() -> None:
    transition = np.full((4, 4, 4), 0.05)
    for a in range(4):
        for b in range(4):
            transition[a, b, (a + 2 * b) % 4] = 0.85
    entropy = -(0.85 * math.log(0.85) + 3 * 0.05 * math.log(0.05))
    train, fresh = markov_blocks(transition, 40, 300, seed=0), markov_blocks(transition, 20, 300, seed=1)
    assert nats_per_token(Trigram(train, VOCAB), fresh, VOCAB) == pytest.approx(entropy, abs=0.04)
    assert nats_per_token(Unigram(train, VOCAB), fresh, VOCAB) > 1.3


def test_half_a_million_tokens_take_seconds() -> None:
    vocab = Vocab(size=4096, tokens=4096)
    tokens = np.minimum(np.random.default_rng(0).zipf(1.3, size=(4000, 127)), 4096) - 1
    rows = [block(*row) for row in tokens.tolist()]
    start = time.perf_counter()
    nats_per_token(Trigram(rows, vocab), rows[:400], vocab)
    assert time.perf_counter() - start < 15


def test_nothing_to_measure_is_said() -> None:
    with pytest.raises(ValueError, match="no target token"):
        nats_per_token(Unigram(TRAIN, VOCAB), [], VOCAB)
