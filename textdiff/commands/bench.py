"""`textdiff bench`: the project's claims about speed, memory and variance, measured on this machine."""
