"""Find the span of a context that answers a question (Devlin et al. 2018, sections 4.2 and 4.3).

The files are SQuAD's. A long context is cut into windows, and the best span of all of them is the
answer; finetune/questions has what all that takes.

The loss of a window is half the cross-entropy of the answer's first token plus half that of its
last, as in Hugging Face's BertForQuestionAnswering. The softmax goes over the window's tokens;
theirs goes over the padding of a padded batch too, which doesn't exist here.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int64
from torch import Tensor

from bert.attention_entropy import attention_entropy
from bert.config import BertConfig
from bert.finetuning import BertForQuestionAnswering
from bert.tokenization import Tokenizer
from bert.training.objective import Objective
from bert.training.throughput import training_operations
from finetune.batches import EVALUATION_TOKENS, ShuffledBatches
from finetune.config import Columns, FinetuneConfig
from finetune.evaluation.answers import Answered, Answers
from finetune.predictor import Predictor
from finetune.questions.metrics import AnswerScores, score_answers
from finetune.questions.rows import QuestionRows, read_questions
from finetune.questions.spans import Spans, find_spans
from finetune.questions.squad import Question
from finetune.questions.windows import SpanBatch, Windows, check_stride, cut_windows
from finetune.segments import segment_cross_entropy
from finetune.sequences import DIGITS, at_least_float32
from finetune.tables import Row
from finetune.task import Answer, Scores, Task
from finetune.token_logits import predict_token_logits


@dataclass(frozen=True)
class QuestionAnswering(Task[QuestionRows, Question]):
    """The span of a context that answers a question, or that there is none."""

    stride: int | None = None
    """Tokens that consecutive windows of a context share; None: a third of max_length."""
    longest_answer: int = 30
    """Tokens of an answer at most."""
    n_best: int = 20
    """Spans of a question that are compared when its answer's score is told."""
    null_threshold: float | None = None
    """How far, in logits, no answer must exceed the best span to be given; None: it never is."""

    model_class = BertForQuestionAnswering
    heads = ("qa_outputs",)
    metrics = ("f1", "exact")
    pipeline = "question-answering"

    def __post_init__(self) -> None:
        """Check the numbers."""
        self._require("stride", "0 or more", self.stride is None or self.stride >= 0)
        self._require("longest_answer", "1 or more", self.longest_answer >= 1)
        self._require("n_best", "1 or more", self.n_best >= 1)
        threshold = self.null_threshold
        self._require(
            "null_threshold", "a finite number", threshold is None or math.isfinite(threshold)
        )

    # --- to train ------------------------------------------------------------------------

    def read(
        self, path: Path, config: FinetuneConfig, tokenizer: Tokenizer, train: QuestionRows | None
    ) -> QuestionRows:
        """Read a file of SQuAD's; to learn from, the questions that can be."""
        for name, usual in (("class_names", None), ("columns", Columns())):
            if getattr(config, name) != usual:
                raise ValueError(
                    f"{name}: expected none for question-answering, got {getattr(config, name)}"
                )
        rows = read_questions(
            path,
            tokenizer,
            config.max_length,
            check_stride(self.stride, config.max_length),
            is_train=train is None,
            limit=config.train_rows if train is None else None,
        )
        if train is None and rows.unanswered and self.null_threshold is None:
            raise ValueError(
                "options: null_threshold: expected a number, such as 0, since "
                f"{rows.unanswered} questions of {path} have no answer, got None"
            )
        return rows

    def starts(self, path: Path, config: FinetuneConfig) -> list[int]:
        """Refuse: SQuAD's JSON isn't cut between lines."""
        raise ValueError(
            f"train_file: expected a file that can be cut between lines, got {path}, in SQuAD's "
            "JSON, whose questions depend on their contexts"
        )

    def head(self, encoder: BertConfig, train: QuestionRows) -> BertConfig:
        """Ask for the two logits of a token."""
        self.check_model(encoder)
        return encoder.with_labels(["start", "end"])

    def purpose(self, model: BertConfig) -> str:
        """Say that it answers, and when not."""
        silent = "" if self.null_threshold is None else ", or to say that there is none"
        return f"to find the answer to a question in a text{silent}"

    def when_long(self, max_length: int) -> str:
        """Say that a context is read in windows."""
        return f"A context is read in windows of {max_length} tokens."

    def objective(self, model: BertForQuestionAnswering, train: QuestionRows) -> "SpanObjective":
        """Return the model with the cross-entropy of both ends of the answer."""
        return SpanObjective(model)

    def batches(self, train: QuestionRows, config: FinetuneConfig) -> ShuffledBatches:
        """Return micro-batches of `batch_size` windows."""
        return ShuffledBatches(train, config.batch_size, config.seed)

    def evaluate(
        self,
        model: BertForQuestionAnswering,
        rows: QuestionRows,
        batch_tokens: int = EVALUATION_TOKENS,
    ) -> AnswerScores:
        """Answer the questions, and score the answers."""
        logits = predict_token_logits(model, rows.windows.tokens, batch_tokens)
        found = self._spans(logits, rows.windows)
        scores = score_answers(
            [
                spans.best[0].text(question.context) if spans.best else ""
                for spans, question in zip(found, rows.questions, strict=True)
            ],
            [[answer.text for answer in question.answers] for question in rows.questions],
            [spans.null_odds for spans in found],
            self.null_threshold,
        )
        return replace(scores, spans=found)

    def read_again(
        self,
        path: Path,
        columns: Columns,
        predictor: Predictor,
        change: Callable[[Row], Row] | None = None,
    ) -> QuestionRows:
        """Read a file of SQuAD's."""
        assert change is None
        if columns != Columns():
            raise ValueError(f"columns: expected none for question-answering, got {columns}")
        length = predictor.max_length
        stride = check_stride(self.stride, length)
        return read_questions(path, predictor.tokenizer, length, stride, is_train=False)

    def evidence(self, rows: QuestionRows, scores: Scores) -> Answers:
        """Return the answers."""
        assert isinstance(scores, AnswerScores)
        return Answers([
            self._answered(question, spans, exact, f1)
            for question, spans, (exact, f1) in zip(
                rows.questions, scores.spans, scores.each.tolist(), strict=True
            )
        ])  # fmt: skip

    def texts(self, rows: QuestionRows) -> Iterator[dict[str, Any]]:
        """Yield each question's id, and the texts."""
        for question in rows.questions:
            yield {"id": question.id, "question": question.text, "context": question.context}

    def _answered(self, question: Question, spans: Spans, exact: float, f1: float) -> Answered:
        is_null = spans.is_null(self.null_threshold)
        return Answered(
            gold=[answer.text for answer in question.answers],
            gold_spans=[(a.start, a.start + len(a.text)) for a in question.placed_answers],
            predicted="" if is_null else spans.best[0].text(question.context),
            span=None if is_null else (spans.best[0].start, spans.best[0].end),
            score=spans.probability(self.null_threshold),
            exact=exact,
            f1=f1,
        )

    # --- to predict ----------------------------------------------------------------------

    def check_model(self, model: BertConfig) -> None:
        """Refuse a model that can't tell a context from a question."""
        if model.type_vocab_size < 2:
            raise ValueError(
                "model: expected two segment types, for a question and its context, "
                f"got type_vocab_size {model.type_vocab_size}"
            )

    def parse(self, line: str | dict[str, Any]) -> Question:
        """Read a question and its context: with a TAB between them, or by these names."""
        if isinstance(line, str):
            texts: list[Any] = line.split("\t")
            if len(texts) != 2:
                raise ValueError(
                    f"expected a question and a context, with a TAB between, got {len(texts)}"
                )
        else:
            texts = [line.get("question"), line.get("context")]
        for name, text in zip(("question", "context"), texts, strict=True):
            if not isinstance(text, str):
                raise ValueError(f"{name}: expected a text, got {text!r:.60}")
        return Question("", *texts)

    def answer(self, predictor: Predictor, examples: Sequence[Question]) -> list[Answer]:
        """Answer questions; `start` and `end` are characters of the context."""
        stride = check_stride(self.stride, predictor.max_length)
        windows = cut_windows(examples, predictor.tokenizer, predictor.max_length, stride)
        predictor.full += windows.cut_questions
        with predictor.hardware.autocast():
            logits = predict_token_logits(predictor.model, windows.tokens, predictor.batch_tokens)
        is_finite = np.isfinite(logits)
        return [
            self._answer(spans, question)
            if all(is_finite[tokens].all() for tokens in parts)
            else predictor.NOT_FINITE
            for spans, question, parts in zip(
                self._spans(logits, windows), examples, windows.of_each_question(), strict=True
            )
        ]

    def _answer(self, spans: Spans, question: Question) -> dict[str, Any]:
        is_null = spans.is_null(self.null_threshold)
        # JSON has no infinity; a context without a token has no span.
        odds = round(spans.null_odds, DIGITS) if spans.best else None
        return {
            "answer": "" if is_null else spans.best[0].text(question.context),
            "score": round(spans.probability(self.null_threshold), DIGITS),
            "start": None if is_null else spans.best[0].start,
            "end": None if is_null else spans.best[0].end,
            **({} if self.null_threshold is None else {"null_odds": odds}),
        }

    def _spans(self, logits: Float[np.ndarray, "tokens 2"], windows: Windows) -> list[Spans]:
        """Find the best spans of each question."""
        return [
            find_spans(
                [(logits[tokens], windows.words[tokens]) for tokens in parts],
                self.n_best,
                self.longest_answer,
            )
            for parts in windows.of_each_question()
        ]


class SpanObjective(Objective[SpanBatch]):
    """Half the cross-entropy of each end of the answer, one term for each window."""

    def __init__(self, model: BertForQuestionAnswering) -> None:
        super().__init__()
        self.model = model

    def counts(self, batch: SpanBatch) -> dict[str, int]:
        """Return the number of windows."""
        return {"span": len(batch.targets)}

    def forward(
        self, batch: SpanBatch, dropout_seed: Int64[Tensor, ""]
    ) -> dict[str, Float[Tensor, ""]]:
        """Return the sum over the windows; float32 at least."""
        logits = at_least_float32(self.model.logits(batch.packed, dropout_seed))
        lengths = batch.packed.sequences.lengths
        start, end = (
            segment_cross_entropy(logits[:, side], lengths, batch.targets[:, side])
            for side in (0, 1)
        )
        return {"span": (start + end) / 2}

    def operations(self, batch: SpanBatch) -> int:
        """Count the matrix products."""
        lengths = batch.packed.sequences.lengths
        frozen = self.model.bert.frozen_layers
        return training_operations(
            self.model.config, lengths, token_classes=2, frozen_layers=frozen
        )

    def study(self, batch: SpanBatch) -> Mapping[str, Any]:
        """Measure how widely the heads look."""
        return attention_entropy(self.model.bert, batch.packed)
