"""What the command line does, one file per command; heavy imports wait until a command runs, so that `--help` is quick."""
