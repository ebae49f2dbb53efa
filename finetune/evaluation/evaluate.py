"""`bert finetune evaluate MODEL --file FILE --out DIR`: test a saved model on a file of its task.

The file may come from elsewhere than what the model was trained on, as long as it has the same
classes, or types of entities. Each noise at each rate is a test of the same rows with faults in
them (noise.py), and what is lost is told with the interval of a paired bootstrap.
"""

from typing import Any

from bert.command import command_line
from bert.text import TextReport, odd_things
from bert.training.progress import say
from bert.training.run_directory import refuse_file
from finetune import tasks
from finetune.data import LabelledRows
from finetune.evaluation.config import EvaluateConfig
from finetune.evaluation.evidence import Evidence
from finetune.evaluation.noise import Spoiled, Spoiler
from finetune.evaluation.records import EVALUATION
from finetune.evaluation.report import Report, write_evaluation
from finetune.evaluation.resampling import differences
from finetune.metrics import Scores, require_scikit_learn
from finetune.predictor import Predictor


def run(config: EvaluateConfig) -> int:
    """Test the model, print the report, and return the exit code."""
    print(evaluate(config).text, end="")
    say(f"report, predictions, mistakes and pictures: {config.out}")
    return 0


def evaluate(config: EvaluateConfig) -> Report:
    """Test the model, and leave in `config.out` what report.py says.

    Raises:
        ValueError: a row or a label can't be, the task has no such test, or `config.out` has
            something else in it.
        ModuleNotFoundError: what the report draws on is missing; the message names the extra.
        OSError: something could not be read or written.
    """
    require_scikit_learn()
    _refuse_used_directory(config)
    predictor = Predictor.load(
        config.model,
        max_length=config.max_length,
        batch_tokens=config.batch_tokens,
        device=config.device,
        threads=config.threads,
    )
    task = predictor.task
    task.require_libraries()
    if config.noise and not task.takes_noise:
        raise ValueError(
            f"noise: expected none for {tasks.name_of(task)}, only for texts that have labels as "
            f"a whole, got {', '.join(config.noise)}"
        )
    rows, scores, clean = _test(predictor, config)
    say(f"{rows}")
    for line in odd_things(vars(predictor.tokenizer.report)):
        say(line)
    about = {
        "command": command_line("bert finetune evaluate", config, ("model",)),
        "model": str(config.model),
        "task": tasks.name_of(task),
        "max_length": predictor.max_length,
        **rows.describe(),
    }
    spoiled = [
        _spoil(predictor, config, Spoiler(noise, rate, config.seed), rows, clean)
        for noise in config.noise
        for rate in config.noise_rates
    ]
    return write_evaluation(config.out, scores, clean, task.texts(rows), about, spoiled)


def _test(
    predictor: Predictor, config: EvaluateConfig, spoiler: Spoiler | None = None
) -> tuple[Any, Scores, Evidence]:
    """Read the rows, with noise in them or without, and have the task score its answers."""
    task = predictor.task
    predictor.tokenizer.report = TextReport()
    rows = task.read_again(config.file, config.columns, predictor, spoiler)
    with predictor.hardware.autocast():
        scores = task.evaluate(predictor.model, rows, predictor.batch_tokens)
    evidence = task.evidence(rows, scores)
    if evidence is None:
        raise ValueError(
            f"model: expected a task that tells its answers, got {tasks.name_of(task)}"
        )
    return rows, scores, evidence


def _spoil(
    predictor: Predictor,
    config: EvaluateConfig,
    spoiler: Spoiler,
    rows: LabelledRows,
    clean: Evidence,
) -> Spoiled:
    """Test the rows with noise in them, and hold the scores against those of the clean ones."""
    spoiled, _, evidence = _test(predictor, config, spoiler)
    return Spoiled(
        spoiler.noise,
        spoiler.rate,
        _share_changed(rows, spoiled),
        differences(clean, evidence),
    )


def _share_changed(clean: LabelledRows, spoiled: LabelledRows) -> float:
    """Return the share of rows whose tokens differ: what the tokenizer undoes is no noise."""
    count = len(clean)
    return sum(clean.token_bytes(i) != spoiled.token_bytes(i) for i in range(count)) / count


def _refuse_used_directory(config: EvaluateConfig) -> None:
    """Refuse to write among files of another kind, such as a run's, or over a report unasked."""
    out = config.out
    refuse_file(out)
    if not out.exists() or not any(out.iterdir()):
        return
    if not (out / EVALUATION).exists():
        raise ValueError(f"out: expected a new directory, got {out}, which has other files in it")
    if not config.overwrite:
        raise ValueError(
            f"out: expected a new directory, got {out}, which has a report in it; "
            "--overwrite replaces it"
        )
