"""Speculative decoding beside its rivals: ways to write one causal model's text, what each costs, and a view of the drafts."""
