"""Random texts for the tests of metrics: few words, so that n-grams repeat; punctuation, so that tokenisers matter; some empty."""

import random

WORDS = ("the", "cat", "sat.", "on,", "a", "(dog)", "4.5", "don't", "größer", "the,the", "x-y", "&amp;")


def random_texts(count: int, seed: int, longest: int = 12) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randrange(longest + 1))) for _ in range(count)]


def changed(texts: list[str], seed: int) -> list[str]:
    """The same texts with some words left out or replaced."""
    draw = random.Random(seed)
    return [" ".join(draw.choice((word, word, word, draw.choice(WORDS), "")) for word in text.split()) for text in texts]
