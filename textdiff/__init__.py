"""textdiff: train, adapt, sample and fairly compare text diffusion language models and their autoregressive rivals.

Layers, each importing only from those before it:
spec randomness vocab batch projection prediction state_prediction | schedules log_snr | processes | guidance | samplers | backbones |
models oracle | data | evaluation | training | bench plots report recipe scores decoding families seq2seq denoise controlled commands cli.
Recipes import textdiff, never the reverse.

Words: `x0, xt` clean and noisy state; `t` in [0, 1], 0 = clean; `alpha` signal left; `target` positions to noise, generate and score;
`where` positions asked for; `known` clean state held fixed; `nats, nll, nelbo, loss` per-token cost, total, a bound on it, what is
differentiated; `nfe` network calls.
"""

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_PUBLIC = {
    "load": "textdiff.models.loading",
    "Discrete": "textdiff.models.discrete",
    "DiscreteDiffusionLM": "textdiff.models.discrete",
    "EmbeddingDiffusion": "textdiff.models.embedding",
    "EmbeddingDiffusionLM": "textdiff.models.embedding",
    "LatentDiffusion": "textdiff.models.latent",
    "LatentDiffusionLM": "textdiff.models.latent",
    "AutoregressiveSpec": "textdiff.models.autoregressive",
    "AutoregressiveLM": "textdiff.models.autoregressive",
    "TransformerConfig": "textdiff.backbones.transformer",
    "Masked": "textdiff.processes.masked",
    "Uniform": "textdiff.processes.uniform",
    "Hybrid": "textdiff.processes.hybrid",
    "Matrix": "textdiff.processes.matrix",
    "Block": "textdiff.processes.block",
    "Gaussian": "textdiff.processes.gaussian",
    "ClassifierFree": "textdiff.guidance.classifier_free",
    "PromptMasked": "textdiff.guidance.classifier_free",
    "Clamp": "textdiff.guidance.clamp",
    "Filters": "textdiff.guidance.filters",
    "Ancestral": "textdiff.samplers.ancestral",
    "FirstHitting": "textdiff.samplers.first_hitting",
    "Autoregressive": "textdiff.samplers.autoregressive",
    "Greedy": "textdiff.samplers.confidence",
    "Margin": "textdiff.samplers.confidence",
    "Entropy": "textdiff.samplers.confidence",
    "RandomOrder": "textdiff.samplers.confidence",
    "Threshold": "textdiff.samplers.confidence",
    "EntropyBound": "textdiff.samplers.confidence",
    "Capped": "textdiff.samplers.remasking",
    "Rescaled": "textdiff.samplers.remasking",
    "ConfidenceBased": "textdiff.samplers.remasking",
    "Loop": "textdiff.samplers.remasking",
    "ForwardBackward": "textdiff.samplers.remasking",
    "Psi": "textdiff.samplers.remasking",
    "Gibbs": "textdiff.samplers.corrector",
    "RandomPositions": "textdiff.samplers.corrector",
    "LeastConfident": "textdiff.samplers.corrector",
    "Analytic": "textdiff.samplers.rates",
    "Euler": "textdiff.samplers.rates",
    "TauLeaping": "textdiff.samplers.rates",
    "DDIM": "textdiff.samplers.ddim",
    "DPMSolver": "textdiff.samplers.dpm_solver",
    "ReverseSDE": "textdiff.samplers.sde",
    "ProbabilityFlow": "textdiff.samplers.sde",
    "HeunFlow": "textdiff.samplers.sde",
    "LangevinCorrector": "textdiff.samplers.sde",
    "Blockwise": "textdiff.samplers.blockwise",
    "Speculative": "textdiff.samplers.speculative",
    "DraftLength": "textdiff.samplers.speculative",
    "Adaptive": "textdiff.samplers.speculative",
    "LeftToRightChunks": "textdiff.samplers.drafting",
    "Redrawn": "textdiff.samplers.drafting",
    "AnyOrder": "textdiff.samplers.drafting",
    "likelihood": "textdiff.evaluation.likelihood",
    "Batch": "textdiff.batch",
    "Vocab": "textdiff.vocab",
    "Rng": "textdiff.randomness",
}

if TYPE_CHECKING:
    from textdiff.models.loading import load as load


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'textdiff' has no attribute {name!r}; its public names are {', '.join(sorted(_PUBLIC))}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted([*_PUBLIC, "__version__"])


_AUTO = "transformers.models.auto.modeling_auto"


class _RegisterWithTransformers(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Registers our architectures when transformers' auto classes are imported, so that `import textdiff` itself stays light.

    No module here imports the auto classes at its top, so at that moment none of ours is half imported (tests/test_import.py).
    """

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> importlib.machinery.ModuleSpec | None:
        if name != _AUTO:
            return None
        sys.meta_path.remove(self)
        found = importlib.util.find_spec(name)
        if found is None or found.loader is None:
            return None
        self._found, self._loader = found, found.loader
        return importlib.util.spec_from_loader(name, self, origin=found.origin)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return importlib.util.module_from_spec(self._found)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        importlib.import_module("textdiff.models.loading").register()


if _AUTO in sys.modules:
    importlib.import_module("textdiff.models.loading").register()
else:
    sys.meta_path.insert(0, _RegisterWithTransformers())
