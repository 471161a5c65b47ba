import json
import math
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import textdiff
from tests.tiny_runs import RECIPES, SMALL, TINY, corpus, quickstart, recipe, stock_bert, stock_gpt2
from tests.wrong_inputs import GENERATE, PERPLEXITY, QUICKSTART, SPECULATE
from textdiff.backbones.transformer import TransformerConfig
from textdiff.cli import main
from textdiff.data.corpora import resolve
from textdiff.data.layout import scored_examples
from textdiff.evaluation.likelihood import likelihood
from textdiff.models.autoregressive import AutoregressiveLM
from textdiff.models.classifier import ClassifierSpec
from textdiff.models.discrete import DiscreteDiffusionLM
from textdiff.models.loading import load


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working folder with two runs, two stock models, an adapted one, and every wrong input."""
    place = tmp_path_factory.mktemp("place")
    before = Path.cwd()
    os.chdir(place)
    corpus(Path("texts"))
    stock_gpt2(Path("gpt2"))
    stock_bert(Path("bert"))
    for preset in ("masked", "autoregressive"):
        quickstart(preset, "--data", "texts", "--out", preset)
    quickstart("masked", "--data", "texts", "--init", "gpt2", "--out", "adapted")
    Path("text.txt").write_text("the old cat sat on a red mat and drank tea where the dog ran.\n" * 30)
    _make_wrong_inputs()
    yield place
    os.chdir(before)


def _make_wrong_inputs() -> None:
    Path("empty.txt").touch()
    Path("short.txt").write_text("hi\n")
    Path("rows.jsonl").write_text('{"text": "a b c"}\n{"text": oops\n')
    Path("null.jsonl").write_text('{"text": "a b c"}\n{"text": null}\n')
    Path("other.csv").write_text("body,title\none,two\n")
    Path("ragged.csv").write_text("text,title\none,two\nthree\n")
    Path("latin.txt").write_bytes("caf\u00e9\n".encode("latin-1"))
    Path("fake.parquet").write_text("no parquet\n")
    Path("picture.png").write_bytes(b"\x89PNG")
    Path("nothing").mkdir()
    for name, config in {
        "t5": '{"model_type": "t5"}',
        "unknown": '{"model_type": "zzz"}',
        "untyped": "{}",
        "cut-config": '{"model_ty',
    }.items():
        Path(name).mkdir()
        Path(name, "config.json").write_text(config)
    for name, file, keep in (
        ("cut", "model.safetensors", 0.5),
        ("cut-tokenizer", "tokenizer.json", 0.5),
        ("no-weights", "model.safetensors", 0),
    ):
        shutil.copytree("masked/model", name)
        data = Path(name, file).read_bytes()
        Path(name, file).write_bytes(data[: int(len(data) * keep)]) if keep else Path(name, file).unlink()
    shutil.copytree("gpt2", "cut-gpt2")
    os.truncate("cut-gpt2/model.safetensors", 1000)
    shutil.copytree("gpt2", "no-tokenizer", ignore=shutil.ignore_patterns("tokenizer*"))
    model = load("masked")
    classifier = ClassifierSpec(backbone=TransformerConfig(width=16, layers=1, heads=2)).build(model.vocab)
    classifier.tokenizer = model.tokenizer
    classifier.save_pretrained("classifier")
    shutil.copytree("masked/model", "specless")
    config = json.loads(Path("specless/config.json").read_text())
    Path("specless/config.json").write_text(json.dumps({**config, "spec": None}))
    shutil.copytree("adapted/model", "blockless")
    config = json.loads(Path("blockless/config.json").read_text())
    Path("blockless/config.json").write_text(json.dumps({**config, "textdiff": {"model_type": "textdiff-other"}}))


def everything() -> dict[str, bytes]:
    """Every file of the working folder."""
    return {str(path): path.read_bytes() for path in sorted(Path().rglob("*")) if path.is_file()}


@pytest.mark.parametrize("line", [*GENERATE, *PERPLEXITY, *SPECULATE, *QUICKSTART], ids=lambda line: line[:70])
def test_a_wrong_input_ends_in_one_line_and_exit_code_2_and_costs_no_file(
    line: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = {**GENERATE, **PERPLEXITY, **SPECULATE, **QUICKSTART}[line]
    before, words = everything(), line.split()
    capsys.readouterr()
    command = main if words[0] == "textdiff" else (lambda rest: quickstart(*rest) if len(rest) > 1 else recipe(*words))
    with pytest.raises(SystemExit) as stopped:
        command(words[1:])
    error = capsys.readouterr().err
    assert stopped.value.code == 2
    assert error.count("\n") == 1, error
    assert re.search(message, error), error
    assert everything() == before
    assert not Path("runs").exists()


def text_of(command: Callable[[], None], capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    """What a command that succeeds prints on standard output and standard error."""
    capsys.readouterr()
    command()
    said = capsys.readouterr()
    return said.out, said.err


def generated(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    return text_of(lambda: main(["generate", *words]), capsys)[0]


def measured(model: str, *words: str) -> dict[str, Any]:
    main(["perplexity", model, "--data", "text.txt", "--json", "numbers.json", *words])
    record: dict[str, Any] = json.loads(Path("numbers.json").read_text())
    Path("numbers.json").unlink()
    return record


@pytest.mark.parametrize("model", ["masked", "autoregressive", "adapted", "gpt2", "masked/model"])
def test_generate_continues_a_prompt_the_same_for_the_same_seed(model: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [model, "--prompt", "the old cat", "--max-new-tokens", "8"]
    first = generated(capsys, *words)
    assert first.startswith("the old cat")
    assert generated(capsys, *words) == first
    assert generated(capsys, *words, "--seed", "1") != first
    several = generated(capsys, *words, "--count", "3")
    assert several.count("the old cat") == 3


@pytest.mark.parametrize("model", ["masked", "adapted", "bert"])
def test_generate_fills_the_masks_and_nothing_else(model: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    middle = generated(capsys, model, "--infill", "the [MASK] cat[MASK:2].", "--temperature", "0").strip()
    assert re.fullmatch(r"(?s)the .*cat.*\.", middle)
    assert "[MASK]" not in middle
    loaded = textdiff.load(model)
    assert "[MASK" not in middle
    assert len(loaded.tokenizer.tokenize(middle)) >= 3


@pytest.mark.parametrize("sampler", ["Threshold:tau=0.8", "Greedy", "EntropyBound:gamma=0.5", "FirstHitting", "Margin", "Entropy"])
def test_the_sampler_asked_for_is_the_one_used(sampler: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, error = text_of(lambda: main(["generate", "masked", "--max-new-tokens", "5", "--sampler", sampler]), capsys)
    assert error.startswith(f"[{sampler.partition(':')[0]}: law ")


def test_steps_are_network_calls(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["generate", "masked", "--max-new-tokens", "8", "--sampler", "Greedy", "--steps", "4"]
    assert "4.0 network calls, 2.00 tokens per call" in text_of(lambda: main(words), capsys)[1]


def test_live_without_a_terminal_prints_the_same_plain_text(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["masked", "--prompt", "the", "--max-new-tokens", "8"]
    assert generated(capsys, *words, "--live") == generated(capsys, *words)


def test_control_characters_of_a_sample_do_not_reach_the_terminal(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "\x1b" not in generated(capsys, "masked", "--prompt", "a\x1b[2Jb", "--max-new-tokens", "1")


def stock_nats(folder: str, length: int) -> tuple[float, int]:
    """Total nats and tokens of text.txt by transformers alone: EOS begins each block and ends the document."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = [*tokenizer(Path("text.txt").read_text(), add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    total, parts = 0.0, [ids[i : i + length - 1] for i in range(0, len(ids), length - 1)]
    for part in parts:
        block = torch.tensor([[tokenizer.eos_token_id, *part]])
        with torch.no_grad():
            total += float(model(block, labels=block).loss) * len(part)
    return total, len(ids)


def test_a_stock_causal_model_has_the_likelihood_that_transformers_computes(place: Path) -> None:
    cut = Path("text.txt").read_text().splitlines(keepends=True)
    assert len(cut) == 30
    record = measured("gpt2", "--split", "train", "--length", "32")
    whole = Path("text.txt").read_text()
    corpus_train = "".join(cut[: math.ceil(len(whole) * 0.9 / len(cut[0]))])
    Path("text.txt").write_text(corpus_train)
    total, tokens = stock_nats("gpt2", 32)
    Path("text.txt").write_text(whole)
    assert record["tokens"] == tokens
    assert record["kind"] == "exact"
    assert record["nats_per_token"] == pytest.approx(total / tokens, abs=1e-6)


@pytest.mark.parametrize(
    ("model", "kind"), [("masked", "upper bound"), ("autoregressive", "exact"), ("adapted", "upper bound"), ("bert", "upper bound")]
)
def test_perplexity_says_what_it_is_and_does_not_depend_on_the_batch_size(model: str, kind: str, place: Path) -> None:
    one, many = (measured(model, "--length", "24", "--draws", "2", "--batch-size", size) for size in ("1", "50"))
    assert one["kind"] == kind
    assert {name: one[name] for name in ("tokens", "sequences", "text_bytes", "data")} == {
        name: many[name] for name in ("tokens", "sequences", "text_bytes", "data")
    }
    assert one["nats_per_token"] == pytest.approx(many["nats_per_token"], rel=1e-5)
    loaded = textdiff.load(model)
    examples, *_ = scored_examples(resolve("text.txt"), loaded.tokenizer, 24, None, None)
    assert many["nats_per_token"] == pytest.approx(likelihood(loaded, examples, 2).nats_per_token, rel=1e-5)
    assert many["bits_per_byte"] == pytest.approx(many["nats_per_token"] * many["tokens"] / many["text_bytes"] / math.log(2), rel=1e-9)


def test_perplexity_of_pairs_scores_responses_and_a_limit_takes_fewer_rows(place: Path) -> None:
    Path("pairs.jsonl").write_text("".join(json.dumps({"prompt": "the cat", "response": f"sat {i}"}) + "\n" for i in range(10)))
    words = ["perplexity", "masked", "--data", "pairs.jsonl", "--draws", "1", "--json", "numbers.json"]
    main(words)
    record = json.loads(Path("numbers.json").read_text())
    assert (record["text_bytes"], record["sequences"]) == (50, 10)
    main([*words, "--limit", "5"])
    assert json.loads(Path("numbers.json").read_text())["sequences"] == 5
    Path("numbers.json").unlink()


def test_an_adapted_folder_is_a_stock_folder_too(place: Path) -> None:
    model = textdiff.load("adapted")
    assert isinstance(model, DiscreteDiffusionLM)
    assert model.spec.shift
    stock = AutoModelForCausalLM.from_pretrained("adapted/model")
    assert type(stock).__name__ == "GPT2LMHeadModel"
    trunk = model.backbone.trunk
    assert trunk is not None
    for name, tensor in trunk.state_dict().items():
        assert torch.equal(stock.state_dict()[name], tensor), name
    assert isinstance(textdiff.load("gpt2"), AutoregressiveLM)


def in_a_process(*words: str, file_size: int | None = None, **environment: str) -> "subprocess.CompletedProcess[str]":
    def limit() -> None:
        if file_size is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))

    root = {"PYTHONPATH": str(RECIPES.parent), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, *words]
    return subprocess.run(command, env={**os.environ, **root, **environment}, capture_output=True, text=True, preexec_fn=limit)


@pytest.mark.slow
@pytest.mark.parametrize("kilobytes", [1, 8, 20, 60])
def test_a_full_disk_ends_a_run_in_one_line_and_an_older_run_stays_whole(kilobytes: int, place: Path) -> None:
    """The limit meets the tokenizer, the weights or the optimizer state first."""
    shutil.copytree("masked", f"full-{kilobytes}")
    before = everything()
    resumed = in_a_process(
        *(str(RECIPES / "quickstart.py"), "masked", *TINY, *SMALL, "--data", "texts", "--out", f"full-{kilobytes}"),
        *("--train.resume", "--train.steps", "3"),
        file_size=1000 * kilobytes,
    )
    after = everything()
    assert resumed.returncode == 2, resumed.stderr
    assert "Traceback" not in resumed.stderr
    assert re.search(r"error: (cannot write|could not write) .*free some space", resumed.stderr.splitlines()[-1])
    changing = ("run.lock", "log.jsonl", "tensorboard")
    assert {name: data for name, data in before.items() if not any(part in name for part in changing)}.items() <= after.items()
    assert load_file(f"full-{kilobytes}/model/model.safetensors").keys() == load_file("masked/model/model.safetensors").keys()
    fresh = in_a_process(
        *(str(RECIPES / "quickstart.py"), "masked", *TINY, *SMALL, "--data", "texts", "--out", f"fresh-{kilobytes}"),
        file_size=1000 * kilobytes,
    )
    assert fresh.returncode == 2, fresh.stderr
    assert "Traceback" not in fresh.stderr


def test_a_terminal_that_knows_only_ascii_still_shows_the_result(place: Path) -> None:
    done = in_a_process("-m", "textdiff.cli", "perplexity", "masked", "--data", "text.txt", "--draws", "1", PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert "perplexity" in done.stdout


@pytest.mark.parametrize("words", [[], ["generate"], ["perplexity"], ["speculate"]])
def test_help_is_quick_because_it_needs_no_torch(words: list[str]) -> None:
    call = f"import sys; from textdiff.cli import main\ntry: main({[*words, '--help']!r})"
    code = f"{call}\nexcept SystemExit as stop: print(stop.code, 'torch' in sys.modules)"
    assert in_a_process("-c", code).stdout.splitlines()[-1] == "0 False"


def test_help_of_a_recipe_names_its_presets_and_of_a_preset_its_flags(capsys: pytest.CaptureFixture[str]) -> None:
    for words, expected in ((("--help",), "presets: masked, autoregressive"), (("masked", "--help"), "--train.steps INT")):
        with pytest.raises(SystemExit) as stopped:
            recipe("quickstart", *words)
        assert stopped.value.code == 0
        assert expected in capsys.readouterr().out
