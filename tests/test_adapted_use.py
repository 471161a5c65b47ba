"""Stock causal models made into diffusion models by recipes/adapt.py: what works on our own trunks works on them, as transformers alone
reads what was saved."""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

import textdiff
from tests.backbones.stock_models import tiny
from tests.tiny_runs import QUICK, corpus, recipe, stock_gpt2
from textdiff.backbones.transformer import TransformerConfig
from textdiff.batch import Batch
from textdiff.cli import main
from textdiff.data.corpora import resolve
from textdiff.data.layout import scored_examples
from textdiff.data.tokenizer import load_tokenizer
from textdiff.guidance.classifier import Exact, FirstOrder
from textdiff.guidance.classifier_free import ClassifierFree, PromptMasked
from textdiff.models.classifier import ClassifierSpec
from textdiff.randomness import Rng
from textdiff.sampler_words import sampler_named
from textdiff.samplers.ancestral import Ancestral

NAMES, KINDS = ("gpt2", "llama"), ("masked", "uniform", "block")
MASK, END = 300, 0
SPAN = {"masked": 99, "uniform": 99, "block": 4}
ROW = torch.tensor([[END, 34, 77, 41, 120, 9, 55, 200, 13, 90, 28]])
_MASKS = [  # and no other noise
    *("FirstHitting", "EntropyBound", "Threshold:tau=0.2", "Greedy:steps=4", "Margin:steps=4", "Entropy:steps=4", "RandomOrder:steps=4"),
    *("Capped:steps=4", "Rescaled:steps=4", "ConfidenceBased:steps=4", "Loop:steps=4", "ForwardBackward:steps=4"),
]
_TOKENS = ["Ancestral:steps=4", "Psi:steps=4", "Gibbs:steps=4", "RandomPositions:steps=4,positions=2"]
SAMPLERS = {
    "masked": [*_TOKENS, *_MASKS],
    "block": [*_TOKENS, *_MASKS],  # in each block
    "uniform": [*_TOKENS, "LeastConfident:steps=4,positions=2"],
}


@pytest.fixture(scope="module", autouse=True)
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working folder with two stock models, and each of them adapted in three ways."""
    place, before = tmp_path_factory.mktemp("use"), Path.cwd()
    os.chdir(place)
    corpus(Path("texts"))
    stock_gpt2(Path("gpt2"))
    tiny("llama", vocab_size=300, bos_token_id=END, eos_token_id=END).save_pretrained("llama")
    load_tokenizer("gpt2").save_pretrained("llama")
    Path("few.txt").write_text("the old cat sat on a mat\n")
    for name in NAMES:
        for kind in KINDS:
            blocks = ["--process.size", "4"] if kind == "block" else []
            recipe("adapt", kind, *QUICK["adapt"], "--evaluation.samples", "0", "--model", name, "--out", f"{name}-{kind}", *blocks)
    yield place
    os.chdir(before)


def adapted(name: str, kind: str) -> Any:
    return textdiff.load(f"{name}-{kind}").double()


def numbers(folder: Path, *words: str) -> Any:
    """What a command writes with --json."""
    main([*words, "--device", "cpu", "--json", str(folder / "numbers.json")])
    return json.loads((folder / "numbers.json").read_text())


def by_transformers(name: str, kind: str, row: Tensor) -> Tensor:
    """log p (L, V) of each token of (1, L) rows, read by transformers alone from the output before it, of the first from its own."""
    stock = AutoModelForCausalLM.from_pretrained(f"{name}-{kind}/model").double().eval()
    block = torch.arange(row.shape[1]) // SPAN[kind]
    unseen = torch.zeros(len(block), len(block), dtype=torch.float64).masked_fill(block[:, None] < block, -1e9)
    with torch.no_grad():
        logits = stock(row, attention_mask=unseen[None, None]).logits[0]
    return torch.cat([logits[:1], logits[:-1]]).index_fill(-1, torch.tensor([MASK]), -torch.inf).log_softmax(-1)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["masked", "block"])
def test_greedy_text_is_what_transformers_alone_reads_pass_by_pass(name: str, kind: str) -> None:
    """All of a row at once; of a block model block by block, whose cache holds what whole passes compute anew."""
    model, place = adapted(name, kind), torch.arange(11)
    row = ROW.where(place < 3, MASK)
    for start in range(0, 11, SPAN[kind]):
        here = (place >= start) & (place < start + SPAN[kind]) & (row == MASK)
        row = torch.where(here, by_transformers(name, kind, row).argmax(-1), row)
    found = model.generate(ROW[:, :3], max_new_tokens=8, temperature=0.0, sampler=sampler_named(model, "Greedy", 1)).sequences
    ended = (row == END).cumsum(1) - (row == END).long() > 1  # the first one begins the row
    assert torch.equal(found.masked_fill(ended, END), row.masked_fill(ended, END))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["masked", "block"])
def test_the_chain_rule_is_the_sum_of_what_transformers_alone_reads(name: str, kind: str, tmp_path: Path) -> None:
    found = numbers(tmp_path, "perplexity", f"{name}-{kind}", "--data", "few.txt", "--order", "left-to-right")
    rows, nats = scored_examples(resolve("few.txt"), load_tokenizer(name), found["length"], None, None).examples, 0.0
    for example in rows:
        row = torch.tensor([example.tokens])
        for place in range(1, row.shape[1]):
            known = torch.arange(row.shape[1]) < place
            within = torch.arange(row.shape[1]) < (place // SPAN[kind] + 1) * SPAN[kind]
            log_prob = by_transformers(name, kind, row.where(known, MASK)[:, within])
            nats -= float(log_prob[place, row[0, place]])
    assert found["kind"] == "exact"
    assert found["nats_per_token"] == pytest.approx(nats / found["tokens"], rel=1e-5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", KINDS)
def test_bounds_are_above_the_exact_likelihood_and_batches_do_not_matter(name: str, kind: str, tmp_path: Path) -> None:
    words = ["perplexity", f"{name}-{kind}", "--data", "few.txt", "--draws", "64"]
    bound, again = (numbers(tmp_path, *words, "--batch-size", size) for size in ("32", "1"))
    assert bound["nats_per_token"] == pytest.approx(again["nats_per_token"], rel=1e-5)
    assert bound["kind"] == "upper bound"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("kind", "sampler"), [(kind, sampler) for kind, samplers in SAMPLERS.items() for sampler in samplers])
def test_every_sampler_writes_behind_ragged_prompts_what_it_writes_alone(name: str, kind: str, sampler: str) -> None:
    model = adapted(name, kind)
    chosen = sampler_named(model, sampler, None)
    rows, attend = torch.cat([ROW[:, :6], ROW[:, :6]]), torch.arange(6) < torch.tensor([[6], [2]])
    rows = rows.where(attend, END)
    together, other = (model.generate(rows, attend.long(), max_new_tokens=7, seed=s, sampler=chosen).sequences for s in (3, 4))
    alone = model.generate(rows[:1], max_new_tokens=7, seed=3, sampler=chosen).sequences
    assert torch.equal(together[:, :6], rows)
    assert torch.equal(together[:1], alone)
    assert bool((together < MASK).all())
    assert not torch.equal(together, other)


@pytest.mark.parametrize("name", NAMES)
def test_guidance_by_the_prompt_weighs_two_beliefs_of_transformers(name: str) -> None:
    """The likeliest tokens under 3 log p(. | prompt) - 2 log p(. | masks), all at once."""
    model, new = adapted(name, "masked"), torch.arange(11) >= 5
    told, untold = (by_transformers(name, "masked", row) for row in (ROW.masked_fill(new, MASK), torch.full_like(ROW, MASK)))
    guided = torch.where(told.isneginf(), told, 3 * told - 2 * untold).argmax(-1)
    chosen = sampler_named(model, "Greedy", 1)
    found = model.generate(ROW.masked_fill(new, MASK), max_new_tokens=0, temperature=0.0, sampler=chosen, guidance=PromptMasked(3.0))
    assert torch.equal(found.sequences[0, new], guided[new])
    assert not torch.equal(guided[new], told.argmax(-1)[new])


@dataclass
class Wants:
    """A classifier whose class is the token itself, at the last place."""

    states: int = 301

    def log_prob(self, z: Tensor, noise: Tensor, attend: Tensor) -> Tensor:
        last = z[:, -1] if z.is_floating_point() else torch.nn.functional.one_hot(z[:, -1], self.states)
        return last.double() * 60


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["masked", "uniform"])
@pytest.mark.parametrize("guidance", [Exact, FirstOrder])
def test_a_classifier_steers_to_what_it_wants_and_at_gamma_0_not_at_all(name: str, kind: str, guidance: Any) -> None:
    model, sampler = adapted(name, kind), Ancestral(steps=6)
    new = torch.arange(6) > 1
    labels = torch.tensor([[17], [230]])
    rows = ROW[:, :6].expand(2, -1)
    batch = Batch.of(rows, target=new.expand(2, -1), source=labels)
    plain = Batch.of(rows, target=new.expand(2, -1))

    def drawn(denoiser: Any, batch: Batch) -> Tensor:
        *_, last = sampler.trajectory(denoiser, batch, Rng(0, 0, batch.sample_id))
        return last.x

    assert torch.equal(drawn(guidance(Wants(), 1.0)(model), batch)[:, -1:], labels)
    assert torch.equal(drawn(guidance(Wants(), 0.0)(model), batch), drawn(model, plain))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", KINDS)
def test_gaps_are_filled_by_what_stands_around_them(name: str, kind: str, tmp_path: Path) -> None:
    """Not by what stood in them; what comes behind a gap is read, but where blocks end before it."""

    def filled(middle: str, after: str) -> tuple[list[str], float]:
        rows = [{"prefix": "the old cat", "middle": middle, "suffix": after}, {"prefix": "a dog", "middle": " ran", "suffix": "."}]
        (tmp_path / "gaps.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        words = ["--draws", "2", "--temperature", "1", "--steps", "4", "--batch-size", str(1 + len(after) % 2)]
        found = numbers(tmp_path, "infill", f"{name}-{kind}", "--data", str(tmp_path / "gaps.jsonl"), *words)["models"][0]
        return [gap["written"] for gap in found["gaps"]], found["likelihood"]["nats_per_token"]

    first, nats = filled("xqz", " on a mat")
    assert first == filled("qzx", " on a mat")[0]
    other, then = filled("xqz", " on a mat and drank old tea on a mat")
    assert first[1] == other[1]
    assert (abs(nats - then) < 1e-5) == (kind == "block")


@pytest.mark.parametrize("kind", KINDS)
def test_they_are_generated_from_and_compared_with_what_they_were(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Token by token: [MASK] is one id more, and in no text."""
    for name in NAMES:
        for words in (["--prompt", "the old", "--max-new-tokens", "5"], ["--infill", "the old [MASK:2]"]):
            capsys.readouterr()
            main(["generate", f"{name}-{kind}", *words, "--steps", "2", "--device", "cpu", *(["--gamma", "2"] if kind == "masked" else [])])
            printed = capsys.readouterr()
            assert printed.out.startswith("the old")
            assert "network calls" in printed.err
    words = ["--data", "few.txt", "--draws", "2", "--length", "24", "--out", str(tmp_path / "out")]
    found = numbers(tmp_path, "compare", f"gpt2-{kind}", f"llama-{kind}", *NAMES, *words)[0]
    kinds = {model["model"]: model["kind"] for model in found["models"]}
    assert kinds == {"gpt2": "exact", "llama": "exact", f"gpt2-{kind}": "upper bound", f"llama-{kind}": "upper bound"}
    assert len(found["pairs"]) == 6
    assert all("tokens" in pair["difference_in_nats_per"] for pair in found["pairs"])


def label_asked(model: Any) -> None:
    row = Batch.of(ROW, target=ROW > 50, source=torch.tensor([[1]]))
    ClassifierFree(2.0)(model).predictor(row)(ROW, torch.ones(1, dtype=torch.float64))


@pytest.mark.parametrize(
    ("kind", "use", "line"),
    [
        (
            "uniform",
            lambda model: PromptMasked(2.0)(model),
            "hides the prompt behind [MASK], which Uniform noise lacks: use ClassifierFree",
        ),
        ("block", lambda model: PromptMasked(2.0)(model), "hides the prompt behind [MASK], which Block noise lacks: use ClassifierFree"),
        ("block", lambda model: Exact(Wants())(model), "steers noise over tokens of whole rows and the model's process is Block"),
        ("block", lambda model: ClassifierFree(2.0)(model), "steers noise over tokens of whole rows and the model's process is Block"),
        ("masked", label_asked, "GPT2LMHeadModel has no encoder"),
    ],
)
def test_what_they_cannot_do_is_said_in_one_line(kind: str, use: Any, line: str) -> None:
    with pytest.raises(ValueError, match=re.escape(line)) as refused:
        use(adapted("gpt2", kind))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", NAMES)
def test_a_classifier_of_ours_reads_their_ids(name: str) -> None:
    """Trained by the same loop or not, it weighs as many ids as the stock table has rows."""
    model = adapted(name, "masked")
    classifier = ClassifierSpec(process=model.process, backbone=TransformerConfig(width=16, layers=1, heads=2)).build(model.vocab).eval()
    batch = Batch.of(ROW, target=ROW > 50, source=torch.tensor([[1]]))
    for guidance in (Exact(classifier, 2.0), FirstOrder(classifier, 2.0)):
        *_, last = Ancestral(steps=3).trajectory(guidance(model), batch, Rng(0, 0, batch.sample_id))
        assert torch.equal(last.x[~batch.target], ROW[~batch.target])
        assert bool((last.x < MASK).all())
