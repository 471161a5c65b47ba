"""Guidance asks for an answer without the condition, which a model must have learnt to give."""

from pathlib import Path

import pytest
import torch

from tests.guidance.test_classifier_free import OF_EACH, labelled, network, sampled
from tests.models.tiny import diffusion, ragged, trunk
from textdiff.guidance.base import GuidedDenoiser
from textdiff.guidance.classifier_free import ClassifierFree, PromptMasked
from textdiff.guidance.filters import Filters
from textdiff.models.discrete import DiscreteDiffusionLM
from textdiff.processes.base import TokenProcess
from textdiff.processes.masked import Masked


@OF_EACH
@pytest.mark.parametrize("gamma", [0.0, 0.5, 3.0])
def test_a_label_that_training_never_hid_cannot_be_hidden_now(process: TokenProcess, timed: bool, gamma: float) -> None:
    """Wherever an answer without the label would be asked for, before anything is drawn, and behind other guidance too."""
    never, now_and_then = network(process, timed, 0.0), network(process, timed, 0.1)
    line = f"^gamma is {gamma} and the model's condition was never hidden in training: train with label_dropout above 0, or use gamma 1$"
    for denoiser in (never, Filters(top_k=2)(never), GuidedDenoiser(GuidedDenoiser(never))):
        with pytest.raises(ValueError, match=line):
            ClassifierFree(gamma)(denoiser)
    with pytest.raises(ValueError, match=line):
        never.generate(torch.tensor([[3, 1]]), max_new_tokens=4, source=torch.tensor([[0]]), guidance=ClassifierFree(gamma))
    assert ClassifierFree(1.0)(never) is never
    ClassifierFree(gamma)(now_and_then)
    unlabelled = diffusion(process=process, backbone=trunk(time_conditioning=timed))
    assert torch.equal(sampled(ClassifierFree(0.0)(unlabelled), ragged()), sampled(unlabelled, ragged()))


def test_what_was_trained_is_known_of_a_saved_model(tmp_path: Path) -> None:
    for label_dropout in (0.0, 0.1):
        network(Masked(), False, label_dropout).save_pretrained(tmp_path / str(label_dropout))
    never, now_and_then = (DiscreteDiffusionLM.from_pretrained(tmp_path / folder) for folder in ("0.0", "0.1"))
    with pytest.raises(ValueError, match="was never hidden in training"):
        ClassifierFree(2.0)(never)
    ClassifierFree(2.0)(now_and_then)


def test_a_prompt_behind_masks_needs_no_label_dropout() -> None:
    """Any token may be masked in training, so that the model has learnt to do without the prompt by itself."""
    model = network(Masked(), False, 0.0)
    assert torch.equal(sampled(PromptMasked(2.0)(model), labelled()), sampled(PromptMasked(2.0)(network(Masked(), False)), labelled()))
