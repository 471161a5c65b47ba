"""What textdiff costs beside the usual structure of the same computation, measured here and now."""
