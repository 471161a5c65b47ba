"""Modules whose forward is the training loss."""
