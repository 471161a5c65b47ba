"""Open any checkpoint: our own architectures, stock folders with a `textdiff` block, and stock Hugging Face language models as they are."""

import json
from typing import Any

import transformers  # its auto classes are reached when a function runs: see textdiff/__init__.py
from safetensors import SafetensorError
from transformers import PreTrainedConfig

from textdiff import spec as plain
from textdiff.backbones import hub
from textdiff.backbones.pretrained import Pretrained, PretrainedBackbone
from textdiff.models.autoregressive import AutoregressiveConfig, AutoregressiveLM, AutoregressiveSpec
from textdiff.models.base import LanguageModel
from textdiff.models.discrete import Discrete, DiscreteConfig, DiscreteDiffusionLM
from textdiff.models.generation import TextDiffusionGenerationConfig
from textdiff.vocab import Vocab, add_mask_token

_CLASSES: dict[str, type[LanguageModel]] = {
    DiscreteConfig.model_type: DiscreteDiffusionLM,
    AutoregressiveConfig.model_type: AutoregressiveLM,
}


def register() -> None:
    """Make transformers' auto classes know our architectures."""
    for config, model in ((DiscreteConfig, DiscreteDiffusionLM), (AutoregressiveConfig, AutoregressiveLM)):
        transformers.AutoConfig.register(config.model_type, config, exist_ok=True)
        transformers.AutoModel.register(config, model, exist_ok=True)


def load(name: str, trusted: tuple[str, ...] = ("textdiff",)) -> LanguageModel:
    """The model of a folder or hub id, in eval mode, with its tokenizer as `model.tokenizer` and its defaults as `generation_config`.

    A stock causal LM becomes an `AutoregressiveLM`, a stock masked LM a `DiscreteDiffusionLM`. `trusted` admits further packages whose
    classes a configuration may name. Raises ValueError with one line when anything is missing, truncated or not a language model.
    """
    place = hub.resolve(name)
    try:
        config, _ = PreTrainedConfig.get_config_dict(place)
    except (OSError, ValueError) as error:
        raise ValueError(f"{name} cannot be opened: {str(error).strip().splitlines()[0]}") from error
    kind = _CLASSES.get(str(config.get("model_type")))
    tokenizer = _tokenizer(place)
    if kind is not None:
        model = _load_ours(kind, name, place, trusted)
    elif "textdiff" in config:
        model = _load_wrapped(config["textdiff"], place, trusted)
    else:
        if tokenizer is None:
            raise ValueError(f"{name} has no tokenizer files: a stock model is read together with its tokenizer")
        model = around_stock(Pretrained(name=place), tokenizer)
    model.tokenizer = tokenizer
    model.eval()
    return model


def around_stock(pretrained: Pretrained, tokenizer: Any, spec: Discrete | None = None) -> LanguageModel:
    """A stock model as it is (its causal likelihood, or a masked LM as a masked denoiser), or `spec` with that model as its trunk.

    A diffusion model needs a mask token: one is added to the tokenizer when it has none, in a spare row when there is one.
    """
    trunk = pretrained.load()
    rows = int(trunk.get_input_embeddings().weight.shape[0])  # type: ignore[index, arg-type, union-attr]
    if spec is None and not hub.is_masked_lm(trunk):
        vocab = Vocab.of(tokenizer, size=rows)
        return AutoregressiveSpec(backbone=pretrained).build(vocab, pretrained.wrap(trunk, vocab, causal=True))
    add_mask_token(tokenizer)
    vocab = Vocab.of(tokenizer, size=rows)
    spec = Discrete() if spec is None else spec
    return plain.replaced(spec, backbone=pretrained).build(vocab, pretrained.wrap(trunk, vocab, causal=False))


def _load_ours(kind: type[LanguageModel], name: str, place: str, trusted: tuple[str, ...]) -> LanguageModel:
    try:
        opened: Any = kind.from_pretrained(place, use_safetensors=True, output_loading_info=True, trusted=trusted)
    except SafetensorError as error:
        raise ValueError(f"the weights of {name} are truncated or corrupt ({error}): copy or train them again") from error
    except (OSError, RuntimeError) as error:
        raise ValueError(f"the weights of {name} cannot be loaded: {str(error).strip().splitlines()[0]}") from error
    model, report = opened
    wrong = sorted([*report["missing_keys"], *report["unexpected_keys"]])
    if wrong:
        raise ValueError(f"{name} does not fit its own config.json: {len(wrong)} weights are missing or unknown ({', '.join(wrong[:3])})")
    assert isinstance(model, LanguageModel)
    return model


def _load_wrapped(block: dict[str, Any], place: str, trusted: tuple[str, ...]) -> LanguageModel:
    """A stock folder whose config.json says how we use the model."""
    kind = _CLASSES.get(str(block.get("model_type")))
    if kind is None:
        raise ValueError(f"config.json's textdiff block names the model type {block.get('model_type')!r}, not one of {sorted(_CLASSES)}")
    spec, vocab = plain.from_plain(block["spec"], trusted), plain.from_plain(block["vocab"], trusted)
    pretrained = spec.backbone
    backbone: PretrainedBackbone = pretrained.wrap(pretrained.load(place), vocab, causal=kind is AutoregressiveLM)
    model: LanguageModel = spec.build(vocab, backbone)
    model.generation_config = TextDiffusionGenerationConfig(**block.get("generation", {}))
    return model


def _tokenizer(place: str) -> Any:
    try:
        return transformers.AutoTokenizer.from_pretrained(place, trust_remote_code=False)
    except (OSError, ValueError, KeyError, json.JSONDecodeError):  # transformers raises any of these where there is no tokenizer
        return None
