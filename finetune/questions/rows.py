"""A file of questions as windows of token ids, with what is odd in it counted."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from bert.tokenization import Tokenizer
from finetune.questions.squad import Question, read_squad
from finetune.questions.windows import SpanBatch, Windows, cut_windows


@dataclass(frozen=True)
class QuestionRows:
    """A file of questions, their contexts cut into windows; a row is a window."""

    path: Path
    questions: tuple[Question, ...]
    windows: Windows
    misplaced: int
    """Answers whose text does not stand at their offset."""
    left_out: int
    """Questions that can't be learned from, since they have no other answers."""

    def __len__(self) -> int:
        return len(self.windows)

    @property
    def lengths(self) -> Int64[np.ndarray, " windows"]:
        """The tokens of each window."""
        return self.windows.lengths

    def batch(self, chosen: Int64[np.ndarray, " chosen"]) -> SpanBatch:
        """Pack the chosen windows, in the given order."""
        return self.windows.batch(chosen)

    @property
    def unanswered(self) -> int:
        """Questions that their context does not answer."""
        return sum(not question.answers for question in self.questions)

    def describe(self) -> dict[str, Any]:
        """Return the file, its size and what is odd in it, as JSON."""
        return {
            "file": str(self.path),
            "sha256": hashlib.sha256(self.path.read_bytes()).hexdigest(),
            "rows": len(self.questions),
            "without_answer": self.unanswered,
            "windows": len(self),
            "tokens": int(self.lengths.sum()),
            "longest": int(self.lengths.max()),
            "misplaced_answers": self.misplaced,
            "left_out_questions": self.left_out,
            "cut_questions": self.windows.cut_questions,
        }

    def __str__(self) -> str:
        facts = self.describe()
        odd = ("misplaced_answers", "left_out_questions", "cut_questions")
        return (
            f"{self.path}: {facts['rows']:,} questions ({self.unanswered:,} without an answer), "
            f"{len(self):,} windows, {facts['tokens']:,} tokens, {facts['longest']} in the longest"
            + "".join(f"; {facts[n]:,} {n.replace('_', ' ')}" for n in odd if facts[n])
        )

    def sha256(self) -> str:
        """Return a hash of all that training or testing sees of the file."""
        texts = [(q.context, [answer.text for answer in q.answers]) for q in self.questions]
        digest = hashlib.sha256(repr(texts).encode())
        tokens = self.windows.tokens
        for part in (
            tokens.input_ids,
            tokens.token_type_ids,
            tokens.offsets,
            self.windows.characters,
            self.windows.targets,
        ):
            digest.update(part.data)
        return digest.hexdigest()


def read_questions(
    path: Path,
    tokenizer: Tokenizer,
    max_length: int,
    stride: int,
    *,
    is_train: bool,
    limit: int | None = None,
) -> QuestionRows:
    """Read a file of SQuAD's and cut its contexts into windows.

    Args:
        path: see finetune/questions/squad.py.
        tokenizer: see finetune/questions/windows.py, for the next two as well.
        max_length: see there.
        stride: see there.
        is_train: whether to leave out the questions that can't be learned from.
        limit: questions to read, from the first; None: all.

    Raises:
        ValueError: the file can't be read, has fewer questions than `limit`, or no answer to
            learn from.
    """
    questions = read_squad(path, tokenizer.report)
    if limit is not None and limit > len(questions):
        raise ValueError(
            f"train_rows: expected at most {len(questions)}, all of {path}, got {limit}"
        )
    questions = questions[:limit]
    kept = [q for q in questions if q.placed_answers or not (q.answers and is_train)]
    if is_train and not any(question.answers for question in kept):
        raise ValueError(f"{path}: expected an answer that is where it is said to be, got none")
    return QuestionRows(
        path,
        tuple(kept),
        cut_windows(kept, tokenizer, max_length, stride),
        misplaced=sum(len(q.answers) - len(q.placed_answers) for q in questions),
        left_out=len(questions) - len(kept),
    )
