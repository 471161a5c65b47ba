"""Unigram and trigram baselines: what a model must beat before its perplexity means anything. Both are exact likelihoods, in nats."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from textdiff.batch import Example
from textdiff.vocab import Vocab

Ids = NDArray[np.int64]
Probabilities = NDArray[np.float64]


class Trigrams(NamedTuple):
    """Target tokens, each with the two tokens before it; the id `Vocab.size` stands where an example has not begun."""

    second: Ids  # (N,) two before
    first: Ids  # (N,) one before
    token: Ids  # (N,)


class Baseline(Protocol):
    """A distribution over the next token."""

    def probability(self, grams: Trigrams) -> Probabilities:
        """P(token | first, second), (N,)."""
        ...


def trigrams(examples: Sequence[Example], vocab: Vocab) -> Trigrams:
    """The targets of all examples with their contexts; context tokens (BOS, prompts) are seen and not counted."""
    none = np.zeros((3, 0), dtype=np.int64)
    return Trigrams(*np.concatenate([none, *_rows(examples, vocab.size)], axis=1))


def _rows(examples: Sequence[Example], start: int) -> Iterator[Ids]:
    for example in examples:
        tokens = np.asarray([start, start, *example.tokens], dtype=np.int64)
        yield np.stack([tokens[:-2], tokens[1:-1], tokens[2:]])[:, np.asarray(example.target, dtype=bool)]


def nats_per_token(model: Baseline, examples: Sequence[Example], vocab: Vocab) -> float:
    """Mean -ln P over the targets of the examples; raises ValueError when there is none."""
    grams = trigrams(examples, vocab)
    if not len(grams.token):
        raise ValueError("the examples hold no target token: there is nothing to measure")
    return float(-np.log(model.probability(grams)).mean())


class Uniform:
    """1/V over the ids that text can hold, 0 elsewhere ([MASK], [PAD], rows beyond the tokenizer)."""

    def __init__(self, vocab: Vocab) -> None:
        emitted = np.ones(vocab.size + 1, dtype=np.float64)
        emitted[[*vocab.unemittable, vocab.size]] = 0
        self.table: Probabilities = emitted / emitted.sum()  # (V + 1,)

    def probability(self, grams: Trigrams) -> Probabilities:
        """P(token), (N,)."""
        return self.table[grams.token]


class Unigram:
    """Token frequencies, each count raised by 1/2 (Krichevsky and Trofimov 1981)."""

    def __init__(self, train: Sequence[Example], vocab: Vocab) -> None:
        counts = np.bincount(trigrams(train, vocab).token, minlength=vocab.size + 1) + 0.5 * (Uniform(vocab).table > 0)
        self.table: Probabilities = counts / counts.sum()  # (V + 1,)

    def probability(self, grams: Trigrams) -> Probabilities:
        """P(token), (N,)."""
        return self.table[grams.token]


class Trigram:
    """Interpolated modified Kneser-Ney (Chen and Goodman 1999, section 3): at each order

    P(w | h) = (c(h w) - D(c(h w))) / c(h) + (sum over v of D(c(h v)) / c(h)) P(w | h without its oldest token)

    with counts c at the top order, numbers of distinct left neighbours below it, and the uniform distribution at the bottom.
    """

    def __init__(self, train: Sequence[Example], vocab: Vocab) -> None:
        self.base = vocab.size + 1  # ids and the sign for "not begun"
        grams = trigrams(train, vocab)
        keys3, counts3 = np.unique(self._key(grams.second, grams.first, grams.token), return_counts=True)
        keys2, counts2 = np.unique(keys3 % self.base**2, return_counts=True)
        keys1, counts1 = np.unique(keys2 % self.base, return_counts=True)
        self.orders = [_Order(keys, counts, self.base) for keys, counts in ((keys1, counts1), (keys2, counts2), (keys3, counts3))]
        self.uniform = Uniform(vocab)

    def probability(self, grams: Trigrams) -> Probabilities:
        """P(token | first, second), (N,)."""
        result = self.uniform.probability(grams)
        key = self._key(grams.second, grams.first, grams.token)
        for length, order in enumerate(self.orders, 1):
            result = order.interpolate(key % self.base**length, result)
        return result

    def _key(self, second: Ids, first: Ids, token: Ids) -> Ids:
        return (second * self.base + first) * self.base + token


class _Order:
    """Discounted counts of n-grams; a key is the number that the ids write in base V + 1, its context the key without the last digit."""

    def __init__(self, keys: Ids, counts: Ids, base: int) -> None:
        self.keys, self.base = keys, base
        discount = _discounts(counts)[np.minimum(counts, 3)]
        self.kept = counts - discount
        self.contexts, index = np.unique(keys // base, return_inverse=True)
        self.totals = np.bincount(index, weights=counts)
        self.freed = np.bincount(index, weights=discount)

    def interpolate(self, key: Ids, lower: Probabilities) -> Probabilities:
        """The probabilities at this order from those one order below; a context never met leaves them as they are."""
        if not len(self.keys):
            return lower
        place, met = _find(self.keys, key)
        context, known = _find(self.contexts, key // self.base)
        mixed = (np.where(met, self.kept[place], 0.0) + self.freed[context] * lower) / self.totals[context]
        return np.where(known, mixed, lower)


def _find(table: Ids, wanted: Ids) -> tuple[Ids, NDArray[np.bool_]]:
    """Where each wanted key stands in a sorted table, and whether it does."""
    place = np.searchsorted(table, wanted).clip(max=len(table) - 1)
    return place, table[place] == wanted


def _discounts(counts: Ids) -> Probabilities:
    """D(0) = 0, D(1), D(2), D(3 or more) from the counts of counts; kept inside [0.1, k], so that a unit is left to the lower order."""
    one, two, three, four = np.bincount(np.minimum(counts, 5), minlength=6)[1:5].astype(np.float64)
    y = one / max(one + 2 * two, 1.0)
    raw = [1 - 2 * y * two / max(one, 1.0), 2 - 3 * y * three / max(two, 1.0), 3 - 4 * y * four / max(three, 1.0)]
    return np.array([0.0, *(min(max(value, 0.1), float(k)) for k, value in enumerate(raw, 1))])
