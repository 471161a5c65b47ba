"""Digests that say whether two measurements are of the same texts, by the same tokenizer, of the same weights."""

import hashlib
import json
from collections.abc import Sequence

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from textdiff.data.readers import Pair
from textdiff.models.base import LanguageModel

_LENGTH = 16  # hexadecimal digits
_PROBES = 1024  # numbers read of each tensor
_ESTIMATORS = 2  # raised when a model's `mean_nll` gives other numbers than before, so that they are not mixed with old ones


def texts_digest(texts: Sequence[str] | Sequence[Pair]) -> str:
    """Of texts, or of prompts and responses, in their order."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(json.dumps(text).encode() + b"\n")
    return digest.hexdigest()[:_LENGTH]


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Of all that decides how a text is cut into tokens; special tokens, which are never recognised in text, make no difference, so that
    an adapted model shares the tokenizer of the model it was made from.
    """
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    added = [token for token in state["added_tokens"] if not token["special"]]
    deciding = [state["normalizer"], state["pre_tokenizer"], state["model"], added]
    return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()[:_LENGTH]


def model_digest(model: nn.Module) -> str:
    """Of what the model does with its weights (process, reading, shift), of how its likelihood is estimated, and of names, shapes, types
    and evenly spaced numbers of all weights: a step of training changes it, and no large model is read whole.
    """
    does = json.dumps([model.config.spec, model.config.vocab], sort_keys=True) if isinstance(model, LanguageModel) else ""
    digest = hashlib.sha256(f"{_ESTIMATORS} {does}".encode())
    for name, weight in model.state_dict().items():
        flat = weight.detach().flatten()
        places = torch.linspace(0, max(0, flat.numel() - 1), min(_PROBES, flat.numel()), dtype=torch.float64).long()
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        digest.update(flat[places.to(flat.device)].cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:_LENGTH]
