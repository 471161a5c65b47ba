from dataclasses import dataclass, replace

from textdiff.models.discrete import Discrete
from textdiff.spec import to_plain
from textdiff.training.run import first_change, flat, untouched


@dataclass(frozen=True)
class Inner:
    width: int = 4
    rate: float = 0.0


@dataclass(frozen=True)
class Outer:
    inner: Inner = Inner()
    other: Inner | None = None
    layers: int = 2


def change(then: dict[str, object], now: Outer) -> str | None:
    return first_change(then, flat("model", to_plain(now)), untouched("model", now))


def test_a_field_that_an_old_record_lacks_had_its_default() -> None:
    for begun in (Outer(), Outer(Inner(5), Inner(6), 3)):
        whole = flat("model", to_plain(begun))
        assert change(whole, begun) is None
        for name in ("model.inner.rate", "model.other", "model.layers"):
            old = {key: value for key, value in whole.items() if key != name}
            has_default = begun == Outer() or name == "model.inner.rate"
            assert change(old, begun) == (None if has_default or name == "model.other" else name), name
    old = {key: value for key, value in flat("model", to_plain(Outer())).items() if key != "model.inner.rate"}
    assert change(old, Outer(Inner(rate=0.5))) == "model.inner.rate"
    assert change(old, Outer(layers=3)) == "model.layers"


def test_a_field_that_is_recorded_as_empty_is_not_one_that_came_later() -> None:
    @dataclass(frozen=True)
    class Filled:
        inner: Inner | None = Inner()

    begun, now = (flat("model", to_plain(each)) for each in (replace(Filled(), inner=None), Filled()))
    assert first_change(begun | {"model.class": now["model.class"]}, now, untouched("model", Filled())) == "model.inner.class"


def test_what_a_new_version_does_not_know_is_a_change() -> None:
    assert change(flat("model", to_plain(Outer())) | {"model.gone": 1}, Outer()) == "model.gone"


def test_a_model_of_an_older_version_is_resumed() -> None:
    now = Discrete()
    then = {name: value for name, value in flat("model", to_plain(now)).items() if name not in ("model.label_dropout", "model.annealing")}
    assert first_change(then, flat("model", to_plain(now)), untouched("model", now)) is None
    hidden = replace(now, label_dropout=0.1)
    assert first_change(then, flat("model", to_plain(hidden)), untouched("model", hidden)) == "model.label_dropout"
