"""`python -m demo` is `bert demo`."""

import sys

from bert.cli import run_command

if __name__ == "__main__":
    sys.exit(run_command("demo"))
