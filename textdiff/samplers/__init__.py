"""Sampling loops as generators of canvases."""
