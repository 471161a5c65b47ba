"""What the README tells a person to type works, as written, from the project's folder."""

import importlib.util
import re
import shlex
import tomllib
from pathlib import Path

import pytest

from tests.tiny_runs import QUICK, RECIPES, SMALL, TINY, corpus, recipe
from textdiff.cli import main

ROOT = RECIPES.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.M | re.S)


def commands() -> list[list[str]]:
    """Every command of the bash blocks: comments dropped, `a && b` taken apart, `\\` at a line's end joined."""
    lines = [line for block in blocks("bash") for line in block.replace("\\\n", " ").splitlines()]
    parts = [part for line in lines for part in line.split(" && ")]
    return [words for words in (shlex.split(part, comments=True) for part in parts) if words]


def run(words: list[str]) -> None:
    """One command, in process and with the smallest numbers, or a check that what it starts exists."""
    if words[0] == "python" and words[1].startswith("recipes/"):
        name = Path(words[1]).stem
        data = [] if "--data" in words or name in QUICK else ["--data", "texts"]
        small = ["--families", "autoregressive", "masked", "--data", "texts"] if name == "compare_families" else SMALL
        recipe(name, words[2], *QUICK.get(name, TINY), *small, *data, *words[3:])
    elif words[:3] == ["python", "-m", "pytest"]:
        assert importlib.util.find_spec("pytest") is not None
        assert "testpaths" in tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    elif words[:2] == ["textdiff", "compare"]:
        main([*words[1:], "--data", "texts", "--limit", "2", "--draws", "1"])
    elif words[:2] == ["textdiff", "frontier"]:
        main([*words[1:], "--data", "texts", "--texts", "2", "--length", "8"])
    elif words[:2] == ["textdiff", "perplexity"]:
        main([*words[1:], "--limit", "2", "--draws", "1"])
    elif words[:2] == ["textdiff", "bench"]:
        with pytest.raises(SystemExit, match="0"):  # its own tests run it
            main([*words[1:], "--help"])
    elif words[0] == "textdiff":
        main(words[1:])
    else:
        assert words[0] in ("python3", ".", "pip"), words
        assert "pip" not in words or words[-1] == ".[dev]"


def test_the_commands_run_in_the_order_of_the_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    corpus(Path("texts"))
    found = commands()
    assert sum(words[0] == "textdiff" for words in found) >= 3
    for words in found:
        run(words)
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), {})


def test_the_first_command_is_the_quickstart_and_the_second_the_tests() -> None:
    first, second = (block.strip() for block in blocks("bash")[:2])
    assert first.endswith("python recipes/quickstart.py masked")
    assert second == "python -m pytest"


def test_the_files_it_names_exist() -> None:
    outside = README.split("```")[::2]
    for name in set(re.findall(r"\b(?:recipes/)?[\w/]+\.(?:py|yaml|md)\b", " ".join(outside))):
        assert list(ROOT.rglob(name)), name
