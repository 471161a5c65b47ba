"""Points of a frontier: which are beaten, which are cheap, what held-out text they stand beside, and how they are kept."""

import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from tests.data.texts import byte_level, documents, sentence
from tests.tiny_runs import stock_gpt2
from textdiff.evaluation import frontier
from textdiff.evaluation.frontier import HELD_OUT, Costs, Files, Point, Quality, held_out, pareto, table, warnings
from textdiff.evaluation.generative_perplexity import Scorer, unigram_entropy
from textdiff.models.loading import load


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> Scorer:
    return Scorer(load(str(stock_gpt2(tmp_path_factory.mktemp("scorer") / "gpt2"))), "gpt2")


def point(sampler: str, nfe: float, gen_ppl: float | None, model: str = "masked", gap: float = 0.0, weights: str = "m") -> Point:
    numbers: dict[str, Any] = {
        "distinct_1": 0.5,
        "distinct_2": 0.75,
        "distinct_4": 1.0,
        "self_bleu": 12.34,
        "repetition": 0.125,
        "mauve": None,
    }
    quality = Quality(gen_ppl, 0.5, 3.0, **numbers, texts=4, tokens_per_text=7.5, entropy_gap=gap, entropy_gap_error=0.05)
    drawn = {"seed": 0, "weights": weights, "scorer_weights": "s"}
    return Point.of_texts(quality, model, sampler, "gpt2", Costs(nfe, "float32, noise float64", 0.25), drawn)


def test_no_point_of_the_frontier_is_matched_with_fewer_calls_or_less_perplexity() -> None:
    best = [point("a", 4, 90.0), point("b", 8, 60.0), point("c", 32, 20.0, model="other")]
    beaten = [point("d", 8, 61.0), point("e", 40, 20.0), point("f", 5, 95.0)]
    aside = [point("cheap", 2, 5.0, gap=0.5), point("none", 1, None), point("in tokens of masked", 0, 15.0, model=HELD_OUT)]
    assert pareto([*beaten, *aside, *best]) == best
    twins = [point("a", 4, 90.0), point("b", 4, 90.0)]
    assert pareto(twins) == twins


def test_a_gap_must_be_large_and_certain_to_make_a_point_cheap() -> None:
    assert not point("a", 4, 9.0, gap=0.19).is_cheap
    assert point("a", 4, 9.0, gap=0.21).is_cheap
    assert not replace(point("a", 4, 9.0, gap=0.21), entropy_gap_error=0.11).is_cheap
    assert not point("a", 4, 9.0, gap=-1.0).is_cheap


def test_entropy_is_compared_at_equal_lengths(scorer: Scorer) -> None:
    texts, real = ["tea tea tea tea", "the cat", ""], [sentence(1, 9), sentence(2, 9), sentence(3, 9)]
    found = Quality.of(texts, real, scorer)
    ids, theirs = scorer.encoded(texts), scorer.encoded(real)
    gaps = [unigram_entropy(theirs[i][: len(ids[i])]) - unigram_entropy(ids[i]) for i in (0, 1)]
    assert found.entropy_gap == pytest.approx(fmean(gaps))
    assert found.entropy == pytest.approx(fmean(unigram_entropy(ids[i]) for i in (0, 1)))
    assert (found.texts, found.empty) == (3, 1)
    assert found.tokens_per_text == pytest.approx(sum(map(len, ids)) / 3)
    assert found.distinct_1 == pytest.approx(3 / 6)  # tea, the, cat among six words
    assert Quality.of(real, real, scorer).entropy_gap == 0


def test_texts_that_are_all_empty_have_no_numbers_of_tokens(scorer: Scorer) -> None:
    found = Quality.of(["", ""], [sentence(1), sentence(2)], scorer, "no folder")  # MAUVE has nothing to compare
    assert [found.gen_ppl, found.gen_ppl_error, found.entropy, found.repetition, found.entropy_gap, found.mauve] == [None] * 6
    assert found.empty == 2


def test_mauve_compares_the_texts_with_held_out_text(scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    texts, real = [sentence(1), sentence(2)], [sentence(3), sentence(4)]
    monkeypatch.setattr(frontier, "mauve", lambda *given: 0.5 if given == (texts, real, "network") else 0.0)
    assert Quality.of(texts, real, scorer).mauve is None
    assert Quality.of(texts, real, scorer, "network").mauve == 0.5


def test_held_out_text_is_what_stands_in_blocks_up_to_the_first_end() -> None:
    tokenizer, texts = byte_level(), documents(40)
    stream = [i for text in texts for i in [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]]
    blocks = [stream[i : i + 6] for i in range(0, len(stream) - 5, 6)]
    begun = [block for block in blocks if block[0] != tokenizer.eos_token_id]
    cut = [block[: block.index(tokenizer.eos_token_id)] if tokenizer.eos_token_id in block else block for block in begun]
    assert 0 < sum(len(ids) < 6 for ids in cut) < len(cut) < len(blocks)
    assert held_out(texts, tokenizer, 6, len(cut)) == [tokenizer.decode(ids) for ids in cut]
    some = held_out(texts, tokenizer, 6, 3)
    assert [some[0], some[2]] == [tokenizer.decode(cut[0]), tokenizer.decode(cut[-1])]
    with pytest.raises(ValueError, match=rf"has {len(cut)} blocks of 6 tokens, and {len(cut) + 1} texts are to be compared"):
        held_out(texts, tokenizer, 6, len(cut) + 1)


def test_points_and_texts_come_back_from_the_folder(tmp_path: Path) -> None:
    files, first, second = Files(tmp_path), point("a", 4, 90.0), point("b", 8, None)
    files.add(first, ["one", "zwölf\u2028"])
    files.add(second, [""])
    assert Files(tmp_path).points() == [first, second]
    samples = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert samples[1] == {"model": "masked", "sampler": "a", "text": "zwölf\u2028"}
    contract = {"model", "sampler", "nfe", "gen_ppl", "gen_ppl_error", "scorer", "entropy", "distinct_1", "distinct_2", "distinct_4"}
    contract |= {"self_bleu", "repetition", "mauve", "dtype", "texts", "tokens_per_text", "seconds_per_text"}
    line = json.loads((tmp_path / "frontier.jsonl").read_text().splitlines()[0])
    assert contract <= set(line)
    bare = {name: line[name] for name in contract}  # a line that something else wrote
    (tmp_path / "frontier.jsonl").write_text(json.dumps(bare) + "\n")
    assert {name: asdict(files.points()[0])[name] for name in contract} == bare


def test_texts_of_a_point_that_was_cut_off_are_replaced_and_those_of_others_kept(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    others = [{"model": "masked", "sampler": "b", "text": "kept"}, {"model": "other", "sampler": "a", "text": "kept"}]
    path.write_text("".join(json.dumps(line) + "\n" for line in [{"model": "masked", "sampler": "a", "text": "old"}, *others]))
    Files(tmp_path).add(point("a", 4, 90.0), ["new"])
    found = [json.loads(line) for line in path.read_text().splitlines()]
    assert found == [*others, {"model": "masked", "sampler": "a", "text": "new"}]


def test_a_folder_that_was_drawn_otherwise_is_refused(tmp_path: Path) -> None:
    files = Files(tmp_path)
    files.add(point("a", 4, 90.0), ["one"])
    files.check({"seed": 0})
    with pytest.raises(ValueError, match=r"frontier\.jsonl holds a measurement with seed 0, not 1"):
        files.check({"seed": 1})
    files.check({"weights": "other"}, ("masked", "b"))
    with pytest.raises(ValueError, match="weights 'm', not 'other'"):
        files.check({"weights": "other"}, ("masked", "a"))


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "one is missing": ({"texts": None}, "texts is missing"),
    "two are missing": ({"gen_ppl": None, "nfe": None}, "gen_ppl, nfe are missing"),
    "words": ({"nfe": "many"}, "nfe is 'many', expected a number"),
    "a number": ({"model": 3}, "model is 3, expected text"),
    "a share of a text": ({"texts": 1.5}, "texts is 1.5, expected a whole number"),
    "a list": ({"drawn": [1]}, r"drawn is \[1\], expected an object with names"),
    "another name": ({"nfes": 1}, "'nfes' is nothing that a point has"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_line_that_is_no_point_is_told_with_what_is_wrong(tmp_path: Path, case: str) -> None:
    """None takes a field away."""
    files, (change, said) = Files(tmp_path), WRONG[case]
    files.add(point("a", 4, 90.0), ["one"])
    row = {**json.loads(files.points_path.read_text()), **change}
    row = {name: value for name, value in row.items() if name not in change or value is not None}
    with files.points_path.open("a") as file:
        file.write(json.dumps(row) + "\n")
    with pytest.raises(ValueError, match=rf"^line 2 of .*frontier\.jsonl: {said}; mend"):
        files.points()


def test_the_table_marks_the_frontier_and_what_is_cheap() -> None:
    points = [
        point("", 0, 15.0, model=HELD_OUT),
        point("a", 4.25, 90.0),
        point("b", 8, 95.0),
        point("c", 8, 5.0, gap=0.5),
        point("d", 9, None),
    ]
    found = table(points)
    column = dict(zip(found.columns, zip(*found.rows, strict=True), strict=True))
    assert column["gen-PPL"] == ("15.00 ± 0.50", "90.00 ± 0.50 *", "95.00 ± 0.50", "5.00 ± 0.50 !", "-")
    assert column["NFE"] == ("0", "4.2", "8.0", "8.0", "9.0")
    assert column["distinct-1/2/4"][0] == "0.50/0.75/1.00"
    assert column["entropy vs held-out"] == ("-", "+0.00 ± 0.05", "+0.00 ± 0.05", "-0.50 ± 0.05", "+0.00 ± 0.05")
    assert column["entropy, own length"] == ("3.00",) * 5
    assert "compares only sets of equal tokens/text" in found.note
    assert column["dtype"][1] == "float32, noise float64"
    assert set(column["MAUVE"]) == {"-"}


def test_what_would_be_misread_is_said() -> None:
    cheap, empty = point("a", 4, 5.0, gap=0.5), replace(point("b", 4, 50.0), empty=2)
    own = [point(sampler, 9, 9.0, model="gpt2", weights="s") for sampler in ("x", "y")]
    lines = warnings([cheap, empty, *own, point("c", 4, 50.0)])
    assert [line.partition(":")[0] for line in lines[:2]] == ["masked, a", "masked, b"]
    assert "entropy 0.50 ± 0.05 nats below held-out text of equal lengths" in lines[0]
    assert "2 of 4 texts are empty" in lines[1]
    assert lines[2:] == ["gpt2 is the scorer itself, to which its own texts are likelier than to another"]
    assert math.isclose(cheap.entropy_gap or 0, 0.5)
