"""Noise processes: one file per derivation."""
