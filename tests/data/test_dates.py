"""Every pair is checked by a reader of its own, which shares nothing with the generator but the English language."""

import datetime
import re

import pytest

from textdiff.data import dates
from textdiff.data.corpora import resolve
from textdiff.data.dates import cardinal, load, ordinal, pair
from textdiff.data.readers import Pair

MONTHS = {name: i for i, name in enumerate(["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"], 1)}
UNITS = [
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
]
TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
VALUES = {"zero": 0, "oh": 0, **{word: i for i, word in enumerate(UNITS, 1)}, **{word: 10 * i for i, word in enumerate(TENS, 2)}}
ORDINALS = dict(zip(["first", "second", "third", "fifth", "eighth", "ninth", "twelfth"], (1, 2, 3, 5, 8, 9, 12), strict=True))
ORDINALS |= {f"{word[:-1]}ieth": value for word, value in VALUES.items() if word.endswith("y")}
ORDINALS |= {f"{word}th": value for word, value in VALUES.items() if not word.endswith("y")}
WEEKDAYS = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"]


def number_of(words: list[str]) -> int:
    """By the grammar of number words: hundreds multiply what stands before them, a thousand closes a group."""
    whole = group = 0
    for word in words:
        if word == "hundred":
            group *= 100
        elif word == "thousand":
            whole, group = whole + 1000 * group, 0
        elif word != "and":
            group += VALUES[word]
    return whole + group


def year_of(words: list[str]) -> int:
    if words[0].startswith("'"):
        short = int(words[0][1:])
        return short + (1900 if short >= 50 else 2000)
    if words[0].isdigit():
        return int(words[0])
    if "thousand" in words:
        return number_of(words)
    return 100 * VALUES[words[0]] + (0 if words[1] == "hundred" else sum(VALUES[word] for word in words[1:]))


def iso_of(prompt: str) -> str:
    words = re.sub(r"(?<=[a-z])-(?=[a-z])", " ", prompt.lower()).replace(", ", " ").split()
    place = next((i for i, word in enumerate(words) if word[:3] in MONTHS), None)
    if place is None:
        return prompt.replace(",", "") if prompt[0].isdigit() else str(number_of(words))
    weekday = next((word for word in words if word[:3] in WEEKDAYS), None)
    month = MONTHS[words[place][:3]]
    others = [word for word in words if word not in ("the", "of", weekday, words[place])]
    figures = re.fullmatch(r"(\d+)(st|nd|rd|th)?", others[0])
    size = 1 if figures or others[0] in ORDINALS else 2  # "twenty first" are two words of one day
    day = int(figures[1]) if figures else sum(ORDINALS.get(word, VALUES.get(word, 0)) for word in others[:size])
    date = datetime.date(year_of(others[size:]), month, day)
    assert weekday is None or WEEKDAYS[date.weekday()] == weekday[:3], prompt
    return date.isoformat()


def test_every_pair_is_right() -> None:
    for part in load():
        for prompt, response in part:
            assert iso_of(prompt) == response, prompt


def test_the_reader_finds_a_wrong_pair() -> None:
    assert iso_of("the 3rd of March, 2021") == "2021-03-03"
    assert iso_of("twelve thousand and five") == "12005"
    with pytest.raises(AssertionError):
        iso_of("Monday, the 3rd of March, 2021")  # a Wednesday


def test_numbers_in_words_mean_themselves() -> None:
    numbers = [*range(1200), *range(1200, 1_000_000, 977), 999_999, 12_005, 100_000]
    assert [number_of(cardinal(n).replace("-", " ").split()) for n in numbers] == numbers
    assert [cardinal(n) for n in (0, 12_005, 345_678)] == [
        "zero",
        "twelve thousand and five",
        "three hundred and forty-five thousand six hundred and seventy-eight",
    ]
    assert [ordinal(n) for n in (1, 2, 3, 5, 8, 9, 12, 20, 21, 30)] == (
        ["first", "second", "third", "fifth", "eighth", "ninth", "twelfth", "twentieth", "twenty-first", "thirtieth"]
    )


def test_no_prompt_is_in_two_splits() -> None:
    prompts = [{pair.prompt for pair in part} for part in load()]
    assert [len(part) for part in load()] == [20_000, 500, 1_000]
    assert len(set.union(*prompts)) == sum(map(len, prompts))


def test_a_pair_is_a_function_of_seed_split_and_index() -> None:
    assert [pair(0, 1, i) for i in range(500)] == list(load().validation)
    assert [pair(1, 1, i) for i in range(500)] != list(load().validation)
    assert pair(0, 2, 0) == Pair("may thirteenth, 2003", "2003-05-13")


def test_it_is_a_corpus_of_pairs_that_stay_as_they_are() -> None:
    corpus = resolve(dates.NAME)
    assert corpus.pairs() == load()
    assert corpus.description == (  # numbers measured on these pairs stay comparable
        "builtin:dates: 20000/500/1000 train/validation/test records, 668,637 characters, sha256 717c4d94e2022575"
    )
