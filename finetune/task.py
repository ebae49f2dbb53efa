"""What a task must offer so that run.py can learn it. finetune/classification.py is one to copy.

A task reads files into rows, says what head the model needs, trains it through the loop of
bert/training, and evaluates it on rows. run.py does the rest: checkpoints, the best weights,
reports, the saved model.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

from bert.config import BertConfig
from bert.tokenization import Tokenizer
from bert.training.objective import Batches, Objective
from finetune.config import FinetuneConfig


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
    """Micro-batches that go through the rows again and again."""

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


@runtime_checkable
class Scores(Protocol):
    """What an evaluation found."""

    @property
    def text(self) -> str:
        """A report to print."""
        ...

    def summary(self) -> dict[str, float]:
        """Return the numbers to log; one of them is the configuration's best_metric."""
        ...

    def as_json(self) -> Mapping[str, Any]:
        """Return all numbers."""
        ...


RowsT = TypeVar("RowsT", bound=Rows)


@runtime_checkable
class Task(Protocol[RowsT]):
    """A kind of problem. `read` and `head` make all checks of the data: before the first step."""

    @property
    def model_class(self) -> type[Any]:
        """The model with the head that the task trains."""
        ...

    @property
    def heads(self) -> tuple[str, ...]:
        """The parts of the model that are drawn anew, as bert/checkpoint.py calls them."""
        ...

    def read(
        self, path: Path, config: FinetuneConfig, tokenizer: Tokenizer, train: RowsT | None
    ) -> RowsT:
        """Read a file; `train` is None for the train file, and given for the others.

        Raises:
            ValueError: a row that the task can't take; the message names the file and the place.
        """
        ...

    def head(self, encoder: BertConfig, train: RowsT) -> BertConfig:
        """Return the encoder's configuration with the head that the rows need."""
        ...

    def objective(self, model: Any) -> Objective[Any]:
        """Return what the loop trains; it wraps `model` itself."""
        ...

    def batches(self, train: RowsT, config: FinetuneConfig) -> EpochBatches:
        """Return the micro-batches of training."""
        ...

    def evaluate(self, model: Any, rows: RowsT) -> Scores:
        """Score a model in evaluation mode; changes nothing."""
        ...
