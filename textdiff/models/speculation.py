"""Which two models may speculate together."""

from textdiff.models.base import LanguageModel


def require_same_ids(target: LanguageModel, drafter: LanguageModel) -> None:
    """Raise ValueError unless what either model can write has one id in both; ids that are never written, such as [MASK], may differ."""
    one, other = _written(target), _written(drafter)
    different = sorted(i for i in one.keys() | other.keys() if one.get(i) != other.get(i))
    if different:
        i = different[0]
        raise ValueError(
            f"target and drafter differ in {len(different)} ids, the first {i}: {one.get(i)!r} and {other.get(i)!r}; "
            "a draft must be in the target's ids: train the drafter with the target's tokenizer, or adapt it from the target"
        )


def _written(model: LanguageModel) -> dict[int, str]:
    never = set(model.vocab.unemittable)
    return {i: token for token, i in model.tokenizer.get_vocab().items() if i not in never}
