"""A comparison's raw numbers as one HTML page and as Markdown tables."""
