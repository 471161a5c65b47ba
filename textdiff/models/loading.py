"""Open any checkpoint: our own architectures, stock folders with a `textdiff` block, and stock Hugging Face language models as they are."""

from pathlib import Path
from typing import Any

import transformers  # its auto classes are reached when a function runs: see textdiff/__init__.py
from safetensors import SafetensorError
from transformers import PreTrainedConfig, PreTrainedModel

from textdiff import spec as plain
from textdiff.backbones import hub
from textdiff.backbones.pretrained import Pretrained
from textdiff.models.autoregressive import AutoregressiveConfig, AutoregressiveLM, AutoregressiveSpec
from textdiff.models.base import LanguageModel, ModelSpec
from textdiff.models.classifier import ClassifierConfig, ClassifierSpec, NoisyClassifier
from textdiff.models.discrete import Discrete, DiscreteConfig, DiscreteDiffusionLM
from textdiff.models.embedding import EmbeddingConfig, EmbeddingDiffusion, EmbeddingDiffusionLM
from textdiff.models.feature_drafter import FeatureDrafter, FeatureDrafterConfig, FeatureDrafterSpec
from textdiff.models.generation import TextDiffusionGenerationConfig
from textdiff.models.latent import LatentConfig, LatentDiffusion, LatentDiffusionLM
from textdiff.vocab import Vocab, add_mask_token, name_ends

_CLASSES: dict[str, type[LanguageModel]] = {
    DiscreteConfig.model_type: DiscreteDiffusionLM,
    AutoregressiveConfig.model_type: AutoregressiveLM,
    EmbeddingConfig.model_type: EmbeddingDiffusionLM,
    LatentConfig.model_type: LatentDiffusionLM,
    ClassifierConfig.model_type: NoisyClassifier,
    FeatureDrafterConfig.model_type: FeatureDrafter,
}
_SPECS: dict[type[LanguageModel], type[ModelSpec]] = {
    DiscreteDiffusionLM: Discrete,
    AutoregressiveLM: AutoregressiveSpec,
    EmbeddingDiffusionLM: EmbeddingDiffusion,
    LatentDiffusionLM: LatentDiffusion,
    NoisyClassifier: ClassifierSpec,
    FeatureDrafter: FeatureDrafterSpec,
}
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")


def register() -> None:
    """Make transformers' auto classes know our architectures."""
    ours = (
        (DiscreteConfig, DiscreteDiffusionLM),
        (AutoregressiveConfig, AutoregressiveLM),
        (EmbeddingConfig, EmbeddingDiffusionLM),
        (LatentConfig, LatentDiffusionLM),
    )
    for config, model in ours:
        transformers.AutoConfig.register(config.model_type, config, exist_ok=True)
        transformers.AutoModel.register(config, model, exist_ok=True)


def load(name: str, trusted: tuple[str, ...] = ("textdiff",)) -> LanguageModel:
    """The model of a folder or hub id, in eval mode, with its tokenizer as `model.tokenizer` and its defaults as `generation_config`.

    A stock causal LM becomes an `AutoregressiveLM`, a stock masked LM a `DiscreteDiffusionLM`. `trusted` admits further packages whose
    classes a configuration may name. Raises ValueError with one line when anything is missing, truncated or not a language model.
    """
    if not name.strip():
        raise ValueError("the name of the model is empty: give a run folder, a checkpoint folder or a hub id")
    place = hub.resolve(name)
    try:
        config, _ = PreTrainedConfig.get_config_dict(place)
    except (OSError, ValueError) as error:
        tried = "" if Path(place).is_dir() else " (there is no folder of that name, so it was looked for as a hub id)"
        raise ValueError(f"{name} cannot be opened{tried}: {str(error).strip().splitlines()[0]}") from error
    tokenizer = _tokenizer(place)
    if str(config.get("model_type")) in _CLASSES:
        kind, _, _ = _described(config, name, trusted)
        model = _load_ours(kind, name, place, trusted)
    elif "textdiff" in config:
        model = _load_wrapped(config["textdiff"], name, place, tokenizer, trusted)
    else:
        model = around_stock(Pretrained(name=place), tokenizer)
    model.tokenizer = tokenizer
    model.eval()
    return model


def around_stock(
    pretrained: Pretrained, tokenizer: Any, spec: Discrete | None = None, trunk: PreTrainedModel | None = None
) -> LanguageModel:
    """A stock model as it is (its causal likelihood, or a masked LM as a masked denoiser), or `spec` with that model as its trunk.

    A diffusion model needs a mask token: one is added to the tokenizer when it has none, in a spare row when there is one. `trunk` is the
    model where it is loaded already.
    """
    trunk = pretrained.load() if trunk is None else trunk
    if tokenizer is None:
        raise ValueError(f"{pretrained.name} has no tokenizer files: a stock model is read together with its tokenizer")
    rows = int(trunk.get_input_embeddings().weight.shape[0])  # type: ignore[index, arg-type, union-attr]
    if spec is None and not hub.is_masked_lm(trunk):
        if _two_way(trunk):
            raise ValueError(
                f"config.json of {pretrained.name} says is_causal: false, and no textdiff block says what the model is: restore the block, "
                "or remove is_causal to read it left to right"
            )
        vocab = Vocab.of(tokenizer, size=rows)
        return AutoregressiveSpec(backbone=pretrained).build(vocab, pretrained.wrap(trunk, vocab, causal=True))
    add_mask_token(tokenizer)
    vocab = Vocab.of(tokenizer, size=rows)
    spec = Discrete() if spec is None else spec
    return plain.replaced(spec, backbone=pretrained).build(vocab, pretrained.wrap(trunk, vocab, causal=False))


def _described(block: Any, name: str, trusted: tuple[str, ...]) -> tuple[type[LanguageModel], ModelSpec, Vocab]:
    """What config.json, or its textdiff block, says a model is."""
    parts = [block.get(part) for part in ("model_type", "spec", "vocab")] if isinstance(block, dict) else [block]
    kind = _CLASSES.get(str(parts[0]))
    if kind is None:
        raise ValueError(f"config.json of {name} has a textdiff block of the model type {parts[0]!r}, not one of {sorted(_CLASSES)}")
    spec, vocab = (plain.from_plain(part, trusted) for part in parts[1:])
    if not isinstance(spec, _SPECS[kind]) or not isinstance(vocab, Vocab):
        raise ValueError(f"config.json of {name} does not describe a {kind.__name__}: its spec or vocab is missing or of another model")
    if isinstance(spec, Discrete) and "shift" not in block["spec"]:
        raise ValueError(f"config.json of {name} does not say from which output a position is read: restore the spec's shift")
    return kind, spec, vocab


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


def _load_wrapped(block: Any, name: str, place: str, tokenizer: Any, trusted: tuple[str, ...]) -> LanguageModel:
    """A stock folder whose config.json says how we use the model; what it says must agree."""
    kind, spec, vocab = _described(block, name, trusted)
    assert isinstance(spec, (Discrete, AutoregressiveSpec))
    pretrained = spec.backbone
    if not isinstance(pretrained, Pretrained):
        raise ValueError(f"config.json of {name} has a textdiff block around {type(pretrained).__name__}, expected a stock model")
    if tokenizer is not None and isinstance(spec, Discrete) and tokenizer.mask_token_id != vocab.mask_id:
        raise ValueError(f"config.json of {name} has the mask_id {vocab.mask_id}, its tokenizer {tokenizer.mask_token_id}: restore them")
    trunk, causal = pretrained.load(place), kind is AutoregressiveLM
    if not hub.is_masked_lm(trunk) and _two_way(trunk) == causal:
        way = f"is_causal: {str(not _two_way(trunk)).lower()}"
        raise ValueError(f"config.json of {name} says {way}, which a {kind.__name__} is not: restore is_causal, or the textdiff block")
    model = spec.build(vocab, pretrained.wrap(trunk, vocab, causal))
    model.generation_config = TextDiffusionGenerationConfig(**block.get("generation", {}))
    return model


def _two_way(trunk: PreTrainedModel) -> bool:
    """Whether the configuration of a causal LM says that it looks ahead."""
    return trunk.config.get_text_config(decoder=True).to_dict().get("is_causal") is False


def _tokenizer(place: str) -> Any:
    """The tokenizer beside a model, or None; where BOS or EOS is not named, the [CLS] and [SEP] of BERT serve as such."""
    folder = Path(place)
    if folder.is_dir() and not any((folder / file).is_file() for file in _TOKENIZER_FILES):
        return None  # transformers would make up an empty one
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(place, trust_remote_code=False)
    except Exception as error:  # the Rust parser raises bare Exceptions, and a missing tokenizer is any of several kinds
        if folder.is_dir():
            raise ValueError(f"the tokenizer files of {place} cannot be read: copy them again or train the tokenizer anew") from error
        return None
    name_ends(tokenizer)
    return tokenizer
