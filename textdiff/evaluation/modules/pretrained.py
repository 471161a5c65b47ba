"""Metrics that compare texts through a pretrained network: BERTScore and MAUVE, from a local model folder; nothing is downloaded."""

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
from numpy.typing import NDArray

from textdiff.evaluation.generation import References, paired, texts_of


class BertScore(NamedTuple):
    """Means over sentences of BERTScore's precision, recall and F1; cosine similarities, at most 1, not rescaled by a baseline."""

    precision: float
    recall: float
    f1: float


def bert_score(hypotheses: Sequence[str], references: References, folder: str | Path, layer: int, batch_size: int = 64) -> BertScore:
    """BERTScore (Zhang et al. 2020) by the package bert-score, without idf weights; of several references the best, an empty text scores 0.

    Args:
        hypotheses: generated texts.
        references: one for each, or a list for each.
        folder: an encoder such as BERT or RoBERTa and its tokenizer, in the layout that `save_pretrained` writes.
        layer: whose hidden states are compared; the package's `model2layers` names the usual one of each published model.
        batch_size: texts that the network reads at once.

    Raises ValueError when the package or the folder is absent, the network has no such layer, or the texts do not pair up.
    """
    package, path = _package("bert_score", "BERTScore"), _model_folder(folder)
    layers = transformers.AutoConfig.from_pretrained(path, local_files_only=True).num_hidden_layers
    if not 0 <= layer <= layers:
        raise ValueError(f"layer is {layer}, expected 0 to {layers}, the layers of {folder}")
    pairs = paired(hypotheses, references)
    rows = np.zeros((len(pairs), 3))
    filled = []  # the package gives an empty text 0, and with transformers 5 stumbles over it
    for i, (text, own) in enumerate(pairs):
        kept = [reference for reference in own if reference.strip()]
        if text.strip() and kept:
            filled.append((i, text, kept))
    if filled:
        index, ours, theirs = (list(column) for column in zip(*filled, strict=True))
        scores = package.score(ours, theirs, model_type=path, num_layers=layer, batch_size=batch_size)
        rows[index] = torch.stack(scores, dim=1).double().numpy()
    return BertScore(*rows.mean(0).tolist())


def mauve(hypotheses: Sequence[str], references: Sequence[str], folder: str | Path, max_tokens: int = 1024, seed: int = 25) -> float:
    """MAUVE (Pillutla et al. 2021), 0..1, by the package mauve-text with its defaults: how alike two sets of texts are, unpaired.

    The features are the last layer's hidden states at each text's last token, as in the package, which finds networks by name only.
    Empty texts are left out. The score depends on the network, the lengths and the numbers of texts (thousands, for a stable one): by
    mauve-text 0.4 two equal sets of 16 texts score 0.75, of 40 texts 1.

    Args:
        hypotheses: generated texts.
        references: human texts; as many, for the score to mean what published ones do.
        folder: a network such as GPT-2 and its tokenizer, in the layout that `save_pretrained` writes.
        max_tokens: longer texts are cut.
        seed: of the clustering.

    Raises ValueError when the package or the folder is absent, or there is nothing to compare.
    """
    package, path = _package("mauve", "MAUVE"), _model_folder(folder)
    sets = []
    for name, texts in (("hypotheses", hypotheses), ("references", references)):
        sets.append([text for text in texts_of(name, texts) if text.strip()])
        if len(sets[-1]) < 2:
            raise ValueError(f"{len(sets[-1])} of the {name} are not empty, expected 2 or more: MAUVE compares distributions")
    ours, theirs = (_features(texts, path, max_tokens) for texts in sets)
    return float(package.compute_mauve(p_features=ours, q_features=theirs, seed=seed).mauve)


def _features(texts: Sequence[str], path: str, max_tokens: int) -> NDArray[np.float32]:
    """(N, H) last hidden states at each text's last token; one text at a time, so that no padding takes part."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(path, local_files_only=True)
    model = transformers.AutoModel.from_pretrained(path, local_files_only=True, use_safetensors=True).eval()
    rows = []
    with torch.no_grad():
        for text in texts:
            ids = tokenizer(text, return_tensors="pt", truncation=True, max_length=max_tokens).input_ids
            rows.append(model(input_ids=ids).last_hidden_state[0, -1].float().numpy())
    return np.stack(rows)


def _package(name: str, metric: str) -> Any:
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise ValueError(f"{metric} needs the package {error.name}, which is not installed: pip install 'textdiff[metrics]'") from None


def _model_folder(folder: str | Path) -> str:
    """The folder's path, once it is known to hold a network that loads without unpickling."""
    path = Path(folder)
    if not (path / "config.json").is_file() or not any(path.glob("*.safetensors")):
        raise ValueError(f"{folder} holds no config.json with model.safetensors; point to a local folder that save_pretrained wrote")
    return str(path.resolve())  # bert-score would fetch what it takes for a published name
