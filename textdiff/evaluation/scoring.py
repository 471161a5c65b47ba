"""Rows scored batch after batch, on any number of processes, until all are or a target standard error is met."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from textdiff.batch import Example, collate
from textdiff.evaluation.collective import from_every, from_first, rank_and_world
from textdiff.evaluation.likelihood import EvaluationStopped
from textdiff.evaluation.pilot import Piloted, piloted
from textdiff.evaluation.raw import Found, Raw
from textdiff.evaluation.statistics import FEWEST_DOCUMENTS
from textdiff.evaluation.stopping import MOST_ROUNDS, Errors, looks, outcome
from textdiff.models.base import LanguageModel
from textdiff.randomness import Rng


class Running(NamedTuple):
    """How far a measurement is."""

    done: int  # rows scored
    total: int  # in this round of draws and those before; a target may be met earlier
    nats_per_token: float  # of the rows scored so far
    error: float  # standard error of it over texts; nan for one text


class Rows(NamedTuple):
    """The rows of a data set for one model."""

    examples: Sequence[Example]
    text_of: NDArray[np.int64]  # (rows,)
    tokens: NDArray[np.int64]  # (rows,) counted
    widths: NDArray[np.int64]  # (rows,) tokens that are read

    @classmethod
    def of(cls, examples: Sequence[Example], text_of: NDArray[np.int64]) -> "Rows":
        """Rows with their counts."""
        counts = np.array([(sum(e.target), len(e.tokens) + len(e.source)) for e in examples], dtype=np.int64).reshape(-1, 2)
        return cls(examples, text_of, counts[:, 0], counts[:, 1])

    def of_texts(self, values: NDArray[Any]) -> NDArray[np.float64]:
        """Sums over the rows of each text, (texts,), of `values` (rows,)."""
        return _sums(self.text_of, values)


class Plan(NamedTuple):
    """What is scored together and in which order: a function of the rows and the settings, not of the processes."""

    texts: NDArray[np.int64]  # numbers of the texts in the order in which they are scored
    looks: list[tuple[int, int]]  # how many texts, and how many batches, are scored when the error is looked at
    batches: list[NDArray[np.int64]]  # numbers of rows

    @classmethod
    def of(cls, rows: Rows, batch_size: int, seed: int, target_se: float | None) -> "Plan":
        """Rows of like length form a batch; batches come in random order, so that the running estimate is fair, and so do texts where
        a target may end the measurement early.
        """
        texts = np.flatnonzero(rows.of_texts(rows.tokens))
        texts = texts[_random_order(seed, 0, texts)]
        plan, before = cls(texts, [], []), 0
        for look, count in enumerate(looks(len(texts), target_se)):
            index = np.flatnonzero(np.isin(rows.text_of, texts[before:count]))
            index = index[np.argsort(rows.widths[index], kind="stable")]
            batches = [index[start : start + batch_size] for start in range(0, len(index), batch_size)]
            plan.batches.extend(batches[i] for i in _random_order(seed, 1 + look, np.arange(len(batches))))
            plan.looks.append((count, len(plan.batches)))
            before = count
        return plan


class Scoring:
    """A measurement under way; `raw`, on the first process, keeps what is finished.

    After `run` the values of every round of draws are in `nats` (rounds, rows), nan for rows that were not scored.
    """

    def __init__(
        self,
        model: LanguageModel,
        rows: Rows,
        plan: Plan,
        draws: int,
        seed: int,
        documents: Sequence[int],
        raw: Raw | None,
        progress: Callable[[Running], None],
        should_stop: Callable[[], bool],
    ) -> None:
        self.model, self.rows, self.plan, self.draws, self.seed = model, rows, plan, draws, seed
        self._documents = np.array(documents, dtype=np.int64)  # (texts,), or () where texts are no passages
        self.raw, self.progress, self.should_stop = raw, progress, should_stop
        self._found: Found = from_first(lambda: {} if raw is None else dict(raw.found))
        self.nats: NDArray[np.float64] = np.zeros((0, len(rows.text_of)))
        self._pilot = piloted(model, rows.examples, seed, draws) if model.nll_is_bound else Piloted(None, 0)

    @property
    def forwards(self) -> int:
        """Network calls, a row being one."""
        return int((~np.isnan(self.nats)).sum()) * self.model.calls(self.draws) + self._pilot.calls

    def run(self, target_se: float | None) -> tuple[NDArray[np.int64], str]:
        """The numbers of the texts that were scored, and what became of the target; raises EvaluationStopped."""
        for round_number in range(MOST_ROUNDS):
            self.nats = np.vstack([self.nats, np.full(self.nats.shape[1], math.nan)])
            for texts, batches in self.plan.looks if round_number == 0 else self.plan.looks[-1:]:
                self._score(round_number, batches)
                scored = self.plan.texts[:texts]
                said = "" if target_se is None else self._outcome(target_se, scored)
                if said or (target_se is None and texts == len(self.plan.texts)):
                    return np.sort(scored), said
        raise AssertionError("the last round has an outcome")

    def values(self, texts: NDArray[np.int64]) -> NDArray[np.float64]:
        """Nats of texts by round, (rounds, texts)."""
        return np.stack([self.rows.of_texts(values)[texts] for values in self.nats])

    def _outcome(self, target_se: float, texts: NDArray[np.int64]) -> str:
        units = self._units(texts)
        nats = np.stack([_sums(units, values) for values in self.values(texts)])
        tokens = _sums(units, self.rows.of_texts(self.rows.tokens)[texts])
        errors = Errors.of(nats, tokens, exact=not self.model.nll_is_bound)
        return outcome(target_se, errors, len(texts), len(self.plan.texts), len(self.nats), len(tokens))

    def _units(self, texts: NDArray[np.int64]) -> NDArray[np.int64]:
        """The place of each text among what errors are over: documents where there are enough, else texts."""
        places = np.arange(len(texts))
        if len(self._documents):
            documents, of_documents = np.unique(self._documents[texts], return_inverse=True)
            places = of_documents if len(documents) >= FEWEST_DOCUMENTS else places
        return places

    def _score(self, round_number: int, batches: int) -> None:
        """Score what is unfinished of the first `batches` batches."""
        for number in range(batches):
            if (round_number, number) in self._found:
                self.nats[round_number, self.plan.batches[number]] = self._found[round_number, number]
        rank, world = rank_and_world()
        todo = [number for number in range(batches) if (round_number, number) not in self._found]
        self._tell()
        for start in range(0, len(todo), world):
            shared = from_every(partial(self._share, round_number, todo[start + rank : start + rank + 1]))
            finished = [found for part, _ in shared for found in part]
            for number, nats in finished:
                self.nats[round_number, self.plan.batches[number]] = nats
            from_first(partial(self._keep, round_number, finished))
            if any(stopped for _, stopped in shared):
                raise EvaluationStopped
            self._tell()

    def _share(self, round_number: int, batches: Sequence[int]) -> tuple[list[tuple[int, list[float]]], bool]:
        """The nats of this process's batches, and whether it is told to stop, when it scores none."""
        stop = self.should_stop()
        return [] if stop else [(number, self._nats(round_number, number)) for number in batches], stop

    def _keep(self, round_number: int, finished: Sequence[tuple[int, list[float]]]) -> None:
        if self.raw is not None:
            for number, nats in finished:
                self.raw.add(round_number, number, nats)

    def _nats(self, round_number: int, number: int) -> list[float]:
        index = self.plan.batches[number].tolist()
        examples = [self.rows.examples[i] for i in index]
        device = next(self.model.parameters()).device
        batch = collate(examples, pad_id=self.model.vocab.pad_id or 0, sample_id=index).to(device)
        nats: list[float] = self.model.mean_nll(batch, _seed(self.seed, round_number), self.draws, self._pilot.told).tolist()
        if any(math.isnan(value) for value in nats):
            raise ValueError(
                f"{type(self.model).__name__} gives a text nan nats: its weights, or the type they are computed in, are broken"
            )
        return nats

    def _tell(self) -> None:
        scored = ~np.isnan(self.nats)
        if not scored.any():
            return
        nats = np.where(scored, self.nats, 0.0).sum(0) / scored.sum(0).clip(1)
        tokens = self.rows.of_texts(np.where(scored[0], self.rows.tokens, 0))
        texts = np.flatnonzero(tokens)
        units, tokens = self._units(texts), tokens[texts]
        by_text = self.rows.of_texts(nats)[texts]
        error = Errors.of(_sums(units, by_text)[None], _sums(units, tokens), exact=True).total
        self.progress(Running(int(scored.sum()), scored.size, float(by_text.sum() / tokens.sum()), error))


def _sums(places: NDArray[np.int64], values: NDArray[Any]) -> NDArray[np.float64]:
    return np.bincount(places, weights=values).astype(np.float64)


def _seed(seed: int, round_number: int) -> int:
    """Of the noise of a round; the first has the measurement's own."""
    if round_number == 0:
        return seed
    return int(Rng(seed, round_number, torch.zeros(1, dtype=torch.long)).bits("round", ())[0])


def _random_order(seed: int, step: int, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """A random order of things, each placed by its own number."""
    places = Rng(seed, step, torch.from_numpy(numbers)).uniform("order", ())
    return np.argsort(places.numpy(), kind="stable")
