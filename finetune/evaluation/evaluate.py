"""`bert finetune evaluate MODEL --file FILE --out DIR`: test a saved classifier on any file.

The file may come from elsewhere than what the model was trained on, as long as it has the same
classes. Each noise at each rate is a test of the same rows with faults in them (noise.py), and
what is lost is told with the interval of a paired bootstrap.
"""

from bert.command import command_line
from bert.text import TextReport, odd_things
from bert.training.progress import say
from bert.training.run_directory import refuse_file
from finetune.batches import TokenRows
from finetune.data import LabelledRows, read_rows
from finetune.evaluation.config import EvaluateConfig
from finetune.evaluation.noise import Spoiled, Spoiler
from finetune.evaluation.predictions import EVALUATION, Predictions
from finetune.evaluation.report import Report, write_evaluation
from finetune.evaluation.resampling import differences
from finetune.metrics import require_scikit_learn
from finetune.predictor import Predictor
from finetune.sequences import predict_logits, refuse_one_segment
from finetune.tasks.classification import Classification


def run(config: EvaluateConfig) -> int:
    """Test the model, print the report, and return the exit code."""
    print(evaluate(config).text, end="")
    say(f"report, predictions, mistakes and pictures: {config.out}")
    return 0


def evaluate(config: EvaluateConfig) -> Report:
    """Test the model, and leave in `config.out` what report.py says.

    Raises:
        ValueError: the model isn't a classifier, a row or a label can't be, or `config.out` has
            something else in it.
        ModuleNotFoundError: scikit-learn is missing; the message names the extra.
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
    if not isinstance(predictor.task, Classification):
        name = type(predictor.task).__name__
        raise ValueError(f"model: expected a classifier, got a model for {name}")
    rows, clean = _predict(predictor, config)
    say(f"{rows}")
    for line in odd_things(vars(predictor.tokenizer.report)):
        say(line)
    about = {
        "command": command_line("bert finetune evaluate", config, ("model",)),
        "model": str(config.model),
        "max_length": predictor.max_length,
        **rows.describe(),
    }
    spoiled = [
        _spoil(predictor, config, Spoiler(noise, rate, config.seed), rows, clean)
        for noise in config.noise
        for rate in config.noise_rates
    ]
    return write_evaluation(config.out, clean, rows.table.rows(TextReport()), about, spoiled)


def _predict(
    predictor: Predictor, config: EvaluateConfig, spoiler: Spoiler | None = None
) -> tuple[LabelledRows, Predictions]:
    """Read the rows, with noise in them or without, and predict their classes."""
    names = tuple(predictor.model.config.id2label.values())
    rows = read_rows(
        config.file,
        config.columns,
        predictor.tokenizer,
        predictor.max_length,
        names,
        change=spoiler,
    )
    refuse_one_segment(predictor.model.config, rows)
    with predictor.hardware.autocast():
        logits = predict_logits(predictor.model, rows.tokens, predictor.batch_tokens)
    return rows, Predictions(names, rows.labels, logits)


def _spoil(
    predictor: Predictor,
    config: EvaluateConfig,
    spoiler: Spoiler,
    rows: LabelledRows,
    clean: Predictions,
) -> Spoiled:
    """Test the rows with noise in them, and hold the scores against those of the clean ones."""
    spoiled, predictions = _predict(predictor, config, spoiler)
    return Spoiled(
        spoiler.noise,
        spoiler.rate,
        _share_changed(rows.tokens, spoiled.tokens),
        differences(clean, predictions),
    )


def _share_changed(clean: TokenRows, spoiled: TokenRows) -> float:
    """Return the share of rows whose tokens differ: what the tokenizer undoes is no noise."""

    def ids(tokens: TokenRows, row: int) -> bytes:
        begin, end = tokens.offsets[row : row + 2]
        return tokens.input_ids[begin:end].tobytes()

    return sum(ids(clean, i) != ids(spoiled, i) for i in range(len(clean))) / len(clean)


def _refuse_used_directory(config: EvaluateConfig) -> None:
    """Refuse to write among files of another kind, such as a run's, or over a report unasked."""
    out = config.out
    refuse_file(out)
    if not out.exists() or not any(out.iterdir()):
        return
    if not (out / EVALUATION).exists():
        raise ValueError(f"out: expected a new directory, got {out}, which has other files in it")
    if not config.overwrite:
        raise ValueError(f"out: expected a new directory, or overwrite, got {out}, with a report")
