"""A small language with a rule in it, and a BERT that is small enough to learn it in seconds."""

import json
import random
from pathlib import Path

import pytest
import torch

from bert.checkpoint import load_pretrained
from bert.config import BertConfig
from bert.finetuning import BertForSequenceClassification
from bert.tokenization import Tokenizer
from bert.training.config import TrainingConfig
from finetune.config import FinetuneConfig
from finetune.run import finetune as run_it

WORDS = [
    f"{a}{b}" for a in ("ba", "do", "fi", "gu", "ke", "lo", "mi") for b in ("n", "r", "s", "t")
]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
TINY = BertConfig(
    vocab_size=len(SPECIAL) + len(WORDS) + 2,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=64,
    max_position_embeddings=40,
    hidden_dropout_prob=0.1,
    attention_probs_dropout_prob=0.1,
    initializer_range=0.1,
)


def sentence(rng, key=None):
    """Some words, the key word among them if there is one; of many lengths."""
    words = rng.choices(WORDS, k=rng.randint(2, 12))
    if key is not None:
        words[rng.randrange(len(words))] = key
    return " ".join(words)


def planted(rows, seed):
    """Texts with "yes" in them are good, those with "no" are bad."""
    rng = random.Random(seed)
    labels = [rng.choice(("bad", "good")) for _ in range(rows)]
    return [(sentence(rng, "yes" if label == "good" else "no"), label) for label in labels]


def planted_pairs(rows, seed):
    """The key word of the second text decides; the first one has a key word too."""
    rng = random.Random(seed)
    keys = {"bad": "no", "good": "yes"}
    labels = [rng.choice(("bad", "good")) for _ in range(rows)]
    return [
        (sentence(rng, rng.choice(("yes", "no"))), sentence(rng, keys[label]), label)
        for label in labels
    ]


def write_tsv(path, rows, header=("text", "label")):
    lines = ["\t".join(header), *("\t".join(map(str, row)) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def write_squad(path, values):
    path.write_text(json.dumps(values), encoding="utf-8")
    return path


def weights(run):
    """The weights that a run has saved."""
    return load_pretrained(run / "model", BertForSequenceClassification).state_dict()


def same(left, right):
    """Whether two sets of weights are equal, bit by bit."""
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


@pytest.fixture(scope="session")
def tokenizer():
    return Tokenizer([*SPECIAL, *WORDS, "yes", "no"])


@pytest.fixture(scope="session")
def scratch(tmp_path_factory, tokenizer) -> Path:
    """A directory with a tokenizer and a configuration, and no weights."""
    path = tmp_path_factory.mktemp("tiny")
    tokenizer.save(path)
    (path / "config.json").write_text(json.dumps(TINY.to_dict("BertModel")))
    return path


@pytest.fixture(scope="session")
def files(tmp_path_factory) -> dict[str, Path]:
    """Train, validation and test files of the planted rule."""
    path = tmp_path_factory.mktemp("planted")
    sizes = {"train": 300, "validation": 80, "test": 80}
    return {
        name: write_tsv(path / f"{name}.tsv", planted(rows, seed))
        for seed, (name, rows) in enumerate(sizes.items())
    }


@pytest.fixture(scope="session")
def configured(scratch, files):
    """A configuration for the planted rule, with what a test changes in it."""

    def configure(training=None, **changes):
        options = {"learning_rate": 3e-3, "device": "cpu", "threads": 1, "precision": "float32"}
        options |= {} if "epochs" in changes else {"budget": "30"}
        fields = {
            "model": str(scratch),
            "from_scratch": True,
            "train_file": files["train"],
            "validation_file": files["validation"],
            "test_file": files["test"],
            "max_length": 32,
            "batch_size": 16,
        }
        training = TrainingConfig(**options | (training or {}))
        return FinetuneConfig(**fields | changes, training=training)

    return configure


@pytest.fixture
def make_config(configured, tmp_path):
    """The same, for a run in the test's own directory."""
    return lambda *args, **changes: configured(*args, **{"out": tmp_path / "run"} | changes)


@pytest.fixture(scope="session")
def learned(configured, tmp_path_factory):
    """One run on the planted rule, for the tests that only look at what it left."""
    out = tmp_path_factory.mktemp("learned") / "run"
    return run_it(configured(out=out, epochs=4.0, class_names=("bad", "good")))
