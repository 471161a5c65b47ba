"""Tiny random stock models, one per architecture: 2 layers, width 32, 64 ids."""

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, PreTrainedModel

_LLAMA = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}
_GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
_BERT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}
_MODERN = {key: value for key, value in _LLAMA.items() if key not in ("num_key_value_heads", "head_dim")}

CAUSAL: dict[str, dict[str, object]] = {
    "gpt2": _GPT2,
    "llama": _LLAMA,
    "mistral": {**_LLAMA, "sliding_window": 4},
    "qwen2": _LLAMA,
    "qwen2 window": {**_LLAMA, "use_sliding_window": True, "sliding_window": 4, "layer_types": ["full_attention", "sliding_attention"]},
    "qwen3": _LLAMA,
    "gemma": _LLAMA,
    "gemma3_text": {**_LLAMA, "sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]},
    "phi": {**_LLAMA, "partial_rotary_factor": 0.5},
    "opt": {**_BERT, "ffn_dim": 48, "word_embed_proj_dim": 32},
    "gpt_neox": _BERT,
    "gptj": {**_GPT2, "rotary_dim": 4},
    "falcon": {**_BERT, "num_hidden_layers": 2},
    "olmo2": _LLAMA,
    "smollm3": {**_LLAMA, "layer_types": ["full_attention", "full_attention"], "no_rope_layers": [1, 0]},
    "granite": {**_LLAMA, "logits_scaling": 8.0},
    "cohere": {**_LLAMA, "logit_scale": 0.0625},
}
MASKED: dict[str, dict[str, object]] = {
    "bert": _BERT,
    "roberta": {**_BERT, "pad_token_id": 1},
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48, "max_position_embeddings": 64},
    "modernbert": {**_MODERN, "local_attention": 8, "layer_types": ["full_attention", "sliding_attention"]},
    "electra": {**_BERT, "embedding_size": 16},
}
SPECIAL: dict[str, dict[str, object]] = {
    "gpt_neo": {**_BERT, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": 4},
    "gemma2": {**_LLAMA, "final_logit_softcapping": 30.0},
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "lfm2": {**_LLAMA, "layer_types": ["full_attention", "conv"], "block_auto_adjust_ff_dim": False},
    "llama4_text": {**_LLAMA, "intermediate_size_mlp": 48, "num_local_experts": 2, "attention_chunk_size": 4},
    "qwen3_moe": {**_LLAMA, "moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2},
}


def tiny(name: str, **changes: object) -> PreTrainedModel:
    """The architecture of that name with random float32 weights, large enough for every token to matter."""
    torch.manual_seed(0)
    sizes = {**CAUSAL, **MASKED, **SPECIAL}[name]
    ids = {"vocab_size": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
    config = AutoConfig.for_model(name.split()[0], **{**ids, **sizes, **changes})
    auto = AutoModelForMaskedLM if name in MASKED else AutoModelForCausalLM
    model = auto.from_config(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()
