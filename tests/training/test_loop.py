import json
import math
import os
import signal
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.training.test_order import Counting
from tests.training.tiny import TinyModel, measure, quick, run, unequal_examples
from textdiff.training.order import IndexedOrder, Placement
from textdiff.training.settings import Train
from textdiff.training.step import NonFiniteLossError


def final(out):
    """Every tensor of the newest checkpoint, as bytes."""
    folder = max((out / "checkpoints").glob("step-????????"))
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.safetensors"))}


def rows(out):
    timing = ("tokens_per_second",)
    lines = (json.loads(line) for line in (out / "log.jsonl").read_text().splitlines())
    return [{name: value for name, value in row.items() if name not in timing} for row in lines]


class Stop(Exception):
    """The process dies here."""


class Mortal(TinyModel):
    def __init__(self, dies_at, **options):
        super().__init__(**options)
        self.dies_at = dies_at

    def forward(self, batch, seed, step, progress=1.0):
        if step == self.dies_at:
            raise Stop
        return super().forward(batch, seed, step, progress)


@pytest.mark.parametrize("accumulation", [2, 4])
def test_accumulation_changes_nothing(accelerator, tmp_path, accumulation):
    _, one = run(accelerator, tmp_path / "1", quick())
    _, many = run(accelerator, tmp_path / "n", quick(accumulation=accumulation))
    for (name, a), b in zip(one.named_parameters(), many.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5, msg=name)
    for a, b in zip(rows(tmp_path / "1"), rows(tmp_path / "n"), strict=True):
        assert a == pytest.approx(b, rel=1e-5) if "evaluation" not in a else True


def test_logged_loss_is_the_sum_over_targets_divided_once(accelerator, tmp_path):
    run(accelerator, tmp_path, quick(steps=1, accumulation=4))
    (batch,) = IndexedOrder(unequal_examples(), Placement(8, 1, 0, 1), 0, 0).window(0)
    loss = TinyModel()(batch, 0, 0)
    row = rows(tmp_path)[0]
    assert row["loss"] == pytest.approx(loss.total.item() / loss.tokens.item(), rel=1e-6)
    assert row["masked"] == int(loss.metrics["masked"]) / int(loss.tokens)
    assert row["tokens"] == int(batch.target.sum())


@pytest.mark.parametrize("accumulation", [1, 4])
def test_resume_at_every_step_is_bit_exact(accelerator, tmp_path, accumulation):
    settings = {"accumulation": accumulation, "evaluate_every": 3, "log_every": 4}
    run(accelerator, tmp_path / "whole", quick(**settings), TinyModel(dropout=0.2))
    for k in range(1, 6):
        out = tmp_path / str(k)
        with pytest.raises(Stop):
            run(accelerator, out, quick(checkpoint_every=k, **settings), Mortal(dies_at=k, dropout=0.2))
        run(accelerator, out, quick(resume=True, **settings), TinyModel(dropout=0.2))
        assert final(out) == final(tmp_path / "whole"), k
        assert rows(out) == rows(tmp_path / "whole"), k


def test_stream_resumes_bit_exact(accelerator, tmp_path):
    run(accelerator, tmp_path / "whole", quick(), source=Counting(10))
    with pytest.raises(Stop):
        run(accelerator, tmp_path / "cut", quick(checkpoint_every=3), Mortal(dies_at=3), Counting(10))
    run(accelerator, tmp_path / "cut", quick(resume=True), source=Counting(10))
    assert final(tmp_path / "whole") == final(tmp_path / "cut")


def test_saved_and_returned_model_are_the_average(accelerator, tmp_path):
    seen = {}

    def evaluate(model, should_stop):
        seen.update({name: p.detach().clone() for name, p in model.named_parameters()})
        return measure(model, should_stop)

    _, model = run(accelerator, tmp_path, quick(), evaluate=evaluate)
    assert not any(module.training for module in model.modules())  # no dropout in what it is used for next
    average = load_file(tmp_path / "checkpoints/step-00000006/ema.safetensors")
    saved = load_file(tmp_path / "model/model.safetensors")
    last = load_file(tmp_path / "checkpoints/step-00000006/model.safetensors")
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, average[name])
        assert torch.equal(seen[name], average[name])
        assert torch.equal(saved[name], average[name])
        assert not torch.equal(last[name], average[name])


def test_not_a_number_stops_before_the_step(accelerator, tmp_path):
    model = TinyModel(explode_at=4)
    with pytest.raises(NonFiniteLossError, match=r"step 4: .*samples \[32, 33, 34, 35, 36, 37, 38, 39\]") as caught:
        run(accelerator, tmp_path / "bad", quick(checkpoint_every=4), model)
    assert "\n" not in str(caught.value)
    saved = load_file(tmp_path / "bad/checkpoints/step-00000004/model.safetensors")
    assert all(torch.equal(p, saved[name]) for name, p in model.named_parameters())


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signal_in_training_and_in_evaluation_saves_and_resumes_exactly(accelerator, tmp_path, number, code):
    class Signalled(TinyModel):
        def forward(self, batch, seed, step, progress=1.0):
            if step == 1:
                os.kill(os.getpid(), number)
            return super().forward(batch, seed, step, progress)

    def evaluate(model, should_stop):
        assert not should_stop()
        os.kill(os.getpid(), number)
        assert should_stop()
        return measure(model, should_stop)

    before = signal.getsignal(number)
    settings = {"evaluate_every": 3}
    run(accelerator, tmp_path / "whole", quick(**settings))
    with pytest.raises(SystemExit) as caught:
        run(accelerator, tmp_path / "cut", quick(**settings), Signalled())
    assert (caught.value.code, rows(tmp_path / "cut")[-1]["step"]) == (code, 2)  # step 1 was finished
    with pytest.raises(SystemExit) as caught:
        run(accelerator, tmp_path / "cut", quick(resume=True, **settings), evaluate=evaluate)
    assert caught.value.code == code
    assert signal.getsignal(number) is before
    run(accelerator, tmp_path / "cut", quick(resume=True, **settings))
    assert final(tmp_path / "cut") == final(tmp_path / "whole")
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")


def test_time_limit_stops_cleanly_and_the_run_goes_on(accelerator, tmp_path):
    run(accelerator, tmp_path / "whole", quick())
    steps, _ = run(accelerator, tmp_path / "cut", quick(max_seconds=1e-9))
    assert steps == 0
    run(accelerator, tmp_path / "cut", quick(resume=True))
    assert final(tmp_path / "cut") == final(tmp_path / "whole")


def test_resume_asks_for_the_same_run(accelerator, tmp_path):
    run(accelerator, tmp_path, quick())
    with pytest.raises(ValueError, match=r"--train\.resume"):
        run(accelerator, tmp_path, quick())
    with pytest.raises(ValueError, match="batch_size = 8, now it is 4"):
        run(accelerator, tmp_path, quick(resume=True, batch_size=4))
    with pytest.raises(ValueError, match="seed = 0, now it is 1"):
        run(accelerator, tmp_path, quick(resume=True, seed=1))
    with pytest.raises(ValueError, match="training examples = 23, now it is 22"):
        run(accelerator, tmp_path, quick(resume=True), source=unequal_examples()[:-1])
    with pytest.raises(ValueError, match=r"model\.dropout = 0\.0, now it is 0\.5"):
        run(accelerator, tmp_path, quick(resume=True), TinyModel(dropout=0.5))
    with pytest.raises(ValueError, match="already at step 6"):
        run(accelerator, tmp_path, quick(resume=True, steps=5))
    assert run(accelerator, tmp_path, quick(resume=True, steps=8))[0] == 8
    assert [row["step"] for row in rows(tmp_path) if "loss" in row] == list(range(1, 9))


def test_full_disk_stops_the_run_with_one_line(accelerator, tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("textdiff.training.checkpoint.save_file", full)
    with pytest.raises(ValueError, match=r"No space left.*free some space"):
        run(accelerator, tmp_path, quick())
    assert list((tmp_path / "checkpoints").iterdir()) == []


@pytest.mark.parametrize("wrong", [{"max_seconds": math.nan}, {"learning_rate": math.nan}, {"clip": 0.0}, {"warmup": -1}], ids=str)
def test_settings_that_mean_nothing_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Train(**wrong)
