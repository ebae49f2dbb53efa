"""What `bert pretrain prepare` is told. Imports no torch, so that `--help` answers at once."""

from dataclasses import dataclass
from pathlib import Path

from bert.checked import Checked


@dataclass(frozen=True)
class PrepareConfig(Checked):
    """Turn text into token ids, once for many runs: `bert pretrain --data` trains on the result.

    Killed or stopped, the same command goes on from what was done.

    Raises:
        ValueError: a field is out of its range; the message names it.
    """

    files: tuple[Path, ...]
    """Text: .txt with a paragraph a line and a blank line between documents, or .jsonl with a
    document a row; plain, .gz, .xz or .zst."""
    out: Path
    """The directory to make."""
    tokenizer: Path | None = None
    """Directory or file of a tokenizer; None: learn one from the files."""
    vocab_size: int = 8192
    """Tokens of a vocabulary that is learned."""
    cased: bool = False
    """Whether a vocabulary that is learned tells A from a."""
    vocab_characters: int = 1_000_000_000
    """Characters that a vocabulary is learned from, at most: of each file the first ones, as many
    as its share of all bytes."""
    workers: int | None = None
    """Processes; None: one for each core."""
    text_field: str = "text"
    """The field of a .jsonl row that holds the text."""
    skip_bad_rows: bool = False
    """Count .jsonl rows without a text, instead of refusing the file."""
    keep_duplicates: bool = False
    """Keep documents whose words are all those of an earlier one."""
    validation_share: float = 0.0
    """Share of the documents to hold out, such as 0.01, for a run on these data to be judged on.
    The hash of a document's words decides. A vocabulary is learned from all."""
    max_sentence_tokens: int = 128
    """A longer sentence is cut into equal parts."""

    def __post_init__(self) -> None:
        """Check what can be checked without a file, and name what is wrong."""
        self._require("files", "at least one text file", bool(self.files))
        for name, least in (
            ("vocab_size", 16),
            ("vocab_characters", 1),
            ("workers", 1),
            ("max_sentence_tokens", 1),
        ):
            value = getattr(self, name)
            self._require(name, f"{least} or more", value is None or value >= least)
        self._require("validation_share", "0 or a share below 1", 0 <= self.validation_share < 1)
