"""Detokenizers give the natural form of each published tokenisation, rule by rule, and conventions name what can be had."""

import json
from pathlib import Path

import datasets
import pytest

from textdiff.commands.compared_texts import compared_texts
from textdiff.data.conventions import CONVENTIONS, DETOKENIZERS, PREFIX, convention, detokenizer
from textdiff.data.source import hub_id

WIKITEXT = Path(__file__).parents[3] / "shared" / "data" / "text" / "wikitext2-valid.txt"

CASES = [
    ("wikitext", "0 @.@ 7 to 2 @,@ 200 well @-@ known", "0.7 to 2,200 well-known"),
    ("wikitext", "He said , so : yes ; no . Who ? Him ! Oh", "He said, so: yes; no. Who? Him! Oh"),
    ("wikitext", 'in ( 24 in ) , [ a ] and { b } " the end " here', 'in (24 in), [a] and {b} "the end" here'),
    ("wikitext", " \n = = Title = = \n text", "\n== Title ==\ntext"),
    ("wikitext", "the dog 's bone , the dogs ' bones", "the dog's bone, the dogs' bones"),
    ("wikitext", "20 ° C and N of them", "20°C and 1 of them"),
    ("wikitext", "a <unk> stays", "a <unk> stays"),
    ("ptb", "the firm 's N N stake was n't worth $ N", "the firm's 1 1 stake wasn't worth $ N"),
    ("ptb", "it cost $ N million or # N \\/ share of <unk>", "it cost $1 million or #1 / share of ?"),
    ("ptb", "a NATION N wide", "a NATION 1 wide"),
    ("lm1b", "see http : / / x , or ( so ) : yes ; no", "see http://x, or (so): yes; no"),
    ("lm1b", 'He said " it is " , did n\'t he ?', 'He said "it is", did n\'t he?'),
    ("lm1b", "The end came . It cost $ 5 and £ 6 .", "The end came. It cost $5 and £6."),
    ("lm1b", "Stop ! Go !", "Stop! Go!"),
    ("wikitext", "below 80 ° C ( 112 ° F ) ( about ( 1 @.@ 5 m ) wide )", "below 80°C (112°F) (about ( 1.5 m) wide )"),
    ("wikitext", " = = = Sub = = = \n = = = = Low = = = = \n", " === Sub ===\n==== Low ====\n"),
    ("wikitext", "the dogs ' bones", "the dogs' bones"),
    ("wikitext", "he said ' oh ' to them", "he said 'oh' to them"),
    ("ptb", "the firms ' stake \n and", "the firms' stake\nand"),
    ("lm1b", "see https : / / x or a / b [ sic ] ' so '", "see https://x or a/b [sic] 'so'"),
    ("lm1b", "the dog 's ? Yes", "the dog's? Yes"),
    ("lambada", " “ no ” she said \n", '\n" no " she said'),
    ("scientific", "we ( the authors ) , say : yes", "we (the authors), say: yes"),
    ("scientific", "well @-@ known for $ 5", "well-known for $5"),
    ("none", " as , it is ", " as , it is "),
]


@pytest.mark.parametrize(("name", "tokenised", "natural"), CASES)
def test_each_rule_gives_the_natural_form(name: str, tokenised: str, natural: str) -> None:
    assert detokenizer(name)(tokenised) == natural


@pytest.mark.parametrize("name", DETOKENIZERS)
def test_natural_text_stays(name: str) -> None:
    text = "The author (a \"sea lion\", 5.2 m long) isn't there: it's 1,200 km off; who knows? Well-known."
    assert detokenizer(name)(text).removeprefix("\n") == text


@pytest.mark.parametrize("name", ["none", "ptb", "lambada"])
def test_twice_is_once(name: str) -> None:
    clean = detokenizer(name)
    for _, tokenised, _ in CASES:
        assert clean(clean(tokenised)) == clean(tokenised)


def test_wikitext_as_it_comes() -> None:
    if not WIKITEXT.exists():
        pytest.skip("the WikiText file is not here")
    text = WIKITEXT.read_text()
    found = detokenizer("wikitext")(text)
    assert text.count(" @-@ ") > 1000
    for mark in (" @-@ ", " @,@ ", " @.@ ", " , ", " ; "):
        assert mark not in found
    assert found.count("<unk>") == text.count("<unk>")
    assert 0.8 < len(found.split()) / len(text.split()) < 0.9


def test_names_that_are_not_there_are_refused_with_those_that_are() -> None:
    with pytest.raises(ValueError, match="there is no detokenizer 'wiki': expected one of none, wikitext"):
        detokenizer("wiki")
    with pytest.raises(ValueError, match="there is no zero-shot data set 'wiki': expected one of ptb"):
        convention("wiki")


@pytest.mark.parametrize("name", CONVENTIONS)
def test_every_convention_names_a_hub_id_a_split_and_a_detokenizer(name: str) -> None:
    found = CONVENTIONS[name]
    assert hub_id(found.source).repository.count("/") == 1
    assert found.split in ("validation", "test", "all")
    assert found.detokenizer in DETOKENIZERS


def in_the_hubs_layout(folder: Path) -> None:
    folder.mkdir(parents=True)
    for split, text in (("train", "never read"), ("validation", "a well @-@ known dog , it is"), ("test", "nor this")):
        (folder / f"{split}.jsonl").write_text(f'{{"text": "{text}", "other": "x"}}\n')


def test_a_zero_shot_name_reads_its_split_and_its_column(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    in_the_hubs_layout(tmp_path / "Salesforce" / "wikitext:wikitext-2-raw-v1")
    found = compared_texts(f"{PREFIX}wikitext", None, None, "none", 0, None)
    assert list(found.texts) == ["a well-known dog, it is"]
    assert found.detokenizer == "wikitext"
    assert "MDLM's repository" in found.description


@pytest.mark.parametrize("kind", ["folder", "hub"])
def test_lambada_which_has_a_test_part_only_is_read_whole(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    texts = [f"text {number}" for number in range(50)]
    if kind == "folder":
        folder = tmp_path / "EleutherAI" / "lambada_openai:en"
        folder.mkdir(parents=True)
        (folder / "test.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    else:
        tables = datasets.DatasetDict({"test": datasets.Dataset.from_dict({"text": texts})})
        monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: tables)
    found = compared_texts(f"{PREFIX}lambada", None, None, "none", 0, None)
    assert sorted(found.texts) == sorted(f"\n{text}" for text in texts)


def test_a_configuration_on_the_parquet_branch_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for config in ("arxiv", "pubmed"):
        for split in ("train", "validation", "test"):
            (tmp_path / config / split).mkdir(parents=True)
            rows = datasets.Dataset.from_dict({"article": [f"{config} {split}"], "abstract": [""]})
            rows.to_parquet(str(tmp_path / config / split / "0000.parquet"))
    load = datasets.load_dataset

    def branch(repository: str, name: None, *, revision: str, streaming: bool, data_dir: str) -> object:
        assert (repository, revision) == ("armanc/scientific_papers", "refs/convert/parquet")
        return load(str(tmp_path), name, data_dir=data_dir, cache_dir=str(tmp_path / "cache"))

    monkeypatch.setattr(datasets, "load_dataset", branch)
    for config in ("arxiv", "pubmed"):
        assert list(compared_texts(f"{PREFIX}{config}", None, None, "none", 0, None).texts) == [f"{config} validation"]


def test_a_zero_shot_name_leaves_nothing_to_choose() -> None:
    with pytest.raises(ValueError, match="zero-shot:wikitext is read with column text, split validation and detokenizer wikitext"):
        compared_texts(f"{PREFIX}wikitext", None, "test", "none", 0, None)
