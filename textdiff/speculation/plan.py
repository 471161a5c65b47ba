"""What is compared: which ways to write, on how many prompts, how often."""

from dataclasses import dataclass

import torch

from textdiff.bench.base import Bench
from textdiff.guidance.filters import Filters
from textdiff.samplers.drafting import LeftToRightChunks
from textdiff.samplers.feature_drafting import FromFeatures
from textdiff.samplers.speculative import Adaptive, DraftLength
from textdiff.speculation.opening import Models
from textdiff.speculation.ways import Alone, Drafted, Stock, StockDrafted, Way

PLAIN = ("left to right", "left to right (transformers)")


@dataclass(frozen=True)
class Compare:
    """What is compared on which prompts. Raises ValueError for numbers that make no sense."""

    prompts: int = 16
    """Held-out prompts, evenly spaced."""
    prompt_length: int = 32
    """Tokens of each."""
    new: int = 64
    """Tokens written after each; end tokens are written like any other."""
    lengths: tuple[int, ...] = (4, 7)
    """Tokens drafted at a time."""
    steps: tuple[int, ...] = (1, 2)
    """Calls of the drafter for one draft, of as many tokens or more."""
    temperatures: tuple[float, ...] = (0.0, 1.0)
    """0 takes the most probable token; a table for each."""
    rounds: int = 5
    """Times that every way writes everything, in turns."""
    threads: int = 1
    """Of the processor; more are noisier on a machine with other users."""
    device: str = "cpu"
    """cpu or cuda."""

    def __post_init__(self) -> None:
        for name in ("prompts", "prompt_length", "new", "rounds", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"compare.{name} is {getattr(self, name)}, expected 1 or more")
        for name in ("lengths", "steps"):
            if not getattr(self, name) or min(getattr(self, name)) < 1:
                raise ValueError(f"compare.{name} are {list(getattr(self, name))}, expected numbers of 1 or more")
        if max(self.steps) > max(self.lengths):
            more = f"{max(self.steps)} and the longest of compare.lengths is {max(self.lengths)}"
            raise ValueError(f"compare.steps has {more}: a call drafts a token at least, so lower one or raise the other")
        if self.device not in ("cpu", "cuda"):
            raise ValueError(f"compare.device is {self.device!r}, expected cpu or cuda")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("compare.device is cuda and there is no GPU here: leave it out")
        for temperature in self.temperatures:
            Filters(temperature)
        self.bench()  # checks the rest

    def check(self, limit: int) -> None:
        """Raise ValueError where models that read up to `limit` tokens cannot write what is asked for."""
        if self.prompt_length + self.new > limit:
            asked = f"prompts of {self.prompt_length} tokens and {self.new} new ones"
            raise ValueError(f"{asked} exceed the {limit} that the models read: shorten one")

    def bench(self) -> Bench:
        """What takes the times."""
        return Bench(self.rounds, self.device, self.threads)

    def ways(self, models: Models, temperature: float) -> dict[str, Way]:
        """Every way that these models allow, by name; the first is plain."""
        target, filters, longest = models.target, Filters(temperature), max(self.lengths)
        common = (target, filters, self.new)
        found: dict[str, Way] = {PLAIN[0]: Alone(*common)}
        if target.backbone.trunk is not None:
            found[PLAIN[1]] = Stock(*common)
            if models.assistant is not None:
                network = models.assistant.backbone.trunk
                found["AR drafter (transformers)"] = Stock(*common, (("assistant_model", network),), network)
            found["prompt lookup (transformers)"] = Stock(*common, (("prompt_lookup_num_tokens", longest),))
            options = {"denoiser": models.drafter, "drafting": LeftToRightChunks(), "longest": longest}
            found[f"{longest} at once (transformers)"] = StockDrafted(*common, drafter=models.drafter.backbone, **options)
        for length in self.lengths:
            for steps in (steps for steps in self.steps if steps <= length):
                name = f"{length} at once" if steps == 1 else f"{length} in {steps} chunks"
                found[name] = Drafted(*common, models.drafter, LeftToRightChunks(steps), DraftLength(length))
        if models.flash is not None:
            for length in sorted({min(length, models.flash.most) for length in self.lengths}):
                found[f"{length} from features"] = Drafted(*common, models.flash, FromFeatures(), DraftLength(length))
        found[f"up to {2 * longest} at once"] = Drafted(*common, models.drafter, LeftToRightChunks(), Adaptive(2 * longest))
        return found

    def watched(self, models: Models) -> Drafted:
        """The way that is shown as it writes."""
        common = (models.target, Filters(0.0), self.new)
        if models.flash is not None:
            return Drafted(*common, models.flash, FromFeatures(), DraftLength(models.flash.most))
        return Drafted(*common, models.drafter, LeftToRightChunks(), DraftLength(max(self.lengths)))
