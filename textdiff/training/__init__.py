"""The one Accelerate loop."""
