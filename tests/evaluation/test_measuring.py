import json
import math
import socket
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.spawn import spawn
from transformers import AutoConfig, AutoModelForCausalLM

import textdiff
from tests.backbones.stock_models import CAUSAL
from tests.data.texts import byte_level, documents, sentence
from tests.evaluation.given_costs import DOCUMENTS, MANY, SHORT, TARGET, Given, given, nats_per_token, stop_after
from tests.models.tiny import autoregressive, diffusion, trunk
from textdiff.batch import Batch
from textdiff.data.collate import Pairs
from textdiff.data.readers import Pair
from textdiff.data.tokenizer import encode
from textdiff.data.windows import Windows
from textdiff.evaluation.likelihood import EvaluationStopped, likelihood, sequence_nats
from textdiff.evaluation.measurement import Measurement, Rules
from textdiff.evaluation.measuring import Settings, Texts, measure
from textdiff.evaluation.raw import Raw
from textdiff.evaluation.scoring import Running
from textdiff.vocab import Vocab


def tiny(build: Any, seed: int = 0) -> Any:
    model = build(Vocab.of(byte_level()), seed)
    model.tokenizer = byte_level()
    return model


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_stock_causal_model_costs_what_the_loss_of_transformers_says(kind: str, tmp_path: Path) -> None:
    """The perplexity guide by hand: row by row without padding, loss times counted tokens, over [start] and the text."""
    torch.manual_seed(0)
    tokenizer = byte_level()
    ids = {"vocab_size": len(tokenizer), "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    stock = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **ids, **CAUSAL[kind])).eval()
    for parameter in stock.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    stock.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    length, stride, texts = 32, 12, [*documents(9), sentence(1, 90)]
    found = measure(textdiff.load(str(tmp_path)), kind, Texts("t", "document", texts), Settings(length, stride, end=True, batch_size=8))
    assert (found.kind, found.draws, [score.text for score in found.scores]) == ("exact", 1, list(range(10)))
    assert found.rules == Rules("document", "[BOS]", end=True, length=length, stride=stride)
    forwards = 0
    for score, text in zip(found.scores, texts, strict=True):
        row = torch.tensor([[tokenizer.bos_token_id, *encode(tokenizer, text), tokenizer.eos_token_id]])
        total, before = 0.0, 1
        while before < row.shape[1]:
            end = min(length if before == 1 else before + stride, row.shape[1])
            window = row[:, max(0, end - length) : end]
            labels = window.clone()
            labels[:, : before - end] = -100
            with torch.no_grad():
                total += float(stock(window, labels=labels).loss.double()) * (end - before)
            before, forwards = end, forwards + 1
        assert score.tokens == row.shape[1] - 1
        assert score.nats / score.tokens == pytest.approx(total / score.tokens, abs=1e-6)
        assert score[3:6] == (len(text.encode()), len(text), len(text.split()))
    assert found.forwards == forwards > len(texts)


@pytest.mark.parametrize("build", [autoregressive, diffusion])
def test_a_text_costs_the_sum_of_its_windows_whose_noise_is_keyed_by_their_number(build: Any) -> None:
    model = tiny(build)
    found = measure(model, "x", DOCUMENTS, SHORT)
    windows = Windows(DOCUMENTS.texts, byte_level(), 12, 5)  # type: ignore[arg-type]
    each = sequence_nats(model, windows, draws=3)
    for score in found.scores:
        assert score.nats == pytest.approx(float(each[torch.from_numpy(windows.text_of) == score.text].sum()), rel=1e-12)
    assert [score.text for score in found.scores] == [i for i, text in enumerate(DOCUMENTS.texts) if text]  # nothing of "" counts
    assert sum(score.tokens for score in found.scores) == sum(sum(window.target) for window in windows)
    assert (found.kind, found.forwards) == (("upper bound", 3 * len(windows)) if model.nll_is_bound else ("exact", len(windows)))
    assert found.parameters == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("build", [autoregressive, diffusion])
def test_an_interrupted_measurement_ends_with_the_same_bits(build: Any, tmp_path: Path) -> None:
    model = tiny(build)
    whole = measure(model, "x", DOCUMENTS, SHORT)
    path = tmp_path / "x.jsonl"
    for batches in (0, 1, 0, 3):
        with pytest.raises(EvaluationStopped):
            measure(model, "x", DOCUMENTS, SHORT, path, should_stop=stop_after(batches))
    assert not path.exists()
    assert measure(model, "x", DOCUMENTS, SHORT, path) == whole
    assert Measurement.read(path) == whole
    assert [file.name for file in tmp_path.iterdir()] == ["x.jsonl"]
    told: list[Running] = []
    assert measure(model, "x", DOCUMENTS, SHORT, path, told.append) == whole
    assert told == []  # nothing was measured again


def test_cut_off_anywhere_the_file_of_a_measurement_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    whole, path = measure(given(), "x", DOCUMENTS, SHORT), tmp_path / "x.jsonl"
    with pytest.raises(EvaluationStopped):
        measure(given(), "x", DOCUMENTS, SHORT, path, should_stop=stop_after(3))
    working = tmp_path / "x.partial"
    content = working.read_bytes()
    assert content.count(b"\n") == 4
    for size in range(0, len(content) + 1, 43):
        working.write_bytes(content[:size])
        path.unlink(missing_ok=True)
        model = given()
        with pytest.raises(EvaluationStopped):  # what was cut off must not stand in the middle of the file
            measure(model, "x", DOCUMENTS, SHORT, path, should_stop=stop_after(1))
        assert measure(model, "x", DOCUMENTS, SHORT, path) == whole
        rows = whole.forwards // 3
        assert model.rows == rows - 4 * max(0, content[:size].count(b"\n") - 1)  # of every whole line four rows are known


class Failing(Given):
    def mean_nll(self, batch: Batch, seed: int, draws: int, pilot: object = None) -> Tensor:
        if self.rows >= 8:
            raise KeyboardInterrupt
        return super().mean_nll(batch, seed, draws)


def test_a_signal_loses_nothing_that_was_finished(tmp_path: Path) -> None:
    model: Any = Failing().train()
    path = tmp_path / "x.jsonl"
    with pytest.raises(KeyboardInterrupt):
        measure(model, "x", DOCUMENTS, SHORT, path)
    assert model.training
    lines = [json.loads(line) for line in (tmp_path / "x.partial").read_text().splitlines()]
    assert [sorted(line) for line in lines] == [["unfinished"], *[["batch", "nats", "round"]] * 2]
    assert measure(given(), "x", DOCUMENTS, SHORT, path) == measure(given(), "x", DOCUMENTS, SHORT)


@pytest.mark.parametrize("finished", [False, True])
def test_a_file_of_another_measurement_is_refused_by_its_first_difference(finished: bool, tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"

    def attempt(model: Any = None, name: str = "x", data: Texts = DOCUMENTS, **changes: Any) -> None:
        measure(model or given(), name, data, replace(SHORT, **changes), path)

    if finished:
        attempt()
    else:
        with pytest.raises(EvaluationStopped):
            measure(given(), "x", DOCUMENTS, SHORT, path, should_stop=stop_after(2))
    retrained = given()
    retrained.weight.data += 1e-3
    other = DOCUMENTS._replace(texts=[*DOCUMENTS.texts[:-1], "x"])
    refusals = {
        "stride 5, not 6": {"stride": 6},
        "end False, not True": {"end": True},
        "seed 0, not 1": {"seed": 1},
        "draws 3, not 4": {"draws": 4},
        "target_se None, not 0.1": {"target_se": 0.1},
        "model 'x', not 'y'": {"name": "y"},
        "texts '": {"data": other},
        "kind 'upper bound', not 'exact'": {"model": given(nll_is_bound=False)},
        "weights '": {"model": retrained},
    }
    if not finished:
        refusals["batch_size 4, not 5"] = {"batch_size": 5}
    name = path.name if finished else "x.partial"
    for reason, changes in refusals.items():
        with pytest.raises(ValueError, match=f"{name} holds a measurement with {reason}.*: remove it, or name another file$"):
            attempt(**changes)
    attempt()


def test_a_file_that_holds_something_else_is_refused(tmp_path: Path) -> None:
    for content in ("{}\n", "3\n", "not json\n", '{"unfinished": {}}\n{"round": 0}\n'):
        (tmp_path / "x.partial").write_text(content)
        with pytest.raises(ValueError, match=r"x.partial does not hold an unfinished measurement \(.*\): remove it$"):
            measure(given(), "x", DOCUMENTS, SHORT, tmp_path / "x.jsonl")


def _of_two(rank: int, port: int, folder: Path) -> None:
    torch.set_num_threads(1)
    wait = timedelta(seconds=60)  # for a process that has failed
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2, timeout=wait)
    found = [measure(tiny(build), "x", DOCUMENTS, SHORT) for build in (autoregressive, diffusion)]
    stop = stop_after(2) if rank == 1 else lambda: False  # one process is told to stop, and both do
    path = folder / "x.jsonl"
    try:
        measure(tiny(diffusion), "x", DOCUMENTS, SHORT, path, should_stop=stop)
    except EvaluationStopped:
        found.append(measure(tiny(diffusion), "x", DOCUMENTS, SHORT, path))
    found.append(measure(given(noise=3.0), "x", MANY, TARGET))
    with pytest.raises(ValueError, match=r"x\.jsonl holds a measurement with model 'x', not 'other'"):
        measure(tiny(diffusion), "other", DOCUMENTS, SHORT, path)
    full = patch.object(Raw, "add", side_effect=OSError("disk full"))  # only the first process writes
    with full, pytest.raises((OSError, RuntimeError), match="disk full"):
        measure(given(), "x", DOCUMENTS, SHORT, folder / "full.jsonl")
    with pytest.raises(ValueError, match="gives a text nan nats"):
        measure((Broken if rank == 1 else Given)(), "x", DOCUMENTS, SHORT)  # type: ignore[arg-type]
    for number, measurement in enumerate(found):
        measurement.write(folder / f"{rank}-{number}.jsonl")
    torch.distributed.destroy_process_group()


def test_two_processes_find_the_bits_that_one_finds(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    spawn(_of_two, (port, tmp_path), nprocs=2)
    one = [measure(tiny(build), "x", DOCUMENTS, SHORT) for build in (autoregressive, diffusion, diffusion)]
    one.append(measure(given(noise=3.0), "x", MANY, TARGET))
    assert one[-1].draws > 2
    for rank in range(2):
        assert [Measurement.read(tmp_path / f"{rank}-{number}.jsonl") for number in range(4)] == one
    assert Measurement.read(tmp_path / "x.jsonl") == one[2]


def test_progress_tells_the_mean_and_the_error_of_what_is_scored_so_far() -> None:
    told: list[Running] = []
    model = tiny(diffusion)
    found = measure(model, "x", DOCUMENTS, SHORT, progress=told.append)
    rows = len(Windows(DOCUMENTS.texts, byte_level(), 12, 5))  # type: ignore[arg-type]
    assert [(running.done, running.total) for running in told] == [(min(4 * i, rows), rows) for i in range(1, -(-rows // 4) + 1)]
    assert told[-1].nats_per_token == pytest.approx(nats_per_token(found), rel=1e-12)
    texts = [(score.nats, score.tokens) for score in found.scores]
    spread = sum((nats - nats_per_token(found) * tokens) ** 2 for nats, tokens in texts) * len(texts) / (len(texts) - 1)
    assert told[-1].error == pytest.approx(math.sqrt(spread) / sum(tokens for _, tokens in texts), rel=1e-12)
    assert told[0].nats_per_token == pytest.approx(nats_per_token(found), rel=0.5)


@pytest.mark.parametrize("encoder", [False, True])
@pytest.mark.parametrize("fill", [None, 20])
def test_responses_are_scored_given_their_prompts(fill: int | None, encoder: bool) -> None:
    model: Any = diffusion(Vocab.of(byte_level()), backbone=trunk(encoder_layers=1 if encoder else 0))
    model.tokenizer = byte_level()
    pairs = [Pair(sentence(i, 2), sentence(i, 1)) for i in range(5)]
    rows = Pairs(pairs, byte_level(), 32, encoder, fill=fill)
    found = measure(model, "x", Texts("p", "response", pairs), Settings(draws=3), pair_rows=lambda given: rows)
    expected = likelihood(model, rows, draws=3)
    assert nats_per_token(found) == pytest.approx(expected.nats_per_token, rel=1e-12)
    assert [score.text_bytes for score in found.scores] == [len(pair.response.encode()) for pair in pairs]
    assert (found.rules.unit, found.rules.start, found.rules.end, found.rules.fill) == ("response", "[BOS]", True, fill)
    if fill is None and not encoder:
        plain = measure(model, "x", Texts("p", "response", pairs), Settings(length=32, draws=3))
        assert [score.nats for score in plain.scores] == pytest.approx([score.nats for score in found.scores], rel=1e-12)
    with pytest.raises(ValueError, match="1 of 6 pairs are no rows of x: leave them out of every model's measurement"):
        measure(model, "x", Texts("p", "response", [*pairs, pairs[0]]), Settings(), pair_rows=lambda given: rows)


def test_what_cannot_be_measured_is_refused() -> None:
    model = tiny(autoregressive)
    with pytest.raises(ValueError, match="length is 33 and x reads 32 tokens: shorten the windows"):
        measure(model, "x", DOCUMENTS, Settings(length=33))
    with pytest.raises(ValueError, match="there is no token to score: documents is empty, or nothing in it is a target"):
        measure(model, "x", DOCUMENTS._replace(texts=[]), Settings())
    model.tokenizer = None
    with pytest.raises(ValueError, match="x has no tokenizer files"):
        measure(model, "x", DOCUMENTS, Settings())
    for wrong in ({"draws": 0}, {"batch_size": 0}, {"target_se": 0.0}, {"target_se": math.nan}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} is .*, expected"):
            Settings(**wrong)  # type: ignore[arg-type]


class Broken(Given):
    def mean_nll(self, batch: Batch, seed: int, draws: int, pilot: object = None) -> Tensor:
        return super().mean_nll(batch, seed, draws) * float("nan")


def test_a_model_with_broken_weights_is_no_model_to_compare() -> None:
    model: Any = Broken()
    with pytest.raises(ValueError, match="Broken gives a text nan nats"):
        measure(model, "x", DOCUMENTS, SHORT)
