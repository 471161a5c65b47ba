import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GenerationConfig

from tests.models.tiny import EOS, MASK, PAD, TEXT, VOCAB, autoregressive, diffusion, trunk
from textdiff.guidance.classifier_free import ClassifierFree
from textdiff.models.autoregressive import AutoregressiveLM
from textdiff.models.base import LanguageModel
from textdiff.models.discrete import DiscreteDiffusionLM
from textdiff.models.generation import TextDiffusionGenerationConfig
from textdiff.processes.block import Block
from textdiff.processes.masked import Masked
from textdiff.samplers.ancestral import Ancestral
from textdiff.samplers.autoregressive import Autoregressive
from textdiff.samplers.base import Sampler
from textdiff.samplers.blockwise import Blockwise
from textdiff.samplers.confidence import Entropy, EntropyBound, Greedy, Margin, RandomOrder, Threshold
from textdiff.samplers.first_hitting import FirstHitting
from textdiff.vocab import Vocab

PROMPT = [3, 1, 4]
MODELS = {"diffusion": diffusion(), "autoregressive": autoregressive()}
EVERY_SAMPLER: list[tuple[str, Sampler]] = [
    ("diffusion", Ancestral(steps=6)),
    ("diffusion", FirstHitting()),
    ("diffusion", Greedy(steps=4)),
    ("diffusion", Margin(steps=4)),
    ("diffusion", Entropy(steps=4)),
    ("diffusion", RandomOrder(steps=4)),
    ("diffusion", Threshold(tau=0.7)),
    ("diffusion", EntropyBound(gamma=0.3)),
    ("autoregressive", Autoregressive(eos_id=EOS)),
]
each_sampler = pytest.mark.parametrize(("kind", "sampler"), EVERY_SAMPLER, ids=lambda v: v if isinstance(v, str) else type(v).__name__)
each_model = pytest.mark.parametrize("kind", ["diffusion", "autoregressive"])


@each_sampler
def test_padding_on_either_side_or_none_gives_the_same_continuation(kind: str, sampler: Sampler) -> None:
    model = MODELS[kind]
    plain = model.generate(torch.tensor([PROMPT]), max_new_tokens=8, seed=1, sampler=sampler)
    assert plain.sequences[0, :3].tolist() == PROMPT
    left, right = torch.tensor([[PAD, PAD, *PROMPT]]), torch.tensor([[*PROMPT, PAD, PAD]])
    for padded, mask in ((left, [0, 0, 1, 1, 1]), (right, [1, 1, 1, 0, 0])):
        output = model.generate(padded, torch.tensor([mask]), max_new_tokens=8, seed=1, sampler=sampler)
        assert torch.equal(output.sequences[:, :5], padded)
        assert torch.equal(output.sequences[:, 5:], plain.sequences[:, 3:])
        assert torch.equal(output.nfe, plain.nfe)
        assert torch.equal(output.tokens_per_forward, plain.tokens_per_forward)


@each_sampler
def test_only_text_is_ever_written(kind: str, sampler: Sampler) -> None:
    """No mask, no id beyond the tokenizer, and padding only behind an end token."""
    output = MODELS[kind].generate(torch.tensor([PROMPT] * 100), max_new_tokens=12, seed=3, sampler=sampler)
    for new in output.sequences[:, 3:].tolist():
        end = new.index(EOS) + 1 if EOS in new else 12
        assert all(i < TEXT for i in new[:end])
        assert all(i == PAD for i in new[end:])


@each_model
def test_the_first_row_of_a_ragged_batch_is_the_row_alone(kind: str) -> None:
    model = MODELS[kind]
    ids = torch.tensor([[PAD, PAD, 2], [3, 1, 4]])
    batch = model.generate(ids, (ids != PAD).long(), max_new_tokens=7, seed=5)
    alone = model.generate(torch.tensor([[2]]), max_new_tokens=7, seed=5)
    assert torch.equal(batch.sequences[0, 3:], alone.sequences[0, 1:])
    assert torch.equal(batch.nfe[:1], alone.nfe)


@each_model
def test_a_seed_fixes_the_tokens_and_without_one_torchs_generator_does(kind: str) -> None:
    model, prompt = MODELS[kind], torch.tensor([PROMPT] * 4)

    def tokens(**options: Any) -> Tensor:
        sequences: Tensor = model.generate(prompt, max_new_tokens=8, **options).sequences
        return sequences

    assert torch.equal(tokens(seed=1), tokens(seed=1))
    assert not torch.equal(tokens(seed=1), tokens(seed=2))
    torch.manual_seed(0)
    first, second = tokens(), tokens()
    torch.manual_seed(0)
    assert torch.equal(tokens(), first)
    assert not torch.equal(first, second)


def test_mask_tokens_in_the_prompt_are_filled_and_the_rest_of_it_stays() -> None:
    prompt = torch.tensor([[PAD, 3, MASK, 4, MASK], [1, MASK, 2, 5, 0]])
    output = MODELS["diffusion"].generate(prompt, (prompt != PAD).long(), max_new_tokens=2, seed=0, sampler=Greedy(steps=9))
    filled = output.sequences[:, :5]
    assert torch.equal(filled[prompt != MASK], prompt[prompt != MASK])
    assert bool((filled[prompt == MASK] < TEXT).all())
    assert output.nfe.tolist() == [4, 3]  # two masks or one, and two new tokens


def test_infilling_alone_needs_no_new_tokens() -> None:
    prompt = torch.tensor([[3, MASK, 4]])
    output = MODELS["diffusion"].generate(prompt, max_new_tokens=0, seed=0, sampler=Greedy(steps=3))
    assert output.sequences.shape == (1, 3)
    assert output.sequences[0, [0, 2]].tolist() == [3, 4]
    assert int(output.sequences[0, 1]) < TEXT
    assert output.nfe.tolist() == [1]
    assert output.tokens_per_forward.tolist() == [1]


def test_an_end_token_in_the_prompt_ends_nothing() -> None:
    output = MODELS["diffusion"].generate(torch.tensor([[EOS, 3, MASK]]), max_new_tokens=4, seed=0)
    assert output.sequences[0, :2].tolist() == [EOS, 3]
    assert int(output.sequences[0, 3]) < TEXT


@each_model
def test_no_new_tokens_return_the_prompt_at_no_cost(kind: str) -> None:
    output = MODELS[kind].generate(torch.tensor([PROMPT]), max_new_tokens=0)
    assert output.sequences.tolist() == [PROMPT]
    assert output.nfe.tolist() == [0]
    assert output.tokens_per_forward.tolist() == [0]


@each_model
def test_without_a_prompt_rows_begin_with_bos_else_eos(kind: str) -> None:
    assert int(MODELS[kind].generate(max_new_tokens=1, seed=0).sequences[0, 0]) == VOCAB.bos_id
    build = {"diffusion": diffusion, "autoregressive": autoregressive}[kind]
    model = build(Vocab(size=9, tokens=9, mask_id=MASK, eos_id=EOS))
    assert int(model.generate(max_new_tokens=1, seed=0).sequences[0, 0]) == EOS
    with pytest.raises(ValueError, match="no BOS or EOS token to begin with: give input_ids"):
        build(Vocab(size=9, tokens=9, mask_id=MASK)).generate(max_new_tokens=1)


def test_calls_and_tokens_per_call_are_exact() -> None:
    endless = diffusion(Vocab(size=9, tokens=9, mask_id=MASK))
    output = endless.generate(torch.tensor([PROMPT]), max_new_tokens=9, seed=0, sampler=Greedy(steps=4))
    assert output.nfe.tolist() == [4]
    assert output.tokens_per_forward.tolist() == [9 / 4]
    assert endless.generate(torch.tensor([PROMPT]), max_new_tokens=9, seed=0, sampler=FirstHitting()).nfe.tolist() == [9]
    assert int(endless.generate(torch.tensor([PROMPT]), max_new_tokens=9, seed=0, max_denoising_steps=2).nfe) <= 2


@each_model
def test_padding_after_the_end_is_not_counted_as_generated(kind: str) -> None:
    output = MODELS[kind].generate(torch.tensor([PROMPT] * 100), max_new_tokens=10, seed=0)
    lengths = (output.sequences[:, 3:] != PAD).sum(1)
    assert 0 < int((lengths < 10).sum()) < 100
    torch.testing.assert_close(output.tokens_per_forward, lengths / output.nfe)
    if kind == "autoregressive":
        assert torch.equal(output.nfe, lengths)


def test_temperature_zero_is_do_sample_false_and_does_not_depend_on_the_seed() -> None:
    model, prompt = MODELS["autoregressive"], torch.tensor([PROMPT])
    greedy = [
        model.generate(prompt, max_new_tokens=8, **options).sequences
        for options in (
            {"temperature": 0.0, "seed": 0},
            {"temperature": 0.0, "seed": 1},
            {"do_sample": False, "seed": 2},
            {"top_k": 1, "seed": 3},
        )
    ]
    assert all(torch.equal(sequences, greedy[0]) for sequences in greedy)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("diffusion", {"max_new_token": 3}, r"^generate got 'max_new_token', which it does not read; it reads max_new_tokens, "),
        ("diffusion", {"repetition_penalty": 1.2}, r"^generate got 'repetition_penalty', which it does not read"),
        ("diffusion", {"max_new_tokens": -1}, r"^max_new_tokens is -1, expected 0 or more$"),
        ("diffusion", {"max_new_tokens": 40}, r"^a prompt of 3 tokens and 40 new ones exceed the model's 32: shorten one$"),
        ("autoregressive", {"max_new_tokens": 40}, r"^a prompt of 3 tokens and 40 new ones exceed the model's 32: shorten one$"),
        ("diffusion", {"max_denoising_steps": 0}, r"^steps is 0, expected 1 or more$"),
        ("diffusion", {"temperature": -1.0}, r"^temperature is -1.0"),
        ("diffusion", {"top_p": 0.0}, r"^top_p is 0.0"),
        ("diffusion", {"eos_token_id": 2}, r"^eos_token_id is 2 and the model was built with 6: leave it out$"),
        ("diffusion", {"sampler_config": {"steps": 3}}, r"^sampler_config is \{'steps': 3\}, expected a Sampler"),
        ("diffusion", {"sampler_config": {"class": "os.system"}}, r"outside the trusted packages"),
        ("diffusion", {"sampler_config": FirstHitting(), "max_denoising_steps": 3}, r"^FirstHitting has no field 'steps'"),
        ("diffusion", {"sampler": Greedy(), "max_denoising_steps": 3}, r"^generate got both a sampler and max_denoising_steps"),
        ("diffusion", {"sampler": Autoregressive()}, r"^Autoregressive samples a LeftToRight process and the model's is Masked"),
        ("autoregressive", {"sampler": Ancestral()}, r"^Ancestral samples a noise process and the model's is LeftToRight"),
        ("autoregressive", {"max_denoising_steps": 3}, r"leave max_denoising_steps out$"),
        ("autoregressive", {"input_ids": torch.tensor([[1, MASK]])}, r"fill them with a diffusion model$"),
        ("diffusion", {"input_ids": torch.tensor([[1, 11]])}, r"^input_ids run from 1 to 11, the model has 11 rows"),
        ("diffusion", {"input_ids": torch.tensor([[-1, 1]])}, r"^input_ids run from -1 to 1, the model has 11 rows"),
        ("diffusion", {"input_ids": torch.tensor([1, 2])}, r"^input_ids are \(2,\) torch.int64, expected \(batch, length\) int64$"),
        ("diffusion", {"input_ids": torch.tensor([[1.0]])}, r"^input_ids are \(1, 1\) torch.float32"),
        ("diffusion", {"input_ids": torch.zeros(0, 3, dtype=torch.long)}, r"^input_ids are \(0, 3\)"),
        ("diffusion", {"attention_mask": torch.ones(1, 2)}, r"^attention_mask is \(1, 2\), expected the shape of input_ids, \(1, 3\)$"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_with_one_line(kind: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        MODELS[kind].generate(**{"input_ids": torch.tensor([PROMPT]), "max_new_tokens": 4, **options})
    assert "\n" not in str(raised.value)


def test_generation_config_round_trip(tmp_path: Path) -> None:
    config = TextDiffusionGenerationConfig(
        max_new_tokens=7,
        sampler_config=Threshold(tau=0.8),
        temperature=0.5,
        top_k=4,
        top_p=0.9,
        seed=3,
        mask_token_id=MASK,
        eos_token_id=EOS,
    )
    config.save_pretrained(tmp_path)
    again = TextDiffusionGenerationConfig.from_pretrained(tmp_path)
    assert {**vars(again), "_original_object_hash": None, "transformers_version": None} == {
        **vars(config),
        "_original_object_hash": None,
        "transformers_version": None,
    }
    saved = json.loads((tmp_path / "generation_config.json").read_text())
    assert saved["sampler_config"] == {"class": "textdiff.samplers.confidence.Threshold", "tau": 0.8}


@each_model
def test_saved_defaults_are_what_generate_then_does(kind: str, tmp_path: Path) -> None:
    model = {"diffusion": diffusion, "autoregressive": autoregressive}[kind]()
    sampler = Greedy(steps=3) if kind == "diffusion" else None
    model.generation_config = TextDiffusionGenerationConfig(max_new_tokens=6, seed=4, temperature=0.7, sampler_config=sampler)
    expected = model.generate(torch.tensor([PROMPT]))
    model.save_pretrained(tmp_path)
    kinds: dict[str, type[LanguageModel]] = {"diffusion": DiscreteDiffusionLM, "autoregressive": AutoregressiveLM}
    loaded: Any = kinds[kind].from_pretrained(tmp_path)
    output = loaded.generate(torch.tensor([PROMPT]))
    assert output.sequences.shape == (1, 9)
    assert torch.equal(output.sequences, expected.sequences)
    assert torch.equal(output.nfe, expected.nfe)


def test_a_call_overrides_the_config_it_is_given_and_that_the_models_own() -> None:
    model, prompt = diffusion(), torch.tensor([PROMPT])
    model.generation_config = TextDiffusionGenerationConfig(max_new_tokens=2)
    given = TextDiffusionGenerationConfig(max_new_tokens=4, sampler_config=Greedy(steps=2))
    assert model.generate(prompt).sequences.shape[1] == 5
    assert model.generate(prompt, generation_config=given).sequences.shape[1] == 7
    assert model.generate(prompt, generation_config=given, max_new_tokens=6).nfe.tolist() == [2]
    assert model.generate(prompt, generation_config=given, max_denoising_steps=3).nfe.tolist() == [3]
    assert (given.max_new_tokens, given.max_denoising_steps, model.generation_config.max_new_tokens) == (4, None, 2)


def test_a_config_refuses_what_generation_does_not_read() -> None:
    with pytest.raises(ValueError, match="generate got 'num_beams', which it does not read"):
        TextDiffusionGenerationConfig(num_beams=4)


def test_a_broken_generation_config_file_is_refused_and_an_absent_one_means_the_defaults(tmp_path: Path) -> None:
    diffusion().save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(ValueError, match=r"generation_config.json is not valid JSON: mend it or remove it$"):
        DiscreteDiffusionLM.from_pretrained(tmp_path)
    (tmp_path / "generation_config.json").unlink()
    assert DiscreteDiffusionLM.from_pretrained(tmp_path).generation_config.max_new_tokens == 64


def test_filters_of_a_config() -> None:
    for options, expected in (
        ({}, (1.0, 0, 1.0)),
        ({"do_sample": False, "temperature": 0.7}, (0.0, 0, 1.0)),
        ({"do_sample": True, "temperature": 0.7, "top_k": 3, "top_p": 0.5}, (0.7, 3, 0.5)),
    ):
        filters = TextDiffusionGenerationConfig(**options).filters()
        assert (filters.temperature, filters.top_k, filters.top_p) == expected


def test_our_config_is_a_generation_config_of_transformers() -> None:
    assert isinstance(TextDiffusionGenerationConfig(), GenerationConfig)
    assert DiscreteDiffusionLM.can_generate()
    assert AutoregressiveLM.can_generate()


def test_guidance_and_a_label_reach_the_sampler() -> None:
    """gamma = 1 is the labelled model, gamma = 0 the unlabelled one, token by token; between and beyond they differ."""
    model = diffusion(backbone=trunk(labels=3), label_dropout=0.1)
    options: dict[str, Any] = {"max_new_tokens": 8, "seed": 1}
    prompt, label = torch.tensor([PROMPT]), torch.tensor([[2]])
    plain, told = model.generate(prompt, **options), model.generate(prompt, source=label, **options)
    assert not torch.equal(plain.sequences, told.sequences)
    for gamma, expected in ((0.0, plain), (1.0, told)):
        assert torch.equal(model.generate(prompt, source=label, guidance=ClassifierFree(gamma), **options).sequences, expected.sequences)
    assert not torch.equal(model.generate(prompt, source=label, guidance=ClassifierFree(4.0), **options).sequences, told.sequences)
    with pytest.raises(ValueError, match=r"source is \(1,\), expected one row for each of the 1 prompts"):
        model.generate(prompt, source=torch.tensor([2]), **options)
    with pytest.raises(ValueError, match=r"gamma 4\.0 needs a condition and the batch has no source"):
        model.generate(prompt, guidance=ClassifierFree(4.0), **options)


def test_a_named_sampler_runs_inside_each_block() -> None:
    model = diffusion(process=Block(Masked(), size=4))
    assert model.in_blocks(Greedy(steps=2)) == Blockwise(Greedy(steps=2), eos_id=EOS)
    assert model.in_blocks(Blockwise()) == Blockwise()
    assert diffusion().in_blocks(Greedy()) == Greedy()
    written = model.generate(torch.tensor([PROMPT]), max_new_tokens=7, seed=0, sampler=model.in_blocks(Greedy(steps=2))).sequences
    assert written.shape == (1, 10)
    assert bool((written != MASK).all())
