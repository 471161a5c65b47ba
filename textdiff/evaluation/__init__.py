"""Likelihoods and baselines that say what they are."""
