"""`textdiff perplexity` on pairs: responses given their prompts, by models that were trained on them."""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import textdiff
from tests.tiny_runs import SHORT, SMALL, pairs, recipe
from textdiff.batch import Batch
from textdiff.cli import main
from textdiff.data.corpora import resolve
from textdiff.data.tokenizer import encode

ENCODER = ["--encoder", "--model.backbone.encoder-layers", "1"]
RUNS = {
    "autoregressive": ["autoregressive"],
    "autoregressive, encoder": ["autoregressive", *ENCODER],
    "masked": ["masked"],
    "masked, encoder": ["masked", *ENCODER],
    "uniform, encoder": ["uniform", *ENCODER],
    "genie": ["genie"],
    "latent": ["latent"],
}
SOURCE, RESPONSE = 17, 13  # tokens; of the pairs here some are longer


@pytest.fixture(autouse=True)
def place(tmp_path: Path) -> Iterator[Path]:
    """The working folder of each test, with pairs in it."""
    before = Path.cwd()
    os.chdir(tmp_path)
    pairs(Path("pairs"))
    yield tmp_path
    os.chdir(before)


def trained(*words: str) -> None:
    """A run of two steps in `out`, which scores all of its validation pairs while training."""
    lengths = ["--source-length", str(SOURCE), "--response-length", str(RESPONSE), "--scoring.rows-while-training", "40"]
    recipe("translation", words[0], *SHORT, *SMALL, *lengths, "--scoring.candidates", "1", "--data", "pairs", "--out", "out", *words[1:])


def measured(*words: str) -> dict[str, Any]:
    main(["perplexity", "out", "--data", "pairs", "--json", "numbers.json", *words])
    found: dict[str, Any] = json.loads(Path("numbers.json").read_text())
    return found


def fits(tokenizer: Any, split: str) -> list[Any]:
    found = getattr(resolve("pairs").pairs(), split)
    return [p for p in found if len(encode(tokenizer, p.prompt)) <= SOURCE and len(encode(tokenizer, p.response)) < RESPONSE]


@pytest.mark.parametrize("words", RUNS.values(), ids=RUNS)
def test_the_number_is_that_of_the_evaluation_in_training_on_the_same_rows(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    trained(*words)
    logged = [json.loads(line)["evaluation"] for line in Path("out/log.jsonl").read_text().splitlines() if "evaluation" in line][-1]
    capsys.readouterr()
    found = measured("--split", "validation", "--draws", "2", "--batch-size", "7")
    assert found["nats_per_token"] == pytest.approx(logged["nats_per_target"], rel=1e-5)
    assert found["standard_error"] == pytest.approx(logged["standard_error"], rel=1e-4)
    kept, every = fits(textdiff.load("out").tokenizer, "validation"), resolve("pairs").pairs().validation
    assert 0 < len(kept) < len(every)
    assert f"{len(every) - len(kept)} too long for the model's rows left out" in found["data"]
    assert found["sequences"] == len(kept)
    assert found["text_bytes"] == sum(len(pair.response.encode()) for pair in kept)
    filled = words[0] != "autoregressive"
    if filled:
        assert found["tokens"] == RESPONSE * len(kept)
    assert found["kind"] == ("upper bound" if filled else "exact")
    ends = f"and EOS after it up to {RESPONSE} tokens" if filled else "its EOS included"
    assert found["rules"].startswith(f"every token of a response counts, {ends}; BOS and the prompt are context")
    assert ends in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("encoder", [False, True])
def test_the_likelihood_of_a_response_is_the_product_over_its_tokens_and_its_eos_given_the_prompt(encoder: bool) -> None:
    """By hand: the chain rule, a pair at a time; the prompt is read in its place and counts nothing."""
    trained("autoregressive", *(ENCODER if encoder else []), "--train.learning-rate", "0.1")
    model: Any = textdiff.load("out")
    bos, eos, nats, tokens = model.vocab.bos_id, model.vocab.eos_id, 0.0, 0
    for pair in fits(model.tokenizer, "test"):
        prompt, response = encode(model.tokenizer, pair.prompt), [*encode(model.tokenizer, pair.response), eos]
        row = torch.tensor([[bos, *response] if encoder else [bos, *prompt, eos, *response]])
        target = torch.arange(row.shape[1])[None] >= row.shape[1] - len(response)
        batch = Batch.of(row, target, source=torch.tensor([prompt]) if encoder else None)
        with torch.no_grad():
            logits = model.backbone(row, model.backbone.context(batch)) @ model.backbone.embedding.weight.T
        logits[..., list(model.vocab.unemittable)] = -torch.inf
        told = logits[0, -len(response) - 1 : -1].log_softmax(-1)
        nats, tokens = nats - float(told.gather(1, torch.tensor(response)[:, None]).double().sum()), tokens + len(response)
    found = measured("--split", "test")
    assert found["tokens"] == tokens
    assert found["nats_per_token"] == pytest.approx(nats / tokens, rel=1e-5)


def test_with_no_record_of_training_rows_end_at_the_first_eos(capsys: pytest.CaptureFixture[str]) -> None:
    """As of a model that was saved by hand: no pair is left out, and one that does not fit is named."""
    trained("genie")
    Path("out/model/training.json").unlink()
    every = resolve("pairs").pairs().test
    tokenizer = textdiff.load("out").tokenizer
    found = measured("--split", "test", "--draws", "1")
    assert (found["sequences"], found["length"]) == (len(every), 128)
    assert found["tokens"] == sum(len(encode(tokenizer, pair.response)) + 1 for pair in every)
    assert "its EOS included" in found["rules"]
    refused(["--length", "9"], r"error: pair \d+ .* tokens and does not fit into max_length 9: raise it$", capsys)


def refused(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main(["perplexity", "out", *(["--data", "pairs"] if "--data" not in words else []), *words])
    said = capsys.readouterr().err.strip()
    assert (stopped.value.code, said.count("\n")) == (2, 0), said
    assert re.search(message, said), said


def test_what_cannot_be_scored_is_refused_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    trained("genie")
    Path("text.txt").write_text("the old cat sat on a red mat\n" * 50)
    Path("long.jsonl").write_text(json.dumps({"src": "tea", "trg": "tea " * 40}) + "\n")
    for data in ("text.txt", "builtin:pydocs"):
        refused(["--data", data], f"out has an encoder and {data} no prompts for it: give pairs, such as rows with src and trg$", capsys)
    refused(["--length", "50"], r"length is 50 and out was trained on pairs of 17 \+ 13 tokens: leave it out$", capsys)
    refused(["--length", "2000"], "length is 2000 and out reads 256 tokens: shorten the blocks$", capsys)
    refused(
        ["--data", "long.jsonl"], "long.jsonl holds nothing to score, 1 too long for the model's rows left out: choose other data$", capsys
    )
    record = Path("out/model/training.json")
    kept = record.read_text()
    record.write_text('{"recipe": {"spans": {}}}')
    refused([], "out was trained on spans of text, not on pairs: its results.json holds its bound$", capsys)
    record.write_text(kept)
    for broken, reason in (
        (record.read_text()[:-40], "delimiter|Unterminated|Expecting"),
        ("{}", "'recipe'"),
        ("[]", "list indices"),
        ('{"recipe": 3}', "no mapping"),
    ):
        record.write_text(broken)
        refused([], rf"training.json of out does not say how it was trained \(.*({reason}).*\): mend it$", capsys)
