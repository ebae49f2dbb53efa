"""What a fine-tuning run is told: one frozen dataclass that is also its command line.

Imports no torch, so that `--help` answers at once.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from bert.checked import Checked
from bert.config import PRESETS
from bert.training.config import TrainingConfig
from finetune import tasks

EPOCHS = 3.0
"""How long to train where neither epochs nor a budget is given (Devlin et al. 2018, A.3)."""

CONFIG_DEFAULTS = TrainingConfig(
    learning_rate=5e-5,
    warmup=0.1,
    eps=1e-6,
    weight_decay=0.01,
    max_grad_norm=1.0,
    checkpoint_every="10min",
    keep_checkpoints=1,
)
"""How to train where nothing else is said: Devlin et al. 2018, A.3, the highest of their rates.

Their rates are for 110 million parameters and more; a tiny BERT learns best from 1e-4 to 3e-4
(Turc et al. 2019, table 5).
"""


@dataclass(frozen=True)
class Columns:
    """Which columns of the files hold what; None: the usual names are looked for."""

    text_a: str | None = None
    """The text, or the first one of a pair; usual: text, text_a, sentence, sentence1, premise."""
    text_b: str | None = None
    """The second text of a pair, looked for only where text_a is too; usual: text_b, sentence2."""
    label: str | None = None
    """The class; usual: label, labels, class, target."""


@dataclass(frozen=True)
class FinetuneConfig(Checked):
    """Fine-tune a BERT on labelled texts, and test it.

    Raises:
        ValueError: a field is out of its range; the message names it.
    """

    model: str
    """Directory of a pretrained model; or a preset (tiny … large) or a config.json, to draw."""
    train_file: Path
    """Labelled rows to learn from, in a file as the task takes it, packed as .xz or .gz or not."""
    out: Path
    """Directory of the run: configuration, log, checkpoints, reports, and the model."""
    validation_file: Path | None = None
    """Labelled rows, looked at after each epoch or training.evaluate_every, to keep the best."""
    test_file: Path | None = None
    """Labelled rows for the report at the end."""
    train_rows: int | None = None
    """Learn from this many rows of the train file, its first ones; None: from all."""
    task: str = "classification"
    """What to learn, a file of finetune/tasks: classification, a class of each text or pair of
    texts; multi-label, several; regression, a number; multiple-choice, which of some texts: all
    from .tsv, .csv or .jsonl. token-classification, entities: CoNLL's columns, or .jsonl with
    lists of words and tags. question-answering, the part of a text that answers: SQuAD's .json."""
    options: tuple[str, ...] = ()
    """Options of the task, NAME=VALUE, such as class_weights=balanced or resample=true; what is
    none of them is refused with a list of them."""
    tokenizer: Path | None = None
    """Directory or file of the tokenizer; None: the model's own."""
    from_scratch: bool = False
    """Take only the model directory's configuration and tokenizer, and draw all weights."""
    redrawn_layers: int = 0
    """Upper layers to draw anew, and the pooler with them (Zhang et al. 2021, section 5)."""
    frozen_layers: int | Literal["all"] | None = None
    """Lowest layers to leave as they are, and the embeddings with them, though they still drop;
    0: the embeddings alone; all: each layer that isn't drawn anew; None: train everything."""
    dropout: float | None = None
    """All dropout probabilities of the model; None: the model's own."""
    columns: Columns = Columns()
    """Which columns of the files hold what."""
    class_names: tuple[str, ...] | None = None
    """Names of classes 0, 1, …; None: the train file's labels, in order."""
    max_length: int = 128
    """Tokens of a row, [CLS] and [SEP] too; what is longer is cut."""
    batch_size: int = 32
    """Rows in a micro-batch."""
    epochs: float | None = None
    """Passes over the train file; None: as long as training.budget says, else 3."""
    best_metric: str | None = None
    """Metric on the validation file whose best value picks the checkpoint, the first of equals;
    None: the task's first, accuracy in classification."""
    patience: int | None = None
    """End the run after so many evaluations in a row without a better best_metric; the learning
    rate falls as if it went on. None: never."""
    seed: int = 0
    """Seed of the drawn weights, of the order of the rows, and of dropout."""
    training: TrainingConfig = CONFIG_DEFAULTS
    """How to train."""
    resume: str = "auto"
    """auto: go on with the run in `out`, if there is one; none: begin anew; or a checkpoint."""
    overwrite: bool = False
    """Let a fresh start delete the run that is in `out`."""
    dry_run: bool = False
    """Only print the configuration, the size of the model, and estimates of memory and time."""

    def __post_init__(self) -> None:
        """Check what can be checked without a file, and name what is wrong."""
        known = tasks.names()
        self._require("task", f"one of {', '.join(known)}", self.task in known)
        self._require("max_length", "8 tokens or more", self.max_length >= 8)
        self._require("batch_size", "1 or more", self.batch_size >= 1)
        self._require("train_rows", "1 or more", self.train_rows is None or self.train_rows >= 1)
        self._require("redrawn_layers", "0 or more", self.redrawn_layers >= 0)
        frozen = self.frozen_layers
        is_count = frozen is None or (isinstance(frozen, int) and frozen >= 0)
        self._require("frozen_layers", "0 or more, all, or None", is_count or frozen == "all")
        if self.draws_weights:
            self._require(
                "redrawn_layers", "0, since all weights are drawn", self.redrawn_layers == 0
            )
            self._require("frozen_layers", "None, since all weights are drawn", frozen is None)
        self._require("patience", "1 or more", self.patience is None or self.patience >= 1)
        self._require(
            "patience",
            "None, since there is no validation_file to evaluate on",
            self.patience is None or self.validation_file is not None,
        )
        in_range = self.dropout is None or 0 <= self.dropout < 1
        self._require("dropout", "a probability in [0, 1)", in_range)
        self._require("seed", "0 or more, below 2**63", 0 <= self.seed < 2**63)
        if self.epochs is not None:
            self._require("epochs", "a positive number", 0 < self.epochs < float("inf"))
            if self.training.budget is not None:
                raise ValueError("epochs: expected either epochs or training.budget, got both")
        if self.training.seed not in (0, self.seed):
            raise ValueError(
                f"training.seed: expected none, since seed sets it, got {self.training.seed}"
            )
        if self.class_names is not None:
            self._require("class_names", "2 or more", len(self.class_names) >= 2)
            self._require(
                "class_names",
                "names that differ and aren't empty",
                len({name for name in self.class_names if name}) == len(self.class_names),
            )
        if self.tokenizer is None and (self.is_preset or Path(self.model).is_file()):
            raise ValueError(
                f"tokenizer: expected a directory, since {self.model} has none, got None"
            )

    @property
    def is_preset(self) -> bool:
        """Whether `model` names a size; a directory of that name is written ./tiny."""
        return self.model in PRESETS

    @property
    def draws_weights(self) -> bool:
        """Whether the weights are drawn, and not those of a directory."""
        return self.is_preset or self.from_scratch or Path(self.model).is_file()

    def resolved(self, micro_batches_per_epoch: int) -> "FinetuneConfig":
        """Return the configuration with nothing left to guess, given the train file's size.

        A resolved configuration resolves to itself.
        """
        training = replace(self.training, seed=self.seed)
        steps_per_epoch = micro_batches_per_epoch / training.accumulation
        if training.budget is None:
            steps = max(1, math.ceil((self.epochs or EPOCHS) * steps_per_epoch))
            training = replace(training, budget=str(steps))
        if self.validation_file is not None and training.evaluate_every is None:
            training = replace(training, evaluate_every=str(max(1, round(steps_per_epoch))))
        return replace(self, training=training, epochs=None)
