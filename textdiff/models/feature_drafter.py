"""A drafter that reads the features of the causal model it drafts for (DFlash, arXiv 2602.06036): one call, several tokens.

The target's embedding and head are its own too. They are neither trained nor saved with it: a checkpoint says which model it belongs to.
"""

import hashlib
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from textdiff import spec as plain
from textdiff.backbones.base import FinishedCache, KeyValueCache
from textdiff.backbones.drafter import BlockPlace, DrafterConfig, DrafterTrunk
from textdiff.backbones.features import Heard, embedding_of, layers_of, listening, sources_of, spread
from textdiff.batch import Batch
from textdiff.models.anchors import Anchors, draw_anchors
from textdiff.models.autoregressive import AutoregressiveLM
from textdiff.models.base import LanguageModel, Loss, ModelSpec, TextDiffConfig
from textdiff.prediction import HeadPrediction, Prediction
from textdiff.processes.next_block import NextBlock
from textdiff.projection import Head, chunk_rows, linear_terms
from textdiff.randomness import Rng
from textdiff.vocab import Vocab


class FeatureDrafterConfig(TextDiffConfig):
    """`config.json` of a `FeatureDrafter`."""

    model_type = "textdiff-feature-drafter"


@dataclass(frozen=True)
class Followed:
    """The causal model that a drafter belongs to."""

    name: str  # folder or hub id
    fingerprint: str
    layers: tuple[int, ...]  # those that are read, from 0
    width: int
    max_length: int
    scale: float  # root mean square of what its head reads

    @classmethod
    def of(cls, target: AutoregressiveLM, name: str, features: int) -> "Followed":
        """`target`, of which `features` layers are read; raises ValueError for an architecture that a drafter cannot read."""
        layers = spread(features, len(layers_of(target.backbone)))
        width = int(embedding_of(target.backbone).weight.shape[1])  # type: ignore[index, union-attr]
        tokens = torch.arange(min(64, target.vocab.tokens, target.max_length), device=target.device)[None]
        with torch.no_grad():
            hidden = target.eval().backbone(tokens, target.backbone.context(Batch.of(tokens))).float()
        scale = float(f"{hidden.square().mean().sqrt():.3g}")  # the same on every device
        return cls(name, fingerprint(target), layers, width, min(target.max_length, 2**31 - 1), scale)


def fingerprint(target: AutoregressiveLM) -> str:
    """A hash of the shapes of all weights and of some numbers of each, in half precision: the same in any number format."""
    digest = hashlib.blake2b(digest_size=8)
    for name, weight in target.backbone.named_parameters():
        some = weight.detach().flatten()[:: max(1, weight.numel() // 64)].cpu().to(torch.bfloat16).float()
        digest.update(f"{name} {tuple(weight.shape)} {some.tolist()}".encode())
    return digest.hexdigest()


@dataclass(frozen=True)
class Anchored:
    """What the drafter learns: blocks at random places of a text."""

    anchors: int = 32
    """Blocks in each row."""
    decay: float = 4.0
    """The k-th drafted token counts exp(-(k - 1) / decay): one is of use only if all before it are accepted."""
    teacher: int = 32
    """How many of the target's likeliest tokens are learnt with their chances; 0: the token of the text alone."""

    def __post_init__(self) -> None:
        if self.anchors < 1 or self.decay <= 0 or self.teacher < 0:
            given = f"anchors {self.anchors}, decay {self.decay}, teacher {self.teacher}"
            raise ValueError(f"{given}: expected 1 anchor or more, a decay above 0, and a teacher of 0 tokens or more")


@dataclass(frozen=True)
class FeatureDrafterSpec(ModelSpec):
    """A drafter without its weights."""

    target: Followed
    backbone: DrafterConfig = field(default_factory=DrafterConfig)
    objective: Anchored = field(default_factory=Anchored)

    def build(self, vocab: Vocab) -> "FeatureDrafter":
        """The drafter with fresh weights; `vocab` is the target's, to which it is then attached."""
        return FeatureDrafter(FeatureDrafterConfig(spec=plain.to_plain(self), vocab=plain.to_plain(vocab)))


class _Lesson(NamedTuple):
    """What N asked positions are to say: T tokens each, with chances that sum to 1."""

    tokens: Tensor  # (N, T) long
    chance: Tensor  # (N, T)


class _Attached(NamedTuple):
    """The model that is drafted for, and the modules whose outputs are its features."""

    target: AutoregressiveLM
    sources: dict[int, nn.Module]


class FeatureDrafter(LanguageModel):
    """Drafts for the model it is attached to, by `samplers.feature_drafting.FromFeatures`; it has no likelihood of its own."""

    config: FeatureDrafterConfig
    nll_is_bound = False
    process = NextBlock()
    backbone: DrafterTrunk

    def __init__(self, config: FeatureDrafterConfig, trusted: tuple[str, ...] = ("textdiff",)) -> None:
        super().__init__(config, trusted)
        followed: Followed = self.spec.target
        self.backbone = DrafterTrunk(self.spec.backbone, followed.width, len(followed.layers), followed.max_length, followed.scale)
        self._attached: list[_Attached] = []  # in a list: no part of this module, neither trained nor saved
        self.post_init()

    def attach(self, target: LanguageModel) -> Self:
        """Draft for `target` from now on, which is put into eval mode; raises ValueError for another model than it was trained for."""
        followed: Followed = self.spec.target
        if not isinstance(target, AutoregressiveLM):
            raise ValueError(f"the drafter belongs to the causal model {followed.name} and was given a {type(target).__name__}")
        found = fingerprint(target)
        if found != followed.fingerprint:
            raise ValueError(
                f"the drafter was trained for {followed.name} with the weights {followed.fingerprint} and was given a model with {found}: "
                "name that model as target, or train a drafter for this one"
            )
        self._attached = [_Attached(target.eval(), sources_of(target.backbone, followed.layers))]
        return self

    @property
    def target(self) -> AutoregressiveLM:
        """The model it is attached to; raises ValueError where there is none."""
        return self._to().target

    def _to(self) -> "_Attached":
        if not self._attached:
            raise ValueError(f"the drafter is not attached to its target: drafter.attach(textdiff.load({self.spec.target.name!r}))")
        return self._attached[0]

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        for attached in self._attached:  # to another device or number format with the drafter
            attached.target._apply(fn)
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call, no-any-return]

    @property
    def most(self) -> int:
        """How many tokens it drafts at most."""
        return int(self.spec.backbone.block) - 1

    def require_target(self, target: object) -> None:
        """Raise ValueError unless this is the model it is attached to."""
        if target is not self.target:
            raise ValueError("the target is another object than the model that the drafter is attached to: drafter.attach(target)")

    def listening(self) -> AbstractContextManager[Heard]:
        """What a pass of the target is made in, to have its features."""
        return listening(self._to().sources)

    @property
    def head(self) -> Head:
        """The target's, without the ids that are never written."""
        weight, bias, banned = self.target.backbone.head(self.target.vocab.unemittable)
        return Head(weight.detach(), None if bias is None else bias.detach(), banned)

    def block(self, tokens: Tensor) -> Tensor:
        """Vectors (..., block, H) of blocks that begin with `tokens` (...)."""
        with torch.no_grad():
            first = embedding_of(self.target.backbone)(tokens)
        return self.backbone.block(first)

    def predictor(self, batch: Batch) -> "FeaturePredictor":
        """The drafter bound to a batch, told nothing yet."""
        return FeaturePredictor(self, batch.tokens.shape[1])

    def canvas(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The tokens are their own state."""
        return batch.tokens, batch.target

    def decode(self, x0: Tensor) -> Tensor:
        """The state is the tokens."""
        return x0

    def forward(self, batch: Batch, seed: int, step: int, progress: float = 1.0) -> Loss:
        """Weighted cross-entropy of the tokens after random places, as if each target of a row had the mean of its row.

        The metric `accepted` is how many drafted tokens would be accepted in a row, were the text what the target writes.
        """
        learnt: Anchored = self.spec.objective
        anchors = draw_anchors(batch, learnt.anchors, self.most, Rng(seed, step, batch.sample_id))
        with torch.no_grad(), self.listening() as heard:
            hidden = self.target.backbone(batch.tokens, self.target.backbone.context(batch))
        assert heard.features is not None
        drafted = self._drafted(batch, anchors, heard.features)[:, :, 1:][anchors.asked]
        lesson = self._lesson(batch, hidden, anchors)
        log_prob = linear_terms(drafted, self.head, lesson.tokens).log_prob
        grid = torch.zeros(anchors.asked.shape, dtype=log_prob.dtype, device=log_prob.device)
        nats = grid.masked_scatter(anchors.asked, -(lesson.chance * log_prob).sum(1))
        passed = grid.masked_scatter(anchors.asked, torch.minimum(lesson.chance, log_prob.detach().exp()).sum(1))
        weight = torch.exp(-torch.arange(self.most, device=grid.device) / learnt.decay) * anchors.asked
        targets = batch.target.sum(1)
        total = ((nats * weight).sum((1, 2)) / weight.sum((1, 2)).clamp_min(1e-9) * targets).sum()
        drafts = anchors.asked.any(2).sum(1).clamp_min(1)
        accepted = (passed.cumprod(2).sum((1, 2)) / drafts * targets).sum()
        return Loss(total, targets.sum(), torch.full_like(total.detach(), torch.nan), {"accepted": accepted})

    def _drafted(self, batch: Batch, anchors: Anchors, features: Tensor) -> Tensor:
        """Hidden states (B, A, block, H) of blocks at the anchors."""
        rows, many = anchors.place.shape
        start = torch.arange(batch.tokens.shape[1], device=features.device).expand_as(batch.tokens)
        text = FinishedCache(self.backbone.keys_values(features, start))
        blocks = self.block(batch.tokens.gather(1, anchors.place)).flatten(1, 2)
        place = BlockPlace(self.backbone.rotation(anchors.positions.flatten(1)), anchors.mask(batch))
        return self.backbone(blocks, place, cache=text).view(rows, many, self.most + 1, -1)  # type: ignore[no-any-return]

    @torch.no_grad()
    def _lesson(self, batch: Batch, hidden: Tensor, anchors: Anchors) -> _Lesson:
        teacher, positions = self.spec.objective.teacher, anchors.positions[:, :, 1:]
        row = torch.arange(len(hidden), device=hidden.device)[:, None, None].expand_as(positions)[anchors.asked]
        here = positions[anchors.asked]
        if teacher == 0:
            tokens = batch.tokens[row, here][:, None]
            return _Lesson(tokens, torch.ones_like(tokens, dtype=hidden.dtype))
        needed = torch.zeros_like(batch.target)
        needed[row, here - 1] = True  # many blocks ask about the same token
        states, head, ids = hidden[needed], self.head, self.vocab.size - len(self.vocab.unemittable)
        best = [head(part).topk(min(teacher, ids)) for part in states.split(chunk_rows(len(head.weight), hidden.device))]
        index = (needed.flatten().long().cumsum(0) - 1).view_as(needed)[row, here - 1]
        chance = torch.cat([part.values for part in best]).softmax(-1)
        return _Lesson(torch.cat([part.indices for part in best])[index], chance[index])

    def nll(self, batch: Batch, rng: Rng, draw: int = 0, draws: int = 1) -> Tensor:
        raise ValueError(f"a drafter has no likelihood of its own: score its target, {self.spec.target.name}")


class FeaturePredictor:
    """A drafter and the keys and values of the text of each row."""

    def __init__(self, model: FeatureDrafter, length: int) -> None:
        self.model, self.cache = model, KeyValueCache(length + model.most + 1)

    def __call__(self, xt: Tensor, t: Tensor, previous: Prediction | None = None) -> HeadPrediction:
        """Belief about the tokens of blocks (B, block), of which the first is known and comes right after the text that it was told of."""
        trunk, cache = self.model.backbone, self.cache
        places, _ = cache.places(xt.shape[1], xt.device)
        mask = None
        if places.dim() == 2:  # rows differ in what they have read
            keys = torch.arange(min(cache.length + xt.shape[1], cache.capacity), device=xt.device)
            mask = (keys <= places[:, -1:])[:, None, None]
        place = BlockPlace(trunk.rotation(places.view(-1, xt.shape[1])), mask)
        # the cache does not advance: what is read next is written over the block
        return HeadPrediction(trunk(self.model.block(xt[:, 0]), place, cache=cache), self.model.head)

    def rows(self, index: Tensor) -> "FeaturePredictor":
        """The same, told nothing, for a subset of rows."""
        return FeaturePredictor(self.model, self.cache.capacity - self.model.most - 1)

    def extend(self, tokens: Tensor) -> "FeaturePredictor":
        """Itself, told the features (B, n, F) of further tokens of the text."""
        places, _ = self.cache.places(tokens.shape[1], tokens.device)
        for layer, pair in enumerate(self.model.backbone.keys_values(tokens, places.view(-1, tokens.shape[1]))):
            self.cache.update(layer, *pair)
        self.cache.advance(tokens.shape[1])
        return self

    def crop(self, count: Tensor) -> None:
        """Forget the last `count` (B,) tokens of each row."""
        self.cache.crop(count)


def refuse_drafter(model: LanguageModel, name: str) -> None:
    """Raise ValueError for a drafter where a model of texts is needed."""
    if isinstance(model, FeatureDrafter):
        raise ValueError(
            f"{name} drafts for {model.spec.target.name}, and neither writes text nor scores it alone: textdiff speculate --target "
            f"{model.spec.target.name} --drafter {name}"
        )
