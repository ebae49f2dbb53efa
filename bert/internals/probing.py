"""What can be read off each layer: probing classifiers, each beside a control task.

A probe is a logistic regression from a word's state to a tag of the word (a part of speech, the
kind of an entity, whether its sentence is long). That it is right shows that the state holds the
tag, or that the probe has learnt the words by heart. So it is asked a second question (Hewitt and
Liang 2019, section 2): each word type gets a tag at random, which no state can know of but by
knowing the word. The accuracy on the tags, less that on these, is the probe's selectivity.

A word's state is that of its first piece. Where one tag is far commoner than all others, as O is
among entities, both accuracies lie near its share and the selectivity near 0: probe the words of
the other tags alone.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float

from bert.architectures import Model
from bert.model import Bert
from bert.packing import PackedBatch
from bert.tokenization import Tokenizer

TOKENS = 2048
"""Tokens of a forward pass, about."""
TESTED = 0.3
"""Share of the sentences that a probe is tested on, and doesn't learn from."""


@dataclass(frozen=True, eq=False)
class WordStates:
    """The words of sentences, and their states in each layer."""

    states: list[Float[np.ndarray, "words hidden"]]
    """Of the embeddings, then of each layer; float32."""
    words: list[str]
    sentences: list[int]
    """Which sentence each word is of."""
    tags: list[str]


@dataclass(frozen=True)
class Probe:
    """What a layer's probe got right, as shares of the words that it was tested on."""

    layer: int
    """0 is the embeddings."""
    accuracy: float
    control: float
    """On the tags that were drawn for the word types."""

    @property
    def selectivity(self) -> float:
        """What it gets right beyond what it can learn by heart."""
        return self.accuracy - self.control


@dataclass(frozen=True)
class Probing:
    """The probes of all layers, and what their numbers are to be held against."""

    probes: list[Probe]
    majority: float
    """What always giving the commonest tag of the words learnt from gets right."""
    known: float
    """Share of the tested words whose type was among them: no control can be surer of more."""
    learnt: int
    """Words that the probes learnt from."""
    tested: int
    """Words that they were tested on."""


@torch.inference_mode()
def word_states(
    model: Model,
    tokenizer: Tokenizer,
    sentences: Sequence[Sequence[str]],
    tags: Sequence[Sequence[str]],
) -> WordStates:
    """Run sentences through a model and keep their words' states.

    Args:
        model: in evaluation mode.
        tokenizer: the model's.
        sentences: the words of each. Left out are words without a piece (as of control
            characters), and those beyond the model's positions.
        tags: as many of each.

    Raises:
        ValueError: the model is in training mode, a sentence has not as many tags as words, or no
            word is left.
    """
    if model.training:
        raise ValueError("model: expected evaluation mode (model.eval()), got training mode")
    rows, kept = _tokenized(tokenizer, sentences, tags, model.config.max_position_embeddings)
    if not kept:
        raise ValueError("sentences: expected at least one word, got none")
    trunk = model if isinstance(model, Bert) else model.bert
    device = trunk.embeddings.word.weight.device
    parts = []
    for begin, end in _batches([len(ids) for ids, _ in rows]):
        encoded = trunk.encode(
            PackedBatch.from_lists([ids for ids, _ in rows[begin:end]], None, device)
        )
        offset, places = 0, []
        for ids, firsts in rows[begin:end]:
            places += [offset + first for first in firsts]
            offset += len(ids)
        at = torch.tensor(places, dtype=torch.int64, device=device)
        parts.append([state[at].float().cpu().numpy() for state in encoded.hidden_states])
    states = [np.concatenate(layer) for layer in zip(*parts, strict=True)]
    words, of_sentence, of_word = (list(column) for column in zip(*kept, strict=True))
    return WordStates(states, words, of_sentence, of_word)


def _tokenized(
    tokenizer: Tokenizer,
    sentences: Sequence[Sequence[str]],
    tags: Sequence[Sequence[str]],
    longest: int,
) -> tuple[list[tuple[list[int], list[int]]], list[tuple[str, int, str]]]:
    """Frame each sentence; return ids with the words' first pieces, and (word, sentence, tag)."""
    rows, kept = [], []
    for number, (words, of_words) in enumerate(zip(sentences, tags, strict=True)):
        if len(words) != len(of_words):
            raise ValueError(
                f"tags: expected {len(words)} for sentence {number}, one a word, "
                f"got {len(of_words)}"
            )
        ids, firsts = [tokenizer.cls_id], []
        for word, tag, pieces in zip(words, of_words, tokenizer.encode_plain(words), strict=True):
            if len(ids) + len(pieces) >= longest:
                break
            if pieces:
                firsts.append(len(ids))
                kept.append((word, number, tag))
                ids += pieces
        if firsts:
            rows.append(([*ids, tokenizer.sep_id], firsts))
    return rows, kept


def _batches(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """Cut a list of sequences into runs of about `TOKENS` tokens."""
    cuts, tokens = [0], 0
    for place, length in enumerate(lengths):
        if tokens and tokens + length > TOKENS:
            cuts.append(place)
            tokens = 0
        tokens += length
    return list(zip(cuts, [*cuts[1:], len(lengths)], strict=True))


def length_tags(sentences: Sequence[Sequence[str]], kinds: int = 3) -> list[list[str]]:
    """Tag each word with how long its sentence is: the number of one of so many kinds.

    The kinds have about as many sentences each, from the shortest to the longest.

    Raises:
        ValueError: there are fewer than two kinds, or no sentence.
    """
    if kinds < 2:
        raise ValueError(f"kinds: expected 2 or more, got {kinds}")
    if not sentences:
        raise ValueError("sentences: expected at least one, got none")
    lengths = [len(words) for words in sentences]
    limits = np.quantile(lengths, np.arange(1, kinds) / kinds)
    kind_of = np.searchsorted(limits, lengths, side="left")
    return [[str(kind)] * length for kind, length in zip(kind_of, lengths, strict=True)]


def control_tags(words: Sequence[str], tags: Sequence[str], seed: int = 0) -> list[str]:
    """Give each word type one tag, drawn as often as the tags occur (Hewitt and Liang 2019).

    A type's tag follows from its letters, the tags and the seed: not from the other words.
    """
    return [random.Random(f"{seed} {word}").choice(tags) for word in words]


def probe_layers(found: WordStates, seed: int = 0, strength: float = 1.0) -> Probing:
    """Probe each layer for the words' tags, and for the control's.

    Args:
        found: of `word_states`.
        seed: decides which sentences are tested on, and the control's tags.
        strength: of scikit-learn's C: the smaller, the simpler the probe.

    Raises:
        ValueError: all the words learnt from have one tag, or no sentence is left to test on.
        ModuleNotFoundError: scikit-learn is not installed (extra report).
    """
    is_tested = _tested(found.sentences, seed)
    tags = np.array(found.tags)
    control = np.array(control_tags(found.words, found.tags, seed))
    learnt, tested = int((~is_tested).sum()), int(is_tested.sum())
    if not learnt or not tested or len(set(tags[~is_tested])) < 2:
        raise ValueError(
            "tags: expected sentences to learn two tags or more from, and others to test on, got "
            f"{len(set(tags[~is_tested]))} tags in {learnt} words, and {tested} to test on"
        )
    values, counts = np.unique(tags[~is_tested], return_counts=True)
    types = {word for word, tests in zip(found.words, is_tested, strict=True) if not tests}
    among = [word in types for word, tests in zip(found.words, is_tested, strict=True) if tests]
    probes = [
        Probe(
            layer,
            _accuracy(states, tags, is_tested, strength),
            _accuracy(states, control, is_tested, strength),
        )
        for layer, states in enumerate(found.states)
    ]
    majority = float((tags[is_tested] == values[counts.argmax()]).mean())
    return Probing(probes, majority, float(np.mean(among)), learnt, tested)


def _tested(sentences: Sequence[int], seed: int) -> Bool[np.ndarray, " words"]:
    """Say which words are of sentences that are tested on: a random share of them."""
    draws = {n: random.Random(f"{seed} {n}").random() for n in set(sentences)}
    return np.array([draws[number] < TESTED for number in sentences])


def _accuracy(
    states: Float[np.ndarray, "words hidden"],
    tags: Any,
    is_tested: Bool[np.ndarray, " words"],
    strength: float,
) -> float:
    """Learn the tags from some words' states, and return the share that is right of the others."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if len(set(tags[~is_tested])) == 1:  # a control whose draws are all the same
        return float((tags[is_tested] == tags[~is_tested][0]).mean())
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=2000))
    probe.fit(states[~is_tested], tags[~is_tested])
    return float(probe.score(states[is_tested], tags[is_tested]))


def draw_probes(probing: Probing, picture: Path, title: str = "Probes by layer") -> None:
    """Draw accuracy on the tags and on the control; what lies between them is the selectivity.

    Raises:
        ModuleNotFoundError: matplotlib is not installed (extra report).
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    figure: Any = Figure(figsize=(6.4, 4.2), layout="constrained")
    axis = figure.subplots()
    layers = [probe.layer for probe in probing.probes]
    right = np.array([probe.accuracy for probe in probing.probes])
    control = np.array([probe.control for probe in probing.probes])
    for color, where in (("#2f6db3", right >= control), ("#c0392b", right <= control)):
        axis.fill_between(
            layers,
            control,
            right,
            where=where,
            interpolate=True,
            color=color,
            alpha=0.12,
            linewidth=0,
        )
    axis.plot(layers, right, "o-", color="#2f6db3", label="tags")
    axis.plot(layers, control, "o-", color="#c0392b", label="control: a random tag a word type")
    axis.axhline(probing.majority, color="0.5", linestyle=":", label="the commonest tag")
    axis.set(title=title, xlabel="layer (0: embeddings)", ylabel="words right", xticks=layers)
    axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    figure.savefig(picture, dpi=150)
