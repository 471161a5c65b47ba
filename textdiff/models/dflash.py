"""A drafter as transformers' own `generate` takes it: `target.generate(ids, assistant_model=assistant(drafter), speculation_type="dflash")`
of a stock causal model, with its processors, streamers and outputs."""

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import DFlashCache
from transformers.modeling_outputs import BaseModelOutput

from textdiff.backbones.drafter import BlockPlace, DrafterTrunk
from textdiff.models.feature_drafter import FeatureDrafter


class AssistantConfig(PreTrainedConfig):
    """What transformers reads of a drafter."""

    model_type = "textdiff-dflash-assistant"
    target_layer_ids: tuple[int, ...] = ()
    block_size: int = 8
    mask_token_id: int = 0  # any id: a blank has a vector of the drafter's own
    num_hidden_layers: int = 1


class Assistant(PreTrainedModel):
    """The trunk of a drafter behind the interface that transformers 5.23 calls; embedding and head are the target's."""

    config: AssistantConfig
    trunk: DrafterTrunk

    def __init__(self, config: AssistantConfig, trunk: DrafterTrunk) -> None:
        super().__init__(config)
        self.trunk = trunk

    def forward(
        self, noise_embeds: Tensor, context_hidden_states: Tensor, position_ids: Tensor, attention_mask: Tensor | None, past_key_values: Any
    ) -> BaseModelOutput:
        """Hidden states (1, block, H) of a block that begins with the vector noise_embeds[:, 0].

        `context_hidden_states` (1, n, features times H) are those of the tokens read since the last call, `position_ids` (1, n + block)
        theirs and the block's, `attention_mask` (1, all) 0 where the prompt is padding.
        """
        n = context_hidden_states.shape[1]
        text = self.trunk.keys_values(context_hidden_states, position_ids[:, :n])
        padded = attention_mask is not None and not bool(attention_mask.all())
        mask = attention_mask[:, None, None].bool() if padded and attention_mask is not None else None
        place = BlockPlace(self.trunk.rotation(position_ids[:, n:]), mask)
        hidden = self.trunk(self.trunk.block(noise_embeds[:, 0]), place, cache=_Appended(past_key_values, text))
        return BaseModelOutput(last_hidden_state=hidden)


class _Appended:
    """transformers' cache, given the keys and values of new text in front of the block's."""

    def __init__(self, cache: DFlashCache, text: list[tuple[Tensor, Tensor]]) -> None:
        self.cache, self.text, self.length = cache, text, 0

    def update(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        before = self.text[layer]
        keys, values = self.cache.update(torch.cat([before[0], key], dim=2), torch.cat([before[1], value], dim=2), layer)
        return keys, values

    def advance(self, n: int) -> None:
        pass


def assistant(drafter: FeatureDrafter) -> Assistant:
    """The drafter as an `assistant_model` of its stock target; raises ValueError where that is no stock model."""
    if drafter.target.backbone.trunk is None:
        raise ValueError("the drafter's target is no stock model, whose generate takes no assistant: use Speculative(FromFeatures())")
    vocab, network = drafter.vocab, drafter.spec.backbone
    config = AssistantConfig(
        target_layer_ids=drafter.spec.target.layers,
        block_size=network.block,
        mask_token_id=vocab.eos_id or 0,
        num_hidden_layers=network.layers,
    )
    return Assistant(config, drafter.backbone)
