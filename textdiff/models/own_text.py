"""Rows that a causal model continues itself: a drafter is asked about the target's text, not about that of a corpus."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from textdiff.batch import Example, collate
from textdiff.guidance.filters import Filters
from textdiff.models.autoregressive import AutoregressiveLM
from textdiff.randomness import Rng
from textdiff.samplers.autoregressive import Autoregressive


@dataclass(frozen=True)
class OwnText:
    """How the target writes rows to learn from."""

    rows: int = 2_048
    """Rows to draw, which begin as rows of the data do, spread evenly over it; 0: the data's rows as they are."""
    prompt: int = 16
    """Tokens of each that are given, unless its prompt is longer."""
    temperature: float = 0.0
    """Of what is drawn; 0 takes the most probable token."""
    batch_size: int = 64
    """Rows to draw at a time."""

    def __post_init__(self) -> None:
        if min(self.prompt, self.batch_size) < 1 or self.rows < 0 or self.temperature < 0:
            given = f"rows {self.rows}, prompt {self.prompt}, batch_size {self.batch_size}, temperature {self.temperature}"
            raise ValueError(f"{given}: expected rows and a temperature of 0 or more, and 1 or more of the others")

    def __call__(
        self, target: AutoregressiveLM, data: Sequence[Example], seed: int, progress: Callable[[int, int], None] = lambda done, total: None
    ) -> Sequence[Example]:
        """Rows as long as those of `data`, or up to an end token; what was drawn is their target."""
        if not self.rows:
            return data
        found: list[Example] = []
        numbers = [i * len(data) // self.rows for i in range(self.rows)]
        for start in range(0, self.rows, self.batch_size):
            index = range(start, min(start + self.batch_size, self.rows))
            found += self._drawn(target, [self.prompted(data[numbers[i]]) for i in index], list(index), seed)
            progress(index.stop, self.rows)
        return found

    def prompted(self, row: Example, new: int | None = None) -> Example:
        """The beginning of a row, and `new` targets, at most (None: and always) to where the row ends.

        Of documents that are kept apart it is what the last of the beginning has of it: the others are not seen from there.
        """
        given = min(max(list(row.target).index(True), self.prompt), len(row.tokens) - 1)
        length = len(row.tokens) if new is None else min(given + new, len(row.tokens))
        start = 0 if row.document is None else list(row.document).index(row.document[given - 1])
        return Example(row.tokens[start:length], [i >= given for i in range(start, length)])

    def _drawn(self, target: AutoregressiveLM, rows: list[Example], index: list[int], seed: int) -> list[Example]:
        batch = collate(rows, target.vocab.pad_id or 0, index).to(target.device)
        eos_id = -1 if target.vocab.eos_id is None else target.vocab.eos_id
        with torch.no_grad():
            guided = Filters(self.temperature)(target.eval())
            written = Autoregressive(eos_id).sample(guided, batch, Rng(seed, 0, batch.sample_id)).tolist()
        found = []
        for row, tokens in zip(rows, written, strict=True):
            ends = [i for i, (token, asked) in enumerate(zip(tokens, row.target, strict=False)) if asked and token == eos_id]
            length = ends[0] + 1 if ends else len(row.tokens)
            found.append(Example(tokens[:length], list(row.target)[:length]))
        return found
