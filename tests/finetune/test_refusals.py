"""What can't be learned is told before the first step."""

import json
from dataclasses import replace

import pytest

from finetune.run import finetune as run_it
from tests.finetune.conftest import TINY, write_tsv


@pytest.mark.errors
@pytest.mark.parametrize(
    ("changes", "rows", "message"),
    [
        ({}, {"train": [("a", "x")]}, "train.tsv: expected two classes or more, got only 'x'"),
        (
            {},
            {"test": [("a", "odd")]},
            "test.tsv, line 2, column 'label': expected a class that is trained (bad, good), or 0 "
            "to 1, got 'odd'",
        ),
        (
            {},
            {"train": [("a", 0), ("b", 1)], "validation": [("a", 1), ("b", 2)]},
            "validation.tsv, line 3, column 'label': expected a class that is trained (0, 1), "
            "got '2'",
        ),
        (
            {"class_names": ("bad", "good", "fair")},
            {},
            "train.tsv: no row has class 'fair'",
        ),
        (
            {},
            {"train": [("a", 0), ("b", 2)]},
            "train.tsv, line 3, column 'label': got class 2, but no row has class 1; number the "
            "classes without a gap, or call them by names",
        ),
        (
            {"max_length": 41},
            {},
            "max_length: expected at most 40, the longest that the model can take "
            "(max_position_embeddings), got 41",
        ),
        (
            {"train_rows": 3},
            {"train": [("a", 0), ("b", 1)]},
            "expected at most 2, all of train.tsv, got 3",
        ),
        (
            {"train_rows": 2},
            {"train": [("a", 0), ("b", 0), ("c", 1)]},
            "train.tsv: expected two classes or more, got only '0'",
        ),
    ],
)
def test_errors_come_before_the_first_step(make_config, tmp_path, changes, rows, message):
    written = {f"{k}_file": write_tsv(tmp_path / f"{k}.tsv", v) for k, v in rows.items()}
    config = make_config(**(written | changes))
    with pytest.raises(ValueError) as error:
        run_it(config)
    assert str(error.value).replace(f"{tmp_path}/", "").endswith(message)
    assert not config.out.exists()


@pytest.mark.errors
def test_files_and_model_must_agree_on_pairs(make_config, tmp_path):
    header = ("text_a", "text_b", "label")
    pairs = write_tsv(tmp_path / "pairs.tsv", [("a", "b", "bad"), ("a", "c", "good")], header)
    with pytest.raises(ValueError, match=r"pairs.tsv: expected single texts, like .*train.tsv"):
        run_it(make_config(test_file=pairs))
    model = tmp_path / "one_segment"
    model.mkdir()
    values = replace(TINY, type_vocab_size=1).to_dict("BertModel")
    (model / "config.json").write_text(json.dumps(values))
    config = make_config(
        model=str(model), tokenizer=make_config().model, train_file=pairs,
        validation_file=None, test_file=None,
    )  # fmt: skip
    with pytest.raises(ValueError, match="model: expected two segment types, for pairs of texts"):
        run_it(config)


@pytest.mark.errors
def test_the_tokenizer_must_fit_the_model(make_config, tmp_path, tokenizer):
    model = tmp_path / "small"
    tokenizer.save(model)
    size = tokenizer.vocab_size
    values = replace(TINY, vocab_size=size - 1).to_dict("BertModel")
    (model / "config.json").write_text(json.dumps(values))
    with pytest.raises(ValueError) as error:
        run_it(make_config(model=str(model)))
    assert str(error.value) == (
        f"tokenizer: expected at most the model's {size - 1} tokens (vocab_size), got {size}"
    )


@pytest.mark.errors
def test_a_model_that_is_not_there_is_told(make_config):
    with pytest.raises(ValueError) as error:
        run_it(make_config(model="nowhere", from_scratch=False))
    assert str(error.value) == (
        "model: expected a directory, a config.json or a preset, got 'nowhere'"
    )


@pytest.mark.errors
def test_a_pretraining_run_is_not_fine_tuned_into(make_config):
    config = make_config()
    config.out.mkdir()
    (config.out / "run.json").write_text(json.dumps({"identity": {"start": "drawn"}}))
    with pytest.raises(ValueError, match="^out: expected no run of bert pretrain in it, got one"):
        run_it(config)


@pytest.mark.errors
def test_a_file_is_no_directory_for_a_run(make_config):
    config = make_config()
    config.out.touch()
    with pytest.raises(ValueError, match="^out: expected a directory, got the file "):
        run_it(config)
