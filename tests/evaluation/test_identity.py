import torch
from tokenizers import normalizers
from transformers import PreTrainedTokenizerFast

from tests.data.texts import byte_level, documents, without_ends, word_piece
from tests.models.tiny import autoregressive
from textdiff.backbones.transformer import TransformerConfig
from textdiff.data.readers import Pair
from textdiff.data.tokenizer import train_tokenizer
from textdiff.evaluation.identity import model_digest, texts_digest, tokenizer_digest
from textdiff.models.discrete import Discrete
from textdiff.processes.block import Block
from textdiff.processes.masked import Masked
from textdiff.vocab import Vocab


def test_texts_are_told_apart_by_their_content_and_their_order() -> None:
    kinds = [["a", "b"], ["b", "a"], ["ab"], ["a", "b", ""], ["a\nb"], [Pair("a", "b")], [Pair("a", "b"), Pair("", "")], []]
    assert len({texts_digest(texts) for texts in kinds}) == len(kinds)
    assert texts_digest(("a", "b")) == texts_digest(["a", "b"])


def test_tokenizers_are_one_where_they_cut_every_text_alike() -> None:
    own = tokenizer_digest(byte_level())
    assert tokenizer_digest(train_tokenizer(documents(200), 300)) == own
    bare = without_ends(byte_level(), "bos_token")
    bare.add_special_tokens({"mask_token": "<another mask>"})
    assert tokenizer_digest(bare) == own
    bare(["a"], padding=True, truncation=True, max_length=3)  # settings of a call, which the core keeps
    assert tokenizer_digest(bare) == own
    others = [train_tokenizer(documents(200), 299), train_tokenizer(documents(3), 300), word_piece()]
    bare.add_tokens(["the cat"])
    lowercased = without_ends(byte_level())
    lowercased.backend_tokenizer.normalizer = normalizers.Lowercase()
    assert isinstance(lowercased, PreTrainedTokenizerFast)
    assert len({own, *map(tokenizer_digest, [*others, bare, lowercased])}) == 6


def test_weights_are_told_apart_after_the_smallest_step() -> None:
    one, same = autoregressive(), autoregressive()
    assert model_digest(one) == model_digest(same) != model_digest(autoregressive(seed=1))
    assert model_digest(one) != model_digest(autoregressive().float())
    with torch.no_grad():
        for parameter in same.parameters():
            parameter.mul_(1 + 1e-12)
    assert model_digest(one) != model_digest(same)


def test_the_same_weights_read_otherwise_are_another_model() -> None:
    trunk = TransformerConfig(width=16, layers=1, heads=2, max_length=16)
    vocab = Vocab(size=8, tokens=8, mask_id=7)
    built = []
    for spec in (Discrete(backbone=trunk), Discrete(backbone=trunk, shift=True), Discrete(process=Block(Masked(), 4), backbone=trunk)):
        torch.manual_seed(0)
        built.append(spec.build(vocab))
    assert all(torch.equal(a, b) for a, b in zip(built[0].parameters(), built[1].parameters(), strict=True))
    assert len({model_digest(model) for model in built}) == 3
