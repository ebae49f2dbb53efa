"""Words as pieces: which piece speaks for a word, and long sentences in windows.

    words    Ekeus              heads  for
    pieces   eke  ##us          heads  for
    first    *                  *      *

The first piece of a word is labelled, and what the model says of it is said of the word (Devlin
et al. 2018, section 5.3). A sentence that doesn't fit into a row is split between words into
several; a word that alone doesn't fit loses its last pieces.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import numpy as np

from bert.framing import Encoding
from bert.tokenization import Tokenizer


@dataclass
class Window:
    """A part of a sentence, framed, with the words that begin in it."""

    ids: list[int]
    firsts: list[int] = field(default_factory=list)
    """Where in `ids` each word's first piece is."""
    words: list[int] = field(default_factory=list)
    """Which word of the sentence it is."""

    @property
    def token_type_ids(self) -> list[int]:
        """All 0."""
        return [0] * len(self.ids)


def encode_words(
    tokenizer: Tokenizer, sentences: Sequence[Sequence[str]], max_length: int
) -> list[list[Window]]:
    """Tokenize sentences that are cut into words already; a word without pieces is in no window.

    Args:
        tokenizer: its report counts the odd things met in the words.
        sentences: the words of each.
        max_length: tokens of a window, with the frame.
    """
    encodings = tokenizer.encode_batch([" ".join(words) for words in sentences])
    found = []
    for words, encoding in zip(sentences, encodings, strict=True):
        starts = np.array([0, *accumulate(len(word) + 1 for word in words)])[:-1]
        begins = [begin for begin, _ in encoding.offsets[1:-1]]
        of_piece = np.searchsorted(starts, begins, side="right") - 1
        found.append(_windows(encoding.ids, of_piece.tolist(), max_length))
    return found


def encode_text(
    tokenizer: Tokenizer, texts: Sequence[str], max_length: int
) -> list[tuple[list[Window], list[tuple[int, int]]]]:
    """Tokenize texts whose words are BERT's: they end at spaces and at punctuation.

    Returns:
        Each text's windows, and where each of its words starts and ends, in characters.
    """
    found = []
    for encoding in tokenizer.encode_batch(texts):
        of_piece = [word for word in encoding.word_ids[1:-1] if word is not None]
        found.append((_windows(encoding.ids, of_piece, max_length), _places(encoding)))
    return found


def _places(encoding: Encoding) -> list[tuple[int, int]]:
    places: dict[int, tuple[int, int]] = {}
    for word, (begin, end) in zip(encoding.word_ids, encoding.offsets, strict=True):
        if word is not None:
            places[word] = (places.get(word, (begin, end))[0], end)
    return [places.get(word, (0, 0)) for word in range(max(places, default=-1) + 1)]


def _windows(ids: list[int], of_piece: list[int], max_length: int) -> list[Window]:
    """Cut a framed sentence into windows, given the word that each of its pieces is of."""
    cls, sep, pieces = ids[0], ids[-1], ids[1:-1]
    room = max_length - 2
    windows = [Window([cls])]
    begin = 0
    while begin < len(pieces):
        end = begin + 1
        while end < len(pieces) and of_piece[end] == of_piece[begin]:
            end += 1
        kept = pieces[begin : min(end, begin + room)]
        if len(windows[-1].ids) - 1 + len(kept) > room:
            windows.append(Window([cls]))
        windows[-1].firsts.append(len(windows[-1].ids))
        windows[-1].words.append(of_piece[begin])
        windows[-1].ids.extend(kept)
        begin = end
    for window in windows:
        window.ids.append(sep)
    return [window for window in windows if window.words]
