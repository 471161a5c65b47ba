"""From files, hub ids and the embedded corpus to examples."""
