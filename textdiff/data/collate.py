"""From token ids to examples: packed text, prompts with responses, encoder-decoder pairs; `textdiff.batch.collate` pads them.

Layouts, with * on the targets:
    packed           BOS  a* b* c* EOS* d* e* ...     one block of the endless stream `document EOS document EOS ...`
    prompt           BOS  prompt  EOS  response* EOS*
    encoder-decoder  BOS  response* EOS*              with the prompt in `source`

A model that fills all positions at once is told no length: with `fill` the response is followed by EOS up to that many targets.
"""

from collections.abc import Sequence
from typing import NamedTuple, overload

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from textdiff.batch import Example
from textdiff.data.readers import Pair
from textdiff.data.tokenizer import Encoded, Encoder


class Examples(Sequence[Example]):
    """Examples in a fixed order, each made when it is asked for; a subclass gives `__len__` and `at`."""

    def at(self, index: int) -> Example:
        """The example at 0 <= index < len(self)."""
        raise NotImplementedError

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self.at(i) for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        return self.at(index % len(self))


class Packing(NamedTuple):
    """How a stream of documents is cut into blocks."""

    length: int  # tokens of a block, the context token included
    start_id: int | None  # stands before every block: BOS, else EOS; None: the token before the block does
    end_id: int | None  # stands after every document
    isolate: bool  # number the documents, so that attention stays inside each

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, length: int, isolate: bool) -> "Packing":
        """The packing for a tokenizer; raises ValueError for a length that leaves no target."""
        if length < 2:
            raise ValueError(f"length is {length}, expected at least 2: one token of context and one to predict")
        eos, bos = tokenizer.eos_token_id, tokenizer.bos_token_id
        return cls(length, eos if bos is None else bos, eos, isolate)

    @property
    def stride(self) -> int:
        """Targets of a full block."""
        return self.length - 1

    def documents(self, encoded: Encoded) -> Encoded:
        """One document of the stream: its tokens and EOS, which stands for 0 bytes."""
        if self.end_id is None:
            return encoded
        return Encoded(np.append(encoded.ids, self.end_id), np.append(encoded.sizes, 0))

    def example(self, targets: NDArray[np.int64], before: int, numbers: NDArray[np.int64], text_bytes: int) -> Example:
        """A block of `targets` (N,) after the token `before`; `numbers` (N,) are any increasing numbers of their documents."""
        document = None
        if self.isolate:
            own = (1 + np.cumsum(np.diff(numbers, prepend=numbers[0]) != 0)).tolist()
            document = [1, *own]  # the context belongs to the document it stands before
        return Example(tokens=[before, *targets.tolist()], target=[False] + [True] * len(targets), document=document, text_bytes=text_bytes)


class Blocks(Examples):
    """Documents packed into blocks of `length` tokens; every token of the stream is a target once, the last block is shorter.

    Without BOS and EOS the first token of the whole stream is context only. Raises ValueError when `length` is below 2.
    """

    def __init__(self, texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, length: int, isolate: bool = False) -> None:
        self.packing = Packing.of(tokenizer, length, isolate)
        dtype = np.uint16 if len(tokenizer) <= 2**16 else np.int32
        ids, sizes = [np.zeros(0, dtype)], [np.zeros(0, np.int32)]
        for encoded in Encoder(tokenizer)(texts):
            document = self.packing.documents(encoded)
            ids.append(document.ids.astype(dtype))
            sizes.append(document.sizes.astype(np.int32))
        self.stream = np.concatenate(ids)  # (N,)
        self.ends = np.cumsum([len(part) for part in ids[1:]], dtype=np.int64)  # (documents,)
        self.first = 0 if self.packing.start_id is not None else 1  # of the stream that is a target
        starts = np.arange(self.first, len(self.stream), self.packing.stride)
        self.text_bytes = np.add.reduceat(np.concatenate(sizes), starts) if len(starts) else starts  # (blocks,)

    @property
    def tokens(self) -> int:
        """Targets in all blocks."""
        return max(len(self.stream) - self.first, 0)

    def __len__(self) -> int:
        return len(self.text_bytes)

    def at(self, index: int) -> Example:
        """Block number `index`."""
        begin = self.first + index * self.packing.stride
        targets = self.stream[begin : begin + self.packing.stride].astype(np.int64)
        start_id = self.packing.start_id
        before = int(self.stream[begin - 1]) if start_id is None else start_id
        numbers = np.searchsorted(self.ends, np.arange(begin, begin + len(targets)), side="right")
        return self.packing.example(targets, before, numbers, int(self.text_bytes[index]))


class Pairs(Examples):
    """Prompts with responses: the response and its EOS are targets; with `encoder` the prompt goes to `source`.

    With `fill` every row has that many targets: the response, then EOS to the end. A row (or source) longer than `max_length`, and a
    response that leaves no room for its EOS in `fill`, raise ValueError naming the record; with `truncate` the prompt, or the response,
    loses its end instead and `truncated` counts such rows. Without `fill` a response that does not fit by itself is always an error.
    Prompts first lose what they have beyond `prompt_length` tokens, wherever they then stand.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        encoder: bool = False,
        truncate: bool = False,
        fill: int | None = None,
        prompt_length: int | None = None,
    ) -> None:
        if tokenizer.eos_token_id is None:
            raise ValueError("the tokenizer has no EOS token, and nothing else can end a response: choose one that has it")
        if fill is not None and not 1 <= fill < max_length:
            raise ValueError(f"fill is {fill}, expected 1 target or more, and less than max_length {max_length}")
        self.end_id: int = tokenizer.eos_token_id
        self.start_id: int = self.end_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        self.max_length, self.encoder, self.truncate, self.fill, self.truncated = max_length, encoder, truncate, fill, 0
        self._rows: list[tuple[NDArray[np.int32], NDArray[np.int32], int]] = []  # prompt, response, bytes of the response
        encode = Encoder(tokenizer)
        prompts = encode([pair.prompt for pair in pairs])
        responses = encode([pair.response for pair in pairs])
        for number, (prompt, response) in enumerate(zip(prompts, responses, strict=True), 1):
            name = f"pair {number} ({pairs[number - 1].prompt[:40]!r})"
            room = len(response.ids) if fill is None else fill - 1
            kept, written = self._fitted(name, prompt.ids[:prompt_length], room), self._written(name, response, room)
            self.truncated += len(kept) < len(prompt.ids) or len(written.ids) < len(response.ids)
            self._rows.append((kept.astype(np.int32), written.ids.astype(np.int32), int(written.sizes.sum())))

    def __len__(self) -> int:
        return len(self._rows)

    def at(self, index: int) -> Example:
        """Pair number `index`."""
        prompt, response, text_bytes = self._rows[index]
        ends = 1 if self.fill is None else self.fill - len(response)
        target = [*response.tolist(), *[self.end_id] * ends]
        context = [self.start_id] if self.encoder else [self.start_id, *prompt.tolist(), self.end_id]
        return Example(
            tokens=context + target,
            target=[False] * len(context) + [True] * len(target),
            source=prompt.tolist() if self.encoder else (),
            text_bytes=text_bytes,
        )

    def _fitted(self, name: str, prompt: NDArray[np.int64], response: int) -> NDArray[np.int64]:
        """The prompt, cut to what `max_length` leaves for it beside a response of `response` tokens."""
        room = self.max_length if self.encoder else self.max_length - response - 3  # BOS, separator and EOS
        if response + 2 > self.max_length or room < 0:
            raise ValueError(f"{name}: the response has {response} tokens and does not fit into max_length {self.max_length}: raise it")
        if len(prompt) <= room:
            return prompt
        if not self.truncate:
            raise ValueError(
                f"{name}: the prompt has {len(prompt)} tokens, max_length {self.max_length} leaves {room}: raise it or truncate"
            )
        return prompt[:room]

    def _written(self, name: str, response: Encoded, room: int) -> Encoded:
        """The response, cut to `room` tokens."""
        if len(response.ids) <= room:
            return response
        if not self.truncate:
            raise ValueError(f"{name}: the response has {len(response.ids)} tokens, fill {self.fill} leaves {room}: raise it or truncate")
        return Encoded(response.ids[:room], response.sizes[:room])
