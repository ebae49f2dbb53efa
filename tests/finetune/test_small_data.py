"""What little, lopsided data needs: weights, even draws, smoothing, frozen layers, patience."""

import json
import os
import random
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from bert.checkpoint import load_pretrained
from bert.finetuning import BertForSequenceClassification
from bert.model import Bert
from bert.packing import PackedBatch
from bert.saving import save_pretrained
from bert.training.hardware import choose_hardware
from bert.training.log import read_log
from finetune.batches import ShuffledBatches, balanced_order
from finetune.losses import BinaryCrossEntropy, CrossEntropy, class_weights, yes_weights
from finetune.prepare import prepare
from finetune.run import dry_run
from finetune.run import finetune as run_it
from finetune.segments import segment_cross_entropy
from finetune.sequences import SequenceObjective
from finetune.tasks import configured as task_of
from finetune.tasks.classification import Classification
from tests.bert.training.ranks import together
from tests.bert.training.test_kill import processes  # noqa: F401
from tests.finetune import ranks
from tests.finetune.conftest import TINY, same, sentence, weights, write_tsv

COUNTS = {"bad": 30, "fair": 60, "good": 10}
# Everything at once: what each does is held by itself below.
ALL = {
    "options": ("class_weights=bad:2,good:0.5", "label_smoothing=0.2", "resample=true"),
    "frozen_layers": 1,
    "redrawn_layers": 1,
}


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory, tokenizer):
    """A directory with an encoder's weights."""
    path = tmp_path_factory.mktemp("pretrained")
    with torch.random.fork_rng():
        torch.manual_seed(3)
        save_pretrained(Bert(TINY), path, tokenizer)
    return path


@pytest.fixture
def tuned(make_config, pretrained):
    """A configuration for the planted rule that begins from weights."""
    return lambda *args, **changes: make_config(
        *args, **{"model": str(pretrained), "from_scratch": False} | changes
    )


@pytest.fixture(scope="session")
def lopsided(tmp_path_factory):
    """A train file with nine good rows for each bad one."""
    rng = random.Random(0)
    labels = ["bad" if i % 10 == 0 else "good" for i in range(60)]
    rows = [(sentence(rng, "no" if label == "bad" else "yes"), label) for label in labels]
    return write_tsv(tmp_path_factory.mktemp("lopsided") / "train.tsv", rows)


# --- weights ---------------------------------------------------------------------------------


def test_balanced_weights_are_scikit_learns():
    theirs = pytest.importorskip("sklearn.utils.class_weight").compute_class_weight
    labels = np.repeat(np.arange(3), list(COUNTS.values()))
    ours = class_weights("balanced", COUNTS)
    np.testing.assert_allclose(ours, theirs("balanced", classes=np.arange(3), y=labels))


def test_weights_by_name():
    assert class_weights(None, COUNTS) is None
    assert class_weights("good:3,bad:.5", COUNTS) == (0.5, 1.0, 3.0)
    assert class_weights("1:1e1", COUNTS) == (1.0, 10.0, 1.0)  # by its number
    assert class_weights("a,b:2,c:d:3", {"c:d": 1, "a,b": 1}) == (3.0, 2.0)
    assert yes_weights("balanced", COUNTS, 120) == (3.0, 1.0, 11.0)
    assert yes_weights("good:3", COUNTS, 120) == (1.0, 1.0, 3.0)


@pytest.mark.errors
@pytest.mark.parametrize("text", ["", "bad", "bad:", "bad:0", "bad:1,good", "bad:1,bad:2", ":1",
                                  "bad:-1", "bad:1e", "bad:1e999"])  # fmt: skip
def test_weights_that_cannot_be_are_refused(text):
    with pytest.raises(ValueError) as error:
        class_weights(text, COUNTS)
    assert str(error.value) == (
        "options: class_weights: expected balanced, or positive numbers by the classes' names, "
        f"each once, such as bad:1,good:2.5, got {text!r}"
    )


@pytest.mark.errors
def test_a_class_that_is_none_or_can_not_be_balanced_is_refused():
    with pytest.raises(ValueError, match="^options: class_weights: expected a class that is tra"):
        class_weights("god:3", COUNTS)
    with pytest.raises(ValueError, match="^options: class_weights: expected rows without class"):
        yes_weights("balanced", COUNTS, 60)


@pytest.mark.parametrize("weighted", [None, (0.5, 1.0, 3.0)])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_cross_entropy_of_many_parts_is_torchs_of_the_whole(weighted, smoothing):
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(20, 3, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 3, (20,), generator=generator)
    weight = None if weighted is None else torch.tensor(weighted, dtype=torch.float64)
    theirs = nn.CrossEntropyLoss(weight, label_smoothing=smoothing)(logits, labels)
    ours = CrossEntropy(weighted, smoothing)
    parts = list(zip(logits.split([7, 1, 12]), labels.split([7, 1, 12]), strict=True))
    total = sum(ours(*part) for part in parts) / sum(ours.terms(part[1]) for part in parts)
    torch.testing.assert_close(total, theirs, rtol=1e-12, atol=0)


def test_binary_cross_entropy_is_torchs():
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(20, 3, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 2, (20, 3), generator=generator).float()
    for weighted in (None, (0.5, 1.0, 3.0)):
        weight = None if weighted is None else torch.tensor(weighted, dtype=torch.float64)
        theirs = nn.BCEWithLogitsLoss(pos_weight=weight)(logits, labels.double())
        total = BinaryCrossEntropy(weighted)(logits, labels) / labels.numel()
        torch.testing.assert_close(total, theirs, rtol=1e-12, atol=0)


def test_smoothing_over_choices_is_torchs_for_each_question():
    sizes, targets = (2, 5, 1, 3), torch.tensor([1, 4, 0, 2])
    logits = torch.randn(11, dtype=torch.float64, requires_grad=True)
    ours = segment_cross_entropy(logits, sizes, targets, 0.3)
    theirs = sum(
        nn.functional.cross_entropy(part, target, label_smoothing=0.3)
        for part, target in zip(logits.split(sizes), targets, strict=True)
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)
    ours, theirs = (torch.autograd.grad(loss, logits)[0] for loss in (ours, theirs))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-15)


PARTS = {
    "classification": (
        [("text", "label"), ("yes", "a"), ("no", "a"), ("ban", "b")],
        "class_weights=balanced",
        nn.CrossEntropyLoss(torch.tensor([0.75, 1.5])),
    ),
    "multi-label": (
        [("text", "label"), ("yes ban", "a,b"), ("dor", "a"), ("gun", ""), ("no", "")],
        "class_weights=balanced",
        nn.BCEWithLogitsLoss(pos_weight=torch.tensor([1.0, 3.0])),
    ),
    "multiple-choice": (
        [("premise", "choice1", "choice2", "label"), ("yes", "no ban", "dor", "0")],
        "label_smoothing=0.3",
        nn.CrossEntropyLoss(label_smoothing=0.3),
    ),
}


@pytest.mark.parametrize("task", PARTS)
def test_the_tasks_train_on_what_their_options_say(make_config, tmp_path, task):
    """The logged loss of a first step is that of the logits, with the option in it."""
    (header, *rows), option, loss_of = PARTS[task]
    config = make_config(
        {"budget": "1"}, task=task, options=(option,), dropout=0.0, validation_file=None,
        test_file=None, train_file=write_tsv(tmp_path / "train.tsv", rows, header),
    )  # fmt: skip
    prepared = prepare(config)
    model = prepared.build_model(choose_hardware(config.training)).eval()
    batch = prepared.batches[0]
    with torch.no_grad():
        logits = model.logits(batch.packed)
    run_it(config)
    (step,) = read_log(config.out / "log.jsonl", "step")
    logits = logits.T if task == "multiple-choice" else logits
    assert step["loss"] == pytest.approx(float(loss_of(logits, batch.labels)), rel=1e-5)


@pytest.mark.errors
@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("classification", ["label_smoothing=1"], "label-smoothing: expected a share in [0, 1),"),
        (
            "multiple-choice",
            ["label_smoothing=-1"],
            "label-smoothing: expected a share in [0, 1),",
        ),
        (
            "classification",
            ["class_weights=balanced", "resample=true"],
            "class-weights: expected other weights than balanced with resample, ",
        ),
    ],
)
def test_options_that_cannot_be_are_refused(task, options, message):
    with pytest.raises(ValueError) as error:
        task_of(task, options)
    assert str(error.value).startswith(f"options: {message}")


@pytest.mark.errors
def test_weights_are_refused_before_anything_is_written(make_config):
    config = make_config(options=("class_weights=god:2",))
    with pytest.raises(ValueError, match=r"^options: class_weights: .* \(bad, good\)"):
        run_it(config)
    assert not config.out.exists()


# --- even draws ------------------------------------------------------------------------------


@pytest.mark.parametrize("counts", [(1, 9), (5, 5), (2, 3, 1), (1, 1, 21)])
def test_an_epoch_has_as_many_rows_of_each_class(counts):
    classes = np.repeat(np.arange(len(counts)), counts)
    orders = [balanced_order(classes, np.random.default_rng(seed)) for seed in range(40)]
    drawn = np.zeros(len(classes))
    for order in orders:
        assert len(order) == len(classes)
        by_class = np.bincount(classes[order], minlength=len(counts))
        assert by_class.max() - by_class.min() <= 1
        by_row = np.bincount(order, minlength=len(classes))
        for number in range(len(counts)):
            own = by_row[classes == number]
            assert own.max() - own.min() <= 1
        drawn += by_row
    assert drawn.min() > 0  # over the epochs no row is passed over
    assert len({tuple(order) for order in orders}) > 30 or len(classes) < 7


def test_batches_of_even_draws_follow_from_their_index(make_config, lopsided):
    config = make_config(train_file=lopsided, options=("resample=true",), batch_size=7)
    batches = prepare(config).batches
    assert isinstance(batches, ShuffledBatches) and batches.per_epoch == 9
    rows = prepare(config).rows["train"]
    again = prepare(config).batches
    for index in (17, 3, 40, 0):
        np.testing.assert_array_equal(again.chosen(index), batches.chosen(index))
    for epoch in (0, 1):
        chosen = np.concatenate([batches.chosen(9 * epoch + i) for i in range(9)])
        assert np.bincount(rows.labels[chosen]).tolist() == [30, 30]
    first, second = (batches.chosen(i).tolist() for i in (0, 9))
    assert first != second
    other = prepare(make_config(train_file=lopsided, options=("resample=true",), seed=1)).batches
    assert other.chosen(0).tolist()[:7] != first
    assert batches[0].labels.tolist() == rows.labels[first].tolist()


# --- beside transformers and torch -------------------------------------------------------------


@pytest.mark.parametrize("kind", ["weights", "resample"])
def test_a_run_with_all_of_it_is_a_plain_loop_of_torchs(tuned, tmp_path, lopsided, kind):
    """Each step's loss, over ragged micro-batches: any part left out is seen below."""
    transformers = pytest.importorskip("transformers")
    from tests.finetune.theirs import both_losses

    option = "class_weights=bad:3,good:0.5" if kind == "weights" else "resample=true"
    config = tuned(
        {"budget": "10", "learning_rate": 5e-3, "accumulation": 2, "layer_decay": 0.5},
        train_file=lopsided, validation_file=None, test_file=None, dropout=0.0, batch_size=11,
        options=("label_smoothing=0.2", option), frozen_layers=0, redrawn_layers=1,
    )  # fmt: skip
    texts, labels = zip(
        *(line.split("\t") for line in lopsided.read_text().splitlines()[1:]), strict=True
    )
    classes = torch.tensor([["bad", "good"].index(label) for label in labels])
    weight = torch.tensor([3, 0.5]) if kind == "weights" else None

    def share(name):
        if ".layer." in name:
            return 0.5 ** (2 - int(name.split(".layer.")[1][0]))
        return 0.0 if "embeddings" in name else 1.0

    def make_feed(tokenizer):
        def feed(chosen):
            padded = tokenizer([texts[i] for i in chosen], padding=True, return_tensors="pt")
            return {**padded, "labels": classes[chosen]}

        return feed

    steps, theirs = both_losses(
        config, tmp_path / "initial", transformers.AutoModelForSequenceClassification, make_feed,
        loss_of=nn.CrossEntropyLoss(weight, label_smoothing=0.2), share=share,
    )  # fmt: skip
    ours = [step["loss"] for step in steps]
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)
    assert abs(ours[0] - ours[-1]) > 0.01  # so that the steps are seen


# --- frozen layers ---------------------------------------------------------------------------


@pytest.mark.parametrize(("chosen", "count"), [(0, 0), (1, 1), (2, 2), ("all", 2)])
def test_what_is_frozen_keeps_its_bits_and_the_rest_learns(tuned, pretrained, chosen, count):
    config = tuned(
        {"budget": "3", "warmup": 0.0}, frozen_layers=chosen, validation_file=None, test_file=None
    )
    before = load_pretrained(pretrained, Bert).state_dict()
    run_it(config)
    saved = weights(config.out)
    frozen = ("bert.embeddings.", *(f"bert.encoder.layers.{n}." for n in range(count)))
    for name, value in before.items():
        is_frozen = f"bert.{name}".startswith(frozen)
        assert torch.equal(saved[f"bert.{name}"], value) == is_frozen, name
    described = json.loads((config.out / "run.json").read_text())
    tensors = sum(group["tensors"] for group in described["parameter_groups"].values())
    assert tensors == sum(not name.startswith(frozen) for name in saved)
    assert described["finetune"]["frozen_layers"] == count


def test_no_gradient_is_computed_in_what_is_frozen():
    model = BertForSequenceClassification(TINY).train()
    model.bert.freeze(1)
    batch = PackedBatch.from_lists([[5, 6, 7], [8, 9]])
    states = model.bert.encode(batch, torch.tensor(1)).hidden_states
    assert [state.requires_grad for state in states] == [False, False, True]
    # Dropout stays on: another seed gives other states.
    other = model.bert.encode(batch, torch.tensor(2)).hidden_states
    assert not torch.equal(states[0], other[0])


def test_a_dry_run_counts_what_is_frozen(tuned):
    whole, frozen = (dry_run(tuned(frozen_layers=n)).splitlines() for n in (None, "all"))
    assert any("frozen: the embeddings and the lowest 2 of 2 layers" in line for line in frozen)
    assert not any("frozen: " in line for line in whole)
    (total,) = [line for line in whole if line.startswith("parameters: ")]
    assert total in frozen and '"frozen_layers": 2' in "\n".join(frozen)


@pytest.mark.errors
def test_no_more_layers_are_frozen_than_are_kept(tuned):
    with pytest.raises(ValueError) as error:
        prepare(tuned(frozen_layers=2, redrawn_layers=1))
    assert str(error.value) == (
        "frozen_layers: expected at most 1, the model's layers that aren't drawn anew, got 2"
    )
    assert prepare(tuned(frozen_layers="all", redrawn_layers=1)).config.frozen_layers == 1


@pytest.mark.errors
def test_a_run_goes_on_with_what_it_froze(tuned):
    files = {"validation_file": None, "test_file": None}
    run_it(tuned({"budget": "2"}, frozen_layers=1, **files))
    with pytest.raises(ValueError, match="^frozen_layers: expected 1, as .* got None"):
        run_it(tuned({"budget": "3"}, **files))


# --- patience --------------------------------------------------------------------------------


def test_a_run_out_of_patience_leaves_its_best(make_config, monkeypatch, capsys):
    """The second of its evaluations is the best; two more find nothing."""
    accuracies = iter([0.5, 0.9, 0.7, 0.9, 0.1, 0.1])
    seen = []
    real = Classification.evaluate

    def evaluate(self, model, rows):
        scores = real(self, model, rows)
        seen.append({name: value.clone() for name, value in model.state_dict().items()})
        return replace(scores, accuracy=next(accuracies))

    monkeypatch.setattr(Classification, "evaluate", evaluate)
    config = make_config({"budget": "20", "evaluate_every": "2"}, patience=2, test_file=None)
    result = run_it(config)
    why = "2 evaluations without a better accuracy than 0.9000 at step 4"
    assert (result.training.step, result.training.stopped_early) == (8, why)
    assert same(weights(config.out), seen[1])
    report = (config.out / "report.txt").read_text()
    assert report.startswith(f"Stopped early, at step 8 of 20: {why}\n")
    numbers = json.loads((config.out / "metrics.json").read_text())["training"]
    assert (numbers["best_step"], numbers["stopped_early"]) == (4, why)
    assert f"stopping early: {why}" in capsys.readouterr().err


# --- all together ----------------------------------------------------------------------------


@pytest.mark.slow
def test_all_of_it_goes_on_bit_by_bit_after_a_stop(tuned, lopsided, tmp_path, monkeypatch):
    training = {
        "budget": "9", "evaluate_every": "2", "accumulation": 2, "layer_decay": 0.8,
        "precision": "bfloat16", "statistics_every": 2,
    }  # fmt: skip
    settings = {"train_file": lopsided, "test_file": None, "patience": 3, **ALL}
    # A large product in bfloat16 takes seconds on a CPU that has none.
    monkeypatch.setattr("bert.training.loop.peak_speed", lambda hardware: 0.0)
    whole = run_it(tuned(training, out=tmp_path / "whole", **settings))
    stopped = tuned(training, out=tmp_path / "stopped", **settings)
    real, calls = SequenceObjective.forward, []

    def forward(self, batch, dropout_seed):
        calls.append(1)
        if len(calls) == 10:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, batch, dropout_seed)

    monkeypatch.setattr(SequenceObjective, "forward", forward)
    assert run_it(stopped).training.exit_code == 143
    result = run_it(stopped)
    assert result.training.step == whole.training.step
    assert result.training.stopped_early == whole.training.stopped_early
    assert same(weights(stopped.out), weights(whole.run_dir))


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["none", "full"])
def test_two_processes_do_all_of_it_as_one_does(
    tuned,
    lopsided,
    tmp_path,
    processes,  # noqa: F811
    sharding,
):
    training = {"budget": "8", "evaluate_every": "2", "accumulation": 3, "layer_decay": 0.8}
    settings = {
        "train_file": lopsided, "test_file": None, "patience": 2, "batch_size": 7, **ALL,
    }  # fmt: skip
    two = tuned(training | {"sharding": sharding}, **settings)
    assert together(processes, ranks.finetune, tmp_path / "ranks", two) == [0, 0]
    one = run_it(tuned(training, out=tmp_path / "one", **settings))
    got, expected = weights(two.out), weights(one.run_dir)
    for name, tensor in expected.items():
        torch.testing.assert_close(got[name], tensor, rtol=0, atol=1e-4)
    ours, theirs = (
        [step["loss"] for step in read_log(out / "log.jsonl", "step")]
        for out in (two.out, one.run_dir)
    )
    assert ours == pytest.approx(theirs, abs=1e-4)
