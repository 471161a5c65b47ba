"""A diffusion model that drafts for a stock causal model's own `generate`, with its processors, streamers and outputs."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel
from transformers.generation.candidate_generator import CandidateGenerator

from textdiff.batch import Batch
from textdiff.processes.base import Denoiser
from textdiff.randomness import Rng
from textdiff.samplers.drafting import FromText


class DraftCandidates(CandidateGenerator):
    """transformers' way to ask for a draft of up to `longest` tokens of a row that ends at `max_length`; `states` are the target's rows.

    Where the law of the draft is known it is told, and sampling accepts by min(1, p / q); else by a match with the target's own draw.
    """

    def __init__(self, drafter: Denoiser, drafting: FromText, longest: int, max_length: int, states: int, seed: int) -> None:
        self.drafter, self.drafting, self.longest = drafter, drafting, longest
        self.max_length, self.states, self.seed = max_length, states, seed

    def get_candidates(self, input_ids: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor | None]:  # type: ignore[override]
        """The row (1, n) with its draft behind it, (1, n + g), and the laws of the drafted tokens as logits (1, g, V) if known."""
        n = input_ids.shape[1]
        count = min(self.longest, self.max_length - n - 1)
        if count < 1:
            return input_ids, None
        tokens = F.pad(input_ids, (0, count))
        batch = Batch.of(tokens, target=(torch.arange(n + count, device=tokens.device) >= n)[None])
        draft = self.drafting(self.drafter, batch, Rng(self.seed, n, batch.sample_id))
        law = draft.law
        return draft.tokens, None if law is None else F.pad(law, (0, self.states - law.shape[1])).log()[None]


@torch.no_grad()
def drafted_generate(
    target: PreTrainedModel,
    drafter: Denoiser,
    input_ids: Tensor,
    drafting: FromText,
    longest: int = 8,
    **options: Any,
) -> Any:
    """`target.generate(input_ids, **options)` of one row (1, n) with drafts of up to `longest` tokens.

    Raises ValueError where the drafter cannot draft so. The drafter has the target's ids (`speculation.require_same_ids`).
    """
    drafting.check(drafter)

    def candidates(generation_config: Any, **kwargs: Any) -> DraftCandidates:
        states, seed = target.get_output_embeddings().weight.shape[0], int(torch.randint(2**31, ()))
        return DraftCandidates(drafter, drafting, longest, generation_config.max_length, int(states), seed)

    model: Any = target
    model._get_candidate_generator = candidates  # transformers takes no generator as an argument
    try:
        return model.generate(input_ids, prompt_lookup_num_tokens=longest, **options)
    finally:
        del model._get_candidate_generator
