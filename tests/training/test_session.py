import json
import random
import signal
import sys
import time

import psutil
import pytest
import torch
from safetensors.torch import load_file

from tests.training.conftest import ROOT
from tests.training.tiny import TinyModel, quick, run
from textdiff.training.session import processes_asked, session

TWO = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
LAUNCH = (sys.executable, "-m", "accelerate.commands.launch")


def tensors(out, name="model"):
    return load_file(max((out / "checkpoints").glob("step-????????")) / f"{name}.safetensors")


def newest(out):
    return max((path.name for path in (out / "checkpoints").glob("step-????????")), default=None)


def losses(out):
    rows = map(json.loads, (out / "log.jsonl").read_text().splitlines())
    return [row["loss"] for row in rows if "loss" in row]


class Parent:
    def __init__(self, command):
        self.command = command

    def parent(self):
        return self

    def cmdline(self):
        return self.command.split()


@pytest.mark.parametrize(
    ("command", "asked"),
    [
        ("python /bin/accelerate launch --cpu --num_processes 2 train.py --num_processes 7", 2),
        ("python -m accelerate.commands.launch --cpu --num_processes=3 train.py launch", 3),
        ("python /bin/accelerate-launch --config_file CONFIG train.py", 4),
        ("python /bin/accelerate launch --cpu train.py", None),
        ("bash launch.sh --num_processes 2", None),
        ("python -m torch.distributed.run --nproc-per-node 2 train.py", None),
    ],
)
def test_processes_asked_for_are_read_from_the_launcher(monkeypatch, tmp_path, command, asked):
    config = tmp_path / "four.yaml"
    config.write_text((ROOT / "accelerate_config.yaml").read_text().replace("num_processes: 1", "num_processes: 4"))
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setattr(psutil, "Process", lambda: Parent(command.replace("CONFIG", str(config))))
    assert processes_asked() == asked


def test_fewer_processes_than_asked_for_is_one_clear_line(monkeypatch):
    monkeypatch.setattr("textdiff.training.session.processes_asked", lambda: 2)
    with pytest.raises(ValueError, match=r"asked for 2 processes, but 1 is running: .*torchrun --nproc-per-node 2"), session():
        pass


def test_arithmetic_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="no bfloat16"), session(bf16=True):
        pass
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    with pytest.raises(ValueError, match="fp16 arithmetic, which is not offered"), session():
        pass


def test_bf16_computes_narrow_and_stores_wide(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    seen = set()

    class Watching(TinyModel):
        def forward(self, batch, seed, step, progress=1.0):
            seen.add(self.mix(self.embed(batch.tokens)).dtype)
            return super().forward(batch, seed, step, progress)

    with session(bf16=True) as accelerator:
        _, model = run(accelerator, tmp_path, quick(bf16=True), Watching())
    assert seen == {torch.bfloat16}
    assert {value.dtype for value in tensors(tmp_path).values()} == {torch.float32, torch.int64}
    assert model.mix(torch.zeros(1, 8)).dtype == torch.float32  # autocast is off again: likelihoods stay wide


def test_two_processes_equal_one(start, tmp_path):
    two = start(tmp_path / "two", TWO, accumulation=2, ema=0.5)
    assert two.wait(120) == 0, two.stderr.read()
    with session() as accelerator:
        run(accelerator, tmp_path / "one", quick(ema=0.5, accumulation=4), TinyModel(dropout=0.1))
    for name in ("model", "ema", "optimizer"):
        one = tensors(tmp_path / "one", name)
        for key, value in tensors(tmp_path / "two", name).items():
            if key != "seen":
                torch.testing.assert_close(value, one[key], atol=1e-5, rtol=1e-5, msg=key)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)


@pytest.mark.slow
def test_two_processes_end_well_every_time_and_stop_together(start, tmp_path):
    for i in range(4):
        assert start(tmp_path / str(i), TWO, accumulation=2).wait(120) == 0
    process = start(tmp_path / "long", TWO, steps=100_000)
    while not (tmp_path / "long/log.jsonl").exists() or not losses(tmp_path / "long"):
        time.sleep(0.2)
    one = next(p for p in psutil.Process(process.pid).children() if "worker" in " ".join(p.cmdline()))
    one.send_signal(signal.SIGTERM)  # one of the two is told, both stop and save
    process.wait(120)
    assert tensors(tmp_path / "long")["seen"] == len(losses(tmp_path / "long"))


@pytest.mark.slow
def test_accelerate_launch_runs_or_says_why_not(start, tmp_path):
    config = start(tmp_path / "config", (*LAUNCH, "--config_file", str(ROOT / "accelerate_config.yaml")))
    assert config.wait(120) == 0, config.stderr.read()
    refused = start(tmp_path / "refused", (*LAUNCH, "--cpu", "--num_processes", "2"))
    assert refused.wait(120) != 0  # the launcher's own code; the script's is 2
    said = refused.stderr.read()
    assert "asked for 2 processes, but 1 is running" in said
    assert "exit status 2" in said


@pytest.mark.slow
def test_kill_at_any_moment_then_resume_equals_an_uninterrupted_run(start, tmp_path):
    settings = {"steps": 40, "checkpoint_every": 1, "evaluate_every": 7, "accumulation": 2, "resume": True}
    assert start(tmp_path / "whole", **settings).wait(120) == 0
    kills, code = 0, -signal.SIGKILL
    while code == -signal.SIGKILL:
        process = start(tmp_path / "cut", **settings)
        saved = newest(tmp_path / "cut")
        while process.poll() is None and newest(tmp_path / "cut") == saved:
            time.sleep(0.01)
        time.sleep(random.uniform(0, 0.6))
        process.kill()
        code = process.wait(60)
        kills += code == -signal.SIGKILL
    assert code == 0, process.stderr.read()
    assert kills >= 2
    for name in ("model", "ema", "optimizer"):
        whole, cut = tensors(tmp_path / "whole", name), tensors(tmp_path / "cut", name)
        assert all(torch.equal(whole[key], cut[key]) for key in whole)
    assert losses(tmp_path / "whole") == losses(tmp_path / "cut")


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_exit_codes_of_signals(start, tmp_path, number, code):
    process = start(tmp_path, steps=100_000)
    while not (tmp_path / "log.jsonl").exists() or not losses(tmp_path):
        time.sleep(0.1)
    process.send_signal(number)
    assert process.wait(60) == code
    assert tensors(tmp_path)["seen"] == len(losses(tmp_path))
