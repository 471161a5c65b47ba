import pytest

from textdiff.batch import Example
from textdiff.data.token_classes import NAMES, Tagged, TokenClasses, class_of
from textdiff.data.tokenizer import encode, train_tokenizer


@pytest.mark.parametrize(
    ("text", "name"),
    [
        *((" the", "function"), ("the", "piece"), (" The", "function"), (" Paris", "capital"), ("Paris", "capital"), (" opened", "verbal")),
        *(
            (" ing", "word"),
            (" river", "word"),
            ("er", "piece"),
            (" 12", "number"),
            ("3.5", "number"),
            (" (", "punctuation"),
            ("\n\n", "space"),
        ),
        *(("", "other"), ("...", "punctuation"), ("_x", "piece")),
    ],
)
def test_a_token_is_told_by_its_letters(text: str, name: str) -> None:
    assert class_of(text) == name


def test_every_id_has_a_class_and_special_ones_are_other() -> None:
    tokenizer = train_tokenizer(["the river opened the door (12 times) in Paris\n"] * 20, 300)
    classes = TokenClasses.read(tokenizer, len(tokenizer) + 3)
    other = NAMES.index("other")
    assert classes.of.shape == (len(tokenizer) + 3,)
    assert all(int(classes.of[i]) == other for i in [*tokenizer.all_special_ids, *range(len(tokenizer), len(tokenizer) + 3)])
    ids = encode(tokenizer, "the river 1")
    rows = Tagged([Example(ids, [True] * len(ids))], classes)
    assert list(rows[0].source) == [NAMES.index(class_of(str(tokenizer.decode([i])))) for i in ids]
    assert len(rows) == 1
    assert rows[0].tokens == ids
