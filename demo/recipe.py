"""The demo's sizes, rates and shares; benchmarks/results/demo_recipe.md has what was tried."""

from dataclasses import replace
from pathlib import Path

from bert.config import BertConfig
from bert.training.config import TrainingConfig
from finetune.config import CONFIG_DEFAULTS as FINETUNE_DEFAULTS
from finetune.config import FinetuneConfig
from pretrain.config import PretrainConfig

DATA = Path(__file__).parent / "data"

# Pretraining's share of the time that is left when the text is prepared. The two fine-tunings
# share the rest, less what pretraining takes beside its steps (word vectors above all).
PRETRAINING_SHARE = 0.65
# Loading, testing and comparing at the end, in seconds.
RESERVE = 35.0

# Reviews whose labels are used. With all 8,662 a few minutes of pretraining make no difference;
# where labels are few and texts are many, as is usual, they do.
LABELS = 500

# Each network's best of 0.1, 0.3 and 0.5: with so few labels, dropout decides how much of the
# reviews is learned by heart, and the network that starts at random bears less of it.
PRETRAINED_DROPOUT, SCRATCH_DROPOUT = 0.5, 0.3

SHAPE = BertConfig(
    vocab_size=8192,
    hidden_size=128,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=512,
    max_position_embeddings=128,
)


def pretraining(shape: Path, reviews: Path, out: Path, seed: int, budget: str) -> PretrainConfig:
    """Configure the pretraining of the network that config.json `shape` describes.

    Args:
        shape: its configuration.
        reviews: film reviews as plain text, without labels.
        out: directory of the run.
        seed: of all that is drawn.
        budget: how long.
    """
    return PretrainConfig(
        files=tuple(sorted((DATA / "books").glob("train-*.txt.xz"))),
        validation_files=(DATA / "books" / "validation.txt.xz",),
        out=out,
        model=str(shape),
        vocab_size=SHAPE.vocab_size,
        max_length=64,
        tokens_per_batch=1024,
        mask_rate=0.2,
        dropout=0.0,
        initializer_range=0.05,
        word_vectors=True,
        domain_files=(reviews,),
        evaluation_tokens=20_000,
        seed=seed,
        training=TrainingConfig(
            budget=budget,
            learning_rate=2e-3,
            warmup=0.05,
            betas=(0.9, 0.98),
            # Adam makes steps of one size out of gradients of any size. With the usual 1e-6 it
            # blows up the faint ones of rare words, and their vectors wander; this leaves them.
            eps=1e-4,
            evaluate_every="30s",
            checkpoint_every="30s",
            keep_checkpoints=1,
        ),
    )


def finetuning(
    pretrained: Path, out: Path, seed: int, budget: str, from_scratch: bool
) -> FinetuneConfig:
    """Configure the fine-tuning on a few film reviews, of the pretrained weights or of fresh ones.

    The pretrained layers are drawn anew, all of them: what minutes of masked words taught them
    is in the way of a classifier, and the embeddings are what carries over.
    """
    files = DATA / "mr"
    return FinetuneConfig(
        model=str(pretrained),
        from_scratch=from_scratch,
        train_file=files / "train.tsv.xz",
        validation_file=files / "validation.tsv.xz",
        test_file=files / "test.tsv.xz",
        train_rows=LABELS,
        redrawn_layers=0 if from_scratch else SHAPE.num_hidden_layers,
        class_names=("negative", "positive"),
        out=out,
        max_length=64,
        dropout=SCRATCH_DROPOUT if from_scratch else PRETRAINED_DROPOUT,
        seed=seed,
        training=replace(
            FINETUNE_DEFAULTS,
            budget=budget,
            learning_rate=5e-4,
            evaluate_every="10s",
            checkpoint_every="20s",
            keep_checkpoints=1,
        ),
    )
