"""What text is about, noisy or clean: the classifier of classifier guidance (D-CBG, Schiff et al. 2024), and any judge of samples.

A trunk reads all tokens, its states are averaged, and a linear layer gives one number per class. It is trained by the one loop.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from textdiff import spec as plain
from textdiff.backbones.transformer import Transformer, TransformerConfig
from textdiff.batch import Batch
from textdiff.models.base import LanguageModel, Loss, ModelSpec, TextDiffConfig
from textdiff.processes.base import Process, UniformTime
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

    def __post_init__(self) -> None:
        if self.labels < 2:
            raise ValueError(f"labels is {self.labels}, expected 2 classes or more")
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


class NoisyClassifier(LanguageModel):
    """log p(y | zt); the label of a row is its `source` (B, 1)."""

    config: ClassifierConfig
    nll_is_bound = False
    backbone: Transformer

    def __init__(self, config: ClassifierConfig, trusted: tuple[str, ...] = ("textdiff",)) -> None:
        super().__init__(config, trusted)
        trunk: TransformerConfig = self.spec.backbone
        self.process: Process | None = None if self.spec.process is None else self.spec.process.bind(self.vocab)
        self.backbone = trunk.build(self.vocab, causal=False)
        self.backbone.embedding = SoftEmbedding(self.vocab.size, trunk.width)
        self.classes = nn.Linear(trunk.width, self.spec.labels)
        self.post_init()

    @property
    def states(self) -> int:
        """Number of ids."""
        return self.vocab.size

    def log_prob(self, z: Tensor, noise: Tensor, attend: Tensor) -> Tensor:
        """(B, C) nats for z (B, L) ids, or (B, L, V) float rows that weigh ids, at noise levels 1 - alpha (B,) or (B, L); attend (B, L)."""
        context = self.backbone.context(Batch.of(attend.long(), attend=attend))
        hidden = self.backbone(z, context, noise)
        mean = (hidden * attend[..., None]).sum(1) / attend.sum(1, keepdim=True)
        logits: Tensor = self.classes(mean)
        return logits.float().log_softmax(-1) if logits.dtype in (torch.bfloat16, torch.float16) else logits.log_softmax(-1)

    def forward(self, batch: Batch, seed: int, step: int, progress: float = 1.0) -> Loss:
        """Cross-entropy of the labels; each row counts once for each of its targets, because losses are divided by those.

        Raises ValueError where a row has no label, or does not attend to it.
        """
        labels = self.spec.labels
        if batch.source.shape[1] != 1 or not 0 <= int(batch.source.min()) <= int(batch.source.max()) < labels:
            raise ValueError(f"the source is {tuple(batch.source.shape)}, expected one label per row in 0 .. {labels - 1}")
        if not bool(batch.source_attend.all()):
            raise ValueError(f"{int((~batch.source_attend).sum())} rows hide their label, and a classifier learns from labelled rows only")
        z, noise = batch.tokens, torch.zeros(len(batch.tokens), dtype=torch.float64, device=batch.tokens.device)
        if self.process is not None:
            rng = Rng(seed, step, batch.sample_id)
            noised = UniformTime()(self.process, batch.tokens, batch.target, batch.stratum, rng)
            z, noise = noised.xt, 1 - self.process.alpha(noised.t)
        log_prob, label = self.log_prob(z, noise, batch.attend), batch.source[:, 0]
        count = batch.target.sum(1)
        nats = -(log_prob.gather(1, label[:, None])[:, 0] * count).sum()
        right = ((log_prob.argmax(1) == label) * count).sum()
        return Loss(nats, batch.target.sum(), nats.detach(), {"accuracy": right.to(nats.dtype)})

    @torch.no_grad()
    def judge(self, batch: Batch) -> Tensor:
        """The likeliest class of each row of clean tokens, (B,)."""
        noise = torch.zeros(len(batch.tokens), dtype=torch.float64, device=batch.tokens.device)
        return self.log_prob(batch.tokens, noise, batch.attend).argmax(1)


def refuse_classifier(model: LanguageModel, name: str) -> None:
    """Raise ValueError for a classifier where a model of texts is needed."""
    if isinstance(model, NoisyClassifier):
        raise ValueError(f"{name} is a classifier, which neither writes text nor scores it: give the model that it guides")
