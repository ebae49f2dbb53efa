"""One pretraining run, from text files to a saved model. Read `pretrain` from the top.

    OUT/
        tokenizer/          the vocabulary, learned from the files unless one was given
        data/train/         the files as token ids, see pretrain/corpus.py, unless they were given
                            as such (--data); data/validation/ and data/domain/ too
        run.json            what was asked for, resolved; the data; the machine
        log.jsonl           each step and evaluation, see bert/training/log.py
        checkpoints/        where an interrupted run goes on
        snapshots/          the models of steps 0, 1, 2, 4, 8, …, where they are asked for
        loss.png            the loss over the run, if matplotlib is installed
        statistics.png      the lines of statistics over the run, where there are any
        model/              the trained model with its tokenizer and card, for us and transformers

An interrupted run takes up what is there: the vocabulary, the data and the newest checkpoint.
"""

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from bert.config import BertConfig
from bert.pretraining import BertForPreTraining
from bert.saving import save_pretrained
from bert.text import odd_things
from bert.tokenization import Tokenizer
from bert.training.distributed import ALONE, World, is_first_process, join
from bert.training.estimate import estimate
from bert.training.hardware import choose_hardware
from bert.training.loop import train
from bert.training.pictures import draw_statistics
from bert.training.progress import say
from bert.training.result import TrainingResult
from bert.training.run_directory import refuse_file
from bert.training.trackers import require_trackers
from pretrain.config import VECTOR_WINDOW, PretrainConfig
from pretrain.corpus import Corpus
from pretrain.documents import describe_sources
from pretrain.evaluation import evaluate, plateau, unigram_log_probabilities
from pretrain.material import domain, find_tokenizer, held_out, make_phases, training_corpus
from pretrain.objective import PretrainingObjective
from pretrain.report import draw_losses, model_card
from pretrain.snapshots import Snapshots
from pretrain.start import build_model, check_vocabulary, read_model_config, start


@dataclass(frozen=True)
class PretrainResult:
    """How a run ended, and what is in its directory."""

    run_dir: Path
    training: TrainingResult
    model: Path | None
    """The saved model; None where the run was interrupted, or another process has saved it."""


def run(config: PretrainConfig) -> int:
    """Run the command; return its exit code."""
    if config.dry_run:
        if is_first_process():
            print(dry_run(config))
        return 0
    with join(config.training) as world:
        return pretrain(config, world).training.exit_code


def pretrain(
    config: PretrainConfig,
    world: World = ALONE,
    clock: Callable[[], float] = time.monotonic,
) -> PretrainResult:
    """Learn a vocabulary, prepare the text, train, and leave all in `config.out`.

    Several processes train together; the first prepares and saves.

    Args:
        config: see there.
        world: the processes.
        clock: what a budget in seconds counts, see `train`.

    Raises:
        ValueError: the files, the model and the configuration don't fit together, or another run
            is in `config.out`.
        OSError: something could not be written.
    """
    refuse_file(config.out)
    config = config.resolved()
    require_trackers(config.training.trackers)
    hardware = choose_hardware(config.training, world.local_rank)
    model_config = read_model_config(config)
    with world.first_goes_ahead():
        if world.is_first and config.overwrite and config.resume == "none":
            for made in ("tokenizer", "data"):
                shutil.rmtree(config.out / made, ignore_errors=True)
        tokenizer = find_tokenizer(config)
        if config.fits_tokenizer:
            model_config = replace(
                model_config, vocab_size=tokenizer.vocab_size, pad_token_id=tokenizer.pad_id
            )
        check_vocabulary(model_config, tokenizer)
        corpus = training_corpus(config, tokenizer)
        judged = held_out(config, corpus, tokenizer)
        corpora = [corpus, *domain(config, tokenizer)]
    phases = make_phases(config, corpus, tokenizer)
    unigram = unigram_log_probabilities(torch.from_numpy(corpus.token_counts()))
    kernels = hardware.kernels
    model = build_model(config, model_config, kernels)
    start(model, config, corpora, unigram)
    say(
        f"{model_config.parameter_count():,} parameters, kernels {kernels.name}; "
        f"{corpus.manifest['tokens']:,} tokens of text"
    )
    for line in odd_things(corpus.manifest["text"]):
        say(line)
    if corpus.manifest["vocab_size"] < config.vocab_size and config.is_learned:
        say(f"the text has words for {corpus.manifest['vocab_size']:,} tokens only")

    def judge() -> Mapping[str, float]:
        results = evaluate(model, judged, unigram, tokenizer, config.pair_task, world)
        for line in plateau(results):
            say(line)
        return results

    trained = train(
        PretrainingObjective(model, config.tasks),
        phases,
        config.training,
        config.out,
        evaluate=judge if judged else None,
        is_evaluation_shared=True,
        study_batch=judged[0] if judged else None,
        on_step=_snapshots(config, model, tokenizer) if config.snapshots else None,
        identity=_identity(config, model_config, corpora),
        resume=config.resume,
        overwrite=config.overwrite,
        world=world,
        clock=clock,
    )
    if trained.interrupted is not None:
        say(f"interrupted after step {trained.step}; the same command goes on from there")
        return PretrainResult(config.out, trained, None)
    if not world.is_first:
        return PretrainResult(config.out, trained, None)
    draw_losses(config.out / "log.jsonl", config.out / "loss.png")
    draw_statistics(config.out / "log.jsonl", config.out / "statistics.png")
    card = model_card(config, model_config, corpus.manifest, trained)
    save_pretrained(model, config.out / "model", tokenizer, card)
    say(f"model: {config.out / 'model'}")
    return PretrainResult(config.out, trained, config.out / "model")


def dry_run(config: PretrainConfig) -> str:
    """Say what a run would do: the resolved configuration, sizes, and estimates."""
    config = config.resolved()
    if config.data is None:
        describe_sources(config.files)
    model_config = read_model_config(config)
    if config.fits_tokenizer:
        size = config.vocab_size if config.is_learned else find_tokenizer(config).vocab_size
        model_config = replace(model_config, vocab_size=size, pad_token_id=0)
    hardware = choose_hardware(config.training)
    shapes = config.parsed_phases()
    guess = estimate(
        model_config,
        hardware,
        parameters=model_config.parameter_count(),
        batch_tokens=max(shape.tokens_per_batch for shape in shapes),
        mean_length=max(shape.max_length for shape in shapes),
        accumulation=config.training.accumulation,
        decoded_tokens=config.largest_mask_rate * max(shape.tokens_per_batch for shape in shapes),
    )
    return "\n".join(
        [
            json.dumps(asdict(config), indent=1, default=str),
            "",
            *guess.describe(config.training, hardware),
            *(["(guessed for the largest phase)"] if config.phases else []),
        ]
    )


def _snapshots(
    config: PretrainConfig, model: BertForPreTraining, tokenizer: Tokenizer
) -> Snapshots:
    """Save the model on the way."""
    size = sum(parameter.nbytes for parameter in model.parameters())

    def save(directory: Path) -> None:
        save_pretrained(model, directory, tokenizer)

    return Snapshots(config.out / "snapshots", save, size)


def _identity(
    config: PretrainConfig, model: BertConfig, corpora: Sequence[Corpus]
) -> dict[str, Any]:
    """List what makes this run this run, beside the training configuration."""
    recipe = (
        "objective", "max_length", "tokens_per_batch", "mask_rate", "final_mask_rate",
        "whole_words", "short_pairs", "seed",
        *(("phases",) if config.phases else ()),
        *(("vector_window",) if config.vector_window != VECTOR_WINDOW else ()),
        *(("local_start",) if config.local_start else ()),
        *(("vocab_size", "cased") if config.is_learned else ()),
    )  # fmt: skip
    return {
        **{name: getattr(config, name) for name in recipe},
        "start": "drawn" if config.is_drawn else config.model,
        "word_vectors": config.word_vectors,
        "model": model.to_dict(),
        "corpora": [corpus.fingerprint for corpus in corpora],
    }
