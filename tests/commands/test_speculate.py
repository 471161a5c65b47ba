import re
from pathlib import Path

import pytest

from tests.tiny_runs import recipe
from textdiff.cli import main
from textdiff.models.loading import load
from textdiff.models.speculation import require_same_ids


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[str, str]:
    capsys.readouterr()
    main(list(words))
    said = capsys.readouterr()
    return said.out, said.err


PAIRS = [("gpt2", "adapted"), ("autoregressive", "masked")]


@pytest.mark.parametrize(("target", "drafter"), PAIRS)
def test_at_temperature_0_the_text_is_that_of_the_target_alone(
    target: str, drafter: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--prompt", "the old cat", "--max-new-tokens", "13", "--temperature", "0"]
    alone, _ = run(capsys, "generate", target, *words)
    for options in ([], ["--draft-length", "3", "--adaptive"], ["--draft-steps", "2"], ["--draft-sampler", "Greedy", "--draft-steps", "2"]):
        text, costs = run(capsys, "speculate", "--target", target, "--drafter", drafter, *words, *options)
        assert text == alone
        sampler = "--draft-sampler" in options
        assert costs.startswith("[Match: Greedy writes tokens in an order of its own" if sampler else "[Spec: ")
        passes, calls, tokens = map(int, re.findall(r"(\d+) target passes and (\d+) drafter calls for (\d+) tokens", costs)[0])
        assert 13 / 4 <= passes <= tokens <= 13 or not options
        assert f"{tokens / passes:.2f} per target pass" in costs
        assert calls >= passes - 1
        assert re.search(r"\[\d+\.\d\d times the tokens per second of plain sampling: ", costs)


def test_the_same_seed_gives_the_same_text(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["speculate", "--target", "gpt2", "--drafter", "adapted", "--max-new-tokens", "9"]
    first, _ = run(capsys, *words)
    assert run(capsys, *words)[0] == first
    assert run(capsys, *words, "--seed", "1")[0] != first


def test_models_speculate_together_when_what_they_write_has_the_same_ids(place: Path) -> None:
    models = {name: load(name) for name in ("gpt2", "adapted", "masked", "autoregressive")}
    for target, drafter in PAIRS:
        require_same_ids(models[target], models[drafter])
    assert models["adapted"].tokenizer.mask_token_id not in models["gpt2"].tokenizer.get_vocab().values()
    with pytest.raises(ValueError, match=r"target and drafter differ in \d+ ids, the first 0: '<\|endoftext\|>' and None"):
        require_same_ids(models["gpt2"], models["masked"])


@pytest.mark.parametrize("target", ["gpt2", "autoregressive"])
def test_a_drafter_of_the_targets_features_drafts(target: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = ["--train.steps", "2", "--own.rows", "8", "--trial.prompts", "2", "--trial.tokens", "6", "--layout.length", "24"]
    recipe("drafter", "flash", "--target", target, "--data", "texts", "--out", f"{target}-drafter", *few, "--train.batch-size", "4")
    words = ["--prompt", "the old cat", "--max-new-tokens", "13", "--temperature", "0"]
    alone, _ = run(capsys, "generate", target, *words)
    text, costs = run(capsys, "speculate", "--target", target, "--drafter", f"{target}-drafter", *words)
    assert text == alone
    assert costs.startswith("[Spec: all tokens are drawn at once and independently, given features of the text before them")
    pair = ["speculate", "--target", target, "--drafter", f"{target}-drafter"]
    with pytest.raises(SystemExit):
        main([*pair, "--draft-steps", "2"])
    assert "writes a draft in one step of its own: leave --draft-steps and --draft-sampler out" in capsys.readouterr().err
    pair[2] = "gpt2" if target == "autoregressive" else "autoregressive"
    with pytest.raises(SystemExit):
        main(pair)
    assert "error: target and drafter differ in" in capsys.readouterr().err
