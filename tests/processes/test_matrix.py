import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from tests.contracts import DATA, OTHER, STATES, Enumeration, check_enumerated
from tests.processes.test_interpolating import everything, sequences, steps_bound
from textdiff.batch import Batch, Clean
from textdiff.oracle import Markov, Oracle
from textdiff.prediction import HeadPrediction, TablePrediction
from textdiff.processes.base import UniformTime
from textdiff.processes.exact_count import ExactCount
from textdiff.processes.kernels import Absorbing, Banded, DiscretisedGaussian, Kernel, NearestNeighbour, UniformKernel
from textdiff.processes.masked import Masked
from textdiff.processes.matrix import Matrix
from textdiff.processes.uniform import Uniform
from textdiff.projection import Head
from textdiff.randomness import Rng
from textdiff.samplers.ancestral import Ancestral
from textdiff.schedules import Cosine, CosineSquared, Geometric, LogLinear, Schedule
from textdiff.spec import from_plain, to_plain
from textdiff.vocab import Vocab

V3, V4 = Vocab(size=3, tokens=3), Vocab(size=4, tokens=4, mask_id=3)
LINE = torch.tensor([[-1, 1, 0], [1, -2, 1], [0, 1, -1]], dtype=torch.float64)  # its eigenvalues are 0, -1, -3
GAUSS = math.exp(-1.5)  # rate of two places, relative to one place, at deviation 1
HILL = torch.tensor([[-1 - GAUSS, 1, GAUSS], [1, -2, 1], [GAUSS, 1, -1 - GAUSS]], dtype=torch.float64) / (1 + 2 * GAUSS)
KERNELS = [Absorbing(), UniformKernel(), Banded(1), Banded(4), DiscretisedGaussian(2.0)]


@dataclass(frozen=True)
class Jumps(Enumeration):
    """Two tokens under rates (V, V), by the matrix exponential."""

    rates: Tensor = LINE
    schedule: Schedule = LogLinear()

    def between(self, t: float, s: float) -> Tensor:
        alpha_t, alpha_s = self.schedule.alpha(torch.tensor([t, s], dtype=torch.float64)).tolist()
        return torch.linalg.matrix_exp(math.log(alpha_s / alpha_t) * self.rates).clamp_min(0) if alpha_t > 0 else self.pure().expand(3, -1)

    def forward(self, t: float) -> Tensor:
        return self.between(t, 0.0)[:STATES]

    def transition(self, t: float, s: float) -> Tensor:
        return self.between(t, s)

    def pure(self) -> Tensor:
        return torch.full((3,), 1 / 3, dtype=torch.float64)


def unused(t: float) -> Tensor:
    raise AssertionError("matrix noise has no b_t")


NEIGHBOURS = NearestNeighbour(((1,), (0,), (1,)))  # symmetrised: 0 and 1 exchange at 1, 1 and 2 at 1/2
UNEVEN = torch.tensor([[-2, 2, 0], [2, -3, 1], [0, 1, -1]], dtype=torch.float64) / (3 - 3**0.5)


@pytest.mark.parametrize(
    ("kernel", "rates"),
    [
        pytest.param(Banded(), LINE, marks=pytest.mark.slow, id="banded"),
        pytest.param(DiscretisedGaussian(), HILL, marks=pytest.mark.slow, id="gaussian"),
        pytest.param(NEIGHBOURS, UNEVEN, id="neighbours"),
    ],
)
def test_keeps_the_contract(kernel: Kernel, rates: Tensor) -> None:
    """Against the matrix exponential of rates written by hand, scaled so that their slowest direction decays as alpha."""
    check_enumerated(Matrix(kernel=kernel).bind(V3), Jumps(unused, rates=rates))


def matrix_of(process: Matrix, sigma: float) -> Tensor:
    """expm(sigma R), (V, V)."""
    size = process.vocab.size
    identity = torch.eye(size, dtype=torch.float64)
    return process.flow(identity.device).forward(identity, torch.full((size,), sigma, dtype=torch.float64))


@pytest.mark.parametrize("kernel", KERNELS, ids=str)
def test_transitions_are_a_stochastic_semigroup_with_the_prior_as_its_fixed_law(kernel: Kernel) -> None:
    vocab = Vocab(size=40, tokens=38, mask_id=36, pad_id=37)
    process = Matrix(kernel=kernel).bind(vocab)
    identity, prior = torch.eye(40, dtype=torch.float64), process.flow(torch.device("cpu")).stationary
    for sigma in (0.0, 1e-9, 0.3, 1.0, 20.0, 63.9, 64.0, math.inf):
        q = matrix_of(process, sigma)
        torch.testing.assert_close(q.sum(1), torch.ones(40, dtype=torch.float64), rtol=1e-11, atol=0)
        assert bool((q >= 0).all())
        torch.testing.assert_close(prior @ q, prior, rtol=1e-10, atol=1e-15)
        torch.testing.assert_close(process.flow(q.device).backward(identity, torch.full((40,), sigma, dtype=torch.float64)), q.T)
    torch.testing.assert_close(matrix_of(process, 0.3) @ matrix_of(process, 1.4), matrix_of(process, 1.7), rtol=1e-10, atol=1e-16)
    early, late = ((matrix_of(process, -math.log(alpha)) - matrix_of(process, math.inf)).abs().max() for alpha in (1e-5, 1e-8))
    assert float(early / late) == pytest.approx(1e3, rel=1e-2)  # what is forgotten last decays as alpha
    assert bool((prior[[37, 38, 39]] == 0).all())
    torch.testing.assert_close(matrix_of(process, 1.0)[37:, 37:], identity[37:, 37:])


def test_the_smallest_transitions_keep_their_digits() -> None:
    """From one end of a line of twelve to the other at once: sigma^11 / 11! times the product of the rates, to leading order."""
    process = Matrix(kernel=Banded()).bind(Vocab(size=12, tokens=12))
    rate, sigma = float(process.flow(torch.device("cpu")).rates[0, 1]), 1e-12
    exact = (sigma * rate) ** 11 / math.factorial(11)
    assert exact < 1e-100
    assert float(matrix_of(process, sigma)[0, 11]) == pytest.approx(exact, rel=1e-8)


@pytest.mark.parametrize("schedule", [LogLinear(), LogLinear(0.2), Cosine(), Geometric()], ids=str)
@pytest.mark.parametrize("belief", [DATA, OTHER], ids=["true", "wrong"])
def test_an_absorbing_matrix_is_masked_diffusion(schedule: Schedule, belief: Tensor) -> None:
    """The same integrand and bins, the last bin included, the same boundary and cross-entropy; steps follow the same enumerated law."""

    def noise(t: float) -> Tensor:
        return torch.tensor([0, 0, 0, 1 - float(schedule.alpha(torch.tensor(t, dtype=torch.float64)))], dtype=torch.float64)

    matrix, masked, truth = Matrix(schedule, kernel=Absorbing()).bind(V4), Masked(schedule).bind(V4), Enumeration(noise, belief=belief)
    for t, s in ((0.02, None), (0.5, None), (0.98, None), (0.6, 0.3), (0.3, 0.0), (1.0, 0.9)):
        torch.testing.assert_close(truth.nelbo(matrix, t, s)[0], truth.nelbo(masked, t, s)[0], rtol=1e-9, atol=1e-11)
    x0, xt, times, where = everything(truth, 0.4)
    pred, clean = truth.prediction(xt, 0.4), Clean(x0, x0)
    for cost in (matrix.cross_entropy, masked.cross_entropy):
        torch.testing.assert_close(cost(pred, clean, xt, times, where), masked.cross_entropy(pred, clean, xt, times, where))
    log = (process.log_posterior(pred, xt, times, times / 3, where) for process in (matrix, masked))
    torch.testing.assert_close(*(table.exp() for table in log), rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(matrix.emission(xt, times, 3), truth.forward(0.4).T[xt], rtol=1e-12, atol=1e-15)
    rows = torch.zeros(20_000, 2, dtype=torch.long)
    rng = Rng(0, 0, torch.arange(len(rows)))

    def predict(x: Tensor, t: Tensor) -> TablePrediction:
        return truth.prediction(x, float(t[0]))

    drawn = [p.boundary(predict, Clean(rows, rows), rows == 0, rng, 0.05).sum(1) for p in (matrix, masked)]
    assert abs(float(drawn[0].mean() - drawn[1].mean())) < 4.5 * (float(drawn[0].var() + drawn[1].var()) / len(rows)) ** 0.5
    assert bool((matrix.prior(rows, rng) == 3).all())


@pytest.mark.parametrize("schedule", [LogLinear(), CosineSquared()], ids=str)
@pytest.mark.parametrize("vocab", [V3, V4], ids=["", "beside a mask"])
def test_a_uniform_matrix_is_uniform_noise(schedule: Schedule, vocab: Vocab) -> None:
    def noise(t: float) -> Tensor:
        level = 1 - float(schedule.alpha(torch.tensor(t, dtype=torch.float64)))
        return torch.tensor([level / 3] * 3 + [0] * (vocab.size - 3), dtype=torch.float64)

    matrix, uniform = Matrix(schedule, kernel=UniformKernel()).bind(vocab), Uniform(schedule).bind(vocab)
    for belief in (DATA, OTHER):
        truth = Enumeration(noise, belief=belief)
        for t, s in ((0.02, None), (0.5, None), (0.98, None), (0.6, 0.3), (0.3, 0.0)):
            torch.testing.assert_close(truth.nelbo(matrix, t, s)[0], truth.nelbo(uniform, t, s)[0], rtol=1e-9, atol=1e-12)
    x0, xt, times, where = everything(truth, 0.4)
    pred, clean = truth.prediction(xt, 0.4), Clean(x0, x0)
    pairs: list[tuple[Tensor, Tensor]] = [
        (matrix.cross_entropy(pred, clean, xt, times, where), uniform.cross_entropy(pred, clean, xt, times, where)),
        (matrix.emission(xt, times, 3), uniform.emission(xt, times, 3)),
        (matrix.log_ratio(pred, xt, times, where), uniform.log_ratio(pred, xt, times, where)),
        (matrix.log_posterior(pred, xt, times, times / 3, where), uniform.log_posterior(pred, xt, times, times / 3, where)),
    ]
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-13)


def test_reverse_law_cross_entropy_ratios_and_emission_are_those_of_enumeration() -> None:
    process, truth, t = Matrix(kernel=Banded()).bind(V3), Jumps(unused, belief=OTHER), 0.4
    x0, xt, times, where = everything(truth, t)
    pred, q = truth.prediction(xt, t), truth.forward(t)
    for s in (0.0, 0.3):
        log = process.log_posterior(pred, xt, times, torch.full_like(times, s), where)
        exact = truth.reverse(t, s)[:, xt[:, 0], xt[:, 1]].permute(1, 2, 0)
        torch.testing.assert_close(log.exp().view(exact.shape), exact, rtol=1e-10, atol=1e-14)
    posterior = pred.table.exp() * q.T[xt]
    posterior = posterior / posterior.sum(-1, keepdim=True)
    exact = -posterior.gather(-1, x0[..., None])[..., 0].log()
    torch.testing.assert_close(process.cross_entropy(pred, Clean(x0, x0), xt, times, where), exact, rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(process.emission(xt, times, 3), q.T[xt], rtol=1e-12, atol=1e-15)
    law = q.T @ OTHER @ q
    ratios = torch.stack([law[:, xt[:, 1]].T, law[xt[:, 0]]], 1) / law[xt[:, 0], xt[:, 1]][:, None, None]
    torch.testing.assert_close(process.log_ratio(pred, xt, times, where).exp().view(ratios.shape), ratios, rtol=1e-10, atol=0)


def test_bins_approach_the_entropy_from_above_at_rate_one_over_steps() -> None:
    process, truth = Matrix(kernel=Banded()).bind(V3), Jumps(unused)
    entropy = float(torch.special.entr(DATA).sum())
    near, far = (steps_bound(process, truth, steps) - entropy for steps in (200, 20))
    assert 0 < near < far
    assert far / near == pytest.approx(10, rel=0.15)


@pytest.mark.parametrize("eps", [0.0, 0.5])
def test_the_boundary_is_the_first_bin_and_the_jump_to_pure_noise(eps: float) -> None:
    """E -log p(x0_l | xt) at t_min, plus KL( q(x_1- | x0) || p ) under the belief at pure noise where alpha(1) > 0."""
    schedule, t_min, rows = LogLinear(eps), 0.05, 20_000
    process, truth = Matrix(schedule, kernel=Banded()).bind(V3), Jumps(unused, belief=OTHER, schedule=schedule)
    x0, xt, probability = truth.cells(t_min)
    posterior = truth.prediction(xt, t_min).table.exp() * truth.forward(t_min).T[xt]
    posterior = posterior / posterior.sum(-1, keepdim=True)
    exact = -float((probability[:, None] * posterior.gather(-1, x0[..., None])[..., 0].log()).sum())
    marginals = ((DATA.sum(1), OTHER.sum(1)), (DATA.sum(0), OTHER.sum(0)))
    end = truth.forward(1.0)
    for law, believed in marginals if eps else ():
        exact += float((law[:, None] * end * (end / (believed @ end)).log()).sum())
    x0 = sequences(rows)

    def predict(x: Tensor, t: Tensor) -> TablePrediction:
        pure = torch.stack([OTHER.sum(1), OTHER.sum(0)]).log().expand(len(x), 2, 3)
        return TablePrediction(pure) if float(t[0]) == 1 else truth.prediction(x, t_min)

    drawn = process.boundary(predict, Clean(x0, x0), x0 >= 0, Rng(0, 0, torch.arange(rows)), t_min).sum(1)
    assert abs(float(drawn.mean()) - exact) < 4.5 * float(drawn.std()) / rows**0.5


@pytest.mark.parametrize("kernel", KERNELS, ids=str)
def test_the_bound_and_its_gradient_are_finite_at_all_times(kernel: Kernel) -> None:
    vocab = Vocab(size=30, tokens=30, mask_id=29)
    process = Matrix(kernel=kernel).bind(vocab)
    generator, ends = torch.Generator().manual_seed(0), [0.0, 1e-12, 1e-6, 1e-3, 0.5, 0.999, 1 - 1e-12, 1.0]
    x0, xt = (torch.randint(0, 29, (len(ends), 6), generator=generator) for _ in range(2))
    xt[:, 0], xt[:, 1] = x0[:, 0], 29 if isinstance(kernel, Absorbing) else 5
    t = torch.tensor(ends, dtype=torch.float64)
    for dtype in (torch.float32, torch.bfloat16):
        hidden = torch.randn(*x0.shape, 4, generator=generator).to(dtype).requires_grad_()
        pred = HeadPrediction(hidden, Head(3 * torch.randn(30, 4, generator=generator).to(dtype), None, torch.tensor([29])))
        for s in (None, t / 2):
            nats = process.nelbo_at(pred, Clean(x0, x0), xt, t, x0 >= 0, s)
            assert bool(nats.isfinite().all())
            assert float(nats.detach().min()) >= 0
            assert bool(torch.autograd.grad(nats.sum(), hidden)[0].isfinite().all())


def test_the_mean_bound_of_the_exact_denoiser_is_the_entropy() -> None:
    """A Markov source of eight states under a band: uniform time and the boundary, to 3 standard errors of 4 %, its posterior above it."""
    source = Markov.random(8, 16, seed=0)
    oracle = Oracle.of(source, Matrix(CosineSquared(eps=0), kernel=Banded(2)))
    rows, everywhere = 1500, torch.ones(1500, 16, dtype=torch.bool)
    rng = Rng(0, 0, torch.arange(rows))
    x = source.sample(rows, rng)
    clean, stratum = Clean(x, x), torch.stack([torch.arange(rows), torch.full((rows,), rows)], 1)
    noised = UniformTime(t_min=0.02)(oracle.process, x, everywhere, stratum, rng.draw(1))

    def bound(denoiser: Oracle) -> Tensor:
        predictor, process = denoiser.predictor(Batch.of(x)), denoiser.process
        nats = process.nelbo_at(predictor(noised.xt, noised.t), clean, noised.xt, noised.t, everywhere) * noised.weight[:, None]
        return (nats + process.boundary(predictor, clean, everywhere, rng.draw(2), 0.02)).sum(1)

    gap = bound(oracle) + source.log_prob(x)
    error = float(gap.std()) / rows**0.5
    assert error < 0.04 * source.entropy()
    assert abs(float(gap.mean())) < 3 * error
    excess = bound(replace(oracle, posterior=True)) + source.log_prob(x) - gap
    assert float(excess.mean()) > 3 * float(excess.std()) / rows**0.5


def test_ancestral_sampling_reproduces_the_source() -> None:
    source = Markov.random(4, 6, seed=1)
    oracle = Oracle.of(source, Matrix(kernel=DiscretisedGaussian()))
    batch = Batch.of(torch.full((1000, 6), 4))  # blanks are [MASK], which this noise does not have
    samples = Ancestral(steps=40).sample(oracle, batch, Rng(0, 0, batch.sample_id))
    for distance in (1, 3):
        exact = source.pair_law(distance).flatten()
        code = samples[:, :-distance] * 4 + samples[:, distance:]
        share = torch.nn.functional.one_hot(code, 16).double().mean(1)
        assert bool(((share.mean(0) - exact).abs() < 5 * share.std(0) / 1000**0.5 + 0.015).all())


def refused(act: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        act()


def test_what_does_not_fit_is_refused_in_one_line() -> None:
    bound, x = Matrix().bind(V3), torch.zeros(1, 2, dtype=torch.long)
    rng, stratum = Rng(0, 0, torch.arange(1)), torch.tensor([[0, 1]])
    refused(lambda: Matrix().bind(Vocab(size=1025, tokens=1025)), "made for up to 1024 ids and the model has 1025")
    refused(lambda: Matrix(kernel=Absorbing()).bind(V3), "add_mask_token")
    refused(lambda: Matrix(kernel=NearestNeighbour(((1,), (0,), (3,), (2,)))).bind(Vocab(size=4, tokens=4)), "groups of tokens")
    refused(lambda: Matrix(kernel=NEIGHBOURS).bind(V4), "given for 3 ids and the model has 4 rows")
    refused(lambda: Banded(0), "width is 0")
    refused(lambda: DiscretisedGaussian(0.0), r"deviation is 0\.0")
    refused(lambda: ExactCount()(bound, x, x == 0, stratum, rng), "use UniformTime")
    refused(lambda: bound.weight(Clean(x, x), x, torch.ones(1)), "use Bound")
    refused(lambda: bound.surprise(x, torch.ones(1)), "use LeaveOneOut")


@pytest.mark.parametrize("kernel", [*KERNELS, NEIGHBOURS], ids=lambda kernel: type(kernel).__name__)
def test_a_configuration_is_the_same_after_a_round_trip_as_plain_data(kernel: Kernel) -> None:
    assert from_plain(json.loads(json.dumps(to_plain(Matrix(kernel=kernel))))) == Matrix(kernel=kernel)


def test_neighbours_are_the_nearest_real_tokens() -> None:
    """Points 0, 1, 3, 7 on a line, a mask in their midst."""
    embeddings = torch.tensor([[0.0], [1.0], [3.0], [7.0], [2.0]])
    vocab = Vocab(size=5, tokens=5, mask_id=4)
    assert NearestNeighbour.of(embeddings, 1, vocab).neighbours == ((1,), (0,), (1,), (2,), ())
    assert NearestNeighbour.of(embeddings, 2, vocab).neighbours == ((1, 2), (0, 2), (1, 0), (2, 1), ())
