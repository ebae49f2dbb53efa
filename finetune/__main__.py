"""`python -m finetune` is `bert finetune`, so that `torchrun -m finetune` works too."""

import sys

from bert.cli import run_command

if __name__ == "__main__":
    sys.exit(run_command("finetune"))
