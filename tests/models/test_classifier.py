from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from tests.models.tiny import MASK, VOCAB, lone, ragged, trunk
from textdiff.batch import Batch
from textdiff.log_snr import LinearLogSNR
from textdiff.models.classifier import ClassifierSpec, NoisyClassifier
from textdiff.models.embedding import EmbeddingDiffusion
from textdiff.processes.base import Process
from textdiff.processes.gaussian import Gaussian
from textdiff.processes.hybrid import Hybrid
from textdiff.processes.masked import Masked
from textdiff.processes.uniform import Uniform
from textdiff.randomness import Rng

LENGTH, SHARES = 4, torch.tensor([[0.7, 0.2, 0.1], [0.2, 0.3, 0.5]], dtype=torch.float64)


def lively(process: Process | None, seed: int = 0) -> NoisyClassifier:
    model = ClassifierSpec(process, trunk(time_conditioning=True), labels=3).build(VOCAB)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4, generator=generator)
    return model.double().eval()


def labelled() -> Batch:
    return ragged()._replace(source=torch.tensor([[0], [2], [1], [2]]), source_attend=torch.ones(4, 1, dtype=torch.bool))


def toy(rows: int, seed: int) -> Batch:
    """Two classes evenly; four tokens each drawn by itself from the law of the class."""
    rng = Rng(seed, 0, torch.arange(rows))
    label = rng.integers("label", (1,), 2)
    cumulative = SHARES[label[:, 0]].cumsum(1)
    tokens = (rng.uniform("tokens", (LENGTH,))[..., None] > cumulative[:, None]).sum(-1)
    return Batch.of(tokens, source=label, sample_id=seed * rows + torch.arange(rows))


def entropy_given(kept: int) -> float:
    """H(y | `kept` tokens) in nats by enumeration."""
    law = torch.full((2, 1), 0.5, dtype=torch.float64)
    for _ in range(kept):
        law = (law[:, :, None] * SHARES[:, None]).flatten(1)
    return float(torch.special.entr(law).sum() - torch.special.entr(law.sum(0)).sum())


@pytest.mark.parametrize("process", [None, Masked()], ids=["clean", "Masked"])
def test_the_loss_falls_to_the_entropy_of_the_class_given_what_is_seen(process: Process | None) -> None:
    """Clean: H(y | 4 tokens). Masks at a uniform time leave each number of tokens 0 .. 4 equally often."""
    exact = entropy_given(LENGTH) if process is None else sum(entropy_given(kept) for kept in range(LENGTH + 1)) / (LENGTH + 1)
    torch.manual_seed(0)
    model = ClassifierSpec(process, trunk(), labels=2).build(VOCAB)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    for step in range(100):
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * (1 - step / 100)
        loss = model(toy(128, step), seed=0, step=step)
        optimizer.zero_grad()
        (loss.total / loss.tokens).backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        test = model(toy(20_000, 1_000), seed=1, step=0)
    nats = float(test.total / test.tokens)
    assert nats == pytest.approx(exact, abs=0.01)
    assert exact < 0.62 < 0.693  # far enough below ln 2, which needs no reading


def test_accuracy_counts_the_labels_found() -> None:
    model, batch = lively(None), labelled()
    found = model.judge(batch) == batch.source[:, 0]
    loss = model(batch, seed=0, step=0)
    assert float(loss.metrics["accuracy"]) == float((found * batch.target.sum(1)).sum())


@pytest.mark.parametrize("process", [Masked(), Uniform(), Hybrid()], ids=["Masked", "Uniform", "Hybrid"])
def test_one_hot_rows_read_as_ids_and_padding_is_not_read(process: Process) -> None:
    model, batch = lively(process), labelled()
    noise = torch.tensor([0.1, 0.5, 0.7, 1.0], dtype=torch.float64)
    log_prob = model.log_prob(batch.tokens, noise, batch.attend).detach()
    torch.testing.assert_close(log_prob.exp().sum(1), torch.ones(4, dtype=torch.float64))
    soft = torch.nn.functional.one_hot(batch.tokens, VOCAB.size).float()
    torch.testing.assert_close(model.log_prob(soft, noise, batch.attend), log_prob)
    torch.testing.assert_close(model.log_prob(batch.tokens, noise[:, None].expand(4, 6), batch.attend), log_prob)
    assert float((model.log_prob(batch.tokens, noise.flip(0), batch.attend).detach() - log_prob).abs().max()) > 1e-3
    for row in range(4):
        single = lone(batch, row)
        alone = model.log_prob(single.tokens, noise[row : row + 1], single.attend)
        torch.testing.assert_close(alone[0], log_prob[row])


def test_noise_falls_on_targets_alone_and_is_keyed_by_the_row() -> None:
    """The loss of a batch is that of its rows, and a row of known tokens alone is read clean."""
    model, batch = lively(Masked()), labelled()
    whole = model(batch, seed=3, step=5)
    parts = [model(batch.rows(torch.tensor([row])), seed=3, step=5) for row in range(4)]
    torch.testing.assert_close(whole.total, torch.stack([part.total for part in parts]).sum())
    assert int(whole.tokens) == int(batch.target.sum())
    assert not torch.isclose(whole.total, model(batch, seed=3, step=6).total)


def test_a_row_is_told_the_level_it_was_noised_at() -> None:
    """Over many draws the share of masks follows the level that the trunk is told."""
    model, batch, told = lively(Masked()), labelled(), list[Tensor]()
    read = model.log_prob

    def noted(z: Tensor, noise: Tensor, attend: Tensor) -> Tensor:
        told.append(torch.stack([(z == MASK).sum(1) / batch.target.sum(1), noise]))
        return read(z, noise, attend)

    with patch.object(model, "log_prob", noted):
        for step in range(200):
            model(batch, seed=0, step=step)
    share, noise = torch.cat(told, 1)
    assert float(torch.corrcoef(torch.stack([share, noise]))[0, 1]) > 0.7


def test_rows_that_hide_their_label_are_refused_because_they_would_count_as_learned() -> None:
    told = torch.tensor([[True], [False], [True], [False]])
    with pytest.raises(ValueError, match=r"^2 rows hide their label, and a classifier learns from labelled rows only$"):
        lively(None)(labelled()._replace(source_attend=told), seed=0, step=0)


@pytest.mark.parametrize("options", [{}, {"time_conditioning": True}, {"layer_norm": True}], ids=str)
@pytest.mark.parametrize("process", [None, Uniform()], ids=["clean", "Uniform"])
def test_every_weight_is_trained(process: Process | None, options: dict[str, Any]) -> None:
    model = ClassifierSpec(process, trunk(**options), labels=3).build(VOCAB)
    model(labelled(), seed=0, step=0).total.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"tied": False}, "tied=False"),
        ({"self_conditioning": True}, "self_conditioning"),
        ({"encoder_layers": 1}, "encoder_layers"),
        ({"labels": 3}, "labels"),
    ],
)
def test_trunks_with_weights_that_a_classifier_never_trains_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=f"^a classifier's backbone has no use for {said}: leave it out$"):
        ClassifierSpec(backbone=trunk(**options))


def test_a_saved_classifier_is_the_same(tmp_path: Path) -> None:
    model, batch = lively(Uniform()).float(), labelled()
    model.save_pretrained(tmp_path)
    again = NoisyClassifier.from_pretrained(tmp_path).eval()
    assert again.spec == model.spec
    noise = torch.full((4,), 0.4, dtype=torch.float64)
    assert torch.equal(again.log_prob(batch.tokens, noise, batch.attend), model.log_prob(batch.tokens, noise, batch.attend))


def test_wrong_labels_are_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match=r"^labels is 1, expected 2 classes or more$"):
        ClassifierSpec(labels=1)
    for source in (torch.zeros(4, 0, dtype=torch.long), torch.full((4, 1), 3)):
        with pytest.raises(ValueError, match=r"expected one label per row in 0 .. 2$"):
            lively(None)(labelled()._replace(source=source), seed=0, step=0)


GAUSSIAN = Gaussian(schedule=LinearLogSNR(-4.0, 4.0))


def of_vectors(each: bool = False, seed: int = 0) -> NoisyClassifier:
    model = ClassifierSpec(GAUSSIAN, trunk(time_conditioning=True), labels=3, width=4, each=each).build(VOCAB)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4, generator=generator)
    return model.double().eval()


def tagged() -> Batch:
    """A class for each token; padding and known tokens need none."""
    batch = ragged()
    return batch._replace(source=(batch.tokens % 3).masked_fill(~batch.target, 9), source_attend=batch.target)


def test_vectors_of_a_model_are_taken_and_ids_read_as_their_vectors() -> None:
    model: Any = (
        EmbeddingDiffusion(GAUSSIAN, trunk(), width=4, absorb=0.5).build(VOCAB).double()
    )  # whose noise is around a point of its own
    judge, batch = of_vectors(), labelled()
    before = judge.log_prob(batch.tokens, torch.zeros(4), batch.attend)
    judge.take_vectors(model)
    vectors, noise = model.canvas(batch)[0].detach(), torch.tensor([0.1, 0.5, 0.7, 1.0], dtype=torch.float64)
    found = judge.log_prob(batch.tokens, noise, batch.attend)
    torch.testing.assert_close(judge.log_prob(vectors, noise, batch.attend), found)
    torch.testing.assert_close(judge.log_prob(vectors, noise[:, None].expand(4, 6), batch.attend), found)
    assert float((judge.log_prob(batch.tokens, torch.zeros(4), batch.attend) - before).detach().abs().max()) > 1e-3
    for row in range(4):
        single = lone(batch, row)
        torch.testing.assert_close(judge.log_prob(model.canvas(single)[0], noise[row : row + 1], single.attend)[0], found[row])
    with pytest.raises(ValueError, match=r"^the model's vectors are \(11, 8\) and the classifier reads \(11, 4\)$"):
        judge.take_vectors(EmbeddingDiffusion(GAUSSIAN, trunk(), width=8).build(VOCAB))
    with pytest.raises(ValueError, match=r"^the classifier reads 4 numbers a token and was given 8: train one for this model$"):
        judge.log_prob(torch.cat([vectors, vectors], -1), noise, batch.attend)
    with pytest.raises(ValueError, match=r"^the classifier reads 11 numbers a token and was given 4: train one for this model$"):
        lively(None).log_prob(vectors, noise, batch.attend)
    with pytest.raises(ValueError, match=r"^this classifier reads ids, and vectors are for one whose noise is Gaussian$"):
        lively(None).take_vectors(model)


@pytest.mark.parametrize("each", [False, True], ids=["text", "tokens"])
def test_the_vectors_do_not_learn_all_else_does_and_a_saved_classifier_is_the_same(each: bool, tmp_path: Path) -> None:
    model, batch = of_vectors(each), tagged() if each else labelled()
    model(batch, seed=0, step=0).total.backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == ["backbone.embedding.table"]
    model = model.float()
    model.save_pretrained(tmp_path)
    again = NoisyClassifier.from_pretrained(tmp_path).eval()
    assert again.spec == model.spec
    assert [name for name, parameter in again.named_parameters() if not parameter.requires_grad] == ["backbone.embedding.table"]
    assert not again.train().backbone.embedding.table.requires_grad  # type: ignore[union-attr]
    again.eval()
    noise = torch.full((4,), 0.4, dtype=torch.float64)
    assert torch.equal(again.log_prob(batch.tokens, noise, batch.attend), model.log_prob(batch.tokens, noise, batch.attend))
    assert torch.equal(again.judge(batch), model.judge(batch))


def test_classes_of_tokens_count_at_targets_alone() -> None:
    """By hand, on clean text: the log-probability of each target's class, and how many are the likeliest."""
    model, batch = ClassifierSpec(None, trunk(), labels=3, each=True).build(VOCAB).double().eval(), tagged()
    log_prob = model.log_prob(batch.tokens, torch.zeros(4, dtype=torch.float64), batch.attend).detach()
    assert log_prob.shape == (4, 6, 3)
    loss = model(batch, seed=0, step=0)
    kept, wanted = log_prob[batch.target], (batch.tokens % 3)[batch.target]
    torch.testing.assert_close(loss.total.detach(), -kept[torch.arange(len(kept)), wanted].sum())
    assert float(loss.metrics["accuracy"]) == float((kept.argmax(1) == wanted).sum())
    assert int(loss.tokens) == len(kept)


@pytest.mark.parametrize("each", [False, True], ids=["text", "tokens"])
def test_a_classifier_of_noisy_vectors_learns_what_the_noise_leaves(each: bool) -> None:
    """Two tokens at +-2, one number each, and the class is the token's: the loss falls to that of Bayes' rule on the same noise."""
    spec = ClassifierSpec(GAUSSIAN, trunk(time_conditioning=True), labels=2, width=1, each=each)
    torch.manual_seed(0)
    model: Any = spec.build(VOCAB)
    with torch.no_grad():
        model.backbone.embedding.table.copy_(2.0 * (2 * (torch.arange(VOCAB.size)[:, None] % 2) - 1))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3, weight_decay=0.0)

    def batch(rows: int, step: int) -> Batch:
        tokens = Rng(7, step, torch.arange(rows)).integers("tokens", (1,), 2)
        return Batch.of(tokens, source=tokens, sample_id=step * rows + torch.arange(rows))

    for step in range(150):
        for group in optimizer.param_groups:
            group["lr"] = 5e-3 * (1 - step / 150)
        loss = model(batch(128, step), seed=0, step=step)
        optimizer.zero_grad()
        (loss.total / loss.tokens).backward()
        optimizer.step()

    def bayes(z: Tensor, noise: Tensor, attend: Tensor) -> Tensor:
        odds = 4 * z[:, 0] * ((1 - noise).sqrt() / noise)[:, None]  # log N(z; 2a, s^2) - log N(z; -2a, s^2)
        found = torch.nn.functional.logsigmoid(torch.cat([-odds, odds], 1))
        return found[:, None] if each else found

    with torch.no_grad():
        reached = model.eval()(batch(20_000, 500), seed=1, step=0)
        with patch.object(model, "log_prob", bayes):
            exact = model(batch(20_000, 500), seed=1, step=0)
    assert float(reached.total - exact.total) / 20_000 < 0.01
    assert 0.05 < float(exact.total) / 20_000 < 0.4


def test_widths_and_classes_that_do_not_fit_are_refused_in_one_line() -> None:
    for process, width in ((Masked(), 4), (None, 4), (GAUSSIAN, 0)):
        with pytest.raises(
            ValueError, match=rf"^width is {width} and the noise is \w+: give the width of its vectors to Gaussian noise alone$"
        ):
            ClassifierSpec(process, trunk(), width=width)
    with pytest.raises(ValueError, match=r"^the source is \(4, 1\), expected one label per token in 0 .. 2$"):
        of_vectors(each=True)(labelled(), seed=0, step=0)
    with pytest.raises(ValueError, match=r"^the source is \(4, 6\), expected one label per row in 0 .. 2$"):
        of_vectors()(tagged(), seed=0, step=0)
    hidden = tagged()._replace(source_attend=tagged().target & (torch.arange(4)[:, None] != 2))
    with pytest.raises(ValueError, match=r"^1 rows hide their label"):
        of_vectors(each=True)(hidden, seed=0, step=0)
