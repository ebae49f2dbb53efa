"""What a task must offer so that run.py can learn it, and `bert predict` use what was learned.

A task reads files into rows, says what head the model needs, trains it through the loop of
bert/training, evaluates it on rows, and answers questions with it. run.py does the rest:
checkpoints, the best weights, reports, the saved model. finetune/tasks/classification.py is one
to copy; finetune/tasks/__init__.py finds it by the name of its file.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar, runtime_checkable

from bert.checked import Checked
from bert.config import BertConfig
from bert.text import TextReport
from bert.tokenization import Tokenizer
from bert.training.objective import Batches, Objective
from finetune.batches import EVALUATION_TOKENS
from finetune.config import Columns, FinetuneConfig
from finetune.evaluation.evidence import Evidence
from finetune.evaluation.report import write_evaluation
from finetune.metrics import Scores, require_scikit_learn
from finetune.tables import Row, records

if TYPE_CHECKING:
    from finetune.predictor import Predictor

Answer = dict[str, Any] | str
"""What `bert predict` prints of a row, as JSON; or, in words, why there is nothing to print."""


@runtime_checkable
class Rows(Protocol):
    """A file of examples, tokenized and in memory."""

    def __len__(self) -> int: ...

    def __str__(self) -> str:
        """Say in a line what a user wants to know of the file."""
        ...

    def sha256(self) -> str:
        """Return a hash of all that training or testing sees."""
        ...

    def describe(self) -> dict[str, Any]:
        """Return the same as JSON; `file`, `rows` and `sha256` are among it."""
        ...


@runtime_checkable
class EpochBatches(Batches[Any], Protocol):
    """Micro-batches that go through the rows again and again; ShuffledBatches is one."""

    @property
    def per_epoch(self) -> int:
        """Micro-batches in one pass."""
        ...

    @property
    def mean_tokens(self) -> float:
        """Tokens of a micro-batch, on average."""
        ...

    @property
    def mean_length(self) -> float:
        """Tokens of a sequence, on average."""
        ...


RowsT = TypeVar("RowsT", bound=Rows)
ExampleT = TypeVar("ExampleT")


@dataclass(frozen=True)
class Task(Checked, ABC, Generic[RowsT, ExampleT]):
    """A kind of problem: a frozen dataclass, whose fields are its options, NAME=VALUE.

    `RowsT` is a file's rows, `ExampleT` a row of the input of `bert predict`. The model's
    directory keeps the options, so that `answer` has them when it is used.
    """

    model_class: ClassVar[type[Any]]
    """The model with the head that the task trains."""
    heads: ClassVar[tuple[str, ...]] = ("classifier",)
    """The parts of the model that are drawn anew, as bert/checkpoint.py calls them."""
    metrics: ClassVar[tuple[str, ...]]
    """What best_metric may be, the usual one first; of each the greater is the better."""
    pipeline: ClassVar[str]
    """What Hugging Face calls the task, as `pipeline(...)` takes it."""
    takes_noise: ClassVar[bool] = False
    """Whether `read_again` can put noise into the texts: no label is tied to a place in one."""

    # --- to train ------------------------------------------------------------------------

    @abstractmethod
    def read(
        self, path: Path, config: FinetuneConfig, tokenizer: Tokenizer, train: RowsT | None
    ) -> RowsT:
        """Read a file; `train` is None for the train file, and given for the others.

        Here and in `head` are all checks of the data: before the first step.

        Raises:
            ValueError: a row that the task can't take; the message names the file and the place.
        """

    def starts(self, path: Path, config: FinetuneConfig) -> list[int]:
        """Return the line, from 1, in which each row of a file starts: where it can be cut.

        Raises:
            ValueError: the file can't be read, or not be cut between lines.
        """
        return [line for line, _ in records(path, TextReport())]

    @abstractmethod
    def head(self, encoder: BertConfig, train: RowsT) -> BertConfig:
        """Return the encoder's configuration with the head that the rows need."""

    def facts(self, train: RowsT) -> dict[str, Any]:
        """Return what else of the train file the model's configuration is to keep, as JSON."""
        return {}

    @abstractmethod
    def purpose(self, model: BertConfig) -> str:
        """Say what the model was trained to do, after "fine-tuned with plainbert "."""

    @abstractmethod
    def objective(self, model: Any, train: RowsT) -> Objective[Any]:
        """Return what the loop trains, on these rows; it wraps `model` itself."""

    @abstractmethod
    def batches(self, train: RowsT, config: FinetuneConfig) -> EpochBatches:
        """Return the micro-batches of training."""

    @abstractmethod
    def evaluate(self, model: Any, rows: RowsT, batch_tokens: int = EVALUATION_TOKENS) -> Scores:
        """Score a model in evaluation mode, so many tokens at a time; changes nothing."""

    # --- to look at what was evaluated ---------------------------------------------------

    def read_again(
        self,
        path: Path,
        columns: Columns,
        predictor: "Predictor",
        change: Callable[[Row], Row] | None = None,
    ) -> RowsT:
        """Read a file to test a saved model on; its labels are the model's.

        Args:
            path: see `read`.
            columns: which columns of the file hold what.
            predictor: the model, with its tokenizer and the tokens of a row.
            change: what each row goes through first, where the task takes noise; None: nothing.

        Raises:
            ValueError: as `read` does; or the task has no use for a saved model's test.
        """
        raise ValueError(f"model: expected a task that can be tested, got {type(self).__name__}")

    def evidence(self, rows: RowsT, scores: Scores) -> Evidence | None:
        """Return the answers that `evaluate` has scored, for reports and pages; None: nothing."""
        return None

    def texts(self, rows: RowsT) -> Iterator[Mapping[str, Any]]:
        """Yield each row's place in the file and its texts, by name, for its record."""
        return iter(())

    def keep(self, directory: Path, rows: RowsT, scores: Scores, about: Mapping[str, Any]) -> str:
        """Leave in a directory what there is to see besides the scores; nothing, where none is.

        Args:
            directory: made where something is left.
            rows: what was evaluated.
            scores: what `evaluate` returned of them.
            about: `Rows.describe` of the rows, from before the first step.

        Returns:
            What the report says after the scores' text.
        """
        evidence = self.evidence(rows, scores)
        if evidence is None:
            return ""
        return write_evaluation(directory, scores, evidence, self.texts(rows), about).sureness

    def when_long(self, max_length: int) -> str:
        """Say in a sentence of the model's card what is done with a row of more tokens."""
        return f"A row is cut to {max_length} tokens."

    def require_libraries(self) -> None:
        """Look for what `evaluate` needs: before the first step.

        Raises:
            ModuleNotFoundError: it is missing; the message names the extra.
        """
        require_scikit_learn()

    # --- to predict ----------------------------------------------------------------------

    def check_model(self, model: BertConfig) -> None:  # noqa: B027 - most models will do
        """Refuse a model that the task can't be done with.

        Raises:
            ValueError: the message begins with "model: ".
        """

    @abstractmethod
    def parse(self, line: str | dict[str, Any]) -> ExampleT:
        """Read a row: a line of text without its end, or (--format jsonl) an object.

        Raises:
            ValueError: it is none of the task's; in words that tell what was expected.
        """

    @abstractmethod
    def answer(self, predictor: "Predictor", examples: Sequence[ExampleT]) -> list[Answer]:
        """Answer the rows, in their order; add those that were cut to `predictor.full`."""
