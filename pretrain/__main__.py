"""`python -m pretrain` is `bert pretrain`, so that `torchrun -m pretrain` works."""

import sys

from bert.cli import run_command

if __name__ == "__main__":
    sys.exit(run_command("pretrain"))
