"""What `bert pretrain film` is told. Imports no torch, so that `--help` answers at once."""

from dataclasses import dataclass
from pathlib import Path

from bert.checked import Checked


@dataclass(frozen=True)
class FilmConfig(Checked):
    """Show how a model came to be: what the snapshots of a pretraining run know, one by one.

    For each of them the loss on held-out text, by how frequent the token is in the training text,
    how much of each attention head's look falls where that of a known type would, and how far each
    weight matrix has moved. Leaves film.json and, with matplotlib, film.png.

    Raises:
        ValueError: a field is out of its range; the message names it.
    """

    run: Path
    """Directory of a run of bert pretrain that kept snapshots."""
    text: Path
    """Held-out text: .txt, a paragraph a line and a blank line between documents, or .jsonl."""
    data: Path | None = None
    """Prepared text that the run was given as --data; None: the run prepared its own. How often a
    token occurs in it makes it frequent or rare."""
    out: Path | None = None
    """Directory for film.json and film.png; None: the run's."""
    tokens: int = 10_000
    """Tokens of the held-out text to judge on, at most; each is masked once."""
    max_length: int | None = None
    """Tokens of a sequence, with its frame; None: as many as a pair of the run has at most."""
    device: str = "auto"
    """Where to compute: cpu, cuda, cuda:1; auto: cuda where there is one."""
    overwrite: bool = False
    """Replace a film that is in `out`."""

    def __post_init__(self) -> None:
        """Check what can be checked without a file, and name what is wrong."""
        self._require("tokens", "1 or more", self.tokens >= 1)
        is_long_enough = self.max_length is None or self.max_length >= 3
        self._require("max_length", "3 or more: a token and its frame", is_long_enough)

    @property
    def home(self) -> Path:
        """Where the film is left."""
        return self.run if self.out is None else self.out
