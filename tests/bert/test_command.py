from pathlib import Path

from bert.cli import COMMANDS, parse
from bert.command import command_line
from bert.options import options_of
from bert.training.config import TrainingConfig
from finetune.config import FinetuneConfig
from pretrain.config import PretrainConfig


def typed(program, settings, positional=()):
    """What the command line makes of the command that is written for it."""
    arguments = command_line(program, settings, positional).split()[2:]
    kind = type(settings)
    return parse(kind, options_of(kind, positional), arguments)


def test_a_written_command_makes_the_same_settings():
    pretraining = PretrainConfig(
        files=(Path("a.txt"), Path("b.txt")), out=Path("o"), dropout=0.0, word_vectors=True,
        training=TrainingConfig(budget="90s", betas=(0.9, 0.98), max_grad_norm=None),
    )  # fmt: skip
    assert typed("bert pretrain", pretraining, COMMANDS["pretrain"].positional) == pretraining
    finetuning = FinetuneConfig(
        model="m", train_file=Path("t.tsv"), out=Path("o"), class_names=("no", "yes"), epochs=2.5
    )
    assert typed("bert finetune", finetuning) == finetuning


def test_defaults_and_how_it_was_started_are_left_out():
    settings = PretrainConfig(
        files=(Path("a b.txt"),), out=Path("o"), resume="none", overwrite=True, dry_run=True
    )
    assert command_line("bert pretrain", settings, ("files",)) == "bert pretrain 'a b.txt' --out o"
