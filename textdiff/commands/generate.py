"""`textdiff generate MODEL`: continue a prompt, or fill the masks of a text."""

import re
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import tyro

from textdiff.commands.device import device_named
from textdiff.sampler_words import sampler_named

if TYPE_CHECKING:
    from textdiff.guidance.base import Guidance
    from textdiff.samplers.base import Sampler


@dataclass(frozen=True)
class Generate:
    """Continue prompts or fill the masks of a text with any checkpoint: a run folder, a local folder, or a hub id."""

    model: tyro.conf.Positional[str]
    """Run folder, checkpoint folder, or hub id."""
    prompt: str = ""
    """Text to continue, or to answer where an encoder reads it; without one the model begins by itself."""
    infill: str | None = None
    """Text whose [MASK]s are filled, one token each; [MASK:3] stands for three."""
    max_new_tokens: int | None = None
    """Tokens to add to the prompt (default: the model's own; 0 with --infill)."""
    sampler: str | None = None
    """Any sampler of textdiff, such as Ancestral, FirstHitting, Greedy, Rescaled or Psi, with options as in Threshold:tau=0.8."""
    steps: int | None = None
    """Denoising steps, for samplers that count them."""
    temperature: float = 1.0
    """0 takes the most probable token."""
    top_k: int = 0
    """Draw from the k most probable tokens; 0 for all."""
    top_p: float = 1.0
    """Draw from the most probable tokens of this total mass."""
    label: int | None = None
    """Class to write, for models trained with labels."""
    gamma: float | None = None
    """Strength of classifier-free guidance: by the label or what an encoder reads, else by the prompt in the row; 1 is none."""
    count: int = 1
    """How many samples."""
    seed: int = 0
    """The same seed gives the same text."""
    response: bool = False
    """End the prompt as in training on prompts with responses, so that the model answers it."""
    device: str | None = None
    """cpu, cuda, ... (default: a GPU when there is one)."""
    live: bool = False
    """Show the text as it forms, in a terminal."""

    def run(self) -> None:
        """Print the samples, then the sampler, its law and the network calls."""
        if self.count < 1:
            raise ValueError(f"count is {self.count}, expected 1 or more")
        if self.live and self.count > 1:
            raise ValueError(f"live shows one sample and count is {self.count}: leave one of them out")
        from transformers import TextDiffusionStreamer
        from transformers.utils import logging

        logging.disable_progress_bar()
        from textdiff.models.classifier import refuse_classifier
        from textdiff.models.feature_drafter import refuse_drafter
        from textdiff.models.loading import load

        device = device_named(self.device)
        model: Any = load(self.model)
        refuse_classifier(model, self.model)
        refuse_drafter(model, self.model)
        if model.tokenizer is None:
            raise ValueError(f"{self.model} has no tokenizer files: text cannot be turned into its ids")
        source = self._source(model)
        ids = self._ids(model).to(model.to(device).device)
        new = self.max_new_tokens if self.max_new_tokens is not None else 0 if self.infill else model.generation_config.max_new_tokens
        sampler = self._sampler(model)
        sampler.check(model)
        live = self.live and sys.stdout.isatty()
        streamer = TextDiffusionStreamer(model.tokenizer, skip_prompt=self.infill is not None) if live else None
        options: dict[str, Any] = {"temperature": self.temperature, "top_k": self.top_k, "top_p": self.top_p}
        read = None if source is None else ids.new_tensor([source]).expand(self.count, -1)
        options |= {"max_new_tokens": new, "seed": self.seed, "source": read, "guidance": self._guidance(source is not None)}
        output = model.generate(ids.expand(self.count, -1), sampler=sampler, streamer=streamer, **options)
        if streamer is None:
            for row in output.sequences:
                print(_text(model, row) + ("\n" if self.count > 1 else ""))
        calls, rate = output.nfe.double().mean().item(), output.tokens_per_forward.mean().item()
        print(f"[{type(sampler).__name__}: law {sampler.law}, {calls:.1f} network calls, {rate:.2f} tokens per call]", file=sys.stderr)

    def _source(self, model: Any) -> list[int] | None:
        """What the model is told beside the row: the prompt where its trunk has an encoder, else the label, if any."""
        from textdiff.data.tokenizer import encode
        from textdiff.decoding import has_encoder

        if not has_encoder(model):
            return None if self.label is None else [self.label]
        if self.label is not None:
            raise ValueError(f"label is {self.label} and the encoder of {self.model} reads text: leave it out, and give a prompt")
        if self.infill is not None or not self.prompt:
            raise ValueError(f"the encoder of {self.model} reads a prompt, which the model answers: give one with --prompt, and no infill")
        return encode(model.tokenizer, self.prompt)

    def _ids(self, model: Any) -> Any:
        import torch

        from textdiff.data.tokenizer import encode
        from textdiff.decoding import has_encoder

        if self.infill is not None and self.prompt:
            raise ValueError("prompt and infill were both given: put the prompt at the beginning of the infill text")
        encoder, mask_id = has_encoder(model), model.vocab.mask_id
        text = self.infill if self.infill is not None else "" if encoder else self.prompt
        first = model.vocab.bos_id if model.vocab.bos_id is not None else model.vocab.eos_id
        ids: list[int] = [] if first is None else [first]
        parts = [text] if self.infill is None else re.split(r"\[MASK(?::(\d+))?\]", text)
        if self.infill is not None and len(parts) == 1:
            raise ValueError("the infill text holds no [MASK]: write one for each token to fill, or [MASK:3] for three")
        if self.infill is not None and mask_id is None:
            raise ValueError("this model has no mask token, it only continues text: fill masks with a diffusion model")
        for i, part in enumerate(parts):
            if i % 2:
                number = int(part or 1)
                if not 1 <= number <= model.max_length:
                    raise ValueError(f"the infill text holds [MASK:{number}]: write how many tokens to fill, 1 to {model.max_length}")
                ids += [mask_id] * number
            elif part:
                ids += encode(model.tokenizer, part)
        if self.response and not encoder and model.vocab.eos_id is not None:
            ids.append(model.vocab.eos_id)
        if not ids:
            raise ValueError("there is no prompt and the tokenizer has no BOS or EOS token to begin with: give a prompt")
        return torch.tensor([ids])

    def _guidance(self, told: bool) -> "Guidance | None":
        from textdiff.guidance.classifier_free import ClassifierFree, PromptMasked

        if self.gamma is None:
            return None
        return ClassifierFree(self.gamma) if told else PromptMasked(self.gamma)

    def _sampler(self, model: Any) -> "Sampler":
        if self.sampler is None:
            return model.default_sampler(self.steps)  # type: ignore[no-any-return]
        return sampler_named(model, self.sampler, self.steps)


def _text(model: Any, row: Any) -> str:
    from textdiff.report import printable

    special = {model.vocab.bos_id, model.vocab.eos_id, model.vocab.pad_id}
    return printable(model.tokenizer.decode([i for i in row.tolist() if i not in special]))
