"""Tasks: found by the name of their file, told their options, and remembered by the model."""

import json
from dataclasses import replace

import pytest

from bert.cli import main
from bert.config import BertConfig
from bert.finetuning import BertForSequenceClassification
from bert.saving import save_pretrained
from finetune import tasks
from finetune.config import FinetuneConfig
from finetune.prepare import prepare
from tests.finetune.conftest import TINY

SEQUENCE = {"architectures": ["BertForSequenceClassification"]}
# A task of a user: one file, which no other file knows of.
WITH_OPTIONS = '''
from dataclasses import dataclass
from finetune.tasks.regression import Regression

@dataclass(frozen=True)
class Planted(Regression):
    """Regression that is told things."""

    threshold: float = 0.5
    """Where to cut."""
    separator: str = ","
    """What stands between."""
    strict: bool = False
    """Whether to mind."""

    def __post_init__(self):
        self._require("threshold", "a probability", 0 <= self.threshold <= 1)
'''


@pytest.fixture
def planted(tmp_path, monkeypatch):
    (tmp_path / "planted_by_hand.py").write_text(WITH_OPTIONS)
    monkeypatch.setattr(tasks, "__path__", [*tasks.__path__, str(tmp_path)])
    return "planted-by-hand"


def test_each_file_of_the_directory_is_a_task():
    assert "classification" in tasks.names()
    for name in tasks.names():
        task = tasks.configured(name, [])
        assert task.metrics and task.heads and task.pipeline and task.model_class


def test_the_help_lists_each_task(capsys):
    assert main(["finetune", "--help"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    told = told[told.index("--task TEXT") : told.index("--options")]
    for name in (*tasks.names(), ".tsv", "CoNLL", "SQuAD"):
        assert name in told, name


def test_a_file_is_all_that_a_task_needs(planted):
    assert planted in tasks.names()
    FinetuneConfig(model="m", train_file="t", out="o", task=planted)
    assert tasks.configured(planted, []).threshold == 0.5
    told = tasks.configured(planted, ["threshold=0.25", "separator=--", "strict=true"])
    assert (told.threshold, told.separator, told.strict) == (0.25, "--", True)


@pytest.mark.parametrize("options", [[], ["threshold=0.125", "separator=;"]])
def test_the_model_keeps_the_task_and_its_options(planted, tmp_path, tokenizer, options):
    task = tasks.configured(planted, options)
    config = replace(TINY.with_labels(["a", "b"]), **tasks.state(planted, task))
    save_pretrained(BertForSequenceClassification(config), tmp_path / "saved", tokenizer)
    assert BertConfig.load(tmp_path / "saved") == config
    assert tasks.of_model(tmp_path / "saved") == task


def test_a_run_states_its_task_in_the_model(make_config):
    prepared = prepare(make_config())
    assert prepared.encoder.finetuning_task == "classification"
    kept = {"class_weights": None, "label_smoothing": 0.0, "resample": False, "is_pair": False}
    kept |= {"window": None, "stride": None, "pooling": "mean"}
    assert prepared.encoder.task_specific_params == {"classification": kept}
    assert prepared.config.best_metric == "accuracy"


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({}, "classification"),
        ({"finetuning_task": "sst-2"}, "classification"),
        (SEQUENCE, "classification"),
        ({"architectures": ["BertModel"]}, "classification"),
        ({"architectures": "odd"}, "classification"),
        ({"problem_type": "regression"}, "classification"),  # of no architecture
        ({**SEQUENCE, "problem_type": "regression"}, "regression"),
        ({**SEQUENCE, "num_labels": 1}, "regression"),
        ({**SEQUENCE, "problem_type": "multi_label_classification"}, "multi-label"),
        ({"architectures": ["BertForQuestionAnswering"]}, "question-answering"),
        ({"architectures": ["BertForMultipleChoice"], "num_labels": 1}, "multiple-choice"),
    ],
)
def test_where_no_task_is_named_the_head_tells(tmp_path, values, name):
    config = TINY.to_dict() | values
    if "num_labels" in values:
        del config["id2label"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert type(tasks.of_model(tmp_path)) is tasks.task_class(name)


# --- mistakes --------------------------------------------------------------------------------


@pytest.mark.errors
@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["threshold=x"], "options: threshold: expected a number, got 'x'"),
        (["threshold=2"], "options: threshold: expected a probability, got 2.0"),
        (
            ["treshold=0.5"],
            "options: expected NAME=VALUE, where planted-by-hand has "
            "threshold=0.5: Where to cut.; separator=,: What stands between.; "
            "strict=false: Whether to mind., "
            "got 'treshold=0.5'",
        ),
        (["help"], ", got 'help'"),
        (["strict=perhaps"], "options: strict: expected true or false, got 'perhaps'"),
    ],
)
def test_a_wrong_option_is_told(planted, given, message):
    with pytest.raises(ValueError) as error:
        tasks.configured(planted, given)
    assert str(error.value).endswith(message)


@pytest.mark.errors
def test_a_task_without_options_says_so():
    with pytest.raises(ValueError) as error:
        tasks.configured("regression", ["threshold=1"])
    assert str(error.value) == (
        "options: expected none, since regression has no options, got 'threshold=1'"
    )


@pytest.mark.errors
def test_an_unknown_task_or_metric_is_refused_by_a_list(make_config):
    with pytest.raises(ValueError, match=r"^task: expected one of .*classification.*, got 'clas'"):
        make_config(task="clas")
    with pytest.raises(ValueError) as error:
        prepare(make_config(best_metric="f1"))
    assert str(error.value) == (
        "best_metric: expected one of accuracy, macro_f1, mcc, those of classification, got 'f1'"
    )


@pytest.mark.errors
@pytest.mark.parametrize("stored", [{"threshold": "x"}, {"threshold": 7}, [1], "odd"])
def test_damaged_options_name_the_file(planted, tmp_path, stored):
    values = TINY.to_dict() | {
        "finetuning_task": planted,
        "task_specific_params": {planted: stored},
    }
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(ValueError) as error:
        tasks.of_model(tmp_path)
    assert str(error.value).startswith(
        f"{tmp_path / 'config.json'}: task_specific_params: expected the options of {planted}, "
    )
