import itertools
import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor, multiprocessing

from tests.models.tiny import EOS, MASK, autoregressive, diffusion, logits
from textdiff.batch import Batch, Example, collate
from textdiff.evaluation.likelihood import EvaluationStopped, Likelihood, likelihood, sequence_nats
from textdiff.models.base import LanguageModel
from textdiff.randomness import Rng


def ragged_examples(count: int = 13, seed: int = 0) -> list[Example]:
    """Rows of 2 to 9 tokens; the first is context, and in every third row the second too; byte counts that follow from nothing."""
    generator = torch.Generator().manual_seed(seed)
    examples = []
    for i in range(count):
        tokens = torch.randint(1, 6, (2 + (5 * i) % 8,), generator=generator).tolist()
        target = [False, *[True] * (len(tokens) - 1)]
        if i % 3 == 0 and len(tokens) > 2:
            target[1] = False
        examples.append(Example(tokens, target, text_bytes=3 * i + 1))
    return examples


@torch.no_grad()
def alone(model: LanguageModel, example: Example) -> float:
    """Exact nats of one autoregressive row from the raw logits, without batch, padding or `nll`."""
    log_prob = (
        logits(model, torch.tensor([example.tokens]))[0].index_fill(-1, torch.tensor(model.vocab.unemittable), -math.inf).log_softmax(-1)
    )
    return -sum(float(log_prob[i - 1, token]) for i, token in enumerate(example.tokens) if example.target[i])


def numbers(record: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in record.items() if not isinstance(value, str)}


def test_exact_nats_are_the_chain_rule_of_the_raw_logits_summed_over_targets_only() -> None:
    model, examples = autoregressive(), ragged_examples()
    expected = [alone(model, example) for example in examples]
    assert sequence_nats(model, examples, batch_size=4).tolist() == pytest.approx(expected, rel=1e-12)
    result = likelihood(model, examples, draws=16, batch_size=4)
    tokens = sum(sum(example.target) for example in examples)
    assert (result.tokens, result.sequences, result.forwards_per_sequence, result.kind) == (tokens, 13, 1, "exact")
    assert result.nats_per_token == pytest.approx(sum(expected) / tokens, rel=1e-12)
    assert result.perplexity == pytest.approx(math.exp(sum(expected) / tokens), rel=1e-12)


def test_the_mean_weighs_tokens_and_not_rows() -> None:
    model = autoregressive()
    long, short = Example([0, *[1, 2, 3, 4, 5] * 4], [False, *[True] * 20]), Example([0, 5], [False, True])
    nats = sequence_nats(model, [long, short])
    result = likelihood(model, [long, short])
    assert result.nats_per_token == pytest.approx(float(nats.sum()) / 21, rel=1e-12)
    assert abs(result.nats_per_token - float(nats[0] / 20 + nats[1]) / 2) > 0.01  # the mean of rows is another number


def test_standard_error_is_that_of_a_ratio_of_sums() -> None:
    """Against the delete-one jackknife of sum(nats) / sum(tokens), which needs no formula, and against the formula written out."""
    model, examples = autoregressive(), ragged_examples(200)
    nats, tokens = sequence_nats(model, examples).tolist(), [sum(example.target) for example in examples]
    n, ratio = len(nats), sum(nats) / sum(tokens)
    residuals = [x - ratio * k for x, k in zip(nats, tokens, strict=True)]
    written_out = math.sqrt(n / (n - 1) * sum(r * r for r in residuals)) / sum(tokens)
    without = [(sum(nats) - nats[i]) / (sum(tokens) - tokens[i]) for i in range(n)]
    center = sum(without) / n
    jackknife = math.sqrt((n - 1) / n * sum((value - center) ** 2 for value in without))
    result = likelihood(model, examples)
    assert result.standard_error == pytest.approx(written_out, rel=1e-10)
    assert result.standard_error == pytest.approx(jackknife, rel=0.02)


class Given(torch.nn.Module):
    """A model whose cost is written in the data: token k costs k - 1.5 nats."""

    nll_is_bound = False

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.vocab = autoregressive().vocab

    def calls(self, draws: int) -> int:
        return 1

    def mean_nll(self, batch: Batch, seed: int, draws: int, pilot: object = None) -> Tensor:
        return ((batch.tokens - 1.5) * batch.target).double().sum(1)


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    """Rows of unequal length whose tokens depend on the row, so that tokens are not independent: truth 2.0 by symmetry."""
    model: Any = Given()
    generator, covered, trials = torch.Generator().manual_seed(0), 0, 400
    for _ in range(trials):
        rows = []
        for _ in range(60):
            length = int(torch.randint(1, 12, (), generator=generator))
            level = int(torch.randint(2, 6, (), generator=generator))  # 2 .. 5, mean 3.5: 2 nats per token, the same in the whole row
            rows.append(Example([0, *[level] * length], [False, *[True] * length]))
        low, high = likelihood(model, rows, batch_size=60).perplexity_interval
        covered += low <= math.exp(2.0) <= high
    assert covered / trials == pytest.approx(0.95, abs=0.035)  # binomial error 0.011, and the normal approximation at 60 rows


@pytest.mark.parametrize("build", [autoregressive, diffusion])
def test_batch_size_order_and_padding_change_nothing(build: Any) -> None:
    model, examples = build(), ragged_examples()
    reference = sequence_nats(model, examples, draws=3, batch_size=1)
    for batch_size in (2, 5, 100):
        assert torch.allclose(sequence_nats(model, examples, 3, batch_size), reference, rtol=1e-12, atol=0)
    one, many = likelihood(model, examples, 3, 1), likelihood(model, examples, 3, 100)
    assert numbers(one.as_dict()) == pytest.approx(numbers(many.as_dict()), rel=1e-12)
    if not model.nll_is_bound:  # a bound's noise belongs to the place of a row in the data
        assert torch.allclose(sequence_nats(model, examples[::-1], batch_size=4).flip(0), reference, rtol=1e-12, atol=0)
    other = sequence_nats(model, examples, draws=3, seed=1)
    assert torch.equal(other, sequence_nats(model, examples, draws=3, seed=1))
    assert model.nll_is_bound != torch.allclose(other, reference)


@torch.no_grad()
def any_order_nats(model: LanguageModel, tokens: list[int]) -> float:
    """The exact bound of masked diffusion: the mean over mask counts k and masks of that count of (L / k) times the masked tokens' nats."""
    length, total = len(tokens) - 1, 0.0
    for count in range(1, length + 1):
        masks = list(itertools.combinations(range(1, length + 1), count))
        for mask in masks:
            noisy = torch.tensor([[MASK if i in mask else token for i, token in enumerate(tokens)]])
            batch = Batch.of(noisy)
            prediction = model.predictor(batch)(noisy, torch.zeros(1, dtype=torch.float64))  # type: ignore[operator]
            where = torch.tensor([[i in mask for i in range(length + 1)]])
            nats = -float(prediction.log_prob(torch.tensor([tokens]), where).sum())
            total += nats * length / count / len(masks) / length
    return total


def test_draws_of_a_bound_average_to_the_exact_any_order_value() -> None:
    model = diffusion()
    rows = [[0, 3, 1, 4, 2], [0, 5, 5, EOS], [0, 1]]
    examples = [Example(row, [False, *[True] * (len(row) - 1)]) for row in rows]
    exact = torch.tensor([any_order_nats(model, row) for row in rows], dtype=torch.float64)
    seeds = torch.stack([sequence_nats(model, examples, draws=8, seed=seed) for seed in range(200)])
    error = seeds.std(0) / len(seeds) ** 0.5
    assert bool(((seeds.mean(0) - exact).abs() <= 4 * error + 1e-9).all())
    assert float(seeds[:, 2].std()) < 1e-12  # one target: one mask count and one mask, nothing is left to chance


def test_stratified_draws_vary_less_than_independent_ones() -> None:
    model, example = diffusion(), Example([0, 3, 1, 4, 2, 5, 1, 2, 3], [False, *[True] * 8])
    batch = collate([example], pad_id=7)

    def lone(seed: int) -> float:
        return float(torch.stack([model.nll(batch, Rng(1000 + seed, k, batch.sample_id)) for k in range(8)]).mean())

    stratified = torch.tensor([float(sequence_nats(model, [example], draws=8, seed=seed)) for seed in range(80)])
    independent = torch.tensor([lone(seed) for seed in range(80)])
    assert float(stratified.var()) < 0.85 * float(independent.var())


def test_bits_per_byte_count_the_bytes_of_the_text() -> None:
    model, examples = autoregressive(), ragged_examples()
    result = likelihood(model, examples)
    total, text_bytes = float(sequence_nats(model, examples).sum()), sum(example.text_bytes for example in examples)
    assert result.bits_per_byte == pytest.approx(total / math.log(2) / text_bytes, rel=1e-12)
    assert result.bits_per_byte_error / result.bits_per_byte == pytest.approx(result.standard_error / result.nats_per_token, rel=1e-12)
    unknown = likelihood(model, [example._replace(text_bytes=0) for example in examples])
    assert math.isnan(unknown.bits_per_byte)


def test_the_record_is_json_also_where_a_number_does_not_exist() -> None:
    lone = likelihood(autoregressive(), ragged_examples(1))
    record = json.loads(json.dumps(lone.as_dict(), allow_nan=False))
    assert (record["standard_error"], record["perplexity_low"], record["kind"]) == (None, None, "exact")
    hopeless = Likelihood(
        nats_per_token=1e4, standard_error=1.0, tokens=1, text_bytes=1, sequences=2, forwards_per_sequence=1, kind="upper bound"
    )
    assert hopeless.perplexity == math.inf
    assert hopeless.as_dict()["perplexity"] is None


@pytest.mark.parametrize("training", [True, False])
def test_the_models_mode_is_left_as_it_was(training: bool) -> None:
    model, examples = autoregressive().train(training), ragged_examples()
    likelihood(model, examples)
    assert model.training is training
    asked: list[bool] = []

    def second_time() -> bool:
        assert not model.training
        asked.append(True)
        return len(asked) == 2

    with pytest.raises(EvaluationStopped):
        likelihood(model, examples, batch_size=4, should_stop=second_time)
    assert (model.training, len(asked)) == (training, 2)
    with pytest.raises(ValueError, match="the first token of a"):
        likelihood(model, [Example([0, 1], [True, True])])
    assert model.training is training


def test_progress_is_told_after_every_batch() -> None:
    said: list[tuple[int, int]] = []
    likelihood(autoregressive(), ragged_examples(10), batch_size=4, progress=lambda done, total: said.append((done, total)))
    assert said == [(4, 10), (8, 10), (10, 10)]


def test_nothing_to_score_and_senseless_numbers_are_refused() -> None:
    model = autoregressive()
    for examples in ([], [Example([0, 1, 2], [False] * 3)]):
        with pytest.raises(ValueError, match="no token to score"):
            likelihood(model, examples)
    for wrong in ({"draws": 0}, {"batch_size": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} is 0, expected 1 or more"):
            likelihood(model, ragged_examples(), **wrong)


def _of_two(rank: int, port: int, queue: Any) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    rounds: list[bool] = []
    result = likelihood(diffusion(), ragged_examples(), draws=3, batch_size=3, should_stop=lambda: bool(rounds.append(True)))
    queue.put((rank, len(rounds), result.as_dict()))
    torch.distributed.destroy_process_group()


def test_two_processes_find_what_one_finds_in_equally_many_rounds() -> None:
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    multiprocessing.spawn(_of_two, (port, queue), nprocs=2)
    found = sorted(queue.get(timeout=60) for _ in range(2))
    one = likelihood(diffusion(), ragged_examples(), draws=3, batch_size=3).as_dict()
    assert [(rank, rounds) for rank, rounds, _ in found] == [(0, 3), (1, 3)]  # 7 and 6 rows in threes
    assert found[0][2] == found[1][2]
    assert numbers(found[0][2]) == pytest.approx(numbers(one), rel=1e-12)
