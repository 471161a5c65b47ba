"""Trunks: our own transformer and any Hugging Face one."""
