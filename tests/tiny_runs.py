"""Commands run in process as a person types them, on models and texts small enough for milliseconds."""

import json
import runpy
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, PreTrainedTokenizerFast

from tests.data.texts import documents, sentence, word_piece
from textdiff import cli

RECIPES = Path(__file__).parent.parent / "recipes"
BRIEF = [
    *("--train.steps", "2", "--train.batch-size", "4", "--train.warmup", "1", "--train.log-every", "1"),
    *("--layout.length", "24", "--evaluation.draws", "2", "--evaluation.samples", "2"),
    *("--evaluation.sample-tokens", "6", "--evaluation.sample-steps", "3"),
]
TINY = [*BRIEF, "--vocab-size", "300"]
SMALL = ["--model.backbone.width", "16", "--model.backbone.layers", "1", "--model.backbone.heads", "2"]

SHORT = [  # of recipes on pairs
    *("--train.steps", "2", "--train.batch-size", "4", "--train.warmup", "1", "--train.log-every", "1", "--vocab-size", "300"),
    *("--source-length", "80", "--response-length", "60", "--scoring.test-limit", "6", "--scoring.candidates", "2"),
    *("--scoring.rows-while-training", "4", "--scoring.draws-while-training", "2"),
]

QUICK = {  # recipes that TINY does not fit
    "adapt": [*BRIEF, "--data", "texts", "--model", "gpt2"],
    "dates": [*SHORT, "--response-length", "11"],
    "translation": [*SHORT, "--data", "pairs"],
    "paraphrase": [*SHORT, "--data", "pairs"],
    "data_to_text": [*SHORT, "--data", "pairs"],
    "markov": ["--train.steps", "2", "--train.batch-size", "4", "--test-sequences", "16", "--draws", "2"],
    "controlled": [
        *("--train.steps", "2", "--train.batch-size", "4", "--classifier-train.steps", "2", "--classifier-train.batch-size", "4"),
        *("--vocab-size", "300", "--length", "16", "--samples", "2", "--sampling-steps", "2", "--gammas", "0", "2"),
    ],
    "compare_families": [
        *("--trunk.width", "16", "--trunk.layers", "1", "--trunk.heads", "2", "--length", "24", "--vocab-size", "300"),
        *("--train.steps", "2", "--train.batch-size", "4", "--train.warmup", "1", "--train.log-every", "1"),
        *("--measuring.passage", "40", "--measuring.limit", "12", "--measuring.draws", "2", "--measuring.profile-passages", "4"),
        *("--measuring.texts", "2", "--measuring.text-tokens", "6"),
    ],
    "denoise": [
        *("--train.steps", "2", "--train.batch-size", "4", "--train.warmup", "1", "--train.log-every", "1", "--vocab-size", "300"),
        *("--spans.length", "24", "--spans.shortest", "6", "--held-out.rows", "6", "--held-out.draws", "2", "--data", "texts"),
    ],
}


class Script(NamedTuple):
    """What a recipe script hands to `run_presets`."""

    presets: Mapping[str, Callable[[], Any]]
    run: Callable[[Any, str], Any]
    description: str


def script(path: Path) -> Script:
    """The presets of a recipe script, none of them run."""
    found: list[Script] = []
    with patch("textdiff.cli.run_presets", lambda presets, run, description: found.append(Script(presets, run, description))):
        runpy.run_path(str(path), run_name="__main__")
    return found[0]


def recipe(name: str, *words: str) -> None:
    """`python recipes/NAME.py WORDS`, in this process."""
    with patch.object(sys, "argv", [f"recipes/{name}.py", *words]):
        cli.run_presets(*script(RECIPES / f"{name}.py"))


def quickstart(*words: str) -> None:
    """`python recipes/quickstart.py WORDS` with the smallest numbers; later words win."""
    recipe("quickstart", words[0], *TINY, *([] if "--init" in words else SMALL), *words[1:])


def corpus(folder: Path, count: int = 120) -> Path:
    """A folder with a training and a validation file of one document per row."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [json.dumps({"text": text}) + "\n" for text in documents(count)]
    (folder / "train.jsonl").write_text("".join(rows[10:]))
    (folder / "validation.jsonl").write_text("".join(rows[:10]))
    return folder


def pairs(folder: Path, count: int = 40) -> Path:
    """A folder with files of prompts and responses for training, validation and test."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, split in enumerate(("train", "valid", "test")):
        rows = [{"src": sentence(1000 * number + i, 3 + i % 4), "trg": sentence(500 + i, 2 + i % 3)} for i in range(count)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def stock_gpt2(folder: Path) -> Path:
    """A GPT-2 folder as the hub has them: random weights, a byte-level tokenizer whose one special token ends documents, no [MASK]."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    end, alphabet = "<|endoftext|>", pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=[end], initial_alphabet=alphabet, show_progress=False)
    core.train_from_iterator(documents(100), trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token=end, eos_token=end, clean_up_tokenization_spaces=False)
    return _stock(folder, "gpt2", tokenizer, AutoModelForCausalLM, {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64})


def stock_bert(folder: Path) -> Path:
    """A BERT folder: random weights, a WordPiece tokenizer that names [CLS] and [SEP] but no BOS and EOS."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "max_position_embeddings": 64}
    return _stock(folder, "bert", word_piece(), AutoModelForMaskedLM, sizes)


def _stock(folder: Path, kind: str, tokenizer: Any, auto: Any, sizes: dict[str, int]) -> Path:
    torch.manual_seed(0)
    ids = {"vocab_size": len(tokenizer), "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    model = auto.from_config(AutoConfig.for_model(kind, **ids, **sizes))
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
