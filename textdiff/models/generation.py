"""`generate` in the shapes of transformers: the names and the streamer contract of its own text diffusion model (DiffusionGemma)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor
from transformers import GenerationConfig
from transformers.utils.generic import ModelOutput

from textdiff import spec as plain
from textdiff.batch import Batch
from textdiff.guidance.base import Guidance
from textdiff.guidance.filters import Filters
from textdiff.processes.base import Denoiser
from textdiff.processes.left_to_right import LeftToRight
from textdiff.randomness import Rng
from textdiff.samplers.base import Canvas, Sampler, written
from textdiff.vocab import Vocab


class TextDiffusionGenerationConfig(GenerationConfig):
    """`generation_config.json`: how a model generates unless a call says otherwise.

    `max_new_tokens`, `max_denoising_steps`, `sampler_config` (a `Sampler` or its plain form), `temperature`, `top_k`, `top_p`, `do_sample`
    (False means temperature 0), `seed` (None: drawn from torch's generator) and the special ids. Anything else is refused.
    """

    _OWN = ("max_new_tokens", "max_denoising_steps", "sampler_config", "temperature", "top_k", "top_p", "do_sample", "seed")
    _IDS = ("mask_token_id", "pad_token_id", "bos_token_id", "eos_token_id")

    def __init__(self, **kwargs: Any) -> None:
        known = (*self._OWN, *self._IDS)
        for name in kwargs:
            if name not in (*known, "transformers_version"):
                raise ValueError(f"generate got {name!r}, which it does not read; it reads {', '.join(known)}")
        own = {name: kwargs.pop(name, None) for name in ("max_denoising_steps", "sampler_config", "seed", "mask_token_id")}
        super().__init__(**kwargs)
        self.max_new_tokens = 64 if self.max_new_tokens is None else self.max_new_tokens
        self.max_denoising_steps: int | None = own["max_denoising_steps"]
        sampler = own["sampler_config"]
        self.sampler_config: dict[str, Any] | None = plain.to_plain(sampler) if isinstance(sampler, Sampler) else sampler
        self.seed: int | None = own["seed"]
        self.mask_token_id: int | None = own["mask_token_id"]

    @classmethod
    def from_model_config(cls, model_config: Any) -> "TextDiffusionGenerationConfig":
        """Model configurations hold nothing about generation."""
        raise NotImplementedError

    def validate(self, *args: Any, **kwargs: Any) -> None:
        """Raise ValueError for values that generation cannot use; transformers' own rules refuse 0 new tokens and a temperature without
        `do_sample`, which mean infilling and sampling here."""
        self.filters()
        if self.max_new_tokens is not None and self.max_new_tokens < 0:
            raise ValueError(f"max_new_tokens is {self.max_new_tokens}, expected 0 or more")

    def updated(self, **changes: Any) -> "TextDiffusionGenerationConfig":
        """A copy with some fields changed; raises ValueError for a field that generation does not read."""
        own = {name: vars(self)[name] for name in (*self._OWN, *self._IDS)}
        return TextDiffusionGenerationConfig(**{**own, **changes})

    def filters(self) -> Filters:
        """Temperature, top-k and top-p as guidance."""
        temperature = 0.0 if self.do_sample is False else 1.0 if self.temperature is None else self.temperature
        return Filters(temperature, self.top_k or 0, 1.0 if self.top_p is None else self.top_p)


@dataclass
class TextDiffusionOutput(ModelOutput):
    """What `generate` returns."""

    sequences: Tensor | None = None  # (B, P + new) long, prompt included; padding after the end of a row
    nfe: Tensor | None = None  # (B,) long, network calls each row took part in
    tokens_per_forward: Tensor | None = None  # (B,) generated tokens per call, the end token included and the padding after it not


class Streamer(Protocol):
    """The protocol of transformers' streamers; one with `put_draft` also sees every canvas."""

    def put(self, value: Tensor) -> None: ...

    def end(self) -> None: ...


class DraftStreamer(Streamer, Protocol):
    """A streamer that shows drafts, such as transformers' TextDiffusionStreamer."""

    def put_draft(self, value: Tensor) -> None: ...


class _Prompt(NamedTuple):
    batch: Batch  # right-padded canvas: each row's prompt, then its blanks
    generated: Tensor  # (B, N) long, the canvas columns of the new tokens
    kept: Tensor  # (B, P) bool, prompt tokens that are not padding


class TextDiffusionGenerationMixin:
    """Adds `generate` to a language model that is a `Denoiser`."""

    generation_config_class = TextDiffusionGenerationConfig
    generation_config: TextDiffusionGenerationConfig
    vocab: Vocab

    def default_sampler(self, steps: int | None = None) -> Sampler:
        """The sampler used when nobody names one, with a number of steps where it has one."""
        raise NotImplementedError

    def in_blocks(self, sampler: Sampler) -> Sampler:
        """The sampler to run when `sampler` is asked for."""
        return sampler

    def adjust_generation_fn(
        self, generation_config: Any, from_auto_class: Any, from_pipeline: Any, folder: Any, *args: Any, **kwargs: Any
    ) -> None:
        """Called by `from_pretrained`: read generation_config.json beside the weights."""
        if generation_config is not None:
            self.generation_config = generation_config
            return
        names = ("cache_dir", "force_download", "proxies", "local_files_only", "token", "revision", "subfolder")
        try:
            options = {name: kwargs[name] for name in names if name in kwargs}
            self.generation_config = cast(TextDiffusionGenerationConfig, TextDiffusionGenerationConfig.from_pretrained(folder, **options))
        except OSError as error:
            if (Path(folder) / "generation_config.json").is_file():
                raise ValueError(f"{folder}/generation_config.json is not valid JSON: mend it or remove it") from error
            # A folder without the file: the defaults stand.
            self.generation_config = TextDiffusionGenerationConfig()

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
        """Continue prompts (B, P), padded on either side, by `max_new_tokens`, and fill every mask token in them.

        `source` (B, S) is the condition of models that take one, such as a label (B, 1); the filters act on what `guidance` believes.
        Raises ValueError for prompts that do not fit the model, a sampler that does not fit its process, and unknown options.
        """
        denoiser: Any = self
        config = self._options(generation_config, sampler, kwargs)
        sampler = self._sampler(config) if sampler is None else sampler
        input_ids, attention_mask = self._prompt(input_ids, attention_mask)
        if streamer is not None and len(input_ids) > 1:
            raise ValueError(f"a streamer shows one row and the batch has {len(input_ids)}: generate row by row, or without it")
        prompt = self._canvas(input_ids, attention_mask, config.max_new_tokens, source)
        seed = int(torch.randint(2**31, ())) if config.seed is None else config.seed
        rng = Rng(seed, 0, prompt.batch.sample_id)
        guided: Denoiser = config.filters()(denoiser if guidance is None else guidance(denoiser))
        canvas = None
        if streamer is not None:
            streamer.put(input_ids.cpu())
        for canvas in sampler.trajectory(guided, prompt.batch, rng):
            if streamer is not None and hasattr(streamer, "put_draft"):  # transformers' own test for streamers of drafts
                streamer.put_draft(_new_tokens(denoiser.decode(canvas.x), prompt).cpu())
        assert canvas is not None
        output = self._output(written(denoiser, prompt.batch, canvas.x), canvas, prompt, input_ids)
        if streamer is not None:
            assert output.sequences is not None
            streamer.put(output.sequences[0, input_ids.shape[1] :].cpu())
            streamer.end()
        return output

    def _options(
        self, config: TextDiffusionGenerationConfig | None, sampler: Sampler | None, changes: dict[str, Any]
    ) -> TextDiffusionGenerationConfig:
        """The options of one call, none of which may be ignored."""
        for name in ("sampler_config", "max_denoising_steps"):
            if sampler is not None and changes.get(name) is not None:
                raise ValueError(f"generate got both a sampler and {name}: give the sampler its own options")
        config = (config or self.generation_config).updated(**changes)
        vocab = self.vocab
        for name, own in zip(config._IDS, (vocab.mask_id, vocab.pad_id, vocab.bos_id, vocab.eos_id), strict=True):
            given = vars(config)[name]
            if given is not None and given != own:
                raise ValueError(f"{name} is {given} and the model was built with {own}: leave it out")
        return config

    def _sampler(self, config: TextDiffusionGenerationConfig) -> Sampler:
        if config.sampler_config is not None:
            options = dict(config.sampler_config)
            if config.max_denoising_steps is not None:
                options["steps"] = config.max_denoising_steps
            sampler = plain.from_plain(options)
            if not isinstance(sampler, Sampler):
                raise ValueError(f"sampler_config is {config.sampler_config}, expected a Sampler or its plain form (spec.to_plain)")
            return sampler
        return self.default_sampler(config.max_denoising_steps)

    def _prompt(self, input_ids: Tensor | None, attention_mask: Tensor | None) -> tuple[Tensor, Tensor]:
        if input_ids is None:
            first = self.vocab.bos_id if self.vocab.bos_id is not None else self.vocab.eos_id
            if first is None:
                raise ValueError("generate got no prompt and the tokenizer has no BOS or EOS token to begin with: give input_ids")
            device = next(self.parameters()).device  # type: ignore[attr-defined]
            input_ids = torch.full((1, 1), first, device=device)
        if input_ids.dim() != 2 or len(input_ids) == 0 or input_ids.dtype != torch.long:
            raise ValueError(f"input_ids are {tuple(input_ids.shape)} {input_ids.dtype}, expected (batch, length) int64")
        if input_ids.numel() and not 0 <= int(input_ids.min()) <= int(input_ids.max()) < self.vocab.size:
            low, high = int(input_ids.min()), int(input_ids.max())
            raise ValueError(f"input_ids run from {low} to {high}, the model has {self.vocab.size} rows: was it another tokenizer?")
        if attention_mask is not None and attention_mask.shape != input_ids.shape:
            raise ValueError(f"attention_mask is {tuple(attention_mask.shape)}, expected the shape of input_ids, {tuple(input_ids.shape)}")
        return input_ids, torch.ones_like(input_ids) if attention_mask is None else attention_mask

    def _fits(self, prompt: int, new: int) -> None:
        if new < 0:
            raise ValueError(f"max_new_tokens is {new}, expected 0 or more")
        limit: int = self.max_length  # type: ignore[attr-defined]
        if prompt + new > limit:
            raise ValueError(f"a prompt of {prompt} tokens and {new} new ones exceed the model's {limit}: shorten one")

    def _canvas(self, input_ids: Tensor, attention_mask: Tensor, new: int, source: Tensor | None) -> _Prompt:
        rows, device = len(input_ids), input_ids.device
        if source is not None and (source.dim() != 2 or len(source) != rows):
            raise ValueError(f"source is {tuple(source.shape)}, expected one row for each of the {rows} prompts, such as a label (B, 1)")
        kept = attention_mask.bool()
        lengths = kept.sum(1)
        width = int(lengths.max()) + new
        self._fits(width - new, new)
        blank = self.vocab.mask_id if self.vocab.mask_id is not None else self.vocab.eos_id or 0
        column = torch.arange(width, device=device).expand(rows, -1)
        is_prompt = column < lengths[:, None]
        tokens = torch.full((rows, width), blank, device=device).masked_scatter(is_prompt, input_ids[kept])
        attend = column < lengths[:, None] + new
        infill = is_prompt & (tokens == self.vocab.mask_id) if self.vocab.mask_id is not None else torch.zeros_like(is_prompt)
        if bool(infill.any()) and isinstance(self.process, LeftToRight):  # type: ignore[attr-defined]
            raise ValueError("the prompt holds mask tokens and this model only continues text: fill them with a diffusion model")
        target = infill | (attend & ~is_prompt)
        tokens = tokens.masked_fill(~attend, self.vocab.pad_id if self.vocab.pad_id is not None else blank)
        generated = lengths[:, None] + torch.arange(new, device=device)
        return _Prompt(Batch.of(tokens, target=target, attend=attend, source=source), generated, kept)

    def _output(self, x0: Tensor, canvas: Canvas, prompt: _Prompt, input_ids: Tensor) -> TextDiffusionOutput:
        fresh, vocab = x0.gather(1, prompt.generated), self.vocab
        tokens = prompt.batch.target.sum(1)
        if vocab.eos_id is not None:
            ended = (fresh == vocab.eos_id).cumsum(1) - (fresh == vocab.eos_id).long() > 0
            tokens = tokens - ended.sum(1)
            fresh = fresh.masked_fill(ended, vocab.pad_id if vocab.pad_id is not None else vocab.eos_id)
        column = torch.arange(x0.shape[1], device=x0.device)
        is_prompt = column < prompt.kept.sum(1, keepdim=True)
        filled = input_ids.masked_scatter(prompt.kept, x0[is_prompt])
        return TextDiffusionOutput(torch.cat([filled, fresh], dim=1), canvas.nfe, tokens / canvas.nfe.clamp_min(1))


def _new_tokens(tokens: Tensor, prompt: _Prompt) -> Tensor:
    return tokens.gather(1, prompt.generated)[0] if prompt.generated.shape[1] else tokens[0]
