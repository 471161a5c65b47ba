"""A run on prompts with responses: train, write the test set's responses, score them beside the rivals on the same data.

The same for every family: a model is a `LanguageModel` that is also a `Denoiser`, and only the ids it decodes to are ever looked at.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from accelerate import Accelerator
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from textdiff.data.collate import Pairs
from textdiff.data.corpora import Corpus, resolve
from textdiff.data.layout import fitting
from textdiff.data.pair_shape import PairShape
from textdiff.data.readers import Pair
from textdiff.data.splits import Splits
from textdiff.data.tokenizer import train_tokenizer
from textdiff.decoding import Drawn, draw, has_encoder
from textdiff.evaluation import minimum_bayes_risk
from textdiff.evaluation.likelihood import EvaluationStopped, likelihood
from textdiff.families import Family
from textdiff.models.base import LanguageModel
from textdiff.models.latent import LatentDiffusion
from textdiff.recipe import begin, given_tokenizer, on_main_first, run_folder, saver
from textdiff.sampler_words import typed
from textdiff.scores import Case, Measure, Outcome, Row, Scores, measured, parameters
from textdiff.training.checkpoint import list_checkpoints
from textdiff.training.loop import Evaluate, train
from textdiff.training.session import on_main, session
from textdiff.training.settings import Train
from textdiff.training.start import require_as_begun, started
from textdiff.vocab import Vocab


@dataclass(frozen=True)
class Scoring:
    """How responses are written and scored. Raises ValueError for counts that make no sense."""

    test_limit: int | None = None
    """Prompts of the test set, evenly spaced over it (default: all)."""
    candidates: int = 10
    """Responses among which minimum Bayes risk chooses; 1 leaves that out."""
    batch_size: int = 64
    """Rows at a time; the texts do not depend on it, the seconds do."""
    rows_while_training: int = 64
    """Validation pairs scored, and answered, at each evaluation."""
    draws_while_training: int = 2
    """Draws for each pair's bound there; some models make several network calls for each."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and value < 1:
                raise ValueError(f"scoring.{name} is {value}, expected 1 or more")


@dataclass(frozen=True, kw_only=True)
class Seq2Seq(Family):
    """One run: a family's model, the pairs, training and scoring; every field is a command-line flag."""

    data: str
    """A file or folder of pairs, a builtin corpus of pairs, or a hub id org/name[:config][@revision]."""
    columns: tuple[str, ...] | None = None
    """The prompt and response columns, or the suffixes of parallel files (default: those of the usual formats)."""
    tokenizer: str | None = None
    """Folder or hub id of a tokenizer (default: that of `start`, else a byte-level BPE trained on both sides of the training pairs)."""
    start: Path | None = None
    """Begin with the weights and the tokenizer of this folder, of a run or of a model, trained with the same model options."""
    vocab_size: int = 2048
    """Size of a trained tokenizer, its special tokens included."""
    source_length: int = 64
    """Tokens of a prompt; longer training pairs are left out, longer test prompts lose their end."""
    response_length: int = 64
    """Tokens of a response, its EOS included; longer training pairs are left out."""
    train: Train = field(default_factory=Train)
    """How the model is trained."""
    scoring: Scoring = field(default_factory=Scoring)
    """How it is scored."""
    out: Path | None = None
    """Folder of the run (default: a new one under runs/)."""

    def __post_init__(self) -> None:
        if self.source_length < 1 or self.response_length < 2:
            given = f"source_length {self.source_length}, response_length {self.response_length}"
            raise ValueError(f"{given}: expected 1 token or more of a prompt and 2 or more of a response, its EOS being one")
        if self.columns is not None and len(self.columns) != 2:
            raise ValueError(f"columns are {list(self.columns)}, expected a prompt and a response column")
        if self.start is not None and self.tokenizer is not None:
            raise ValueError(f"start is {self.start}, which has a tokenizer, and tokenizer is {self.tokenizer}: leave one of them out")

    @property
    def shape(self) -> PairShape:
        """How pairs become rows."""
        return PairShape(self.source_length, self.response_length, self.encoder, self.fill)

    def sized(self) -> Self:
        """The same run, its latent model with room for `response_length` tokens; as many latents where they were as many before."""
        if not isinstance(self.model, LatentDiffusion):
            return self
        given, length = self.model.autoencoder, self.response_length
        autoencoder = replace(given, length=length, latents=length if given.latents == given.length else given.latents)
        return replace(self, model=replace(self.model, autoencoder=autoencoder))


class Prepared(NamedTuple):
    """A run's data as rows."""

    train: Pairs
    validation: Pairs
    answered: list[Case]  # of the validation set, while training
    test: list[Case]
    description: str


def run(recipe: Seq2Seq, name: str, measure: Measure) -> Path:
    """Train, answer the test set, score and save; returns the run's folder. `name` is the folder's default name.

    `measure` gives the columns of the table, the first of them the one that ranks it. Raises ValueError with one line for anything a
    user can mend, and SystemExit 130 or 143 when stopped by a signal.
    """
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with session(recipe.train.bf16) as accelerator:
        return _run(recipe.sized(), name, measure, accelerator)


def _run(recipe: Seq2Seq, name: str, measure: Measure, accelerator: Accelerator) -> Path:
    began = time.perf_counter()
    out = on_main(accelerator, lambda: run_folder(recipe, name))
    require_as_begun(out, recipe, ("start", "data", "tokenizer", "columns", "source_length", "response_length", "fill"))
    recipe.train.lora.require_weights(None if recipe.start is None else str(recipe.start))
    corpus = on_main_first(accelerator, lambda: resolve(recipe.data, recipe.columns))
    pairs = corpus.pairs()
    model = _begun(recipe, pairs, out, accelerator)
    tokenizer = model.tokenizer
    _prepare_to_answer(recipe, model)
    prepared = prepare(recipe, corpus, pairs, tokenizer)
    scores = Scores(out, accelerator.is_main_process)
    scores.header(model, prepared.description, len(prepared.test))
    on_main(accelerator, lambda: begin(out, recipe, tokenizer))
    pad_id, evaluate = model.vocab.pad_id or 0, _while_training(recipe, prepared, measure)
    training = time.perf_counter()
    steps = train(accelerator, recipe.train, model, prepared.train, pad_id, out, evaluate, saver(model, recipe, out))
    trained = time.perf_counter() - training
    model.to(accelerator.device)  # type: ignore[arg-type]
    if accelerator.is_main_process:
        rows = _answers(recipe, model, prepared.test, scores)
        outcome = Outcome(prepared.description, parameters(model), steps, trained, prepared.test, rows)
        scores.table(outcome, measure)
        scores.closing(time.perf_counter() - began, _asking(recipe, model))
    return out


def _begun(recipe: Seq2Seq, pairs: Splits[Pair], out: Path, accelerator: Accelerator) -> LanguageModel:
    """The model and its tokenizer before the first step: those of `start`, or fresh ones, or what a checkpoint will be read into."""
    torch.manual_seed(recipe.train.seed)
    if recipe.start is not None and not (recipe.train.resume and list_checkpoints(out / "checkpoints")):
        return started(recipe.start, recipe.model)
    tokenizer = given_tokenizer(recipe.tokenizer, recipe.train.resume, out)
    if tokenizer is None:
        both = (text for pair in pairs.train for text in pair)
        tokenizer = on_main(accelerator, lambda: train_tokenizer(both, recipe.vocab_size))
    model = recipe.model.build(Vocab.of(tokenizer))
    model.tokenizer = tokenizer
    return model


def _prepare_to_answer(recipe: Seq2Seq, model: LanguageModel) -> None:
    """Raise ValueError before training for rows and samplers that do not suit the model; let it write as much as it is trained to."""
    _check_rows(recipe, model)
    for decode in (recipe.single, recipe.varied):
        decode.check(model)
    denoiser: Any = model
    denoiser.generation_config = denoiser.generation_config.updated(max_new_tokens=recipe.response_length)


def _check_rows(recipe: Seq2Seq, model: LanguageModel) -> None:
    """Raise ValueError for rows that the model cannot read, or is not made for."""
    if recipe.fill and not model.nll_is_bound:
        raise ValueError("fill is on and the model writes token by token until EOS: turn it off")
    if model.nll_is_bound and not recipe.fill:
        raise ValueError("fill is off and the model writes all positions at once, told no length: turn it on")
    if recipe.encoder != has_encoder(model):
        has = "has an encoder" if has_encoder(model) else "has none"
        raise ValueError(f"encoder is {'on' if recipe.encoder else 'off'} and the model's trunk {has}: make them agree")
    if recipe.shape.row_length > model.max_length:
        raise ValueError(
            f"rows have {recipe.shape.row_length} tokens and the model reads {model.max_length}: shorten source or response_length"
        )
    if recipe.encoder and recipe.source_length > model.backbone.max_length:
        raise ValueError(f"source_length is {recipe.source_length} and the encoder reads {model.backbone.max_length} tokens: shorten it")


def _asking(recipe: Seq2Seq, model: Any) -> str:
    """The options of `textdiff generate` that ask the model for one response as the table's was drawn."""
    single = recipe.single
    sampler = typed(single.of(model), model.default_sampler())
    temperature = "" if single.temperature == 1 else f"--temperature {single.temperature:g} "
    return f"{'' if recipe.encoder else '--response '}{sampler}{temperature}--prompt TEXT"


def prepare(recipe: Seq2Seq, corpus: Corpus, pairs: Splits[Pair], tokenizer: PreTrainedTokenizerBase) -> Prepared:
    """Rows of the pairs that fit, the same ones for every family, and the prompts of the test set with all their references.

    Raises ValueError when no training or validation pair fits, or when there is nothing to test on.
    """
    kept = [fitting(part, tokenizer, recipe.source_length, recipe.response_length) for part in (pairs.train, pairs.validation)]
    for part, found in zip(("training", "validation"), kept, strict=True):
        if not found:
            lengths = f"source_length {recipe.source_length} and response_length {recipe.response_length}"
            raise ValueError(f"{recipe.data} has no {part} pair within {lengths}: raise them, or give more pairs")
    test = _spaced(cases(pairs.test), recipe.scoring.test_limit)
    if not test:
        raise ValueError(f"{recipe.data} is too small: its hash split leaves no test pair; name a folder with train, valid and test files")
    left_out = len(pairs.train) - len(kept[0])
    note = f"; {left_out} training pairs longer than {recipe.source_length} + {recipe.response_length} tokens left out" if left_out else ""
    train_rows, validation = (recipe.shape.rows(part, tokenizer) for part in kept)
    answered = _spaced(cases(kept[1]), recipe.scoring.rows_while_training)
    return Prepared(train_rows, validation, answered, test, corpus.description + note)


def cases(pairs: Sequence[Pair]) -> list[Case]:
    """Each prompt once, in the order of its first pair, with all responses to it."""
    found: dict[str, list[str]] = {}
    for pair in pairs:
        found.setdefault(pair.prompt, []).append(pair.response)
    return [Case(prompt, tuple(responses)) for prompt, responses in found.items()]


def _spaced(found: Sequence[Any], limit: int | None) -> list[Any]:
    count = len(found) if limit is None else min(limit, len(found))
    return [found[i * len(found) // count] for i in range(count)]


def blanks(recipe: Seq2Seq, answered: Sequence[Case], model: LanguageModel) -> Pairs:
    """Rows with the prompts and nothing of the references: all targets hold EOS."""
    return recipe.shape._replace(fill=True).rows([Pair(case.prompt, "") for case in answered], model.tokenizer)


def _while_training(recipe: Seq2Seq, prepared: Prepared, measure: Measure) -> Evaluate:
    scoring = recipe.scoring
    rows = _spaced(prepared.validation, scoring.rows_while_training)

    def evaluate(model: LanguageModel, should_stop: Callable[[], bool]) -> Mapping[str, float]:
        try:
            bound = likelihood(model, rows, scoring.draws_while_training, scoring.batch_size, should_stop=should_stop)
        except EvaluationStopped:
            return {}
        found = draw(model, blanks(recipe, prepared.answered, model), recipe.single, batch_size=scoring.batch_size)
        _, columns = measured(prepared.answered, found.texts, measure, resamples=2)  # their errors are not logged
        # of a filled row every target counts, EOS to the end: per token of a response would say something else
        numbers = {"nats_per_target": bound.nats_per_token, "standard_error": bound.standard_error}
        return numbers | {name: score.value for name, score in columns.items()}

    return evaluate


def _answers(recipe: Seq2Seq, model: LanguageModel, test: list[Case], scores: Scores) -> list[Row]:
    """The rows of the table: the one response, and the one chosen among candidates."""
    prompts, scoring = blanks(recipe, test, model), recipe.scoring
    several = scoring.candidates if scoring.candidates > 1 else 0
    with scores.drawing(len(test) * (1 + several)) as progress:
        one = draw(model, prompts, recipe.single, 0, scoring.batch_size, progress=progress)
        many = [draw(model, prompts, recipe.varied, k, scoring.batch_size, progress=progress) for k in range(1, several + 1)]
    rows = [Row("single", one.texts, one.nfe, 100 * one.seconds / len(test))]
    if many:
        rows.append(_chosen(many))
    return rows


def _chosen(many: list[Drawn]) -> Row:
    began = time.perf_counter()
    candidates = list(zip(*(drawn.texts for drawn in many), strict=True))
    texts = [found[i] for found, i in zip(candidates, minimum_bayes_risk.select(candidates), strict=True)]
    seconds = time.perf_counter() - began + sum(drawn.seconds for drawn in many)
    return Row(f"MBR of {len(many)}", texts, sum(drawn.nfe for drawn in many), 100 * seconds / len(texts), candidates)
