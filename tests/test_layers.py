import ast
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "textdiff"
# DESIGN: an import goes to a lower layer, or leftward inside its own.
LAYERS = (
    ("spec", "randomness", "vocab", "batch", "projection", "prediction", "state_prediction"),
    ("schedules", "log_snr"),
    ("processes",),
    ("guidance",),
    ("samplers",),
    ("backbones",),
    ("models", "oracle"),
    ("published", "data"),
    ("evaluation", "viewer"),
    ("training",),
    # "" is the package itself, whose lazy names reach everywhere
    (
        "",
        "bench",
        "plots",
        "report",
        "page",
        "recipe",
        "scores",
        "sampler_words",
        "decoding",
        "families",
        "seq2seq",
        "denoise",
        "controlled",
        "adaptation",
        "drafter",
        "speculation",
        "commands",
        "family_runs",
        "family_tables",
        "family_report",
        "family_comparison",
        "cli",
    ),
)
ORDER = {name: (layer, place) for layer, names in enumerate(LAYERS) for place, name in enumerate(names)}
TOP = (len(LAYERS), 0)  # where a part without a layer stands, until `test_every_part_has_a_layer` is told of it


def part_of(module: str) -> str:
    """`textdiff.samplers.base` -> `samplers`; the package itself -> ``."""
    return module.split(".")[1] if "." in module else ""


def imported(tree: ast.AST) -> set[str]:
    """Every textdiff module that a file imports, at its top or inside a function."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: import textdiff modules by their full name"
            module = node.module or ""
            found |= {f"textdiff.{alias.name}" for alias in node.names} if module == "textdiff" else {module}
    return {name for name in found if name.split(".")[0] == "textdiff"}


def upward(name: str, source: str) -> list[str]:
    """The imports of the file `name` (relative to the package) that do not go down."""
    own = Path(name).parts[0].removesuffix(".py")
    parts = {part_of(module) for module in imported(ast.parse(source))} - {own}
    return [f"{name} imports {part or 'textdiff'}" for part in sorted(parts) if ORDER.get(part, TOP) > ORDER.get(own, TOP)]


def sources() -> dict[str, str]:
    return {str(path.relative_to(PACKAGE)): path.read_text() for path in PACKAGE.rglob("*.py")}


def test_imports_go_down_the_layers() -> None:
    assert [line for name, source in sources().items() if name != "__init__.py" for line in upward(name, source)] == []


def test_every_part_has_a_layer() -> None:
    assert {Path(name).parts[0].removesuffix(".py") for name in sources()} - {"__init__"} - set(ORDER) == set()


def test_an_upward_import_would_be_found() -> None:
    assert upward("samplers/mine.py", "def f():\n    from textdiff.models.base import Loss") == ["samplers/mine.py imports models"]
    assert upward("vocab.py", "from textdiff import batch, spec") == ["vocab.py imports batch"]
    assert upward("samplers/mine.py", "import textdiff") == ["samplers/mine.py imports textdiff"]
    assert upward("samplers/mine.py", "import textdiff.samplers.base, textdiff.processes.masked") == []


def test_an_init_of_a_part_holds_its_docstring_only() -> None:
    for name, source in sources().items():
        if Path(name).name == "__init__.py" and len(Path(name).parts) > 1:
            body = ast.parse(source).body
            assert len(body) == 1, name
            assert isinstance(body[0], ast.Expr), name


def test_nothing_loads_code_or_pickles() -> None:
    """Checkpoints are safetensors and configurations are data: no `torch.load`, no pickle, no remote code."""
    for name, source in sources().items():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Attribute):
                assert ast.unparse(node) not in ("torch.load", "torch.save"), f"{name}:{node.lineno}"
            elif isinstance(node, ast.Import | ast.ImportFrom):
                names = {alias.name for alias in node.names} | {getattr(node, "module", "")}
                assert not names & {"pickle", "dill", "cloudpickle", "joblib"}, f"{name}:{node.lineno}"
            elif isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
                assert ast.unparse(node.value) == "False", f"{name}:{node.value.lineno}"
