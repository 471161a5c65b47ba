"""One process of a run in a test: `python -m tests.training.worker OUT '{"steps": 6}'`; exits like the command line."""

import json
import sys
import time

from tests.training.tiny import TinyModel, quick, run
from textdiff.training.session import session


class SlowModel(TinyModel):
    def forward(self, batch, seed, step, progress=1.0):
        time.sleep(0.02)
        return super().forward(batch, seed, step, progress)


def main():
    try:
        with session() as accelerator:
            run(accelerator, sys.argv[1], quick(**json.loads(sys.argv[2])), SlowModel(dropout=0.1))
    except ValueError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
