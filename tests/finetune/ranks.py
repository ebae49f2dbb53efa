"""Fine-tuning in several processes; see tests/bert/training/ranks.py."""

from pathlib import Path

from finetune.config import FinetuneConfig
from finetune.run import run


def finetune(out: Path, config: FinetuneConfig) -> int:
    """Run the command."""
    return run(config)
