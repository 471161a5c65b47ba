"""Speculative sampling: a diffusion model drafts, a causal model tests the draft in one pass (Leviathan et al. 2023; SpecDiff,
Christopher et al. 2024), and what is written follows the causal model's law, token for token its own choice at temperature 0."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from textdiff.batch import Batch
from textdiff.prediction import Prediction, draw_categorical
from textdiff.processes.base import Denoiser
from textdiff.processes.left_to_right import LeftToRight
from textdiff.randomness import Rng
from textdiff.samplers.autoregressive import require_beginning
from textdiff.samplers.base import Canvas, Sampler
from textdiff.samplers.drafting import Draft, Drafting, Drafts, LeftToRightChunks, Place, Rule


@runtime_checkable
class Rewinding(Protocol):
    """A predictor that reads left to right and can forget what it read last."""

    def read_each(self, tokens: Tensor) -> Prediction:
        """Read `tokens` (B, n) after all that was read before; the belief about the token after each, (B, n)."""
        ...

    def crop(self, count: Tensor) -> None:
        """Forget the last `count` (B,) tokens of each row."""
        ...


@dataclass(frozen=True)
class DraftLength:
    """How many tokens to draft: always `longest`."""

    longest: int = 8

    def __post_init__(self) -> None:
        if self.longest < 1:
            raise ValueError(f"draft length is {self.longest}, expected 1 or more")

    def __call__(self, accepted: Tensor, tested: Tensor) -> Tensor:
        """(B,) long, from how many tokens were accepted and tested in each row so far, (B,) float64, the older ones counting less."""
        return torch.full_like(accepted, self.longest, dtype=torch.long)


@dataclass(frozen=True)
class Adaptive(DraftLength):
    """As many tokens, up to `longest`, as are all accepted with a chance of at least `worth`, were each accepted as often as of late."""

    longest: int = 16
    worth: float = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.worth < 1:
            raise ValueError(f"worth is {self.worth}, expected a chance between 0 and 1")

    def __call__(self, accepted: Tensor, tested: Tensor) -> Tensor:
        rate = (accepted + 4) / (tested + 5)  # begins hopeful
        many = torch.tensor(self.worth, dtype=torch.float64).log() / rate.log()
        return many.clamp(1, self.longest).long()


class Counts(NamedTuple):
    """What a run has cost and written so far."""

    passes: Tensor  # (B,) long, calls of the target, the one that reads the prompt included
    drafter_calls: Tensor  # (B,) long
    emitted: Tensor  # (B,) long, tokens written
    tested: Tensor  # (B, G) long, how often the i-th token of a draft was tested, that is, all before it were accepted
    accepted: Tensor  # (B, G) long, and was accepted


class Round(NamedTuple):
    """One draft, tested: the canvas after it, and the counts so far."""

    canvas: Canvas
    counts: Counts


class Verdict(NamedTuple):
    """The test of one draft."""

    accepted: Tensor  # (B,) long, how many leading tokens pass
    chance: Tensor  # (B, G) float64, of each token to pass
    law: Tensor  # (B, V) float64, not normalised: what the token after the accepted ones is drawn from


def verdict(rule: Rule, p: Tensor, tokens: Tensor, q: Tensor | None, tested: Tensor, given: Tensor, uniform: Tensor) -> Verdict:
    """Test drafted `tokens` (B, G) against the target's laws p (B, G + 1, V) with `uniform` (B, G) numbers.

    q (B, G, V) is what they were drawn from, if the rule asks for it. A row ends with its `tested` (B, G) positions, and passes those that
    are `given` (B, G) anyway.
    """
    rows = torch.arange(len(p), device=p.device)
    asked = tokens[..., None]
    chance = rule.chance(p[:, :-1].gather(2, asked)[..., 0], None if q is None else q.gather(2, asked)[..., 0])
    chance = chance.masked_fill(given, 1.0).masked_fill(~tested, 0.0)
    accepted = (uniform < chance).long().cumprod(1).sum(1)
    here, last = p[rows, accepted], accepted.clamp_max(tokens.shape[1] - 1)
    rest = rule.rest(here, None if q is None else q[rows, last], tokens[rows, last])
    return Verdict(accepted, chance, rest.where((accepted < tested.sum(1))[:, None], here))


@dataclass(frozen=True)
class Speculative(Sampler):
    """Rounds of a draft and one pass of the target over it; every row goes on from its own place. `drafting` decides the rule of the test.

    Rows are a prompt, then targets; what stands between targets is read as given. `eos_id` >= 0 ends a row at its first written end token.
    """

    requires: ClassVar[type[LeftToRight]] = LeftToRight
    law: ClassVar[str] = "exact"
    drafting: Drafting = LeftToRightChunks()
    length: DraftLength = DraftLength()
    eos_id: int = -1

    def trajectory(self, denoiser: Denoiser, batch: Batch, rng: Rng, drafter: Denoiser | None = None) -> Iterator[Canvas]:
        """The canvases of `rounds`; raises ValueError without a drafter."""
        if drafter is None:
            raise ValueError("Speculative needs a second model that drafts: give it as drafter, or use textdiff speculate")
        for step in self.rounds(denoiser, drafter, batch, rng):
            yield step.canvas

    def sample(self, denoiser: Denoiser, batch: Batch, rng: Rng, drafter: Denoiser | None = None) -> Tensor:
        """Token ids (B, L): the targets written, everything else untouched."""
        *_, last = self.trajectory(denoiser, batch, rng, drafter)
        return last.x

    @torch.no_grad()
    def rounds(self, target: Denoiser, drafter: Denoiser, batch: Batch, rng: Rng) -> Iterator[Round]:
        """The canvas and the counts at the start and after each round.

        Raises ValueError where a model does not fit, or a row begins with a target or with padding. The two must share their ids, which
        `models.speculation.require_same_ids` checks.
        """
        self.check(target)
        self.drafting.check(drafter)
        x, wanted = target.canvas(batch)
        require_beginning(wanted, batch.attend)
        predictor = target.predictor(batch)
        assert isinstance(predictor, Rewinding)
        drafts = self.drafting.begin(target, drafter, batch)
        state = _State(x, wanted, self.length.longest)
        yield state.round()
        number = 0
        while bool(state.running.any()):
            self._round(state, predictor, drafts, rng.draw(number))
            number += 1
            yield state.round()

    def _round(self, state: "_State", predictor: Rewinding, drafts: Drafts, rng: Rng) -> None:
        size = state.draft_sizes(self.length).clamp_max(drafts.most)
        most = max(int(size.max()), 1)
        places, ahead = state.places(most), torch.arange(most, device=size.device)
        tested, given = ahead < size[:, None], ~state.wanted.gather(1, places)
        asked = tested & ~given[:, :most]
        draft = Draft(state.x, state.x.new_zeros(0, 1, dtype=torch.float64), torch.zeros_like(size))
        if bool(asked.any()):
            draft = drafts(Place(state.x, state.settled, state.wanted, size), rng.draw(0))
        with drafts.listening():
            p = state.read(predictor, draft.tokens, most)
        tokens = draft.tokens.gather(1, places)
        q = None if draft.law is None else _placed(draft.law, asked, p.shape[2])
        found = verdict(self.drafting.rule, p, tokens[:, :most], q, tested, given[:, :most], rng.uniform("accept", (most,)))
        fresh, _ = draw_categorical(found.law.log(), rng.uniform("emit", ()))
        tokens = tokens.scatter(1, found.accepted[:, None], fresh[:, None])
        forgotten = state.write(tokens.where(~given, state.x.gather(1, places)), given, found.accepted, self.eos_id)
        predictor.crop(forgotten)
        drafts.crop(forgotten)
        state.count(found.accepted, asked, draft.calls)


def _placed(q: Tensor, where: Tensor, states: int) -> Tensor:
    """Laws (N, V) at the True positions of `where` (B, G), as (B, G, states): ids that only one of the models has are never drawn."""
    table = q.new_zeros(*where.shape, states)
    table[where] = F.pad(q, (0, states - q.shape[1]))
    return table


class _State:
    """Where every row of a run stands."""

    def __init__(self, x: Tensor, wanted: Tensor, longest: int) -> None:
        rows, length = x.shape
        self.x, self.wanted = x, wanted
        some, column = wanted.any(1), torch.arange(length, device=x.device)
        self.settled = torch.where(some, wanted.long().argmax(1), 1)  # (B,) tokens that are final
        self.end = torch.where(some, (column * wanted).amax(1) + 1, 1)  # (B,) tokens of the finished row
        self.seen = torch.zeros_like(self.settled)  # (B,) tokens that the target has read
        self.passes, self.drafter_calls, self.emitted = (torch.zeros_like(self.settled) for _ in range(3))
        self.tested, self.accepted = (torch.zeros(rows, longest, dtype=torch.long, device=x.device) for _ in range(2))
        self.lately = torch.zeros(2, rows, dtype=torch.float64, device=x.device)  # accepted and tested, the older counting less

    @property
    def running(self) -> Tensor:
        """(B,) bool: rows that are not finished."""
        return self.settled < self.end

    def draft_sizes(self, length: DraftLength) -> Tensor:
        """(B,) how many tokens to draft: the one after them comes from the target and must fit too."""
        room = (self.end - self.settled - 1).clamp_min(0)
        return torch.minimum(length(*self.lately), room)

    def places(self, most: int) -> Tensor:
        """(B, most + 1) the positions of a draft and of the token after it; beyond the row, where nothing is written, its last."""
        ahead = torch.arange(most + 1, device=self.x.device)
        return (self.settled[:, None] + ahead).clamp_max(self.x.shape[1] - 1)

    def read(self, predictor: Rewinding, drafted: Tensor, most: int) -> Tensor:
        """The target's laws at the positions of the draft and after it, (B, most + 1, V) float64."""
        first = self.settled - 1 - self.seen  # where in this pass the last settled token stands
        column = torch.arange(int(first.max()) + 1 + most, device=drafted.device)
        tokens = drafted.gather(1, (self.seen[:, None] + column).clamp_max(drafted.shape[1] - 1))
        where = (column >= first[:, None]) & (column <= (first + most)[:, None])
        self.seen = self.seen + len(column)
        logits = predictor.read_each(tokens).logits(where)
        return logits.double().softmax(-1).unflatten(0, (len(first), most + 1))

    def write(self, tokens: Tensor, given: Tensor, accepted: Tensor, eos_id: int) -> Tensor:
        """Settle the accepted ones of `tokens` (B, most + 1) and the one after them, up to an end token; how many of the tokens that the
        target has read are to be forgotten, (B,)."""
        ahead = torch.arange(tokens.shape[1], device=tokens.device)
        ends = (tokens == eos_id) & ~given
        keep = (ahead <= accepted[:, None]) & (ends.cumsum(1) - ends.long() == 0) & self.running[:, None]
        row, column = keep.nonzero(as_tuple=True)
        self.x = self.x.clone()
        self.x[row, self.settled[row] + column] = tokens[keep]
        self.passes = self.passes + self.running
        self.emitted = self.emitted + (keep & ~given).sum(1)
        self.settled = self.settled + keep.sum(1)
        self.end = self.end.where(~(keep & ends).any(1), self.settled)
        forgotten, self.seen = self.seen - (self.settled - 1), self.settled - 1
        return forgotten

    def count(self, accepted: Tensor, tested: Tensor, calls: Tensor) -> None:
        """Book a round in which `accepted` (B,) leading tokens passed of those `tested` (B, most), drafted in `calls` (B,)."""
        self.drafter_calls = self.drafter_calls + calls
        ahead = torch.arange(tested.shape[1], device=tested.device)
        reached, passed = tested & (ahead <= accepted[:, None]), tested & (ahead < accepted[:, None])
        most = tested.shape[1]
        self.tested[:, :most] += reached
        self.accepted[:, :most] += passed
        self.lately = 0.9 * self.lately + torch.stack([passed.sum(1), reached.sum(1)])

    def round(self) -> Round:
        """The canvas and the counts as they stand."""
        column = torch.arange(self.x.shape[1], device=self.x.device)
        settled = ~self.wanted | (column < self.settled[:, None]) | ~self.running[:, None]
        left = float((~settled).sum() / self.wanted.sum().clamp_min(1))
        counts = Counts(self.passes, self.drafter_calls, self.emitted, self.tested.clone(), self.accepted.clone())
        return Round(Canvas(self.x, left, self.passes, settled), counts)
