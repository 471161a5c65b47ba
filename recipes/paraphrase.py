"""Paraphrases of questions: QQP as DiffuSeq has it, with every family on the same pairs, tokenizer and steps.

    python recipes/paraphrase.py autoregressive --data QQP
    python recipes/paraphrase.py masked --data QQP
    python recipes/paraphrase.py uniform --data QQP

The data are yours to get: a folder with train.jsonl, valid.jsonl and test.jsonl of rows {"src": ..., "trg": ...}, by Quora's terms; or any
other folder or hub id of pairs (`--columns` names them). GENIE's train.src beside train.tgt does too.

The table holds BLEU (sacrebleu, 13a, cased), ROUGE-L and the self-BLEU of the candidates of one prompt, which says how unlike they are
(lower: more diverse). DiffuSeq reports smoothed sentence BLEU of BERT's lowercased tokens instead (24.13 with ten candidates): other
numbers, not to be compared. A copied prompt scores high on this task; look at both.

The presets are diffuseq, genie, modern, latent (which draw vectors), masked, uniform (tokens) and autoregressive (the rival): the same
pairs, tokenizer and steps, around one trunk. They are not of equal size: genie and latent give half of the trunk's layers to an encoder of
the prompt, latent has an autoencoder besides, and the table says how many parameters each has.
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

TRUNK = TransformerConfig(width=256, layers=4, heads=4, max_length=256, place_embedding=True, dropout=0.1)
RESPONSE = 48  # tokens, EOS included
TRAIN = Train(
    steps=10_000,
    batch_size=64,
    learning_rate=1e-3,
    warmup=500,
    final_fraction=0.05,
    weight_decay=0.05,
    ema=0.999,
    evaluate_every=1_000,
    checkpoint_every=1_000,
)


def _columns(quality: GenerationQuality, test: Sequence[Case], texts: Sequence[str]) -> Mapping[str, Score]:
    """Beside BLEU and ROUGE-L, how alike the candidates of one prompt are to each other."""
    return {
        "BLEU": Score(quality.bleu, quality.bleu_error),
        "ROUGE-L": Score(100 * quality.rouge_l, 100 * quality.rouge_l_error),
        "self-BLEU": Score(quality.self_bleu),
    }


def _recipe(family: Family) -> Seq2Seq:
    return Seq2Seq(**vars(family), data="./QQP", vocab_size=8_000, source_length=48, response_length=RESPONSE, train=TRAIN)


if __name__ == "__main__":
    run_presets(families.presets(TRUNK, RESPONSE, _recipe), partial(run, measure=_columns), __doc__)
