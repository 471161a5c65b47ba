"""Begin a run from the weights of another model: ours of either kind, or any stock Hugging Face language model."""

from typing import Any

from textdiff.backbones.pretrained import Pretrained
from textdiff.models.autoregressive import AutoregressiveLM, AutoregressiveSpec
from textdiff.models.base import LanguageModel, ModelSpec
from textdiff.models.discrete import Discrete
from textdiff.models.loading import around_stock, load
from textdiff.spec import replaced
from textdiff.vocab import Vocab


def model_from(name: str, spec: ModelSpec, tokenizer: Any) -> LanguageModel:
    """The model that `spec` asks for, with the trunk and the weights of checkpoint `name`.

    Whether position l reads the output at l - 1 (`shift`) is the checkpoint's to say: its weights were trained that way.
    Raises ValueError when the checkpoint cannot be read, or when `tokenizer` is not its own.
    """
    source = load(name)
    if isinstance(spec, Discrete):
        spec = replaced(spec, shift=isinstance(source, AutoregressiveLM) or source.spec.shift)
    if source.backbone.trunk is None:
        return _ours(name, spec, source, tokenizer)
    if not isinstance(spec, Discrete):
        if not isinstance(source, AutoregressiveLM):
            raise ValueError(f"{name} is a masked LM and cannot be trained left to right: begin from a causal LM")
        _check_ids(name, tokenizer, source.vocab)
        return source
    _check_ids(name, tokenizer, source.vocab)
    return around_stock(Pretrained(name=name), tokenizer, spec)


def _ours(name: str, spec: ModelSpec, source: LanguageModel, tokenizer: Any) -> LanguageModel:
    _check_ids(name, tokenizer, source.vocab)
    assert isinstance(spec, (Discrete, AutoregressiveSpec))
    model = replaced(spec, backbone=source.spec.backbone).build(source.vocab)
    model.backbone.load_state_dict(source.backbone.state_dict())
    return model


def _check_ids(name: str, tokenizer: Any, vocab: Vocab) -> None:
    if len(tokenizer) != vocab.tokens:
        raise ValueError(
            f"the tokenizer has {len(tokenizer)} ids and {name} was trained with {vocab.tokens}: leave --tokenizer out to use its own"
        )
