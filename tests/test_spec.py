import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from textdiff.processes.masked import Masked
from textdiff.randomness import Rng
from textdiff.schedules import Geometric, LogLinear, Polynomial, Schedule
from textdiff.spec import from_plain, to_plain

HERE = __name__.split(".")[0]


@dataclass(frozen=True)
class Inner:
    rate: float = 0.5
    count: int | None = None
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outer:
    schedule: Schedule
    inner: Inner = Inner()
    flag: bool = False
    many: tuple[Inner, ...] = ()
    table: dict[str, float] = dataclasses.field(default_factory=dict)
    folder: Path | None = None


TREE = Outer(Polynomial(3.0), Inner(0.25, 7, ("a", "b")), True, (Inner(), Inner(1.0)), {"x": 1.0})


def test_a_nested_tree_survives_plain_data_and_json() -> None:
    plain = to_plain(TREE)
    assert plain["schedule"] == {"class": "textdiff.schedules.Polynomial", "power": 3.0}
    assert from_plain(json.loads(json.dumps(plain)), trusted=("textdiff", HERE)) == TREE


def test_a_process_survives_and_computes_the_same() -> None:
    process = Masked(Geometric(), mask_id=4)
    again = from_plain(to_plain(process))
    x0, t, rng = torch.zeros(50, 3, dtype=torch.long), torch.full((50,), 0.5), Rng(0, 0, torch.arange(50))
    assert again == process
    assert torch.equal(again.corrupt(x0, t, rng), process.corrupt(x0, t, rng))


def test_a_path_survives() -> None:
    tree = Outer(LogLinear(), folder=Path("runs") / "first")
    assert from_plain(to_plain(tree), trusted=("textdiff", HERE)) == tree


def test_whole_numbers_are_floats_where_a_float_is_expected() -> None:
    rebuilt = from_plain({"class": "textdiff.schedules.Polynomial", "power": 3})
    assert type(rebuilt.power) is float


def test_a_misspelt_field_is_named_with_the_one_meant() -> None:
    with pytest.raises(ValueError, match="Polynomial has no field 'pwer'; did you mean 'power'"):
        from_plain({"class": "textdiff.schedules.Polynomial", "pwer": 2.0})
    with pytest.raises(ValueError, match=r"has no field 'zzz'; its fields are \['power'\]"):
        from_plain({"class": "textdiff.schedules.Polynomial", "zzz": 2.0})


@pytest.mark.parametrize("value", ["2", None, True, [2.0], {"class": "textdiff.schedules.LogLinear"}])
def test_a_value_of_the_wrong_type_is_refused_by_name(value: object) -> None:
    with pytest.raises(ValueError, match=r"Polynomial\.power got .* expected float"):
        from_plain({"class": "textdiff.schedules.Polynomial", "power": value})


def test_a_class_of_the_wrong_kind_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Masked\.schedule got .* expected Schedule"):
        from_plain({"class": "textdiff.processes.masked.Masked", "schedule": {"class": "textdiff.processes.masked.Masked"}})


def test_a_missing_field_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="schedule"):
        from_plain({"class": f"{__name__}.Outer"}, trusted=("textdiff", HERE))


@pytest.mark.parametrize("path", ["subprocess.Popen", "os.system", "textdiffer.schedules.LogLinear", "LogLinear", ""])
def test_classes_outside_the_trusted_packages_are_never_imported(path: str) -> None:
    with pytest.raises(ValueError, match="outside the trusted packages"):
        from_plain({"class": path})


@pytest.mark.parametrize(
    "path", ["textdiff.schedules.inside", "textdiff.schedules.Nothing", "textdiff.nowhere.Nothing", "textdiff.randomness.Rng"]
)
def test_what_is_not_a_dataclass_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match=r"not a dataclass|cannot be imported"):
        from_plain({"class": path})


def test_what_has_no_plain_form_is_an_error_of_the_programmer() -> None:
    with pytest.raises(TypeError, match="Tensor has no plain form"):
        to_plain({"a": torch.zeros(1)})
