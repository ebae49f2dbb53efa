"""A small text and its tokenizer, for the tests of what stands on a prepared corpus."""

import random
from pathlib import Path

from bert.tokenization import Tokenizer

_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_WORDS = ["the", "cat", "sat", "on", "a", "mat", "dog", "ran", "home", "we", "saw", "it", "."]
TOKENIZER = Tokenizer(
    ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *_WORDS]
    + [letter for letter in _LETTERS if letter not in _WORDS]
    + [f"##{letter}" for letter in _LETTERS]
)


def make_documents(count: int, seed: int = 0) -> list[list[str]]:
    """Documents as lists of paragraphs; words of the vocabulary and words of its letters."""
    rng = random.Random(seed)

    def word() -> str:
        if rng.random() < 0.7:
            return rng.choice(_WORDS[:-1])
        return "".join(rng.choices(_LETTERS, k=rng.randint(2, 5)))

    def sentence() -> str:
        return " ".join(word() for _ in range(rng.randint(1, 9))).capitalize() + "."

    return [
        [" ".join(sentence() for _ in range(rng.randint(1, 5))) for _ in range(rng.randint(1, 4))]
        for _ in range(count)
    ]


DOCUMENTS_OF_TEXT = make_documents(6)


def write_text(path: Path, documents: list[list[str]]) -> Path:
    """Write documents: a paragraph a line, a blank line between two documents."""
    path.write_text("\n\n".join("\n".join(paragraphs) for paragraphs in documents) + "\n")
    return path


def contents(directory: Path) -> dict[str, bytes]:
    """Every file below a directory, for comparing two of them byte by byte."""
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in files}
