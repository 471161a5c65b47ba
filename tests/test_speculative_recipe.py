import io
import json
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor
from transformers import AutoModelForCausalLM

import textdiff
from tests.backbones.stock_models import tiny
from tests.models.tiny import autoregressive, diffusion, trunk
from tests.models.tiny_drafters import drafter_of
from tests.tiny_runs import corpus, quickstart, recipe
from textdiff.backbones.pretrained import Pretrained
from textdiff.batch import Batch
from textdiff.bench.base import Bench
from textdiff.guidance.filters import Filters
from textdiff.models.autoregressive import AutoregressiveSpec
from textdiff.samplers.confidence import Greedy
from textdiff.samplers.drafting import AnyOrder, LeftToRightChunks
from textdiff.samplers.speculative import Adaptive, DraftLength
from textdiff.speculation.comparison import Same, compared, same
from textdiff.speculation.opening import Models
from textdiff.speculation.plan import Compare
from textdiff.speculation.view import frames, show
from textdiff.speculation.ways import Drafted, Stock, StockDrafted, Written
from textdiff.vocab import Vocab

NEW, ZERO = 14, Filters(0.0)
VOCAB = Vocab(size=8, tokens=8, pad_id=0, bos_id=1, eos_id=2)  # few enough for a drafter to be right by chance


def causal(layers: int) -> Any:
    """A stock Llama as a target, float64."""
    network = tiny("llama", num_hidden_layers=layers, vocab_size=8).double()
    return (
        AutoregressiveSpec(backbone=Pretrained("tiny")).build(VOCAB, Pretrained("tiny").wrap(network, VOCAB, causal=True)).double().eval()
    )


TARGET = causal(2)
DRAFTER = diffusion(Vocab(size=9, tokens=9, mask_id=8, pad_id=0), backbone=trunk(max_length=64))
FLASH = drafter_of(TARGET)
PROMPTS = torch.randint(1, 8, (4, 9), generator=torch.Generator().manual_seed(0)).unbind(0)
SETTINGS = Compare(new=NEW, lengths=(2, 5), steps=(1, 2))


def plain(prompt: Tensor) -> list[int]:
    """The likeliest tokens, each from a pass over the whole row."""
    row = prompt.tolist()
    for _ in range(NEW):
        batch = Batch.of(torch.tensor([[*row, 0]]))
        where = torch.arange(len(row) + 1)[None] == len(row)
        logits = TARGET.predictor(batch)(batch.tokens, batch.sample_id).logits(where)[0]
        row.append(int(logits.index_fill(0, torch.tensor(VOCAB.unemittable), -torch.inf).argmax()))
    return row[len(prompt) :]


def test_every_way_writes_the_likeliest_tokens_one_after_the_other() -> None:
    ways = SETTINGS.ways(Models(TARGET, DRAFTER, causal(1), FLASH), 0.0)
    assert len(ways) == 12
    for prompt in PROMPTS:
        wanted = plain(prompt)
        for name, way in ways.items():
            assert way(prompt, 0).tokens.tolist() == wanted, name


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_costs_add_up(temperature: float) -> None:
    """Each pass writes what it accepts and one token more."""
    for name, way in SETTINGS.ways(Models(TARGET, DRAFTER, causal(1), FLASH), temperature).items():
        for seed, prompt in enumerate(PROMPTS):
            found = way(prompt, seed)
            assert len(found.tokens) == NEW == found.passes + int(found.accepted.sum()), name
            assert bool((found.accepted <= found.tested).all()), name
            assert torch.equal(found.tested[1:], found.tested[1:].minimum(found.accepted[:-1])), name


def test_at_temperature_1_the_ways_of_transformers_write_by_the_targets_law() -> None:
    """Two tokens, chi-square against their exact law; those of our loop are tested in tests/samplers/test_speculative_law.py."""
    prompt, n = torch.tensor([3, 4, 5, 3, 4, 6, 5, 3, 4]), 300  # what comes after 3 4 can be looked up
    ids = [i for i in range(8) if i not in VOCAB.unemittable]

    def law(row: list[int]) -> Tensor:
        batch = Batch.of(torch.tensor([[*row, 0]]))
        where = torch.arange(len(row) + 1)[None] == len(row)
        return TARGET.predictor(batch)(batch.tokens, batch.sample_id).logits(where)[0][ids].softmax(0)

    with torch.no_grad():
        exact = law(prompt.tolist())[:, None] * torch.stack([law([*prompt.tolist(), i]) for i in ids])
    ways = replace(SETTINGS, new=2, lengths=(2,)).ways(Models(TARGET, DRAFTER, causal(1), None), 1.0)
    stock = [name for name in ways if "transformers" in name]
    assert len(stock) == 4
    for name in stock:
        found, drafted = torch.zeros_like(exact), 0
        for seed in range(n):
            written = ways[name](prompt, seed)
            drafted += int(written.tested.sum())
            found[tuple(ids.index(token) for token in written.tokens.tolist())] += 1
        likely = n * exact >= 3  # the others are counted together
        seen, wanted = (torch.cat([table[likely], table[~likely].sum()[None]]) for table in (found, n * exact))
        freedom = len(seen) - 1
        assert float(((seen - wanted) ** 2 / wanted).sum()) < freedom + 4.5 * (2 * freedom) ** 0.5, name
        assert (drafted > n / 2) == (name != "left to right (transformers)"), name


def test_the_stock_generate_is_counted_as_our_own_loop() -> None:
    """The same drafts are tested in the same passes."""
    passed = 0
    for drafting, longest in ((LeftToRightChunks(), 5), (LeftToRightChunks(2), 4)):
        ours = Drafted(TARGET, ZERO, NEW, DRAFTER, drafting, DraftLength(longest))
        theirs = StockDrafted(TARGET, ZERO, NEW, drafter=DRAFTER.backbone, denoiser=DRAFTER, drafting=drafting, longest=longest)
        for prompt in PROMPTS:
            one, other = ours(prompt, 0), theirs(prompt, 0)
            passed += int(one.accepted.sum())
            width = len(other.tested)
            assert (one.passes, one.calls) == (other.passes, other.calls)
            assert torch.equal(one.tested[:width], other.tested)
            assert torch.equal(one.accepted[:width], other.accepted)
            assert int(one.tested[width:].sum()) == 0
    assert passed > 10


def test_an_assistant_that_is_the_target_passes_every_test() -> None:
    network = TARGET.backbone.trunk
    found = Stock(TARGET, ZERO, NEW, (("assistant_model", causal(2).backbone.trunk),))(PROMPTS[0], 0)
    assert network is not None
    assert torch.equal(found.tested, found.accepted)
    assert found.passes < NEW


def test_rows_are_told_apart_and_ties_from_other_differences() -> None:
    written = [Written(torch.tensor(plain(prompt)), NEW, 0, torch.zeros(0), torch.zeros(0)) for prompt in PROMPTS[:3]]
    changed = written[1]._replace(tokens=torch.where(torch.arange(NEW) == 4, (written[1].tokens + 1) % 7 + 1, written[1].tokens))
    assert same(TARGET, PROMPTS[:3], written, written) == Same(3, 0, 3)
    assert same(TARGET, PROMPTS[:3], written, [written[0], changed, written[2]]) == Same(2, 0, 3)
    level = autoregressive(Vocab(size=8, tokens=8), backbone=trunk())
    level.backbone.get_parameter("embedding.weight").data.zero_()  # every token is as likely as any other
    assert same(level, PROMPTS[:3], written, [written[0], changed, written[2]]) == Same(2, 1, 3)


def test_speed_is_a_ratio_to_the_faster_plain_way(monkeypatch: pytest.MonkeyPatch) -> None:
    costs, clock = {"one": 3.0, "two": 2.0, "three": 1.0}, [0.0]
    nothing = torch.zeros(0, dtype=torch.long)

    def side(name: str) -> Any:
        def way(prompt: Tensor, seed: int) -> Written:
            clock[0] += costs[name]
            return Written(prompt, 1, 0, nothing, nothing)

        return way

    monkeypatch.setattr(Bench, "seconds", lambda self: clock[0])
    lines = compared(Bench(rounds=2), {name: side(name) for name in costs}, ["one", "two"], TARGET, PROMPTS[:2], chance=True)
    assert {line.name: line.speed[1] for line in lines} == {"one": pytest.approx(2 / 3), "two": 1.0, "three": 2.0}
    assert [(line.tokens, line.passes, line.same) for line in lines] == [(18, 2, None)] * 3


@pytest.mark.parametrize(("drafting", "length"), [(LeftToRightChunks(), DraftLength(5)), (AnyOrder(Greedy(2)), Adaptive(6))], ids=str)
def test_the_frames_of_a_row_are_the_row(drafting: Any, length: DraftLength) -> None:
    """What is refused is not what is written there, and what is accepted is."""
    passed, way = 0, Drafted(TARGET, ZERO, NEW, DRAFTER, drafting, length)
    for prompt in PROMPTS:
        found = list(frames(way, prompt, 0))
        written = plain(prompt)
        assert [token for frame in found for token in (*frame.accepted, *frame.own)] == written
        for frame in found:
            assert frame.before == [*prompt.tolist(), *written][: len(frame.before)]
            assert len(frame.own) == 1
            assert not frame.refused or frame.refused[0] != frame.own[0]
        tested, accepted = int(found[-1].counts.tested.sum()), int(found[-1].counts.accepted.sum())
        assert sum(len(frame.accepted) for frame in found) == accepted
        assert sum(bool(frame.refused) for frame in found) == tested - accepted
        passed += accepted
    assert passed > 5


class Letters:
    """A tokenizer of 8 letters."""

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        return "".join(chr(0x100 + i) for i in ids)


def test_what_is_refused_is_struck_through_in_a_terminal_and_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("textdiff.speculation.view._FRAME", 0.0)
    way = Drafted(TARGET, ZERO, NEW, DRAFTER, LeftToRightChunks(), DraftLength(5))
    row = Letters().decode([*PROMPTS[0].tolist(), *plain(PROMPTS[0])])
    terminal = Console(file=io.StringIO(), force_terminal=True, width=200, color_system="standard")
    file = Console(file=io.StringIO(), force_terminal=False, width=200)
    for console in (terminal, file):
        show(console, way, PROMPTS[0], 0, Letters())
    live, still = (console.file.getvalue() for console in (terminal, file))  # type: ignore[attr-defined]
    refused = next(frame.refused for frame in frames(way, PROMPTS[0], 0) if frame.refused)
    assert re.search(rf"\x1b\[[\d;]*9;31m{Letters().decode(refused)}", live)  # 9: struck through
    assert "\x1b" not in still
    assert still.splitlines()[0] == row
    assert re.sub(r"\x1b\[[\d;?]*\w", "", live).rstrip().splitlines()[-2].strip() == row


TINY = [
    *("--train.steps", "2", "--train.batch-size", "4", "--train.warmup", "1", "--vocab-size", "300", "--layout.length", "24"),
    *("--drafter-train.steps", "2", "--drafter-train.batch-size", "4", "--drafter-train.warmup", "1", "--data", "texts"),
    *("--flash-train.steps", "2", "--flash-train.batch-size", "4", "--flash-train.warmup", "1", "--flash-own.rows", "8"),
    *("--compare.prompts", "2", "--compare.prompt-length", "8", "--compare.new", "6", "--compare.rounds", "1"),
    *("--compare.lengths", "2", "--compare.steps", "1"),
]
SMALL = [
    *(word for role in ("target", "assistant") for word in (f"--{role}-size.width", "16", f"--{role}-size.layers", "1")),
    *(word for role in ("target", "assistant") for word in (f"--{role}-size.heads", "2", f"--{role}-size.max-length", "32")),
    *("--drafter-model.backbone.width", "16", "--drafter-model.backbone.layers", "1", "--drafter-model.backbone.heads", "2"),
]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """The working folder of a test, with a text."""
    before = Path.cwd()
    os.chdir(tmp_path)
    corpus(Path("texts"))
    yield tmp_path
    os.chdir(before)


def results(out: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(out, "results.json").read_text())
    return found


def test_a_run_trains_all_models_with_one_tokenizer_and_may_be_compared_again(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe("speculative", *TINY, *SMALL, "--out", "out")
    printed = capsys.readouterr().out
    assert "in float64: all 2 rows are the same, token for token" in printed
    assert "\x1b" not in printed
    models = [textdiff.load(f"out/{role}") for role in ("target", "assistant", "drafter", "flash")]
    assert len({json.dumps(model.tokenizer.get_vocab(), sort_keys=True) for model in models}) == 1
    AutoModelForCausalLM.from_pretrained("out/target/model")
    first = {line["name"]: line for line in results("out")["temperature 0.0"]}
    assert all(line["same"] == [2, 0, 2] for line in first.values())
    assert len(first) == 8
    assert len(results("out")["temperature 1.0"]) == 8
    recipe("speculative", "masked", *TINY, "--target", "out/target", "--drafter", "out/drafter", "--flash", "out/flash", "--out", "again")
    again = {line["name"]: line for line in results("again")["temperature 0.0"]}
    assert first.keys() - again.keys() == {"AR drafter (transformers)"}  # no assistant was given
    for name, line in again.items():
        assert [line[key] for key in ("tokens", "passes", "calls", "accepted")] == [
            first[name][key] for key in ("tokens", "passes", "calls", "accepted")
        ]


def test_a_target_that_is_no_stock_model_is_compared_in_our_loop_only(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quickstart("autoregressive", "--data", "texts", "--out", "own")
    recipe("speculative", "masked", *TINY, *SMALL, "--target", "own", "--out", "out", "--compare.temperatures", "0")
    assert [line["name"] for line in results("out")["temperature 0.0"]] == [
        *("left to right", "2 at once", "2 from features", "up to 4 at once")
    ]
    assert "the target is no stock model" in " ".join(capsys.readouterr().out.split())


def test_several_processes_are_refused(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit) as stopped:
        recipe("speculative", "masked", *TINY, *SMALL, "--out", "out")
    assert (stopped.value.code, "start it without torchrun or accelerate" in capsys.readouterr().err) == (2, True)


REFUSED = {
    "--drafter out": "a drafter is given and no target: what drafts has its target's token ids, so name that with --target",
    "--target gpt2 --drafter gpt2": "gpt2 is a causal model: name a diffusion model as drafter",
    "--target masked --drafter masked": "masked is a diffusion model: name a causal model as target",
    "--target gpt2 --drafter masked": "differ in ",
    "--target nosuch --drafter masked": "nosuch cannot be opened",
    "--target autoregressive --drafter masked --assistant autoregressive": "an assistant is transformers' own way, for stock models only",
    "--target autoregressive --drafter masked --compare.new 2000": "8 tokens and 2000 new ones exceed the 1024 that the models read",
    "--compare.new 30": "prompts of 8 tokens and 30 new ones exceed the 32 that the models read: shorten one",
    "--compare.prompt-length 100": "prompts of 100 tokens are the beginnings of rows of 24: raise layout.length, or lower",
    "--target masked": "masked is a diffusion model: name a causal model as target",
    "--target autoregressive --drafter masked --data nosuch.txt": "there is no file or folder 'nosuch.txt'",
    "--target autoregressive --drafter masked --flash masked": "masked is a DiscreteDiffusionLM, which reads no target",
    "--flash out": "a drafter is given and no target",
    "--compare.new 0": "compare.new is 0, expected 1 or more",
    "--compare.lengths 0": "compare.lengths are [0], expected numbers of 1 or more",
    "--compare.temperatures -1": "temperature is -1.0, expected 0",
    "--compare.rounds 0": "compare.rounds is 0, expected 1 or more",
    "--compare.device toaster": "compare.device is 'toaster', expected cpu or cuda",
    "--target-size.heads 3": "width 16 must be an even multiple of heads 3",
    "--train.steps 0": "steps = 0: expected at least 1",
    "--drafter-model.backbone.max-length 20": "layout.length is 24 and the drafter reads 20 tokens: shorten the rows",
    "--target autoregressive --drafter-model.backbone.max-length 30 --compare.new 30": "8 tokens and 30 new ones exceed the 30",
    "--drafter-model.backbone.encoder-layers 1": "the drafter's model has an encoder, and drafts continue a row",
    "--drafter-model.backbone.heads 3": "heads",
    "--flash-size.heads 3": "the target's width 16 must be an even multiple of heads 3",
    "--target autoregressive --flash-size.heads 3": "the target's width 16 must be an even multiple of heads 3",
    "--layout.streaming": "a stream has no beginnings to choose from: leave layout.streaming off",
    "--target autoregressive --assistant gpt2": "target and drafter differ in ",
    "--compare.device cuda": "compare.device is cuda and there is no GPU here: leave it out",
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_cannot_work_is_refused_in_one_line(words: str, shelf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = Path.cwd()
    os.chdir(shelf)
    try:
        with pytest.raises(SystemExit) as stopped:
            recipe("speculative", "masked", *TINY, *SMALL, *words.split(), "--out", "out")
    finally:
        os.chdir(before)
    said = capsys.readouterr().err.strip()
    assert (stopped.value.code, REFUSED[words] in said, "\n" in said) == (2, True, False), said
    assert not (shelf / "out").exists()
