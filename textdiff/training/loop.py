"""The one Accelerate loop: every model, data source and device trains through `train`."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from accelerate import Accelerator

from textdiff.batch import Example
from textdiff.models.base import LanguageModel
from textdiff.training.checkpoint import run_lock
from textdiff.training.log import Log
from textdiff.training.order import IndexedOrder, Placement, Stream, StreamOrder
from textdiff.training.progress import RunProgress
from textdiff.training.rates import divided
from textdiff.training.run import Run, Save
from textdiff.training.session import on_main
from textdiff.training.settings import Train
from textdiff.training.signals import StopRequest

Evaluate = Callable[[LanguageModel, Callable[[], bool]], Mapping[str, float]]


def train(
    accelerator: Accelerator,
    settings: Train,
    model: LanguageModel,
    source: Sequence[Example] | Stream,
    pad_id: int,
    out: Path,
    evaluate: Evaluate,
    save: Save,
) -> int:
    """Train `model` in place on `source` and return the number of steps done; on return the model is in eval mode and has the averaged
    weights, adapters added to them.

    Every trainable weight must take part in every forward pass.

    Args:
        accelerator: from `session`; its processes all make this call.
        settings: the numbers.
        model: float32 weights; its `forward` is the loss.
        source: examples by index, or a stream that is split by process.
        pad_id: fills short rows.
        out: the run's folder: `checkpoints/`, `model/`, `log.jsonl`, `tensorboard/`.
        evaluate: called on every process with the averaged model and `should_stop`; the numbers it returns are logged. With several
            processes `should_stop` is a collective call, which each process must make equally often.
        save: called on the main process as `save(folder, weights)` to write the averaged model and what belongs to it into `folder`.

    Raises:
        ValueError: one line, for settings that cannot work, a folder in use or of another run, a loss that is not finite
            (`NonFiniteLossError`) and a checkpoint that cannot be written (`CheckpointError`).
        SystemExit: 130 after Ctrl-C and 143 after SIGTERM, once the step is finished and saved.
    """
    placement = Placement(settings.batch_size, settings.accumulation, accelerator.process_index, accelerator.num_processes)
    order = StreamOrder(source, placement, pad_id) if isinstance(source, Stream) else IndexedOrder(source, placement, settings.seed, pad_id)
    step, exit_code = _train(accelerator, settings, model, order, out, evaluate, save)  # its frame, with the wrapped model, is gone here
    if exit_code:
        raise SystemExit(exit_code)
    return step


def _train(
    accelerator: Accelerator,
    settings: Train,
    model: LanguageModel,
    order: IndexedOrder | StreamOrder,
    out: Path,
    evaluate: Evaluate,
    save: Save,
) -> tuple[int, int | None]:
    with ExitStack() as stack:
        on_main(accelerator, lambda: stack.enter_context(run_lock(out)))
        stop = stack.enter_context(StopRequest(accelerator, settings.max_seconds))
        stack.enter_context(settings.lora.applied(model, settings.seed))
        parts = stack.enter_context(divided(model, settings.rates, adapters=settings.lora.rank > 0))
        run = Run(accelerator, settings, model, parts, order, out, save)
        stack.callback(lambda: accelerator.unwrap_model(run.wrapped, keep_fp32_wrapper=False))  # takes autocast off `forward` again
        progress = RunProgress(settings.steps, accelerator.is_main_process)
        run.restore(progress.say)
        log = stack.enter_context(Log(out, run.step, run.evaluated)) if accelerator.is_main_process else None
        stack.enter_context(progress.started(run.step))
        run.wrapped.train()
        while not stop.should_stop():
            if run.step and run.evaluated != run.step and (run.step % settings.evaluate_every == 0 or run.step == settings.steps):
                _evaluate(run, evaluate, stop, log, progress)
            elif run.step == settings.steps:
                break
            else:
                _advance(run, log, progress)
        run.save()
        run.ema.swap()
        run.model.eval()  # what is sampled next must not meet dropout
        return run.step, stop.exit_code


def _advance(run: Run, log: Log | None, progress: RunProgress) -> None:
    row = run.advance()
    progress.advance(run.step)
    if row is not None and log is not None:
        log.write(run.step, row)
        progress.numbers(run.step, row["loss"], row["tokens_per_second"])
    if run.step % run.settings.checkpoint_every == 0:
        run.save()


def _evaluate(run: Run, evaluate: Evaluate, stop: StopRequest, log: Log | None, progress: RunProgress) -> None:
    run.model.train(False)
    with run.ema.applied():
        numbers = evaluate(run.model, stop.should_stop)
    run.model.train()
    if stop.should_stop():
        return  # perhaps half an evaluation: the resumed run makes it again
    run.evaluated = run.step
    if log is not None:
        log.write_evaluation(run.step, numbers)
    progress.say("  ".join([f"step {run.step}", *(f"{name} {value:.4g}" for name, value in numbers.items())]))
