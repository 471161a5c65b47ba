"""Translation, by default of Multi30k's captions from German to English, with every family on the same pairs, tokenizer and steps.

    python recipes/translation.py autoregressive --data FOLDER
    python recipes/translation.py masked --data FOLDER
    python recipes/translation.py uniform --data FOLDER

The data are yours to get: a folder of train, valid and test files, of rows with src and trg (jsonl, csv, parquet), or of lines (train.de
beside train.en: the first by name is translated into the second, `--columns en de` turns them round), or a hub id whose columns
`--columns` names, the source first. Multi30k has 29,000 pairs to train on and 1,000 to test; it is for non-commercial research.

Each run's table also holds the runs beside it on the same data, BLEU and chrF by sacrebleu's defaults: one sample, the best of
`--scoring.candidates` (10) by minimum Bayes risk, and the source copied as it is.

The presets are diffuseq, genie, modern, latent (which draw vectors), masked, uniform (tokens) and autoregressive (the rival): the same
pairs, tokenizer and steps, around one trunk. They are not of equal size: genie and latent give half of the trunk's layers to an encoder of
the prompt, latent has an autoencoder besides, and the table says how many parameters each has.

@@TABLE@@
"""

from collections.abc import Mapping, Sequence
from functools import partial

from textdiff import families
from textdiff.backbones.transformer import TransformerConfig
from textdiff.cli import run_presets
from textdiff.evaluation.generation import GenerationQuality
from textdiff.families import Family
from textdiff.scores import Case, Score
from textdiff.seq2seq import Seq2Seq, run
from textdiff.training.settings import Train

TRUNK = TransformerConfig(width=192, layers=3, heads=4, max_length=256, place_embedding=True)
RESPONSE = 40  # tokens, EOS included
TRAIN = Train(
    steps=4_000,
    batch_size=32,
    learning_rate=1.5e-3,
    warmup=400,
    final_fraction=0.05,
    weight_decay=0.05,
    ema=0.999,
    evaluate_every=1_000,
    checkpoint_every=1_000,
)


def _columns(quality: GenerationQuality, test: Sequence[Case], texts: Sequence[str]) -> Mapping[str, Score]:
    return {"BLEU": Score(quality.bleu, quality.bleu_error), "chrF": Score(quality.chrf, quality.chrf_error)}


def _recipe(family: Family) -> Seq2Seq:
    return Seq2Seq(**vars(family), data="./multi30k", vocab_size=5_000, source_length=48, response_length=RESPONSE, train=TRAIN)


if __name__ == "__main__":
    run_presets(families.presets(TRUNK, RESPONSE, _recipe), partial(run, measure=_columns), __doc__)
