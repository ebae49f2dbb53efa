"""The options of `bert inspect`. Imports no torch, so that `--help` answers at once."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bert.checked import Checked


@dataclass(frozen=True)
class Inspect(Checked):
    """Write a page that shows what a model does with a text: attention, layers, guesses.

    The page is one file that loads nothing; it opens in any browser, offline.

    Raises:
        ValueError: a field is out of its range; the message names it.
    """

    model: Path
    """Directory of a model with its tokenizer."""
    text: str
    """What the model reads. [MASK] is a masked word."""
    out: Path
    """The page, a .html file."""
    pair: str | None = None
    """A second segment, after the text's [SEP]."""
    answer: str | None = None
    """The token that is right at the first [MASK]; none: the model's own guess is held to be."""
    other: str | None = None
    """A text of as many tokens: which places carry the difference between the two predictions
    at the first [MASK]. Takes layers × (3 × tokens + heads) runs."""
    other_answer: str | None = None
    """The token that is right at the other text's first [MASK]."""
    max_length: int = 128
    """Tokens that are taken at most, with the frame; the page grows with the square."""
    top_k: int = 5
    """Guesses that are kept for each layer and token."""
    kernels: Literal["auto", "torch", "triton", "reference"] = "auto"
    """The operations that the model runs on."""
    device: str = "auto"
    """Where to compute: cpu, cuda, cuda:1; auto: cuda where there is one."""
    overwrite: bool = False
    """Replace the page if it is there."""

    def __post_init__(self) -> None:
        """Check what can be checked without the model."""
        self._require("max_length", "2 or more", self.max_length >= 2)
        self._require("top_k", "from 1 to 20", 1 <= self.top_k <= 20)
        is_paired = self.other_answer is None or self.other is not None
        self._require("other_answer", "none where there is no other text", is_paired)
        self._require("out", "a .html file", self.out.suffix.lower() in (".html", ".htm"))
