"""Begin a run from the weights of another model: ours of either kind, or any stock Hugging Face language model."""

from typing import Any

import torch
from torch import Tensor

from textdiff.backbones.base import Backbone, BackboneConfig
from textdiff.backbones.pretrained import Pretrained
from textdiff.backbones.transformer import TransformerConfig
from textdiff.models.autoregressive import AutoregressiveLM, AutoregressiveSpec
from textdiff.models.base import LanguageModel, ModelSpec
from textdiff.models.discrete import Discrete, DiscreteDiffusionLM
from textdiff.models.loading import around_stock, load
from textdiff.spec import replaced
from textdiff.vocab import Vocab, add_mask_token


def model_from(name: str, spec: ModelSpec, tokenizer: Any) -> LanguageModel:
    """The model that `spec` asks for, in training mode, with the trunk and the weights of checkpoint `name`.

    Of the trunk `spec` says only whether layers are computed again to save memory. A diffusion model gets a mask token, added to
    `tokenizer` where there is none. Raises ValueError when the checkpoint cannot be read or cannot become that model, when it is a
    diffusion model that was trained with another `shift`, or when `tokenizer` is not its own.
    """
    if not isinstance(spec, (Discrete, AutoregressiveSpec)):
        raise ValueError(f"{type(spec).__name__} models do not begin from other weights: leave --init out, or train a discrete model")
    source = load(name)
    if not isinstance(source, (DiscreteDiffusionLM, AutoregressiveLM)):
        raise ValueError(f"{name} is a {type(source).__name__}: begin from a discrete diffusion or an autoregressive model")
    _check_ids(name, tokenizer, source.vocab)
    causal = isinstance(source, AutoregressiveLM)
    if isinstance(spec, Discrete):
        if spec.annealing is not None and not causal:
            raise ValueError(f"{name} looks both ways already: set annealing to None, or begin from a causal LM")
        if not causal and spec.shift != source.spec.shift:
            one, other = ("output at l - 1", "own output") if source.spec.shift else ("own output", "output at l - 1")
            raise ValueError(f"{name} was trained to read position l from its {one}, not its {other}: set shift to {source.spec.shift}")
    trunk = source.backbone.trunk
    if trunk is not None and isinstance(spec, AutoregressiveSpec) and not causal:
        raise ValueError(f"{name} is a masked LM and cannot be trained left to right: begin from a causal LM")
    config = _saving_memory(source.spec.backbone, spec.backbone)
    if trunk is None:
        return _ours(replaced(spec, backbone=config), source.vocab, source.backbone, tokenizer).train()
    assert isinstance(config, Pretrained)
    kind = spec if isinstance(spec, Discrete) else None
    return around_stock(replaced(config, name=name), tokenizer, kind, trunk).train()


def _saving_memory(trunk: BackboneConfig, asked: BackboneConfig) -> BackboneConfig:
    """The trunk that is there, its layers computed again for their gradients where either says so."""
    saves = any(isinstance(one, (TransformerConfig, Pretrained)) and one.gradient_checkpointing for one in (trunk, asked))
    return replaced(trunk, gradient_checkpointing=True) if saves else trunk


def _ours(spec: Discrete | AutoregressiveSpec, vocab: Vocab, trunk: Backbone, tokenizer: Any) -> LanguageModel:
    weights = trunk.state_dict()
    if isinstance(spec, Discrete) and vocab.mask_id is None:
        add_mask_token(tokenizer)
        vocab = Vocab.of(tokenizer, size=vocab.size)
    model: LanguageModel = spec.build(vocab)
    shapes = model.backbone.state_dict()
    model.backbone.load_state_dict({name: _with_rows(weight, shapes[name].shape) for name, weight in weights.items()})
    return model


def _with_rows(weight: Tensor, shape: torch.Size) -> Tensor:
    """The weight itself; a table with too few rows gets their mean in the new ones."""
    missing = shape[0] - weight.shape[0] if weight.dim() == 2 else 0
    return torch.cat([weight, weight.mean(0, keepdim=True).expand(missing, -1)]) if missing else weight


def _check_ids(name: str, tokenizer: Any, vocab: Vocab) -> None:
    if len(tokenizer) != vocab.tokens:
        raise ValueError(
            f"the tokenizer has {len(tokenizer)} ids and {name} was trained with {vocab.tokens}: leave --tokenizer out to use its own"
        )
