import pytest
import torch

from tests.backbones.reading import ROUNDS, read_and_taken_back
from tests.backbones.stock_models import CAUSAL, tiny
from tests.models.tiny import diffusion
from tests.samplers.test_autoregressive import continued
from tests.samplers.test_speculative import ZERO, prompts
from textdiff.backbones.pretrained import Pretrained
from textdiff.batch import Batch
from textdiff.models.autoregressive import AutoregressiveLM, AutoregressiveSpec
from textdiff.randomness import Rng
from textdiff.samplers.autoregressive import Autoregressive
from textdiff.samplers.drafting import LeftToRightChunks
from textdiff.samplers.speculative import DraftLength, Speculative
from textdiff.vocab import Vocab

VOCAB = Vocab(size=64, tokens=60, pad_id=0, bos_id=1, eos_id=2)


def stock(name: str) -> AutoregressiveLM:
    """In double precision, so that equal means equal to rounding; 60 of its 64 rows are tokens."""
    trunk = Pretrained(name=name).wrap(tiny(name).double(), VOCAB, causal=True)
    return AutoregressiveSpec(backbone=Pretrained(name=name)).build(VOCAB, trunk).eval()


@pytest.mark.parametrize("name", CAUSAL)
@torch.no_grad()
def test_rows_that_go_on_from_places_of_their_own_are_read_as_whole_rows(name: str) -> None:
    model = stock(name)
    tokens = torch.randint(3, 60, (3, 17), generator=torch.Generator().manual_seed(1))
    batch = Batch.of(tokens)
    whole = model.backbone(tokens, model.backbone.context(batch))
    for row, read in enumerate(read_and_taken_back(model.predictor(batch), tokens, ROUNDS)):
        assert len(read) == sum(kept[row] for _, kept in ROUNDS)
        torch.testing.assert_close(read, whole[row, : len(read)], atol=1e-6, rtol=1e-6)  # GPT-J turns its queries in single precision


@pytest.mark.parametrize("name", ["gpt2", "mistral", "gemma3_text"])
def test_speculation_writes_what_the_stock_model_alone_does(name: str) -> None:
    """Against the stock `generate`, and against textdiff's own plain sampling, in a ragged batch."""
    model, drafter = stock(name), diffusion(Vocab(size=61, tokens=61, mask_id=60))
    batch = continued([[1, *prompt] for prompt in prompts(5)], 11)
    rng = Rng(0, 0, batch.sample_id)
    plain = Autoregressive(eos_id=2).sample(ZERO(model), batch, rng)
    for drafting in (LeftToRightChunks(), LeftToRightChunks(2)):
        samples = Speculative(drafting, DraftLength(4), eos_id=2).sample(ZERO(model), batch, rng, drafter)
        assert torch.equal(samples, plain)
    for row, prompt in enumerate(prompts(5)):
        ids = torch.tensor([[1, *prompt]])
        sequences = model.generate(ids, max_new_tokens=11, do_sample=False).sequences
        assert sequences is not None
        assert sequences[0].tolist() == plain[row, : sequences.shape[1]].tolist()


def test_a_state_that_no_token_can_be_taken_out_of_is_refused() -> None:
    model = stock("lfm2")
    with pytest.raises(ValueError, match="keeps a state that no token can be taken out of: choose a target with attention only"):
        model.predictor(Batch.of(torch.tensor([[1, 5]]))).read(torch.tensor([[1, 5]]))
