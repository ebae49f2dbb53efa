"""Find the entities of a text: a tag for each word (Devlin et al. 2018, section 5.3)."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from bert.attention_entropy import attention_entropy
from bert.config import BertConfig
from bert.finetuning import BertForTokenClassification
from bert.text import TextReport
from bert.tokenization import Tokenizer
from bert.training.objective import Objective
from finetune.batches import EVALUATION_TOKENS, ShuffledBatches, TokenRows
from finetune.config import Columns, FinetuneConfig
from finetune.data import LabelledBatch
from finetune.entities.conll import WORD_KEYS, list_of_texts, read_sentences
from finetune.entities.iob import repair, spans
from finetune.entities.rows import UNLABELLED, TaggedRows, read_tagged
from finetune.entities.scores import EntityScores, score_tags
from finetune.entities.words import Window, encode_text, encode_words
from finetune.evaluation.entities import Entities
from finetune.metrics import cross_entropies, require_seqeval
from finetune.predictor import Predictor
from finetune.sequences import DIGITS, at_least_float32
from finetune.tables import Row
from finetune.task import Answer, Scores, Task
from finetune.token_logits import predict_token_logits

Words = str | list[str]
"""A text, whose words are BERT's; or its words."""


@dataclass(frozen=True)
class TokenClassification(Task[TaggedRows, Words]):
    """Entities, as tags of words in IOB2: iob.py, conll.py and words.py say how."""

    word_column: int = 0
    """Column of the words in a CoNLL file, from 0; -1 is the last."""
    tag_column: int = -1
    """Column of the tags."""

    model_class = BertForTokenClassification
    metrics = ("f1", "macro_f1", "accuracy")
    pipeline = "token-classification"

    def read(
        self,
        path: Path,
        config: FinetuneConfig,
        tokenizer: Tokenizer,
        train: TaggedRows | None,
    ) -> TaggedRows:
        """Read a file of tagged sentences; the train file gives the types of entities."""
        types = config.class_names if train is None else _types(train.tag_names)
        limit = config.train_rows if train is None else None
        rows = self._read(path, config.columns, tokenizer, config.max_length, types, limit)
        absent = [name for name, count in rows.entities.items() if count == 0]
        if train is None and absent:
            raise ValueError(f"{path}: expected entities of type {absent[0]!r}, got none")
        return rows

    def starts(self, path: Path, config: FinetuneConfig) -> list[int]:
        """Return the line in which each sentence starts."""
        columns = (config.columns, self.word_column, self.tag_column)
        return [sentence.lines[0] for sentence in read_sentences(path, *columns, TextReport())]

    def read_again(
        self,
        path: Path,
        columns: Columns,
        predictor: Predictor,
        change: Callable[[Row], Row] | None = None,
    ) -> TaggedRows:
        """Read a file whose entities are of the model's types."""
        assert change is None
        types = _types(tuple(predictor.model.config.id2label.values()))
        return self._read(path, columns, predictor.tokenizer, predictor.max_length, types)

    def _read(
        self,
        path: Path,
        columns: Columns,
        tokenizer: Tokenizer,
        max_length: int,
        types: Sequence[str] | None,
        limit: int | None = None,
    ) -> TaggedRows:
        sentences = read_sentences(
            path, columns, self.word_column, self.tag_column, tokenizer.report
        )
        rows = read_tagged(path, sentences, tokenizer, max_length, types, limit)
        if not any(rows.entities.values()):
            raise ValueError(f"{path}: expected entities, got none")
        return rows

    def head(self, encoder: BertConfig, train: TaggedRows) -> BertConfig:
        """Name the tags in the configuration."""
        return encoder.with_labels(list(train.tag_names))

    def purpose(self, model: BertConfig) -> str:
        """Name the types, and what is done to the tags."""
        types = ", ".join(_types(tuple(model.id2label.values())))
        return (
            f"to find entities: {types}. A word's tag is that of its first piece, and an I- tag "
            "that goes on with no entity of its type is read as B-"
        )

    def when_long(self, max_length: int) -> str:
        """Say that a sentence is split."""
        return f"A sentence of more than {max_length} tokens is split between words."

    def objective(
        self, model: BertForTokenClassification, train: TaggedRows
    ) -> "TaggingObjective":
        """Return the model with the cross-entropy of the true tag, a term for each word."""
        return TaggingObjective(model)

    def batches(self, train: TaggedRows, config: FinetuneConfig) -> ShuffledBatches:
        """Return micro-batches of `batch_size` rows."""
        return ShuffledBatches(train, config.batch_size, config.seed)

    def evaluate(
        self,
        model: BertForTokenClassification,
        rows: TaggedRows,
        batch_tokens: int = EVALUATION_TOKENS,
    ) -> EntityScores:
        """Score the predicted entities of whole sentences."""
        logits = predict_token_logits(model, rows.tokens, batch_tokens)
        labelled = rows.labels != UNLABELLED
        losses = np.zeros(len(rows.labels))
        losses[labelled] = cross_entropies(logits[labelled], rows.labels[labelled])
        best = logits.argmax(-1)
        found = [
            [rows.tag_names[best[place]] if place >= 0 else "O" for place in places]
            for places in rows.places
        ]
        scores = score_tags(found, rows.gold_tags, float(losses[labelled].mean()))
        of_sentences = [losses[[p for p in row if p >= 0]].sum() for row in rows.places]
        return replace(scores, losses=np.array(of_sentences))

    def evidence(self, rows: TaggedRows, scores: Scores) -> Entities:
        """Return the tags."""
        assert isinstance(scores, EntityScores) and scores.losses is not None
        labelled = np.array([sum(place >= 0 for place in row) for row in rows.places])
        return Entities(rows.gold_tags, scores.tags, labelled, scores.losses)

    def texts(self, rows: TaggedRows) -> Iterator[dict[str, Any]]:
        """Yield each sentence's first line, and its words."""
        for line, words in zip(rows.first_lines, rows.words, strict=True):
            yield {"line": line, "words": words}

    def require_libraries(self) -> None:
        """Look for seqeval, which knows entities."""
        require_seqeval()

    def check_model(self, model: BertConfig) -> None:
        """Refuse a model whose labels aren't tags."""
        names = list(model.id2label.values())
        if "O" not in names or not all(n == "O" or n[:2] in ("B-", "I-") for n in names):
            raise ValueError(f"model: expected labels O, B-TYPE and I-TYPE, got {names!r:.80}")

    def parse(self, line: str | dict[str, Any]) -> Words:
        """Read a text, or an object with `text`, or with a list of words as `tokens`."""
        if isinstance(line, str):
            return line
        if isinstance(line.get("text"), str):
            return line["text"]
        names = ("text", *WORD_KEYS)
        found = [name for name in names if name in line]
        if len(found) != 1 or found == ["text"]:
            raise ValueError(f"expected a text as text, or a list as {' or '.join(WORD_KEYS)}")
        return list_of_texts(line[found[0]], found[0])

    def answer(self, predictor: Predictor, examples: Sequence[Words]) -> list[Answer]:
        """Give each row's entities; where it is a text, in its characters, else in its words."""
        windows, places = _encode(predictor, examples)
        rows = TokenRows.from_encodings(window for row in windows for window in row)
        with predictor.hardware.autocast():
            logits = predict_token_logits(predictor.model, rows, predictor.batch_tokens)
        names = list(predictor.model.config.id2label.values())
        answers: list[Answer] = []
        begin = 0
        for example, parts, ends in zip(examples, windows, places, strict=True):
            size = sum(len(part.ids) for part in parts)
            probabilities = _softmax(logits[begin : begin + size].astype(np.float64))
            begin += size
            if not np.isfinite(probabilities).all():
                answers.append(predictor.NOT_FINITE)
            else:
                answers.append({"entities": _entities(example, parts, ends, probabilities, names)})
        return answers


class TaggingObjective(Objective[LabelledBatch]):
    """Cross-entropy of the true tag, one term for each word that has a piece."""

    def __init__(self, model: BertForTokenClassification) -> None:
        super().__init__()
        self.model = model

    def counts(self, batch: LabelledBatch) -> dict[str, int]:
        """Return the number of labelled tokens."""
        return {"cross_entropy": int((batch.labels != UNLABELLED).sum())}

    def forward(
        self, batch: LabelledBatch, dropout_seed: Int64[Tensor, ""]
    ) -> dict[str, Float[Tensor, ""]]:
        """Return the sum over the labelled tokens; float32 at least."""
        logits = at_least_float32(self.model.logits(batch.packed, dropout_seed))
        loss = F.cross_entropy(logits, batch.labels, ignore_index=UNLABELLED, reduction="sum")
        return {"cross_entropy": loss}

    def study(self, batch: LabelledBatch) -> Mapping[str, Any]:
        """Measure how widely the heads look."""
        return attention_entropy(self.model.bert, batch.packed)


# --- prediction ------------------------------------------------------------------------------


def _encode(
    predictor: Predictor, examples: Sequence[Words]
) -> tuple[list[list[Window]], list[list[tuple[int, int]]]]:
    """Cut rows into windows; say where the words of each are, in characters or in words."""
    windows: list[list[Window]] = [[] for _ in examples]
    places: list[list[tuple[int, int]]] = [[] for _ in examples]
    texts = [i for i, example in enumerate(examples) if isinstance(example, str)]
    lists = [i for i, example in enumerate(examples) if not isinstance(example, str)]
    of_texts = encode_text(
        predictor.tokenizer, [str(examples[i]) for i in texts], predictor.max_length
    )
    for i, found in zip(texts, of_texts, strict=True):
        windows[i], places[i] = found
    words = [list(examples[i]) for i in lists]
    of_words = encode_words(predictor.tokenizer, words, predictor.max_length)
    for i, parts in zip(lists, of_words, strict=True):
        windows[i], places[i] = parts, [(n, n + 1) for n in range(len(examples[i]))]
    return windows, places


def _entities(
    example: Words,
    windows: list[Window],
    places: list[tuple[int, int]],
    probabilities: Float[np.ndarray, "tokens labels"],
    names: list[str],
) -> list[dict[str, Any]]:
    """List a row's entities; the score is the mean probability of its words' tags."""
    tags, scores = ["O"] * len(places), [1.0] * len(places)
    begin = 0
    for window in windows:
        for word, first in zip(window.words, window.firsts, strict=True):
            row = probabilities[begin + first]
            tags[word], scores[word] = names[int(row.argmax())], float(row.max())
        begin += len(window.ids)
    found = []
    for kind, first, end in spans(repair(tags)[0]):
        start, stop = places[first][0], places[end - 1][1]
        part = example[start:stop]
        text = part if isinstance(part, str) else " ".join(part)
        score = round(float(np.mean(scores[first:end])), DIGITS)
        found.append({"type": kind, "text": text, "start": start, "end": stop, "score": score})
    return found


def _softmax(logits: Float[np.ndarray, "tokens labels"]) -> Float[np.ndarray, "tokens labels"]:
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def _types(tag_names: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(name[2:] for name in tag_names if name != "O"))
