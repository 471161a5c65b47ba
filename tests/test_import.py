"""`import textdiff` is light, and transformers knows our architectures whatever is imported first."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import textdiff
from tests.models.tiny import autoregressive, diffusion

PACKAGE = Path(textdiff.__file__).parent
AUTO = {"AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoModelForMaskedLM", "AutoTokenizer"}


def python(code: str, *arguments: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=PACKAGE.parent)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("statement", ["import textdiff", "import textdiff.cli"])
def test_importing_imports_no_torch(statement: str) -> None:
    loaded = python(f"import sys, json; {statement}; print(json.dumps(sorted(sys.modules)))")
    assert not {"torch", "transformers", "datasets", "accelerate"} & set(json.loads(loaded))


def test_every_public_name_is_there_and_an_unknown_one_says_which_are() -> None:
    names = [name for name in dir(textdiff) if not name.startswith("_")]
    for name in names:
        assert getattr(textdiff, name).__name__ == name
    with pytest.raises(AttributeError, match=r"no attribute 'Loader'; its public names are .*\bload\b"):
        _ = textdiff.Loader


ORDERS = {
    "textdiff first": "import textdiff; from transformers import AutoConfig, AutoModel",
    "transformers first": "import transformers; import textdiff; from transformers import AutoConfig, AutoModel",
    "auto classes first": "from transformers import AutoConfig, AutoModel; import textdiff",
    "a heavy module first": "import textdiff.models.discrete; from transformers import AutoConfig, AutoModel",
    "the trainer first": "import textdiff.recipe; from transformers import AutoModel, AutoConfig",
    "a lazy name first": "from textdiff import Greedy, load; from transformers import AutoConfig, AutoModel",
    "the auto module itself": "import textdiff, transformers.models.auto.modeling_auto; from transformers import AutoConfig, AutoModel",
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    root = tmp_path_factory.mktemp("ours")
    diffusion().save_pretrained(root / "diffusion")
    autoregressive().save_pretrained(root / "autoregressive")
    return [str(root / "diffusion"), str(root / "autoregressive")]


@pytest.mark.parametrize("order", [pytest.param(name, marks=[] if name == "textdiff first" else pytest.mark.slow) for name in ORDERS])
def test_auto_classes_open_our_folders_in_any_order_of_imports(order: str, folders: list[str]) -> None:
    show = "for f in sys.argv[1:]: print(AutoConfig.from_pretrained(f).model_type, type(AutoModel.from_pretrained(f)).__name__)"
    code = f"{ORDERS[order]}\nimport sys\n{show}"
    printed = python(code, *folders).split()
    assert printed == ["textdiff-discrete", "DiscreteDiffusionLM", "textdiff-autoregressive", "AutoregressiveLM"]


def test_no_module_imports_the_auto_classes_at_its_top() -> None:
    """Their import registers our models, which must not be half imported at that moment."""
    for path in PACKAGE.rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "transformers":
                assert not AUTO & {alias.name for alias in node.names}, f"{path.name}:{node.lineno}"
                assert "auto" not in (node.module or ""), f"{path.name}:{node.lineno}"
