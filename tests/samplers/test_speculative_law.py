"""What speculation writes, over many rows: plain greedy decoding token for token, and the target's enumerated law; and a rule that must be
found out, to know that the others would be."""

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.backbones.stock_models import tiny
from tests.models.tiny import autoregressive, diffusion, trunk
from tests.samplers.test_autoregressive import continued
from tests.samplers.test_speculative import DRAFTER, ZERO, Echo, last, plain
from textdiff.batch import Batch
from textdiff.models.candidates import drafted_generate
from textdiff.prediction import Prediction, TablePrediction
from textdiff.processes.base import Denoiser, Process
from textdiff.processes.left_to_right import LeftToRight
from textdiff.processes.masked import Masked
from textdiff.processes.uniform import Uniform
from textdiff.randomness import Rng
from textdiff.samplers.confidence import Greedy, Threshold
from textdiff.samplers.drafting import AnyOrder, Draft, Drafting, FromText, LeftToRightChunks, Redrawn, Rule, Spec
from textdiff.samplers.first_hitting import FirstHitting
from textdiff.samplers.rates import Euler
from textdiff.samplers.speculative import Adaptive, DraftLength, Speculative
from textdiff.vocab import Vocab

GENERATOR = torch.Generator().manual_seed(1)
PROMPTS = [torch.randint(0, 6, (4 + row % 9,), generator=GENERATOR).tolist() for row in range(200)]
NEW = [9 + row % 7 for row in range(200)]
TARGET = autoregressive(seed=5, backbone=trunk(layers=3))
ERRING = Echo(TARGET, errs=(5, 9, 12, 14, 19))


def test_the_greedy_text_that_is_compared_turns_on_no_rounding_and_is_not_one_text() -> None:
    """The likeliest token leads the second by far more than float64 rounds, wherever one of the 200 rows is written."""
    batch = continued(PROMPTS, NEW)
    written = plain(batch, target=TARGET)[0]
    best = TARGET.predictor(batch)(written, batch.sample_id).logits(batch.target).detach().log_softmax(-1).topk(2).values
    assert float((best[:, 0] - best[:, 1]).min()) > 1e-7
    assert len({tuple(row[len(text) : len(text) + 9].tolist()) for row, text in zip(written, PROMPTS, strict=True)}) > 100


@pytest.mark.parametrize("length", [DraftLength(4), Adaptive(8)], ids=str)
@pytest.mark.parametrize(
    ("drafting", "drafter"),
    [
        (LeftToRightChunks(1), DRAFTER),
        (LeftToRightChunks(1), ERRING),
        (LeftToRightChunks(2), ERRING),
        (LeftToRightChunks(4), ERRING),
        (AnyOrder(Greedy(2)), ERRING),
        (AnyOrder(Threshold(tau=0.6)), ERRING),
        (AnyOrder(FirstHitting()), ERRING),
        (Redrawn(Euler(steps=2)), diffusion(process=Uniform())),
    ],
    ids=lambda part: str(part) if isinstance(part, Drafting) else "",
)
def test_200_ragged_rows_are_written_as_by_the_target_alone(drafting: Drafting, drafter: Denoiser, length: DraftLength) -> None:
    """In float64 and one batch; some drafts pass and some do not."""
    batch = continued(PROMPTS, NEW)
    found = last(Speculative(drafting, length), ZERO(TARGET), ZERO(drafter), batch)
    assert torch.equal(found.canvas.x, plain(batch, target=TARGET)[0])
    assert 0 < int(found.counts.accepted.sum()) < int(found.counts.tested.sum())


# Four ids of text and [MASK]; what the target believes hangs on two tokens, and what the drafter does on both neighbours.
FOUR, NONE = 4, Vocab(size=5, tokens=5, mask_id=4)
TOKEN = torch.softmax(1.2 * torch.randn(4, 4, 4, dtype=torch.float64, generator=GENERATOR), -1)
BELIEF = torch.softmax(1.2 * torch.randn(5, 5, 4, dtype=torch.float64, generator=GENERATOR), -1)
DRAWS = 100_000


@dataclass(frozen=True)
class Tabled:
    """A model of rows that all begin with the token 0; as target it may take back what it has read."""

    process: Process

    def predictor(self, batch: Batch) -> "TabledPredictor":
        return TabledPredictor(len(batch.tokens))

    def canvas(self, batch: Batch) -> tuple[Tensor, Tensor]:
        return batch.tokens, batch.target

    def decode(self, x0: Tensor) -> Tensor:
        return x0


class TabledPredictor:
    def __init__(self, rows: int) -> None:
        self.seen, self.count = torch.zeros(rows, 16, dtype=torch.long), torch.ones(rows, dtype=torch.long)  # a 0 before the row

    def rows(self, index: Tensor) -> "TabledPredictor":
        return TabledPredictor(len(index))

    def __call__(self, xt: Tensor, t: Tensor, previous: Prediction | None = None) -> TablePrediction:
        padded = F.pad(xt, (1, 1), value=FOUR)
        return TablePrediction(F.pad(BELIEF[padded[:, :-2], padded[:, 2:]], (0, 1)).log())

    def read_each(self, tokens: Tensor) -> TablePrediction:
        place = self.count[:, None] + torch.arange(tokens.shape[1])
        self.seen.scatter_(1, place, tokens)
        self.count = self.count + tokens.shape[1]
        return TablePrediction(TOKEN[self.seen.gather(1, place - 1), self.seen.gather(1, place)].log())

    def crop(self, count: Tensor) -> None:
        self.count = self.count - count


CAUSAL, MASKED, REPLACED = Tabled(LeftToRight()), Tabled(Masked().bind(NONE)), Tabled(Uniform().bind(NONE))
LAW = torch.einsum("a,ab,abc->abc", TOKEN[0, 0], TOKEN[0], TOKEN).flatten()


@dataclass(frozen=True)
class MostProbableDrawFirst(FromText):
    """Low-confidence remasking one token at a time, its beliefs told as the laws of its tokens: which they are not."""

    rule: ClassVar[Rule] = Spec()

    def check(self, drafter: Denoiser) -> None:
        pass

    def __call__(self, drafter: Denoiser, batch: Batch, rng: Rng) -> Draft:
        x, target = drafter.canvas(batch)
        calls = target.sum(1)
        x, left, law = x.masked_fill(target, FOUR), target.clone(), torch.zeros(*x.shape, 5, dtype=torch.float64)
        for step in range(int(calls.max())):
            pred = drafter.predictor(batch)(x, calls.double())
            drawn, log_prob = (part.view(x.shape) for part in pred.draw(torch.ones_like(left), rng.draw(step)))
            here = left & (torch.arange(x.shape[1]) == log_prob.masked_fill(~left, -torch.inf).argmax(1)[:, None])
            x, left, law = torch.where(here, drawn, x), left & ~here, torch.where(here[..., None], pred.logits().softmax(-1), law)
        return Draft(x, law[target], calls)


def chi_square(code: Tensor, probability: Tensor) -> tuple[float, float]:
    """The statistic of drawn codes against their law, and what a right law exceeds less than once in a thousand."""
    count, expected = torch.bincount(code, minlength=len(probability)), probability * len(code)
    assert float(expected.min()) > 5
    freedom = len(probability) - 1
    return float(((count - expected) ** 2 / expected).sum()), freedom + 3.1 * (2 * freedom) ** 0.5 + 6


def written_law(drafting: Drafting, drafter: Denoiser) -> tuple[float, float]:
    """Three tokens, 1e5 times, all of them in the first draft."""
    sampler, codes = Speculative(drafting, DraftLength(3)), []
    for ids in torch.arange(DRAWS).split(DRAWS // 50):  # small tensors stay in the cache
        batch = Batch.of(torch.zeros(len(ids), 5, dtype=torch.long), target=(torch.arange(5) > 0).expand(len(ids), 5), sample_id=ids)
        samples = sampler.sample(CAUSAL, batch, Rng(0, 0, ids), drafter)
        codes.append((samples[:, 1:4] * torch.tensor([16, 4, 1])).sum(1))
    return chi_square(torch.cat(codes), LAW)


@pytest.mark.parametrize(
    ("drafting", "drafter"),
    [
        (LeftToRightChunks(1), MASKED),
        (LeftToRightChunks(2), MASKED),
        (AnyOrder(Greedy(3)), MASKED),
        pytest.param(LeftToRightChunks(3), MASKED, marks=pytest.mark.slow),
        pytest.param(AnyOrder(FirstHitting()), MASKED, marks=pytest.mark.slow),
        pytest.param(Redrawn(Euler(steps=2)), REPLACED, marks=pytest.mark.slow),
    ],
    ids=lambda part: str(part) if isinstance(part, Drafting) else "",
)
def test_three_tokens_of_a_draft_follow_the_targets_law(drafting: Drafting, drafter: Denoiser) -> None:
    found, limit = written_law(drafting, drafter)
    assert found < limit


def test_laws_told_of_tokens_that_were_written_in_the_order_of_their_chances_are_found_out() -> None:
    """The same test, draws and models: it tells a biased rule from an exact one."""
    found, limit = written_law(MostProbableDrawFirst(), MASKED)
    assert found > 2 * limit


@pytest.mark.slow
@pytest.mark.parametrize("drafting", [LeftToRightChunks(1), LeftToRightChunks(2), AnyOrder(Greedy(2))], ids=str)
def test_the_stock_generate_with_drafts_follows_the_stock_models_law(drafting: FromText) -> None:
    """One row at a time, as transformers has it: 4,000 draws of three tokens, two of them drafted; 4 of the ids may be written."""
    target: Any = tiny("llama", num_hidden_layers=1, vocab_size=8).double()
    drafter = diffusion(Vocab(size=9, tokens=9, mask_id=8), seed=2, backbone=trunk(width=8, layers=1))
    ids = torch.tensor([[1, 3]])
    options: dict[str, Any] = {
        "suppress_tokens": [0, 1, 2, 3],
        "eos_token_id": 2,
        "pad_token_id": 0,
        "max_new_tokens": 3,
        "do_sample": True,
    }
    options |= {"top_k": 0, "temperature": 4.0}
    torch.manual_seed(0)
    rows = [drafted_generate(target, drafter, ids, drafting, longest=2, **options)[0, 2:] - 4 for _ in range(4_000)]
    code = (torch.stack(rows) * torch.tensor([16, 4, 1])).sum(1)
    texts = torch.cat([ids.expand(64, 2), torch.cartesian_prod(*[torch.arange(4, 8)] * 3)], 1)
    law = target(texts).logits.detach()[:, 1:-1, 4:].div(4).log_softmax(-1)
    found, limit = chi_square(code, law.gather(2, texts[:, 2:, None] - 4).sum((1, 2)).exp())
    assert found < limit
