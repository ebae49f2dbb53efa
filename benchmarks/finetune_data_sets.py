"""The data sets of the fine-tuning table, and what `bert finetune` is told of each.

Rows, epochs and lengths are as few as a CPU needs them to be; more would score better. Dropout is
0 on both sides, since two libraries can't draw the same: then nothing but rounding tells the sides
apart.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bert.command import command_line
from finetune.config import CONFIG_DEFAULTS, Columns, FinetuneConfig


@dataclass(frozen=True)
class DataSet:
    """A train and a test file, and how to learn from the one for the other."""

    name: str
    task: str
    metrics: tuple[str, ...]
    """Of the task's scores, those that are compared."""
    train: str
    """A file of the collection, and so is `test`."""
    test: str
    epochs: float
    train_rows: int | None = None
    max_length: int = 128
    batch_size: int = 16
    learning_rate: float = 1e-4
    columns: Columns = Columns()
    floor: float | None = None
    """What logistic regression on a bag of words reaches, where that was measured."""


def _texts(name: str, metric: str = "accuracy", test: str = "test", **given: Any) -> DataSet:
    files = f"{name}/train.tsv.xz", f"{name}/{test}.tsv.xz"
    return DataSet(name, "classification", (metric,), *files, **given)


def _entities(name: str, epochs: float) -> DataSet:
    files = f"{name}/train.jsonl.xz", f"{name}/test.jsonl.xz"
    return DataSet(name, "token-classification", ("f1",), *files, epochs)


def _questions(name: str, train: str, test: str, **given: Any) -> DataSet:
    metrics = ("f1", "exact")
    return DataSet(name, "question-answering", metrics, train, test, 1, max_length=256, **given)


DATA_SETS = (
    _texts("sst2", train_rows=3000, epochs=1, floor=0.824),
    _texts("mr", train_rows=3000, epochs=1, floor=0.777),
    _texts("imdb", max_length=256, epochs=1, floor=0.857),
    _texts("trec6", epochs=1, floor=0.802),
    _texts("cola", metric="mcc", epochs=1),
    _texts("rte", test="validation", epochs=1),
    DataSet(
        name="stsb",
        task="regression",
        metrics=("spearman",),
        train="stsb/train.tsv.xz",
        test="stsb/test.tsv.xz",
        epochs=1,
        columns=Columns(label="score"),
    ),
    _entities("wnut17", epochs=2),
    _entities("uner_ewt", epochs=3),
    _questions("policyqa", "policyqa/train.json.xz", "policyqa/test.json.xz", train_rows=1000),
    _questions("parasquad", "parasquad/train.json.xz", "xquad/xquad.en.json.xz"),
    DataSet(
        name="copa_balanced",
        task="multiple-choice",
        metrics=("accuracy",),
        train="copa_balanced/train.jsonl.xz",
        test="copa_balanced/validation.jsonl.xz",
        epochs=2,
    ),
)


def configure(data_set: DataSet, seed: int, model: str, data: Path, out: Path) -> FinetuneConfig:
    """Return what `bert finetune` is told.

    Args:
        data_set: one of the table's.
        seed: of the head and of the order of the rows.
        model: the directory of the weights to begin from.
        data: the collection's directory.
        out: the run's.
    """
    return FinetuneConfig(
        model=model,
        train_file=data / data_set.train,
        out=out,
        test_file=data / data_set.test,
        train_rows=data_set.train_rows,
        task=data_set.task,
        dropout=0.0,
        columns=data_set.columns,
        max_length=data_set.max_length,
        batch_size=data_set.batch_size,
        epochs=data_set.epochs,
        seed=seed,
        training=replace(
            CONFIG_DEFAULTS,
            learning_rate=data_set.learning_rate,
            precision="float32",
            device="cpu",
            checkpoint_every=None,
        ),
    )


def command(data_set: DataSet, seed: int) -> str:
    """Return the command of our side, with names in place of directories."""
    config = configure(data_set, seed, "MINILM", Path("DATA"), Path("OUT"))
    return command_line("bert finetune", config)
