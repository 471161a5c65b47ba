"""What text is about, noisy or clean: the classifier of classifier guidance (D-CBG, Schiff et al. 2024; Diffusion-LM, Li et al. 2022), and
any judge of samples.

A trunk reads all tokens, its states are averaged, and a linear layer gives one number per class; or each state gives those of its own
token. Where the noise is Gaussian it reads the noisy vectors of the model that it guides. It is trained by the one loop.
"""

from dataclasses import dataclass, field
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init

from textdiff import spec as plain
from textdiff.backbones.transformer import Transformer, TransformerConfig
from textdiff.batch import Batch
from textdiff.models.base import LanguageModel, Loss, ModelSpec, TextDiffConfig
from textdiff.processes.base import Denoiser, Process, UniformTime
from textdiff.processes.gaussian import Gaussian
from textdiff.randomness import Rng
from textdiff.vocab import Vocab


class ClassifierConfig(TextDiffConfig):
    """`config.json` of a `NoisyClassifier`."""

    model_type = "textdiff-classifier"


@dataclass(frozen=True)
class ClassifierSpec(ModelSpec):
    """A classifier without its weights; it tells noisy texts apart at every level of `process`, or clean ones when there is none."""

    process: Process | None = None
    backbone: TransformerConfig = field(default_factory=TransformerConfig)
    labels: int = 2
    width: int = 0  # numbers of a token's vector, where the noise is Gaussian
    each: bool = False  # a class for each token, not one for the text

    def __post_init__(self) -> None:
        if self.labels < 2:
            raise ValueError(f"labels is {self.labels}, expected 2 classes or more")
        if (self.width > 0) != isinstance(self.process, Gaussian):
            noise = type(self.process).__name__
            raise ValueError(f"width is {self.width} and the noise is {noise}: give the width of its vectors to Gaussian noise alone")
        trunk = self.backbone
        idle = {"labels": trunk.labels, "self_conditioning": trunk.self_conditioning, "encoder_layers": trunk.encoder_layers}
        for name, value in {**idle, "tied=False": not trunk.tied}.items():
            if value:  # weights that would never be trained
                raise ValueError(f"a classifier's backbone has no use for {name}: leave it out")

    def build(self, vocab: Vocab) -> "NoisyClassifier":
        """The model with fresh weights."""
        return NoisyClassifier(ClassifierConfig(spec=plain.to_plain(self), vocab=plain.to_plain(vocab)))


class SoftEmbedding(nn.Embedding):
    """An embedding that reads ids (B, L), or rows of weights over ids (B, L, V)."""

    def forward(self, input: Tensor) -> Tensor:
        """Vectors (B, L, H)."""
        return input.to(self.weight.dtype) @ self.weight if input.is_floating_point() else super().forward(input)


class VectorEmbedding(nn.Module):
    """Vectors (B, L, D), or ids in place of their clean vectors, to the trunk's width; the vectors are those of another model."""

    def __init__(self, size: int, width: int, hidden: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.empty(size, width), requires_grad=False)
        self.read = nn.Linear(width, hidden)

    def reset(self) -> None:
        """Fresh weights: vectors of unit variance, until those of a model are taken."""
        init.normal_(self.table)
        init.normal_(self.read.weight, std=self.table.shape[1] ** -0.5)
        init.zeros_(self.read.bias)

    def train(self, mode: bool = True) -> Self:
        """Loading makes every weight learn; the vectors of another model never do."""
        self.table.requires_grad_(False)
        return super().train(mode)

    def forward(self, input: Tensor) -> Tensor:
        """Vectors (B, L, H)."""
        x = input if input.is_floating_point() else F.embedding(input, self.table)
        return self.read(x.to(self.table.dtype))


class NoisyClassifier(LanguageModel):
    """log p(y | zt); the label of a row is its `source` (B, 1), or those of its tokens are (B, L)."""

    config: ClassifierConfig
    nll_is_bound = False
    backbone: Transformer

    def __init__(self, config: ClassifierConfig, trusted: tuple[str, ...] = ("textdiff",)) -> None:
        super().__init__(config, trusted)
        trunk: TransformerConfig = self.spec.backbone
        self.process: Process | None = None if self.spec.process is None else self.spec.process.bind(self.vocab)
        self.backbone = trunk.build(self.vocab, causal=False)
        size, width = self.vocab.size, self.spec.width
        self.backbone.embedding = VectorEmbedding(size, width, trunk.width) if width else SoftEmbedding(size, trunk.width)
        self.classes = nn.Linear(trunk.width, self.spec.labels)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, VectorEmbedding):
            module.reset()

    @property
    def states(self) -> int:
        """Number of ids, or of the numbers of a vector."""
        return self.spec.width or self.vocab.size

    @torch.no_grad()
    def take_vectors(self, model: Denoiser) -> None:
        """Read the token vectors of `model`, as they are now; raises ValueError where they do not fit."""
        embedding = self.backbone.embedding
        if not isinstance(embedding, VectorEmbedding):
            raise ValueError("this classifier reads ids, and vectors are for one whose noise is Gaussian")
        table = embedding.table
        vectors, _ = model.canvas(Batch.of(torch.arange(len(table), device=table.device)[None]))
        if vectors.shape[1:] != table.shape:
            raise ValueError(f"the model's vectors are {tuple(vectors.shape[1:])} and the classifier reads {tuple(table.shape)}")
        table.copy_(vectors[0])

    def log_prob(self, z: Tensor, noise: Tensor, attend: Tensor) -> Tensor:
        """(B, C) nats, or with a class for each token (B, L, C), for z (B, L) ids, float rows (B, L, V) that weigh ids, or under Gaussian
        noise vectors (B, L, D), at noise levels 1 - alpha (B,) or (B, L); attend (B, L). Raises ValueError for rows of another width."""
        if z.is_floating_point() and z.shape[-1] != self.states:
            raise ValueError(f"the classifier reads {self.states} numbers a token and was given {z.shape[-1]}: train one for this model")
        context = self.backbone.context(Batch.of(attend.long(), attend=attend))
        hidden = self.backbone(self.backbone.embedding(z), context, noise)
        if not self.spec.each:
            hidden = (hidden * attend[..., None]).sum(1) / attend.sum(1, keepdim=True)
        logits: Tensor = self.classes(hidden)
        return logits.float().log_softmax(-1) if logits.dtype in (torch.bfloat16, torch.float16) else logits.log_softmax(-1)

    def forward(self, batch: Batch, seed: int, step: int, progress: float = 1.0) -> Loss:
        """Cross-entropy of the labels; the label of a row counts once for each of its targets, because losses are divided by those.

        Raises ValueError where a row, or a target, has no label or does not attend to it.
        """
        label = self._labels(batch)
        z, noise = batch.tokens, torch.zeros(len(batch.tokens), dtype=torch.float64, device=batch.tokens.device)
        if self.process is not None:
            rng, embedding = Rng(seed, step, batch.sample_id), self.backbone.embedding
            clean = F.embedding(z, embedding.table) if isinstance(embedding, VectorEmbedding) else z
            times = self.process.measure if isinstance(self.process, Gaussian) else UniformTime()
            noised = times(self.process, clean, batch.target, batch.stratum, rng)
            z, noise = noised.xt, 1 - self.process.alpha(noised.t)
        log_prob = self.log_prob(z, noise, batch.attend)
        found = log_prob.gather(-1, label[..., None])[..., 0]
        count = batch.target if self.spec.each else batch.target.sum(1)
        nats, right = -(found * count).sum(), ((log_prob.argmax(-1) == label) * count).sum()
        return Loss(nats, batch.target.sum(), nats.detach(), {"accuracy": right.to(nats.dtype)})

    def _labels(self, batch: Batch) -> Tensor:
        """(B,) or (B, L), where each token has one."""
        labels, source, told = self.spec.labels, batch.source, batch.source_attend
        wanted = "one label per token" if self.spec.each else "one label per row"
        fits = source.shape == (batch.tokens.shape if self.spec.each else (len(source), 1))
        if fits and self.spec.each:  # what is no target, padding for example, needs none
            source, told = source.where(batch.target, 0), told | ~batch.target
        if not fits or not 0 <= int(source.min()) <= int(source.max()) < labels:
            raise ValueError(f"the source is {tuple(source.shape)}, expected {wanted} in 0 .. {labels - 1}")
        if not bool(told.all()):
            raise ValueError(f"{int((~told).any(1).sum())} rows hide their label, and a classifier learns from labelled rows only")
        return source if self.spec.each else source[:, 0]

    @torch.no_grad()
    def judge(self, batch: Batch) -> Tensor:
        """The likeliest class of each row of clean tokens, (B,), or of each token, (B, L)."""
        noise = torch.zeros(len(batch.tokens), dtype=torch.float64, device=batch.tokens.device)
        return self.log_prob(batch.tokens, noise, batch.attend).argmax(-1)


def refuse_classifier(model: LanguageModel, name: str) -> None:
    """Raise ValueError for a classifier where a model of texts is needed."""
    if isinstance(model, NoisyClassifier):
        raise ValueError(f"{name} is a classifier, which neither writes text nor scores it: give the model that it guides")
