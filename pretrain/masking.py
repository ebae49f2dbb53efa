"""Choose and replace the tokens that the model has to guess (Devlin et al. 2018, A.1).

Of each sequence's tokens 15 % are chosen, never [CLS] or [SEP]: 80 % of them become [MASK], 10 %
a random token of the vocabulary, 10 % stay what they are. The count is exact,
min(max_predictions, max(1, round(rate · length))), with [CLS] and [SEP] counted in the length as
in create_pretraining_data.py.

With `whole_words` the pieces of a word ("em ##bed ##ding") are chosen together, and each piece
draws its own 80/10/10. A word that no longer fits into the count is passed over for the next one,
so a sequence may get fewer than the count, and never more.

Two differences: Google draws a random token from the whole vocabulary, [PAD] and [CLS] too, here
it is an ordinary one; and a "##" piece that a cut left after [SEP] is a word of its own here, not
a part of the word before.
"""

import re
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Int64

from bert.tokenization import Tokenizer

_MASKED, _RANDOM = 0.8, 0.1
_UNUSED = re.compile(r"\[unused\d+\]")  # Google's vocabularies hold rows for words to come


@dataclass(frozen=True)
class MaskRecipe:
    """How much is masked.

    Args:
        rate: share of a sequence's tokens.
        max_predictions: the most that one sequence gets; None for no limit.
        whole_words: choose all pieces of a word together.

    Raises:
        ValueError: a rate outside 0 to 1, a limit below 1.
    """

    rate: float = 0.15
    max_predictions: int | None = None
    whole_words: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.rate < 1:
            raise ValueError(f"rate: expected more than 0 and less than 1, got {self.rate}")
        if self.max_predictions is not None and self.max_predictions < 1:
            raise ValueError(f"max_predictions: expected 1 or more, got {self.max_predictions}")


@dataclass(frozen=True)
class MaskSchedule:
    """A rate that changes in a straight line over a run.

    BERT-base falling from 30 % to 15 % did better on GLUE than at 15 % throughout (Ankner et al.
    2024). The rate follows from a micro-batch's number, so the run's length has to be known in
    steps.

    Args:
        recipe: of the first micro-batch.
        final_rate: of the last one, and of any after it.
        batches: micro-batches of the run.

    Raises:
        ValueError: a rate outside 0 to 1, no batch.
    """

    recipe: MaskRecipe
    final_rate: float
    batches: int

    def __post_init__(self) -> None:
        if not 0 < self.final_rate < 1:
            raise ValueError(
                f"final_rate: expected more than 0 and less than 1, got {self.final_rate}"
            )
        if self.batches < 1:
            raise ValueError(f"batches: expected 1 or more, got {self.batches}")

    def at(self, index: int) -> MaskRecipe:
        """Return the recipe of micro-batch `index`."""
        progress = min(index / max(self.batches - 1, 1), 1.0)
        rate = (1 - progress) * self.recipe.rate + progress * self.final_rate
        return replace(self.recipe, rate=rate)


@dataclass(frozen=True, eq=False)
class MaskingVocabulary:
    """What masking needs to know of a vocabulary."""

    cls_id: int
    sep_id: int
    mask_id: int
    ordinary_ids: Int64[np.ndarray, " ordinary"]
    """The tokens of text: what a random token is drawn from."""
    is_continuation: Bool[np.ndarray, " vocab"]
    """Whether a token goes on with a word: "##ing"."""

    @staticmethod
    def of(tokenizer: Tokenizer) -> "MaskingVocabulary":
        """Read it off a tokenizer.

        Raises:
            ValueError: the vocabulary has no token but special ones.
        """
        ordinary = [
            i
            for i, token in enumerate(tokenizer.vocab)
            if i not in tokenizer.special_ids and not _UNUSED.fullmatch(token)
        ]
        if not ordinary:
            raise ValueError("tokenizer: expected tokens that are not special, got none")
        goes_on = [len(token) > 2 and token.startswith("##") for token in tokenizer.vocab]
        return MaskingVocabulary(
            tokenizer.cls_id,
            tokenizer.sep_id,
            tokenizer.mask_id,
            np.array(ordinary, np.int64),
            np.array(goes_on, np.bool_),
        )


@dataclass(frozen=True, eq=False)
class MaskedTokens:
    """A packed batch with masks, and what stood under them."""

    input_ids: Int64[np.ndarray, " tokens"]
    positions: Int64[np.ndarray, " masked"]
    """Ascending rows of the packed batch."""
    labels: Int64[np.ndarray, " masked"]


def mask_tokens(
    input_ids: Int64[np.ndarray, " tokens"],
    lengths: Int64[np.ndarray, " seqs"],
    vocabulary: MaskingVocabulary,
    recipe: MaskRecipe,
    rng: np.random.Generator,
) -> MaskedTokens:
    """Mask a packed batch: a pure function of its arguments and the generator's state.

    Args:
        input_ids: sequences one after another, with their [CLS] and [SEP]; left as they are.
        lengths: tokens of each sequence.
        vocabulary: see `MaskingVocabulary`.
        recipe: how much is masked.
        rng: a generator made for this batch alone.
    """
    is_frame = (input_ids == vocabulary.cls_id) | (input_ids == vocabulary.sep_id)
    candidates = np.flatnonzero(~is_frame)
    sequence = np.repeat(np.arange(len(lengths)), lengths)[candidates]
    quota = np.maximum(np.rint(lengths * recipe.rate).astype(np.int64), 1)
    if recipe.max_predictions is not None:
        quota = np.minimum(quota, recipe.max_predictions)

    if recipe.whole_words:
        goes_on = vocabulary.is_continuation[input_ids[candidates]]
        # The first piece after [CLS] or [SEP] starts a word, even where a cut left a "##" there.
        goes_on[1:] &= np.diff(candidates) == 1
        goes_on[:1] = False
        word = np.cumsum(~goes_on) - 1
        is_chosen = _choose_words(sequence[~goes_on], np.bincount(word), quota, rng)[word]
    else:
        is_chosen = _choose_tokens(sequence, quota, rng)
    positions = candidates[is_chosen]
    labels = input_ids[positions]

    fate = rng.random(len(positions))
    drawn = vocabulary.ordinary_ids[
        rng.integers(len(vocabulary.ordinary_ids), size=len(positions))
    ]
    masked_ids = input_ids.copy()
    masked_ids[positions] = np.where(
        fate < _MASKED,
        vocabulary.mask_id,
        np.where(fate < _MASKED + _RANDOM, drawn, labels),
    )
    return MaskedTokens(masked_ids, positions, labels)


def _choose_tokens(
    sequence: np.ndarray, quota: np.ndarray, rng: np.random.Generator
) -> Bool[np.ndarray, " candidates"]:
    """Choose `quota` candidates of each sequence, all sets of that size equally likely."""
    order = np.argsort(sequence + rng.random(len(sequence)))
    count = np.bincount(sequence, minlength=len(quota))
    rank = np.arange(len(sequence)) - np.repeat(np.cumsum(count) - count, count)
    is_chosen = np.zeros(len(sequence), np.bool_)
    is_chosen[order[rank < np.repeat(quota, count)]] = True
    return is_chosen


def _choose_words(
    sequence: np.ndarray, length: np.ndarray, quota: np.ndarray, rng: np.random.Generator
) -> Bool[np.ndarray, " words"]:
    """Go through each sequence's words in random order and take each that still fits.

    Each round takes, in all sequences at once, the words up to the first that doesn't fit, and
    drops those that are longer than what is left. Two or three rounds end it.
    """
    waiting = np.argsort(sequence + rng.random(len(sequence)))
    left = quota.copy()
    is_chosen = np.zeros(len(sequence), np.bool_)
    while True:
        waiting = waiting[length[waiting] <= left[sequence[waiting]]]
        if not len(waiting):
            return is_chosen
        owner, pieces = sequence[waiting], length[waiting]
        total = np.cumsum(pieces)
        starts = np.searchsorted(owner, owner)  # where each word's own sequence begins
        fits = total - (total - pieces)[starts] <= left[owner]
        is_chosen[waiting[fits]] = True
        left -= np.bincount(owner[fits], pieces[fits], len(left)).astype(np.int64)
        waiting = waiting[~fits]
