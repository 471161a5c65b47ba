"""Offline and on one thread, whatever the machine: set before anything imports transformers."""

import os
import shutil

os.environ["HF_HUB_OFFLINE"] = "1"

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a text, a stock causal model, a diffusion model adapted from it, and one of each kind that were trained alike: to be
    copied, not written to."""
    from tests.tiny_runs import corpus, quickstart, stock_gpt2  # not before a test asks for models

    folder, before = tmp_path_factory.mktemp("shelf"), Path.cwd()
    os.chdir(folder)
    try:
        corpus(Path("texts"))
        stock_gpt2(Path("gpt2"))
        for preset in ("autoregressive", "masked"):
            quickstart(preset, "--data", "texts", "--out", preset)
        quickstart("masked", "--data", "texts", "--init", "gpt2", "--out", "adapted")
    finally:
        os.chdir(before)
    return folder


@pytest.fixture(scope="module")
def place(shelf: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The working folder of a module's tests: a copy of the shelf."""
    folder, before = tmp_path_factory.mktemp("place") / "here", Path.cwd()
    shutil.copytree(shelf, folder)
    os.chdir(folder)
    yield folder
    os.chdir(before)
