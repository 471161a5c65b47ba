"""A run in progress: weights, optimizer, average and counters, advanced step by step, saved and restored."""

import time
from collections.abc import Callable, Mapping, Set
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from textdiff.models.base import LanguageModel
from textdiff.spec import to_plain
from textdiff.training import weights
from textdiff.training.begun import Begun
from textdiff.training.checkpoint import find_checkpoint, read_state, read_tensors, remove_debris, replace_folder, save_checkpoint
from textdiff.training.ema import Ema
from textdiff.training.optimizer import build_optimizer, learning_rate_at
from textdiff.training.order import IndexedOrder, StreamOrder
from textdiff.training.rates import Parts
from textdiff.training.session import on_main
from textdiff.training.settings import Train
from textdiff.training.step import Meter, OptimizerStep

Save = Callable[[Path, dict[str, Tensor]], None]


class Run:
    """One training run in `out`; `step` counts the optimizer steps done, `evaluated` is the last step that was evaluated."""

    def __init__(
        self,
        accelerator: Accelerator,
        settings: Train,
        model: LanguageModel,
        parts: Parts,
        order: IndexedOrder | StreamOrder,
        out: Path,
        save: Save,
    ) -> None:
        self.accelerator, self.settings, self.order, self.out, self.save_model = accelerator, settings, order, out, save
        optimizer = build_optimizer(weights.trainable(model), settings.weight_decay, settings.betas, parts.rates, parts.lone)
        self.wrapped, self.optimizer = accelerator.prepare(model, optimizer)
        if parts.row is not None:
            parts.row.watch(optimizer)  # after `prepare`, which may have moved its table
        self.model: LanguageModel = accelerator.unwrap_model(self.wrapped)
        self.parameters = weights.trainable(self.model)  # after `prepare`, which may have sharded them
        self.ema = Ema(self.parameters, settings.ema)
        self._begun = Begun(self.model, parts) if settings.lora.rank else None
        self.take_step = OptimizerStep(accelerator, self.wrapped, self.optimizer, settings.clip, settings.seed)
        self.step, self.tokens, self.evaluated = 0, 0, 0
        self.meter = Meter()
        self._saved = (0, 0)  # (step, evaluated) of the last checkpoint; the start needs none

    def advance(self) -> dict[str, float] | None:
        """One optimizer step; the numbers to log when a row is due."""
        settings, started = self.settings, time.perf_counter()
        rate = learning_rate_at(self.step, settings.steps, settings.learning_rate, settings.warmup, settings.final_fraction)
        outcome = self.take_step(self.step, self.order.window(self.step), rate, self.step / settings.steps)
        self.ema.update(self.step)
        self.step += 1
        self.tokens += outcome.tokens
        self.meter.add(outcome, time.perf_counter() - started)
        if self.step % settings.log_every and self.step != settings.steps:
            return None
        return {**self.meter.flush(), "learning_rate": rate, "gradient_norm": outcome.gradient_norm, "tokens": self.tokens}

    def essential(self) -> dict[str, Any]:
        """What must be the same when the run is resumed."""
        settings = (item for name, value in self.settings.essential().items() for item in flat(name, value).items())
        return {**dict(settings), **self.order.identity(), **flat("model", to_plain(self.model.spec))}

    def save(self) -> None:
        """Write a checkpoint of this step, unless it is there, and the averaged model to `model/`; raises ValueError on failure."""
        if self._saved == (self.step, self.evaluated):
            return
        main = self.accelerator.is_main_process
        tensors = {
            "model": weights.gather(weights.model_tensors(self.model), main),
            "ema": weights.gather(self.ema.average, main),
            "optimizer": weights.gather(weights.optimizer_tensors(self.optimizer, self.parameters), main),
        }
        if self._begun is not None:
            tensors = {part: self._begun.without(entries) for part, entries in tensors.items()}
        counters = {"step": self.step, "tokens": self.tokens, "evaluated": self.evaluated, "meter": self.meter.values}
        state = {**counters, "data": gather_object([self.order.state_dict()]), "settings": self.essential()}
        if self._begun is not None:
            state["begun"] = self._begun.digest
        on_main(self.accelerator, lambda: save_checkpoint(self.out / "checkpoints", self.step, tensors, state, self.settings.keep))
        with self.ema.applied():
            averaged = weights.gather(self.model.state_dict(), main)
            on_main(self.accelerator, lambda: replace_folder(self.out / "model", lambda folder: self._write(folder, averaged)))
        self._saved = (self.step, self.evaluated)

    def _write(self, folder: Path, averaged: dict[str, Tensor]) -> None:
        lora = self.settings.lora
        self.save_model(folder, lora.merged(self.model, averaged))
        lora.save(self.model, averaged, folder / "adapter")

    def restore(self, say: Callable[[str], None]) -> None:
        """Go on from the newest intact checkpoint, where there is one; raises ValueError when it is of a run with other settings."""
        on_main(self.accelerator, lambda: remove_debris(self.out))
        path = on_main(self.accelerator, lambda: find_checkpoint(self.out / "checkpoints", say))
        if path is None:
            return
        if not self.settings.resume:
            raise ValueError(f"{self.out} already holds a run: resume it with --train.resume, or choose another folder")
        state = read_state(path)
        self._check(state)
        held, average = weights.model_tensors(self.model), self.ema.average
        model, ema, optimizer = (read_tensors(path, name) for name in ("model", "ema", "optimizer"))
        if self._begun is not None and "begun" in state:
            held = self._begun.changing(held)
            model, ema, optimizer = (self._begun.completed(saved, like) for saved, like in ((model, held), (ema, average), (optimizer, {})))
        weights.restore(held, model)
        weights.restore(average, ema)
        weights.restore_optimizer(self.optimizer, self.parameters, optimizer)
        if self._begun is not None and "begun" not in state:
            self._begun.identify(self.model)  # an old checkpoint holds all weights, and brought its own
        self.order.load_state_dict(state["data"][self.accelerator.process_index if len(state["data"]) > 1 else 0])
        self.step, self.tokens, self.evaluated = state["step"], state["tokens"], state["evaluated"]
        self.meter = Meter(state["meter"])
        self._saved = (self.step, self.evaluated)
        say(f"resumed at step {self.step} from {path}")

    def _check(self, state: dict[str, Any]) -> None:
        now, then = self.essential(), state["settings"]
        name = first_change(then, now, untouched("", self.settings) | untouched("model", self.model.spec))
        if name is not None:
            raise ValueError(
                f"the run in {self.out} was started with {name} = {then.get(name)}, now it is {now.get(name)}: "
                "give the old value to resume, or choose another folder"
            )
        if self._begun is not None and state.get("begun", self._begun.digest) != self._begun.digest:
            raise ValueError(
                f"the run in {self.out} began from other weights than it is given now, and its checkpoints hold what was trained beside "
                "them alone: give the model it began from, or choose another folder"
            )
        if state["step"] > self.settings.steps:
            raise ValueError(f"the run in {self.out} is already at step {state['step']}, more than the {self.settings.steps} asked for")


def flat(name: str, value: Any) -> dict[str, Any]:
    """Nested plain data as `{"name.field.field": leaf}`."""
    if not isinstance(value, dict):
        return {name: value}
    return {key: leaf for field, inner in value.items() for key, leaf in flat(f"{name}.{field}", inner).items()}


def first_change(then: Mapping[str, Any], now: Mapping[str, Any], defaults: Set[str]) -> str | None:
    """The first name by which two flat records differ, if any; a field of `defaults` that `then` lacks is as it was: it came later."""
    for name in (*now, *then):
        if name in now and name in then:
            if now[name] != then[name]:
                return name
        else:
            stood = any(name.startswith(f"{known}.") for known in then)  # another value, where now a tree is
            if stood or name in then or name not in defaults:
                return name
    return None


def untouched(name: str, value: Any) -> set[str]:
    """The names, as `flat` gives them, of what has its default in a tree of dataclasses."""
    found: set[str] = set()
    for field in fields(value) if is_dataclass(value) else ():
        inner, where = getattr(value, field.name), f"{name}.{field.name}" if name else field.name
        if inner == (field.default if field.default_factory is MISSING else field.default_factory()):
            found |= flat(where, to_plain(inner)).keys()
        else:
            found |= untouched(where, inner)
    return found
