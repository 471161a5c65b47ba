"""Starting and ending the processes of a run."""

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import psutil
import torch
from accelerate import Accelerator
from accelerate.commands.config.config_args import default_config_file, load_config_from_file
from accelerate.commands.launch import launch_command_parser
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, GradientAccumulationPlugin, broadcast_object_list

Result = TypeVar("Result")


@contextmanager
def session(bf16: bool = False) -> Iterator[Accelerator]:
    """The processes of one run, alone or under `torchrun` or `accelerate launch`; without a GPU they are CPU processes.

    Raises ValueError when fewer processes run than were asked for, or when the arithmetic asked for does not exist here.
    """
    cpu = not torch.cuda.is_available()
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if not cpu and local > torch.cuda.device_count():
        raise ValueError(f"{local} processes were started on a machine with {torch.cuda.device_count()} GPU(s): start one per GPU")
    precision = _precision(bf16, cpu)
    # A plugin, because the plain argument would be overridden by an environment variable; the loop accumulates by itself.
    plugin = GradientAccumulationPlugin(num_steps=1, sync_with_dataloader=False)
    AcceleratorState._reset_state(reset_partial_state=True)  # one Python process may hold several sessions, of different precision
    accelerator = Accelerator(cpu=cpu, mixed_precision=precision, gradient_accumulation_plugin=plugin)
    if accelerator.distributed_type == DistributedType.FSDP:
        raise ValueError("FSDP is not supported yet: evaluation reads whole weights; use MULTI_GPU, or raise accumulation to save memory")
    asked = processes_asked()
    if asked is not None and asked != accelerator.num_processes:
        raise ValueError(
            f"accelerate launch was asked for {asked} processes, but {accelerator.num_processes} is running: "
            f"it starts several on GPUs only, use torchrun --nproc-per-node {asked} for CPU processes"
        )
    try:
        yield accelerator
    except SystemExit:  # a clean stop; after an error the others may be waiting in a collective, so only success is torn down
        _close(accelerator)
        raise
    _close(accelerator)


def _close(accelerator: Accelerator) -> None:
    # Without this order a process of a CPU group aborts at exit about every other time (a reducer outliving its process group).
    accelerator.free_memory()
    gc.collect()
    accelerator.end_training()


def _precision(bf16: bool, cpu: bool) -> str:
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if launched not in ("no", "bf16"):
        raise ValueError(f"accelerate asks for {launched} arithmetic, which is not offered: set mixed_precision to 'no' or bf16")
    if not bf16 and launched == "no":
        return "no"
    if cpu:
        known = torch.cpu.get_capabilities()
        available = any(known.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16"))
    else:
        available = torch.cuda.is_bf16_supported(including_emulation=False)
    if not available:
        raise ValueError("bf16 was asked for, but this processor has no bfloat16 arithmetic: leave bf16 off")
    return "bf16"


def processes_asked() -> int | None:
    """How many processes `accelerate launch` was asked for, on its command line or in its file; None when it did not start this one."""
    parent = psutil.Process().parent()
    if parent is None or "ACCELERATE_MIXED_PRECISION" not in os.environ:  # the launcher always sets it
        return None
    try:
        command = parent.cmdline()
    except psutil.Error:
        return None
    starts = (
        i for i, word in enumerate(command) if word in ("launch", "accelerate.commands.launch") or Path(word).name == "accelerate-launch"
    )
    start = next(starts, None)
    if start is None:
        return None
    arguments = launch_command_parser().parse_args(command[start + 1 :])
    if arguments.num_processes is not None:
        return int(arguments.num_processes)
    if arguments.config_file is None and (arguments.cpu or not Path(default_config_file).is_file()):
        return None
    configured = load_config_from_file(arguments.config_file).num_processes
    return None if configured is None else int(configured)


def on_main(accelerator: Accelerator, work: Callable[[], Result]) -> Result:
    """The result of `work`, done by the main process, on every process; a ValueError is raised on every process too."""
    outcome: list[object] = [None, None]
    if accelerator.is_main_process:
        try:
            outcome = [work(), None]
        except ValueError as error:
            if accelerator.num_processes == 1:
                raise
            outcome = [None, str(error)]
    if accelerator.num_processes > 1:
        broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise ValueError(outcome[1])
    return outcome[0]  # type: ignore[return-value]
