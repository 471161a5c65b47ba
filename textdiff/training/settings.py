"""How a run trains: every field is a command-line flag."""

from dataclasses import asdict, dataclass
from typing import Any

from textdiff.spec import to_plain
from textdiff.training.lora import Lora
from textdiff.training.rates import Rates

_FREE_TO_CHANGE = ("steps", "accumulation", "evaluate_every", "checkpoint_every", "keep", "log_every", "resume", "max_seconds")


@dataclass(frozen=True)
class Train:
    """How a run trains. Raises ValueError for numbers that make no sense."""

    steps: int = 10_000
    """Optimizer steps in all; a resumed run may ask for more."""
    batch_size: int = 64
    """Rows in one optimizer step, over all processes and accumulation steps."""
    accumulation: int = 1
    """Micro-batches per process and step: more need less memory and change nothing else."""
    learning_rate: float = 3e-4
    """Highest learning rate of AdamW."""
    warmup: int = 100
    """Steps of linear warm-up."""
    final_fraction: float = 1.0
    """Learning rate at the last step as a fraction of the highest, reached by a cosine; 1 keeps it constant."""
    weight_decay: float = 0.01
    """Decay of weight matrices; vectors have none."""
    betas: tuple[float, float] = (0.9, 0.98)
    """AdamW's decay rates of the first and second moment."""
    clip: float = 1.0
    """Largest gradient norm; inf for no limit."""
    ema: float = 0.9999
    """Decay of the averaged weights that are evaluated and saved; 0 means the last weights."""
    rates: Rates = Rates()
    """How fast parts of the model learn, and which do not."""
    lora: Lora = Lora()
    """Adapters to train in place of the weights."""
    bf16: bool = False
    """Compute in bfloat16; weights, optimizer and likelihoods stay float32."""
    evaluate_every: int = 1_000
    """Steps between evaluations; the last step is always evaluated."""
    checkpoint_every: int = 1_000
    """Steps between checkpoints; the last step is always saved."""
    keep: int = 2
    """Newest checkpoints to keep."""
    log_every: int = 10
    """Steps between rows of the log."""
    seed: int = 0
    """Seed of data order, noise and dropout."""
    resume: bool = False
    """Go on from the newest checkpoint in the output folder, where there is one."""
    max_seconds: float | None = None
    """Stop cleanly after this many seconds; resume to go on."""

    def __post_init__(self) -> None:
        counts = ("steps", "batch_size", "accumulation", "evaluate_every", "checkpoint_every", "keep", "log_every")
        for name, value in asdict(self).items():
            if name in counts and value < 1:
                raise ValueError(f"{name} = {value}: expected at least 1")
        if not (self.warmup >= 0 and self.weight_decay >= 0 and self.learning_rate > 0 and self.clip > 0):  # nan is neither
            raise ValueError("learning_rate and clip must be above 0, warmup and weight_decay not below 0")
        if not (0 <= self.ema < 1 and 0 <= self.final_fraction <= 1):
            raise ValueError(f"ema = {self.ema} must be in [0, 1) and final_fraction = {self.final_fraction} in [0, 1]")
        if self.max_seconds is not None and not self.max_seconds > 0:
            raise ValueError(f"max_seconds = {self.max_seconds}: expected a positive number of seconds")

    def essential(self) -> dict[str, Any]:
        """The settings that decide the numbers of a run, as plain data; a resumed run must have the same.

        Rates and adapters that change nothing are left out: a run may have begun before there were any.
        """
        idle = {name for name, default in (("rates", Rates()), ("lora", Lora())) if vars(self)[name] == default}
        return {name: to_plain(value) for name, value in asdict(self).items() if name not in {*_FREE_TO_CHANGE, *idle}}
