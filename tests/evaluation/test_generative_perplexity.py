"""Generative perplexity against a loss computed by transformers alone; entropy and repetition against cases counted by hand."""

import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.data.texts import byte_level, sentence
from tests.tiny_runs import stock_gpt2
from textdiff.backbones.transformer import TransformerConfig
from textdiff.evaluation.generative_perplexity import Scorer, repetition, unigram_entropy
from textdiff.models.autoregressive import AutoregressiveSpec
from textdiff.models.discrete import Discrete
from textdiff.models.loading import load
from textdiff.vocab import Vocab


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stock_gpt2(tmp_path_factory.mktemp("scorer") / "gpt2")


def by_transformers(folder: Path, text: str) -> tuple[float, int]:
    """Nats and tokens of a text after the end token, without anything of ours."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = torch.tensor([[tokenizer.eos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]])
    with torch.no_grad():
        return model(input_ids=ids, labels=ids).loss.item() * (ids.shape[1] - 1), ids.shape[1] - 1


@pytest.mark.parametrize("batch_size", [1, 4])
def test_it_is_exp_of_the_loss_of_all_tokens_together(folder: Path, batch_size: int) -> None:
    texts = [sentence(1, 3), "", sentence(2, 9), "tea", sentence(3, 5)]
    nats, tokens = zip(*(by_transformers(folder, text) for text in texts if text), strict=True)
    found = Scorer(load(str(folder)), "gpt2").perplexity(texts, batch_size)
    assert found.value == pytest.approx(math.exp(sum(nats) / sum(tokens)), rel=1e-6)
    assert (found.tokens, found.texts) == (sum(tokens), 4)  # an empty text counts nowhere
    assert found.error == pytest.approx(found.value * found.nats.error)
    assert found.nats.low < found.nats.value < found.nats.high
    assert "read whole; <|endoftext|> before each is context" in found.rules


def test_a_text_longer_than_the_scorer_reads_is_scored_in_windows(folder: Path) -> None:
    """The second window of 64 tokens counts what the first left over, after as much text as fits before it."""
    scorer, text = Scorer(load(str(folder)), "gpt2"), " ".join(sentence(i, 9) for i in range(6))
    row = [scorer.model.vocab.eos_id, *scorer.encoded([text])[0]]
    assert scorer.model.max_length == 64 < len(row) <= 96
    model, nats = AutoModelForCausalLM.from_pretrained(folder).eval(), 0.0
    for window, counted in ((row[:64], 63), (row[-64:], len(row) - 64)):
        with torch.no_grad():
            log_prob = model(input_ids=torch.tensor([window])).logits[0].log_softmax(-1)
        nats -= sum(log_prob[i - 1, window[i]].item() for i in range(64 - counted, 64))
    found = scorer.perplexity([text])
    assert found.nats.value == pytest.approx(nats / (len(row) - 1), rel=1e-6)
    assert "read in windows of 64 tokens, 32 counted in those after the first" in found.rules


def test_texts_without_a_token_have_no_perplexity(folder: Path) -> None:
    found = Scorer(load(str(folder)), "gpt2").perplexity(["", ""])
    assert math.isnan(found.nats.value)
    assert (found.tokens, found.texts) == (0, 0)


def test_a_bound_scores_nothing() -> None:
    trunk, vocab = TransformerConfig(16, 1, 2, 16), Vocab.of(byte_level())
    diffusion, causal = Discrete(backbone=trunk).build(vocab), AutoregressiveSpec(backbone=trunk).build(vocab)
    with pytest.raises(ValueError, match=r"mdlm is a diffusion model, which only bounds the likelihood .* name a causal model as scorer"):
        Scorer(diffusion, "mdlm")
    with pytest.raises(ValueError, match="the scorer gpt has no tokenizer files"):
        Scorer(causal, "gpt")


def test_entropy_is_that_of_the_shares_of_tokens() -> None:
    assert unigram_entropy([7, 7, 7, 7]) == 0
    assert unigram_entropy([1, 2, 3, 4]) == pytest.approx(math.log(4))
    assert unigram_entropy([5, 5, 6, 9]) == pytest.approx(0.5 * math.log(2) + 2 * 0.25 * math.log(4))
    assert math.isnan(unigram_entropy([]))


def test_repetition_is_the_share_of_n_grams_that_came_before() -> None:
    assert repetition([1, 2, 3, 4, 5]) == 0
    assert repetition([1, 2] * 4, 2) == pytest.approx(1 - 2 / 7)  # 1 2 four times, 2 1 three times
    assert repetition([1, 2, 3, 4, 1, 2, 3, 4]) == pytest.approx(1 / 5)  # 1234 2341 3412 4123 1234
    assert repetition([9] * 10) == pytest.approx(1 - 1 / 7)
    assert math.isnan(repetition([1, 2, 3]))
