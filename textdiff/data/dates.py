"""The corpus `builtin:dates`: English dates and numbers as people write them, each with its ISO form; a pair is right or wrong.

    the 3rd of March, 2021           2021-03-03
    Sep 3 '21                        2021-09-03
    twelve thousand and five         12005

Pair number i of a split is a function of (seed, split, i). Which split a pair may be in is decided by a hash of its text, so that no
prompt of one split occurs in another. Years are 1950 to 2049, of which '50 to '49 are short forms; numbers are 0 to 99,999.
"""

import datetime
import random
from collections.abc import Callable
from functools import lru_cache

from textdiff.data.readers import Pair
from textdiff.data.splits import Splits, bucket

NAME = "builtin:dates"
FIRST_YEAR, LAST_YEAR = 1950, 2049
_SIZES = (20_000, 500, 1_000)

# not from `calendar`, whose names are those of the user's language
MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November", "December")
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_TEENS = ("ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen")
_ONES = _DIGITS + _TEENS
_TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_IRREGULAR = {"one": "first", "two": "second", "three": "third", "five": "fifth", "eight": "eighth", "nine": "ninth", "twelve": "twelfth"}


@lru_cache(maxsize=4)
def load(seed: int = 0) -> Splits[Pair]:
    """20,000 pairs to train on, 500 for validation and 1,000 to test."""
    return Splits(*([pair(seed, split, index) for index in range(size)] for split, size in enumerate(_SIZES)))


def pair(seed: int, split: int, index: int) -> Pair:
    """Pair `index` of a split, 0 (train), 1 (validation) or 2 (test)."""
    draw = random.Random(f"{seed} {split} {index}")
    while True:  # of twenty texts one belongs to validation and one to test
        found = _date(draw) if draw.random() < 0.7 else _number(draw)
        if bucket(found.prompt) == split:
            return found


def cardinal(number: int) -> str:
    """A number from 0 to 999,999 in words: "twelve thousand and five"."""
    thousands, rest = divmod(number, 1000)
    if not thousands:
        return _below_thousand(rest)
    head = f"{_below_thousand(thousands)} thousand"
    return head if not rest else f"{head} {'and ' if rest < 100 else ''}{_below_thousand(rest)}"


def ordinal(number: int) -> str:
    """A number from 1 to 99 as an ordinal: "twenty-first"."""
    head, dash, last = cardinal(number).rpartition("-")
    last = _IRREGULAR.get(last) or (f"{last[:-1]}ieth" if last.endswith("y") else f"{last}th")
    return f"{head}{dash}{last}"


def _below_thousand(number: int) -> str:
    hundreds, rest = divmod(number, 100)
    if not hundreds:
        return _below_hundred(rest)
    return f"{_ONES[hundreds]} hundred" + (f" and {_below_hundred(rest)}" if rest else "")


def _below_hundred(number: int) -> str:
    if number < 20:
        return _ONES[number]
    tens, ones = divmod(number, 10)
    return _TENS[tens] + (f"-{_ONES[ones]}" if ones else "")


def _suffixed(day: int) -> str:
    return f"{day}{'th' if day in (11, 12, 13) else {1: 'st', 2: 'nd', 3: 'rd'}.get(day % 10, 'th')}"


def _spoken(year: int) -> str:
    """A year as it is said: "nineteen ninety-nine", "two thousand and five", "twenty twenty-one"."""
    century, rest = divmod(year, 100)
    if 2000 <= year < 2010:
        return cardinal(year)
    return f"{_below_hundred(century)} " + ("hundred" if not rest else f"oh {_ONES[rest]}" if rest < 10 else _below_hundred(rest))


_DAYS: tuple[Callable[[int], str], ...] = (str, _suffixed, ordinal)
_YEARS: tuple[Callable[[int], str], ...] = (str, str, lambda year: f"'{year % 100:02}", _spoken)


def _date(draw: random.Random) -> Pair:
    first = datetime.date(FIRST_YEAR, 1, 1).toordinal()
    date = datetime.date.fromordinal(draw.randint(first, datetime.date(LAST_YEAR, 12, 31).toordinal()))
    month = MONTHS[date.month - 1][: draw.choice((3, None))]
    day, year = draw.choice(_DAYS)(date.day), draw.choice(_YEARS)(date.year)
    of = "of " if not day.isdigit() and draw.random() < 0.7 else ""
    the = "the " if of and draw.random() < 0.5 else ""
    comma = draw.choice((",", ""))
    forms = (f"{the}{day} {of}{month}{comma} {year}", f"{month} {day}{comma} {year}")
    weekday = draw.choice(("", "", "", f"{WEEKDAYS[date.weekday()]}, ", f"{WEEKDAYS[date.weekday()][:3]} "))
    return Pair(_cased(weekday + draw.choice(forms), draw), date.isoformat())


def _number(draw: random.Random) -> Pair:
    number = draw.randrange(10 ** draw.randint(2, 5))
    words = cardinal(number)
    forms = [words, words, words.replace("-", " "), words.replace(" and ", " "), f"{number:,}"]
    return Pair(_cased(draw.choice(forms), draw), str(number))


def _cased(text: str, draw: random.Random) -> str:
    return draw.choice((text, text, text.lower(), text[0].upper() + text[1:]))
