import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from textdiff.training.session import session

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def accelerator():
    with session() as accelerator:
        yield accelerator


@pytest.fixture
def start():
    """Starts `worker.py` as a process of its own, behind a launcher where one is given."""
    started = []

    def begin(out, launcher=(), **settings):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
        command = [*(launcher or [sys.executable]), "-m", "tests.training.worker", str(out), json.dumps(settings)]
        process = subprocess.Popen(command, cwd=ROOT, env=environment, text=True, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()
