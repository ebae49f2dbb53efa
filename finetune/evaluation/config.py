"""What `bert finetune evaluate` and `bert finetune compare` are told.

Imports no torch, so that `--help` answers at once.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bert.checked import Checked
from finetune.config import Columns

Noise = Literal["typos", "case", "punctuation", "words"]


@dataclass(frozen=True)
class EvaluateConfig(Checked):
    """Test a fine-tuned model on a file of its task, with the labels it was trained on.

    With --noise also on texts with faults in them, and say what of the score is lost: of models
    that classify or rate texts, or pairs of texts.

    Raises:
        ValueError: a field is out of its range; the message names it.
    """

    model: Path
    """Directory of a fine-tuned model and its tokenizer."""
    file: Path
    """Labelled rows, in a file as `bert finetune` takes it for the model's task."""
    out: Path
    """Directory for the report, its numbers, the predictions, the pictures, and the mistakes."""
    noise: tuple[Noise, ...] = ()
    """Faults to put into the texts, see finetune/evaluation/noise.py; each is tested by itself."""
    noise_rates: tuple[float, ...] = (0.1, 0.3)
    """How many of the words, or signs, are hit; each rate is tested by itself."""
    seed: int = 0
    """Seed of the noise."""
    columns: Columns = Columns()
    """Which columns of the file hold what."""
    max_length: int | None = None
    """Tokens of a row; what is longer is cut. None: as many as the model can take."""
    batch_tokens: int = 2048
    """Tokens that are computed at once; a GPU is faster with more."""
    device: str = "auto"
    """Where to compute: cpu, cuda, cuda:1; auto: cuda where there is one."""
    threads: int | None = None
    """CPU threads of torch; None: as many as torch chooses."""
    overwrite: bool = False
    """Let the report replace the one in `out`."""

    def __post_init__(self) -> None:
        """Check what can be checked without a file."""
        self._require("noise", "each one once", len({*self.noise}) == len(self.noise))
        rates = self.noise_rates
        in_range = bool(rates) and all(0 < rate <= 1 for rate in rates)
        self._require("noise_rates", "one or more, above 0 and at most 1", in_range)
        self._require("noise_rates", "each one once", len({*rates}) == len(rates))
        is_long = self.max_length is None or self.max_length >= 8
        self._require("max_length", "8 tokens or more", is_long)
        self._require("seed", "0 or more", self.seed >= 0)
        self._require("batch_tokens", "1 or more", self.batch_tokens >= 1)


@dataclass(frozen=True)
class CompareConfig:
    """Say whether one of two models is better on the same file, and how sure that is."""

    first: Path
    """Directory of a run, for its test file, or one that bert finetune evaluate wrote: A."""
    second: Path
    """The same of the other model: B."""
