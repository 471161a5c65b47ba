import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from textdiff.evaluation.modules.pretrained import _features, bert_score, mauve

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "sat", "on", "mat", "dog", "ran"]
MISSING = pytest.mark.parametrize(("metric", "package"), [(bert_score, "bert_score"), (mauve, "mauve")], ids=["bert_score", "mauve"])


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random encoder of two layers, with its tokenizer."""
    folder = tmp_path_factory.mktemp("network")
    words = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = Whitespace()
    words.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    PreTrainedTokenizerFast(tokenizer_object=words, model_max_length=64, **special).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"vocab_size": len(WORDS), "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(**sizes)).save_pretrained(folder)
    return folder


def features(texts: list[str], folder: Path) -> list[np.ndarray]:
    """Each text's hidden states after layer 1, [CLS] and [SEP] at the ends, rows of length 1."""
    tokenizer, model = PreTrainedTokenizerFast.from_pretrained(folder), BertModel.from_pretrained(folder).eval()
    rows = []
    for text in texts:
        with torch.no_grad():
            states = model(**tokenizer(text, return_tensors="pt"), output_hidden_states=True).hidden_states[1][0]
        rows.append(torch.nn.functional.normalize(states, dim=-1).numpy())
    return rows


def test_bert_score_by_its_definition(network: Path) -> None:
    pytest.importorskip("bert_score")
    hypotheses, references = ["the cat sat", "dog ran"], ["the cat ran on", "the mat"]
    expected = []
    for ours, theirs in zip(features(hypotheses, network), features(references, network), strict=True):
        cosines = ours @ theirs.T
        precision, recall = cosines.max(1)[1:-1].mean(), cosines.max(0)[1:-1].mean()  # [CLS] and [SEP] may be matched, but do not count
        expected.append((precision, recall, 2 * precision * recall / (precision + recall)))
    assert bert_score(hypotheses, references, network, layer=1) == pytest.approx(np.mean(expected, axis=0), abs=1e-5)


def test_bert_score_takes_the_best_reference_and_gives_an_empty_text_nothing(network: Path) -> None:
    pytest.importorskip("bert_score")
    both = bert_score(["the cat", " ", "dog"], [["mat sat", "the cat"], ["dog"], ["", "dog"]], network, layer=2)
    assert both == pytest.approx((2 / 3, 2 / 3, 2 / 3), abs=1e-5)
    assert bert_score([""], ["dog"], network, layer=2) == (0, 0, 0)
    with pytest.raises(ValueError, match="layer is 3, expected 0 to 2"):
        bert_score(["a"], ["a"], network, layer=3)


def test_mauve_knows_the_same_texts_from_others(network: Path) -> None:
    pytest.importorskip("mauve")
    some, others = ["the cat sat", "the dog ran", "cat sat on"] * 10, ["mat", "on mat mat", "mat ran mat"] * 10
    assert mauve(some, [*some, ""], network) == pytest.approx(1)
    assert mauve(some, others, network) < 0.5
    with pytest.raises(ValueError, match="1 of the references are not empty, expected 2 or more"):
        mauve(some, ["a", ""], network)


def test_a_feature_is_the_last_state_of_the_last_token_that_is_kept(network: Path) -> None:
    model = BertModel.from_pretrained(network).eval()
    with torch.no_grad():
        whole, cut = (model(input_ids=torch.tensor([ids])).last_hidden_state[0, -1] for ids in ([2, 5, 6, 7, 3], [2, 5, 3]))
    assert _features(["the cat sat"], str(network), 64)[0] == pytest.approx(whole.numpy(), abs=1e-6)
    assert _features(["the cat sat"], str(network), 3)[0] == pytest.approx(cut.numpy(), abs=1e-6)


@MISSING
def test_an_absent_package_is_named_in_one_line(metric: type, package: str, network: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        ValueError, match=rf"needs the package {package}, which is not installed: pip install 'textdiff\[metrics\]'"
    ) as caught:
        metric(["a", "b"], ["a", "b"], network, 1)
    assert "\n" not in str(caught.value)


@MISSING
def test_a_name_of_the_hub_is_not_fetched(metric: type, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, type(sys)(package))
    (tmp_path / "config.json").write_text("{}")
    for folder in ("roberta-large", tmp_path):  # no folder; a folder without weights that load without unpickling
        with pytest.raises(ValueError, match=f"{folder} holds no config.json with model.safetensors") as caught:
            metric(["a", "b"], ["a", "b"], folder, 1)
        assert "\n" not in str(caught.value)
