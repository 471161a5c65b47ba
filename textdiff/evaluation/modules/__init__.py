"""The metrics as Hugging Face `evaluate` modules, which need no network, and the metrics that need a pretrained network's folder."""
