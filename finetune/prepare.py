"""All that a run needs before its first step: read, checked, and nothing left to guess."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bert.architectures import ARCHITECTURES
from bert.checkpoint import load_with_report, model_directory
from bert.config import BertConfig
from bert.encoder import Layer
from bert.model import Bert, init_weights
from bert.text import odd_things
from bert.tokenization import Tokenizer
from bert.training.hardware import Hardware
from bert.training.progress import say
from bert.training.state import state_tensors
from finetune import tasks
from finetune.best import hash_tensors
from finetune.config import FinetuneConfig
from finetune.task import EpochBatches, Task

# The fields of BertConfig that a task sets.
OF_THE_TASK = ("id2label", "problem_type", "finetuning_task", "task_specific_params")


@dataclass(frozen=True)
class Prepared:
    """A run that is ready to begin; its model's weights are not read yet."""

    task: Task[Any, Any]
    config: FinetuneConfig
    """Resolved."""
    tokenizer: Tokenizer
    rows: dict[str, Any]
    """train; validation and test where there are such files."""
    data: dict[str, dict[str, Any]]
    """A description of each."""
    batches: EpochBatches
    encoder: BertConfig
    """With the head."""

    def build_model(self, hardware: Hardware) -> Any:
        """Draw the model, or read its encoder and draw its head; on the CPU, in training mode."""
        kernels = hardware.kernels
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed)
            if self.config.draws_weights:
                return self.task.model_class(self.encoder, kernels)
            model, report = load_with_report(
                self.config.model,
                self.task.model_class,
                # What an earlier task taught its head is of no use to this one.
                new=self.task.heads,
                kernels=kernels,
                **_changes(self.config),
                **{name: getattr(self.encoder, name) for name in OF_THE_TASK},
            )
            self._redraw(model.bert)
            self.freeze(model.bert)
        for line in report.warnings:
            say(line)
        return model.train()

    def _redraw(self, bert: Bert) -> None:
        """Draw the upper layers and the pooler anew: they served the pretraining's tasks."""
        count = self.config.redrawn_layers
        if count == 0:
            return
        layers = bert.encoder.layers
        for index in range(len(layers) - count, len(layers)):
            layers[index] = Layer(bert.config, bert.kernels, index)
            init_weights(layers[index], bert.config)
        if bert.pooler is not None:
            init_weights(bert.pooler, bert.config)

    def freeze(self, bert: Bert) -> None:
        """Freeze what is not to be trained."""
        if (count := self.config.frozen_layers) is not None:
            assert isinstance(count, int)  # resolved
            bert.freeze(count)

    def identity(self, model: nn.Module) -> dict[str, Any]:
        """Return what may not change when the run is resumed, as JSON."""
        return {
            "task": self.config.task,
            "options": asdict(self.task),
            "model": self.encoder.to_dict(ARCHITECTURES[self.task.model_class]),
            "initial_weights": hash_tensors(state_tensors(model)),
            "tokenizer": self.tokenizer.sha256,
            "batch_size": self.config.batch_size,
            "best_metric": self.config.best_metric,
            "frozen_layers": self.config.frozen_layers,
            **{purpose: rows.sha256() for purpose, rows in self.rows.items() if purpose != "test"},
        }

    def describe(self, hardware: Hardware) -> list[str]:
        """Say in lines what was read, and what it will run on."""
        threads = self.config.training.threads or torch.get_num_threads()
        lines = [
            f"on {hardware.device}, {hardware.precision} ({hardware.reason}), "
            f"kernels {hardware.kernels.name}, {threads} CPU threads"
        ]
        lines += [f"{purpose}: {rows}" for purpose, rows in self.rows.items()]
        if (count := self.config.frozen_layers) is not None:
            layers = self.encoder.num_hidden_layers
            lines.append(f"frozen: the embeddings and the lowest {count} of {layers} layers")
        lines += odd_things(vars(self.tokenizer.report))
        return lines


def prepare(config: FinetuneConfig) -> Prepared:
    """Read the tokenizer, the files and the model's configuration, and hold them together.

    Raises:
        ValueError: they don't fit; the message names the field, or the file and the place in it.
    """
    task = tasks.configured(config.task, config.options)
    config = replace(config, best_metric=_best_metric(config, task))
    encoder = _encoder(config)
    tokenizer = Tokenizer.load(config.tokenizer or _directory(config.model))
    if config.is_preset:
        encoder = replace(encoder, vocab_size=tokenizer.vocab_size, pad_token_id=tokenizer.pad_id)
    if tokenizer.vocab_size > encoder.vocab_size:
        raise ValueError(
            f"tokenizer: expected at most the model's {encoder.vocab_size} tokens (vocab_size), "
            f"got {tokenizer.vocab_size}"
        )
    if config.max_length > encoder.max_position_embeddings:
        raise ValueError(
            f"max_length: expected at most {encoder.max_position_embeddings}, the longest that "
            f"the model can take (max_position_embeddings), got {config.max_length}"
        )
    if config.redrawn_layers > encoder.num_hidden_layers:
        raise ValueError(
            f"redrawn_layers: expected at most the model's {encoder.num_hidden_layers} layers, "
            f"got {config.redrawn_layers}"
        )
    config = replace(config, frozen_layers=_frozen_layers(config, encoder))
    train = task.read(config.train_file, config, tokenizer, None)
    rows = {"train": train}
    for purpose, path in (("validation", config.validation_file), ("test", config.test_file)):
        if path is not None:
            rows[purpose] = task.read(path, config, tokenizer, train)
    batches = task.batches(train, config)
    return Prepared(
        task,
        config.resolved(batches.per_epoch),
        tokenizer,
        rows,
        {purpose: values.describe() for purpose, values in rows.items()},
        batches,
        replace(task.head(encoder, train), **tasks.state(config.task, task, task.facts(train))),
    )


def _best_metric(config: FinetuneConfig, task: Task[Any, Any]) -> str:
    """Return the metric that picks the checkpoint, which the task must have."""
    chosen = config.best_metric or task.metrics[0]
    if chosen not in task.metrics:
        raise ValueError(
            f"best_metric: expected one of {', '.join(task.metrics)}, those of {config.task}, "
            f"got {chosen!r}"
        )
    return chosen


def _frozen_layers(config: FinetuneConfig, encoder: BertConfig) -> int | None:
    """Return how many layers are frozen; None: not even the embeddings."""
    most = encoder.num_hidden_layers - config.redrawn_layers
    chosen = most if config.frozen_layers == "all" else config.frozen_layers
    if chosen is not None and chosen > most:
        raise ValueError(
            f"frozen_layers: expected at most {most}, the model's layers that aren't drawn anew, "
            f"got {chosen}"
        )
    return chosen


def _encoder(config: FinetuneConfig) -> BertConfig:
    encoder = BertConfig.preset(config.model) if config.is_preset else _read_config(config.model)
    return replace(encoder, **_changes(config))


def _read_config(model: str) -> BertConfig:
    if not Path(model).exists():
        raise ValueError(f"model: expected a directory, a config.json or a preset, got {model!r}")
    return BertConfig.load(_directory(model))


def _directory(model: str) -> Path:
    """Find the transformer in a directory of sentence-transformers; a file is itself."""
    return model_directory(Path(model)) if Path(model).is_dir() else Path(model)


def _changes(config: FinetuneConfig) -> dict[str, Any]:
    """Return the fields of BertConfig that the run changes."""
    if config.dropout is None:
        return {}
    return {
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.dropout,
        "classifier_dropout": config.dropout,
    }
