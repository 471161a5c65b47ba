import pytest

from textdiff.data.splits import bucket, cut


def test_the_hash_gives_each_split_its_share() -> None:
    counts = [0, 0, 0]
    for i in range(20_000):
        counts[bucket(f"record {i}")] += 1
    for count, share in zip(counts, (0.9, 0.05, 0.05), strict=True):
        assert abs(count / 20_000 - share) < 4 * (share * (1 - share) / 20_000) ** 0.5


def test_the_hash_never_changes() -> None:
    # a change would let a published model's training text into its test split
    assert [[i for i in range(60) if bucket(f"record {i}") == split] for split in (1, 2)] == [[55], [6, 8, 9, 14]]


@pytest.mark.parametrize("text", ["", "a", "\n", "one line without an end", "a\nb\n" * 500, "x" * 99 + "\n" + "y" * 900, "é\r\n" * 77])
def test_a_cut_text_loses_nothing_and_ends_its_ranges_at_lines(text: str) -> None:
    ranges = cut(text)
    parts = [part[0] if part else "" for part in ranges]
    assert "".join(parts) == text
    if text.count("\n") > 50:
        assert all(part.endswith("\n") for part in parts)
        assert abs(len(parts[0]) / len(text) - 0.9) < 0.01
