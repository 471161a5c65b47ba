"""Stock models by folder or hub id: found at once or refused with one line, read whole, never with remote code, never from a pickle."""

from pathlib import Path
from typing import Any

import transformers  # its auto classes are reached when a function runs: importing them registers our models, which import this file
from safetensors import SafetensorError
from transformers import PreTrainedConfig, PreTrainedModel

_FILE_SUFFIXES = (".safetensors", ".json", ".bin", ".pt", ".pth", ".ckpt", ".gguf")


def resolve(name: str) -> str:
    """A local folder (of a run, its model), or a hub id (`name` or `owner/name`); raises ValueError for a path where nothing is.

    The hub answers a mistyped path only after many retries, so whatever can only be a path never gets there.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file() and (path / "model" / "config.json").is_file():
            path = path / "model"  # the folder of a run
        if not (path / "config.json").is_file():
            raise ValueError(f"{name} has no config.json: give the folder that holds a model's config.json and model.safetensors")
        return str(path)
    if path.is_file() or path.suffix in _FILE_SUFFIXES:
        raise ValueError(f"{name} is a file, not a model folder: give the folder that holds config.json and model.safetensors")
    relative = name.startswith((".", "~")) or name.endswith("/") or "\\" in name
    if relative or path.is_absolute() or len(path.parts) > 2 or (len(path.parts) == 2 and Path(path.parts[0]).is_dir()):
        raise ValueError(f"no folder {name}: check the path, or give a hub id such as owner/name")
    return name


def is_masked_lm(trunk: PreTrainedModel) -> bool:
    """Whether a loaded stock model is the masked LM of its architecture."""
    masked: Any = transformers.MODEL_FOR_MASKED_LM_MAPPING.get(type(trunk.config), ())
    return isinstance(trunk, masked)


def _auto_class(config: PreTrainedConfig, name: str) -> Any:
    """BERT and its kind have both classes and are masked LMs, unless the configuration names the causal one."""
    kind = type(config)
    if kind in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
        causal: Any = transformers.MODEL_FOR_CAUSAL_LM_MAPPING[kind]
        named = causal.__name__ in (config.architectures or [])
        return (
            transformers.AutoModelForCausalLM
            if named or kind not in transformers.MODEL_FOR_MASKED_LM_MAPPING
            else transformers.AutoModelForMaskedLM
        )
    if kind in transformers.MODEL_FOR_MASKED_LM_MAPPING:
        return transformers.AutoModelForMaskedLM
    raise ValueError(f"{name} is a {config.model_type} model, neither a causal nor a masked LM: choose another")


def load(name: str, dtype: str) -> PreTrainedModel:
    """The stock causal or masked LM of a folder or hub id, every weight read; raises ValueError with one line when that is impossible."""
    place = resolve(name)
    try:
        config = transformers.AutoConfig.from_pretrained(place, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"{name} cannot be opened: {_first_line(error)}") from error
    auto = _auto_class(config, name)
    try:
        model, report = auto.from_pretrained(
            place, config=config, dtype=dtype, use_safetensors=True, output_loading_info=True, trust_remote_code=False
        )
    except SafetensorError as error:
        raise ValueError(f"the weights of {name} are truncated or corrupt ({_first_line(error)}): copy or download them again") from error
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(f"the weights of {name} cannot be loaded: {_first_line(error)}") from error
    missing = sorted(report["missing_keys"])
    if missing:
        shown = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise ValueError(f"{name} lacks {len(missing)} weights of {type(model).__name__} ({shown}): it is not a checkpoint of this model")
    result: PreTrainedModel = model
    return result


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
