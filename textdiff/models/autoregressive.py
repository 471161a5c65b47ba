"""The rival: each token from those before it, with an exact likelihood."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from textdiff import spec as plain
from textdiff.backbones.attention_masks import positions
from textdiff.backbones.base import Backbone, BackboneConfig, Context
from textdiff.backbones.transformer import TransformerConfig
from textdiff.batch import Batch
from textdiff.guidance.base import Guidance
from textdiff.models.base import LanguageModel, Loss, ModelSpec, TextDiffConfig
from textdiff.models.generation import Streamer, TextDiffusionGenerationConfig, TextDiffusionGenerationMixin, TextDiffusionOutput
from textdiff.prediction import HeadPrediction, Prediction
from textdiff.processes.left_to_right import LeftToRight
from textdiff.projection import Head
from textdiff.randomness import Rng
from textdiff.samplers.autoregressive import Autoregressive
from textdiff.samplers.base import Sampler
from textdiff.vocab import Vocab


class AutoregressiveConfig(TextDiffConfig):
    """`config.json` of an `AutoregressiveLM`."""

    model_type = "textdiff-autoregressive"


@dataclass(frozen=True)
class AutoregressiveSpec(ModelSpec):
    """An autoregressive model without its weights."""

    backbone: BackboneConfig = field(default_factory=TransformerConfig)

    def build(self, vocab: Vocab, backbone: Backbone | None = None) -> "AutoregressiveLM":
        """The model with fresh weights, or around a trunk that already has them."""
        config = AutoregressiveConfig(spec=plain.to_plain(self), vocab=plain.to_plain(vocab))
        return AutoregressiveLM(config, backbone)


class CausalPredictor:
    """A causal trunk bound to one batch: whole rows at once when called, or some tokens at a time with a cache through `read`.

    What is written is drawn through `writer`, the head without the ids that may not be; likelihoods keep the normaliser of `head`.
    """

    def __init__(self, backbone: Backbone, context: Context, head: Head, writer: Head, length: int) -> None:
        self.backbone, self.context, self.head, self.writer, self.length = backbone, context, head, writer, length
        self._cache: Any = None  # made when first read into

    def __call__(self, xt: Tensor, t: Tensor, previous: Prediction | None = None) -> HeadPrediction:
        """Belief about every token from those before it; nothing is before the first, whose belief is meaningless."""
        hidden = self.backbone(xt, self.context)
        return HeadPrediction(torch.cat([hidden[:, :1], hidden[:, :-1]], dim=1), self.head)

    def rows(self, index: Tensor) -> "CausalPredictor":
        """The same, with an empty cache, for a subset of rows."""
        return CausalPredictor(self.backbone, self.context.rows(index), self.head, self.writer, self.length)

    def read(self, tokens: Tensor) -> HeadPrediction:
        """Append `tokens` (B, n) to what was read; belief about the next token, (B, 1)."""
        return HeadPrediction(self._appended(tokens)[:, -1:], self.writer)

    def read_each(self, tokens: Tensor) -> HeadPrediction:
        """Append `tokens` (B, n) to what was read; belief about the token after each of them, (B, n)."""
        return HeadPrediction(self._appended(tokens), self.writer)

    def crop(self, count: Tensor) -> None:
        """Forget the last `count` (B,) tokens of each row."""
        self._cache.crop(count)

    def _appended(self, tokens: Tensor) -> Tensor:
        if self._cache is None:
            self._cache = self.backbone.cache(self.length)
        hidden: Tensor = self.backbone(tokens, self.context, cache=self._cache)
        return hidden


class AutoregressiveLM(TextDiffusionGenerationMixin, LanguageModel):  # type: ignore[misc]
    """A causal language model; its likelihood is exact."""

    config: AutoregressiveConfig
    nll_is_bound = False
    process = LeftToRight()

    def __init__(self, config: AutoregressiveConfig, backbone: Backbone | None = None, trusted: tuple[str, ...] = ("textdiff",)) -> None:
        super().__init__(config, trusted)
        self.backbone = self.spec.backbone.build(self.vocab, causal=True) if backbone is None else backbone
        self.post_init()

    def _head(self) -> Head:
        # A stock model keeps its own normaliser, so that its likelihood is the one transformers computes.
        return self.backbone.head(self.vocab.unemittable if self.backbone.trunk is None else ())

    def predictor(self, batch: Batch) -> CausalPredictor:
        """The network bound to a batch."""
        writer = self.backbone.head(self.vocab.unemittable)
        return CausalPredictor(self.backbone, self.backbone.context(batch), self._head(), writer, batch.tokens.shape[1])

    def canvas(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The tokens are their own state."""
        return batch.tokens, batch.target

    def decode(self, x0: Tensor) -> Tensor:
        """The state is the tokens."""
        return x0

    def default_sampler(self, steps: int | None = None) -> Sampler:
        if steps is not None:
            raise ValueError("an autoregressive model takes one step per token: leave max_denoising_steps out")
        return Autoregressive(eos_id=-1 if self.vocab.eos_id is None else self.vocab.eos_id)

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        generation_config: TextDiffusionGenerationConfig | None = None,
        streamer: Streamer | None = None,
        sampler: Sampler | None = None,
        guidance: Guidance | None = None,
        source: Tensor | None = None,
        **kwargs: Any,
    ) -> TextDiffusionOutput:
        """Continue prompts (B, P), padded on either side; a stock trunk samples with its own `generate` and key-value cache."""
        trunk = self.backbone.trunk
        if trunk is None:
            return super().generate(input_ids, attention_mask, generation_config, streamer, sampler, guidance, source, **kwargs)
        if guidance is not None or source is not None:
            raise ValueError("a stock causal model takes neither guidance nor a source: leave them out")
        if sampler is not None and not isinstance(sampler, Autoregressive):
            sampler.check(self)
        config = self._options(generation_config, sampler, kwargs)
        self.default_sampler(config.max_denoising_steps)  # refuses options that mean nothing here
        input_ids, attention_mask = self._prompt(input_ids, attention_mask)
        self._fits(int(attention_mask.sum(1).max()), config.max_new_tokens)
        new = self._continued(input_ids, attention_mask, streamer, config)
        calls = torch.full((len(new),), new.shape[1], device=new.device)
        return TextDiffusionOutput(torch.cat([input_ids, new], dim=1), calls, torch.ones_like(calls, dtype=torch.float32))

    def _continued(
        self, input_ids: Tensor, attention_mask: Tensor, streamer: Streamer | None, config: TextDiffusionGenerationConfig
    ) -> Tensor:
        """The new tokens (B, n) of the stock `generate`, which wants its padding on the left and would add its own defaults."""
        trunk = self.backbone.trunk
        order = attention_mask.argsort(dim=1, stable=True)
        left, attend = input_ids.gather(1, order), attention_mask.gather(1, order)
        defaults, trunk.generation_config = trunk.generation_config, GenerationConfig()
        try:
            with torch.random.fork_rng(enabled=config.seed is not None):
                if config.seed is not None:
                    torch.manual_seed(config.seed)
                sequences = trunk.generate(left, attention_mask=attend, streamer=streamer, **self._stock_options(config))
        finally:
            trunk.generation_config = defaults
        new: Tensor = sequences[:, input_ids.shape[1] :]
        return new

    def _stock_options(self, config: TextDiffusionGenerationConfig) -> dict[str, Any]:
        filters, vocab = config.filters(), self.vocab
        ids = {"pad_token_id": vocab.eos_id if vocab.pad_id is None else vocab.pad_id, "eos_token_id": vocab.eos_id}
        banned = list(vocab.unemittable) or None
        options = {"max_new_tokens": config.max_new_tokens, "suppress_tokens": banned, "return_dict_in_generate": False, **ids}
        if filters.temperature == 0:
            return {**options, "do_sample": False}
        return {**options, "do_sample": True, "temperature": filters.temperature, "top_k": filters.top_k, "top_p": filters.top_p}

    def _nats(self, batch: Batch) -> Tensor:
        if bool((batch.target & (positions(batch.document) == 0)).any()):
            raise ValueError("the first token of a row, or of an isolated document, cannot be scored left to right: begin each with BOS")
        pred = self.predictor(batch)(batch.tokens, batch.sample_id)
        log_prob = pred.log_prob(batch.tokens, batch.target)
        return torch.zeros(batch.tokens.shape, dtype=log_prob.dtype, device=log_prob.device).masked_scatter(batch.target, -log_prob)

    def forward(self, batch: Batch, seed: int, step: int, progress: float = 1.0) -> Loss:
        total = self._nats(batch).sum()
        return Loss(total, batch.target.sum(), total.detach(), {})

    @torch.no_grad()
    def nll(self, batch: Batch, rng: Rng, draw: int = 0, draws: int = 1) -> Tensor:
        return self._nats(batch).double().sum(1)
