import re
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import PreTrainedTokenizerFast, TextDiffusionStreamer

from tests.models.tiny import MASK, autoregressive, diffusion
from textdiff.samplers.confidence import Greedy

PROMPT = [3, 1, 4]
MODELS = {"diffusion": diffusion(), "autoregressive": autoregressive()}


class Recorder:
    """A streamer that notes its calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, list[Any]]] = []

    def put(self, value: Tensor) -> None:
        self.calls.append(("put", value.tolist()))

    def end(self) -> None:
        self.calls.append(("end", []))


class DraftRecorder(Recorder):
    def put_draft(self, value: Tensor) -> None:
        self.calls.append(("draft", value.tolist()))


def test_a_streamer_of_drafts_sees_prompt_every_canvas_result_and_end() -> None:
    recorder = DraftRecorder()
    output = MODELS["diffusion"].generate(torch.tensor([PROMPT]), max_new_tokens=5, seed=0, streamer=recorder, sampler=Greedy(steps=3))
    assert [name for name, _ in recorder.calls] == ["put", "draft", "draft", "draft", "draft", "put", "end"]
    values = [value for _, value in recorder.calls]
    assert values[0] == [PROMPT]
    assert values[1] == [MASK] * 5
    assert [draft.count(MASK) for draft in values[1:5]] == [5, 3, 1, 0]
    assert values[5] == output.sequences[0, 3:].tolist()


def test_a_plain_streamer_sees_prompt_result_and_end() -> None:
    recorder = Recorder()
    MODELS["autoregressive"].generate(torch.tensor([PROMPT]), max_new_tokens=3, seed=0, streamer=recorder)
    assert [name for name, _ in recorder.calls] == ["put", "put", "end"]


def test_a_streamer_changes_no_token_and_shows_one_row_only() -> None:
    model, prompt = MODELS["diffusion"], torch.tensor([PROMPT])
    quiet = model.generate(prompt, max_new_tokens=5, seed=0).sequences
    assert torch.equal(model.generate(prompt, max_new_tokens=5, seed=0, streamer=DraftRecorder()).sequences, quiet)
    with pytest.raises(ValueError, match="a streamer shows one row and the batch has 2"):
        model.generate(prompt.repeat(2, 1), max_new_tokens=5, streamer=DraftRecorder())


def test_the_stock_streamer_of_transformers_prints_the_continuation(capsys: pytest.CaptureFixture[str]) -> None:
    words = {word: i for i, word in enumerate(["a", "b", "c", "d", "e", "f", ".", "[PAD]", "[MASK]"])}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(words, unk_token=".")), pad_token="[PAD]", mask_token="[MASK]")
    streamer = TextDiffusionStreamer(tokenizer, skip_special_tokens=True)
    output = MODELS["diffusion"].generate(torch.tensor([PROMPT]), max_new_tokens=5, seed=0, streamer=streamer)
    printed, drafts = re.subn(r"\x1b7.*?\x1b8\x1b\[J", "", capsys.readouterr().out)  # save the cursor, print a draft, go back, wipe it
    assert printed.split() == tokenizer.decode(output.sequences[0], skip_special_tokens=True).split()
    assert drafts == 129  # the blank canvas and every step of the default sampler
