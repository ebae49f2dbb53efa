"""One fine-tuning run, from the files to the saved model. Read `finetune` from the top.

OUT/
    run.json            what was asked for, resolved; the data; the machine
    log.jsonl           each step and evaluation, see bert/training/log.py
    checkpoints/        where an interrupted run goes on
    statistics.png      the lines of statistics over the run, where there are any
    best.safetensors    the weights of the best evaluation, if there is a validation file
    metrics.json        all numbers of the report
    report.txt          the report
    validation/ test/   the answers, the worst mistakes, pictures; see evaluation/report.py
    model/              the fine-tuned model with its tokenizer and card, for us and
                        transformers
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from bert.command import command_line
from bert.config import read_json
from bert.saving import save_pretrained
from bert.training.distributed import ALONE, World, is_first_process, join
from bert.training.early_stopping import NEVER, EarlyStopping
from bert.training.estimate import estimate
from bert.training.hardware import choose_hardware
from bert.training.loop import train
from bert.training.pictures import draw_statistics
from bert.training.progress import say
from bert.training.result import TrainingResult
from bert.training.run_directory import RunDirectory, refuse_file
from bert.training.trackers import require_trackers
from finetune.best import BestWeights
from finetune.card import model_card
from finetune.config import FinetuneConfig
from finetune.prepare import Prepared, prepare
from finetune.task import Scores
from finetune.tasks import configured
from finetune.whole_file import whole_file

MADE = (
    "statistics.png", "best.safetensors", "metrics.json", "report.txt", "validation", "test",
    "model",
)  # fmt: skip
"""What a run leaves besides what the loop keeps; a run that replaces it deletes it."""


@dataclass(frozen=True)
class FinetuneResult:
    """How a run ended, and what is in its directory."""

    run_dir: Path
    training: TrainingResult
    scores: dict[str, Scores]
    """By the file that they were measured on: validation, test; the first process has them."""
    model: Path | None
    """The saved model; None where the run was interrupted, or another process has saved it."""


def run(config: FinetuneConfig) -> int:
    """Run the command; return its exit code."""
    if config.dry_run:
        if is_first_process():
            print(dry_run(config))
        return 0
    with join(config.training) as world:
        return finetune(config, world).training.exit_code


def finetune(
    config: FinetuneConfig,
    world: World = ALONE,
    on_evaluation: Callable[[float], None] = lambda _: None,
) -> FinetuneResult:
    """Fine-tune a model, test it, and leave all in `config.out`.

    Everything that can be wrong with the files, the labels or the model is found before the
    first step. With a validation file the weights of the best evaluation are the result, and
    without one those of the last step. Several processes train together; the first tests, saves.

    Args:
        config: what to do.
        world: the processes that train together.
        on_evaluation: told the metric that picks the checkpoint, before the log has it; what it
            raises ends the run.

    Raises:
        ValueError: the files, the labels, the model and the configuration don't fit together.
        ModuleNotFoundError: what the reports draw on is missing; the message names the extra.
        OSError: something could not be written.
    """
    if config.validation_file is not None or config.test_file is not None:
        configured(config.task, config.options).require_libraries()
    refuse_file(config.out)
    require_trackers(config.training.trackers)
    description = config.out / "run.json"
    if description.exists() and "task" not in read_json(description)["identity"]:
        raise ValueError(f"out: expected no run of bert pretrain in it, got one in {config.out}")
    prepared = prepare(config)
    task, config, rows = prepared.task, prepared.config, prepared.rows
    hardware = choose_hardware(config.training, world.local_rank)
    for line in prepared.describe(hardware):
        say(line)
    model = prepared.build_model(hardware)
    identity = prepared.identity(model)
    if world.is_first and config.overwrite and _is_fresh(config):
        _delete_made(config.out)
    best = BestWeights(
        config.out / "best.safetensors", _hash(identity), is_fresh=config.resume == "none"
    )

    def evaluate() -> Mapping[str, float]:
        summary = task.evaluate(model, rows["validation"]).summary()
        value = summary[config.best_metric or task.metrics[0]]
        best.offer(model, value)
        on_evaluation(value)
        return summary

    trained = train(
        task.objective(model, rows["train"]),
        prepared.batches,
        config.training,
        config.out,
        evaluate=evaluate if "validation" in rows else None,
        early_stopping=(
            EarlyStopping(config.best_metric, config.patience) if "validation" in rows else NEVER
        ),
        study_batch=task.batches(rows["validation"], config)[0] if "validation" in rows else None,
        identity=identity,
        resume=config.resume,
        overwrite=config.overwrite,
        world=world,
    )
    if not world.is_first:
        return FinetuneResult(config.out, trained, {}, None)
    _describe_run(prepared)
    if trained.interrupted is not None:
        say(f"interrupted after step {trained.step}; --resume auto, the default, goes on")
        return FinetuneResult(config.out, trained, {}, None)

    draw_statistics(config.out / "log.jsonl", config.out / "statistics.png")
    if "validation" in rows:
        best.restore(model)
    with torch.no_grad(), hardware.autocast():
        scores = {
            purpose: task.evaluate(model.eval(), rows[purpose])
            for purpose in ("validation", "test")
            if purpose in rows
        }
    card = model_card(task, config, prepared.encoder, prepared.data, scores)
    save_pretrained(model, config.out / "model", prepared.tokenizer, card)
    details = {
        purpose: task.keep(config.out / purpose, rows[purpose], score, prepared.data[purpose])
        for purpose, score in scores.items()
    }
    _report(config, trained, scores, details)
    say(f"model: {config.out / 'model'}")
    return FinetuneResult(config.out, trained, scores, config.out / "model")


def dry_run(config: FinetuneConfig) -> str:
    """Say what a run would do: the resolved configuration, sizes, and estimates."""
    prepared = prepare(config)
    hardware = choose_hardware(config.training)
    encoder, tokens = prepared.encoder, prepared.batches
    with torch.device("meta"):
        model = prepared.task.model_class(encoder, hardware.kernels)
    prepared.freeze(model.bert)
    guess = estimate(
        encoder,
        hardware,
        parameters=sum(p.numel() for p in model.parameters()),
        frozen=sum(p.numel() for p in model.parameters() if not p.requires_grad),
        frozen_layers=model.bert.frozen_layers,
        batch_tokens=tokens.mean_tokens,
        mean_length=tokens.mean_length,
        accumulation=config.training.accumulation,
    )
    return "\n".join(
        [
            json.dumps(asdict(prepared.config), indent=1, default=str),
            "",
            *prepared.describe(hardware),
            *guess.describe(prepared.config.training, hardware),
        ]
    )


def _is_fresh(config: FinetuneConfig) -> bool:
    """Say whether a run begins anew, and goes on with none that is in its directory."""
    if config.resume in ("auto", "none"):
        return config.resume == "none"
    return Path(config.resume).resolve().parent != (config.out / "checkpoints").resolve()


def _delete_made(out: Path) -> None:
    """Delete what an earlier run has made of its weights, unless a process trains there."""
    with RunDirectory(out) as directory:
        for path in (directory.path / name for name in MADE):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def _describe_run(prepared: Prepared) -> None:
    """Add what this run is to the run.json that the loop has written."""
    path = prepared.config.out / "run.json"
    _write(
        path,
        json.dumps(
            {
                "command": command_line("bert finetune", prepared.config),
                "finetune": asdict(prepared.config),
                "data": prepared.data,
                **read_json(path),
            },
            indent=1,
            default=str,
        ),
    )


def _report(
    config: FinetuneConfig,
    trained: TrainingResult,
    scores: Mapping[str, Scores],
    details: Mapping[str, str],
) -> None:
    """Print the report, and write it down."""
    parts = [
        f"On the {purpose} file\n\n{score.text}{details[purpose]}"
        for purpose, score in scores.items()
    ]
    if trained.stopped_early is not None:
        budget = config.training.budget
        why = f"Stopped early, at step {trained.step} of {budget}: {trained.stopped_early}\n"
        parts.insert(0, why)
    text = "\n".join(parts)
    numbers: dict[str, Any] = {purpose: score.as_json() for purpose, score in scores.items()}
    numbers["training"] = {
        "steps": trained.step,
        "tokens": trained.tokens,
        "seconds": trained.elapsed,
        "loss": trained.loss,
        "best_step": trained.best_step,
        "stopped_early": trained.stopped_early,
    }
    print(text)
    _write(config.out / "report.txt", text)
    _write(config.out / "metrics.json", json.dumps(numbers, indent=1))


def _write(path: Path, text: str) -> None:
    with whole_file(path) as file:
        file.write(text + "\n")


def _hash(identity: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
