"""Cut one or two tokenized texts to length and frame them: [CLS] A [SEP] or [CLS] A [SEP] B [SEP].

The token types (segments, in Devlin et al. 2018) are 0 up to the first [SEP] and 1 after it:

    [CLS] how ' s that ? [SEP] fine . [SEP]
      0    0  0 0  0   0   0     1  1   1
"""

from dataclasses import dataclass
from itertools import chain
from typing import Literal, NamedTuple

import tokenizers

Truncation = Literal["longest_first", "only_first", "only_second", "error"]


@dataclass(frozen=True, slots=True)
class Encoding:
    """A framed text or pair.

    Args:
        ids: The row of each token in the embedding table.
        token_type_ids: 0 in the first segment, 1 in the second.
        offsets: Where each token starts and ends in its own text as the user gave it, in
            characters; (0, 0) in the frame.
        tokens: The piece of a word that each id stands for.
        word_ids: The number of that word in its text; None in the frame.
    """

    ids: list[int]
    token_type_ids: list[int]
    offsets: list[tuple[int, int]]
    tokens: list[str]
    word_ids: list[int | None]

    def __len__(self) -> int:
        return len(self.ids)


class Segment(NamedTuple):
    """The tokens of one text without its frame; the columns are those of `Encoding`."""

    ids: list[int]
    offsets: list[tuple[int, int]]
    tokens: list[str]
    word_ids: list[int | None]

    def append(self, part: tokenizers.Encoding, start: int) -> None:
        """Append the tokens of the text's next part, which begins at character `start`."""
        words = (self.word_ids[-1] or 0) + 1 if self.word_ids else 0
        self.ids.extend(part.ids)
        self.offsets.extend([(start + begin, start + end) for begin, end in part.offsets])
        self.tokens.extend(part.tokens)
        self.word_ids.extend([words + (word or 0) for word in part.word_ids])

    def keep(self, length: int) -> "Segment":
        """Give the first tokens."""
        return self.part(0, length)

    def part(self, start: int, end: int) -> "Segment":
        """Give the tokens from `start` to before `end`."""
        ids, offsets, tokens, word_ids = self
        return Segment(ids[start:end], offsets[start:end], tokens[start:end], word_ids[start:end])


def frame(cls_id: int, sep_id: int, first: Segment, second: Segment | None) -> Encoding:
    """Put a text, or two, between [CLS] and [SEP]."""
    cls = Segment([cls_id], [(0, 0)], ["[CLS]"], [None])
    sep = Segment([sep_id], [(0, 0)], ["[SEP]"], [None])
    segments = [cls, first, sep] + ([] if second is None else [second, sep])
    ids, offsets, tokens, word_ids = map(
        list, map(chain.from_iterable, zip(*segments, strict=True))
    )
    types = [0] * (len(first.ids) + 2) + [1] * (len(ids) - len(first.ids) - 2)
    return Encoding(ids, types, offsets, tokens, word_ids)


def kept_lengths(
    first: int, second: int, room: int, truncation: Truncation, row: int
) -> tuple[int, int]:
    """Decide how many tokens of each text stay, as `tokenizers` does; the ends go.

    Args:
        first: Tokens of the first text.
        second: Tokens of the second; 0 if there is none.
        room: Tokens there is room for, without the frame.
        truncation: "longest_first" cuts the longer text down to the shorter one's length, then
            both; "only_first" and "only_second" cut that text, but never away.
        row: Which row of a batch it is, for the error.

    Raises:
        ValueError: the strategy is "error", or its text is too short to cut.
    """
    excess = first + second - room
    if excess <= 0:
        return first, second
    if truncation == "longest_first":
        shorter = min(first, second, room // 2)
        return (shorter, room - shorter) if first <= second else (room - shorter, shorter)
    if truncation == "only_first" and first > excess:
        return first - excess, second
    if truncation == "only_second" and second > excess:
        return first, second - excess
    lengths = f"{first} and {second}" if second else f"{first}"
    raise ValueError(
        f"texts[{row}]: expected at most {room} tokens without the frame, got {lengths}"
        f" (truncation={truncation!r})"
    )
