"""From labels to classes, from rows to packed micro-batches."""

import itertools
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from finetune.batches import ShuffledBatches, TokenRows
from finetune.config import Columns
from finetune.data import LabelledRows, read_rows
from finetune.labels import class_of, name_classes
from finetune.tables import Table
from tests.finetune.conftest import write_tsv


def token_rows(lists, types=None):
    types = types or [[0] * len(ids) for ids in lists]
    return TokenRows.from_encodings(
        SimpleNamespace(ids=i, token_type_ids=t) for i, t in zip(lists, types, strict=True)
    )


lengths = st.lists(st.integers(1, 30), min_size=1, max_size=40)


# --- rows ------------------------------------------------------------------------------------


def test_a_batch_is_the_chosen_rows_packed():
    rows = token_rows([[5, 6, 7], [8], [9, 10]], [[0, 0, 1], [0], [0, 1]])
    batch = rows.batch([2, 0, 2])
    assert batch.input_ids.tolist() == [9, 10, 5, 6, 7, 9, 10]
    assert batch.token_type_ids.tolist() == [0, 1, 0, 0, 1, 0, 1]
    assert batch.position_ids.tolist() == [0, 1, 0, 1, 2, 0, 1]
    assert batch.sequences.lengths == (2, 3, 2)
    assert batch.sequences.cu_seqlens.tolist() == [0, 2, 5, 7]
    assert {batch.input_ids.dtype, batch.token_type_ids.dtype, batch.position_ids.dtype} == {
        torch.int64
    }


@given(lengths, st.integers(1, 60))
def test_groups_by_length_hold_each_row_once_and_keep_to_the_budget(lengths, budget):
    rows = token_rows([[1] * n for n in lengths])
    groups = [group.tolist() for group in rows.by_length(budget)]
    assert sorted(itertools.chain(*groups)) == list(range(len(lengths)))
    for group in groups:
        assert len(group) == 1 or sum(lengths[i] for i in group) <= budget
    sizes = [lengths[i] for group in groups for i in group]
    assert sizes == sorted(sizes, reverse=True)
    # No group could have taken the row that begins the next one.
    for group, following in itertools.pairwise(groups):
        assert sum(lengths[i] for i in group) + lengths[following[0]] > budget


# --- files -----------------------------------------------------------------------------------


def test_a_file_becomes_ids_and_classes(tmp_path, tokenizer):
    path = write_tsv(
        tmp_path / "a.tsv",
        [("ban bar", "no", "x"), ("bas", "yes yes", "y"), ("", "", "x")],
        ("text_a", "text_b", "label"),
    )
    rows = read_rows(path, Columns(), tokenizer, 5)
    expected = tokenizer.encode_batch(["ban bar", "bas", ""], ["no", "yes yes", ""], max_length=5)
    assert rows.tokens.input_ids.tolist() == [i for e in expected for i in e.ids]
    assert rows.tokens.token_type_ids.tolist() == [t for e in expected for t in e.token_type_ids]
    assert rows.tokens.lengths.tolist() == [len(e) for e in expected]
    assert (rows.class_names, rows.labels.tolist()) == (("x", "y"), [0, 1, 0])
    assert rows.class_counts == {"x": 2, "y": 1}
    assert str(rows) == (
        f"{path}: 3 rows (x 2, y 1); columns text_a, text_b, label; 13 tokens, 5 in the longest "
        "row; 2 rows fill the 5 tokens or were cut"
    )


def test_rows_are_tokenized_in_chunks_without_a_seam(tmp_path, tokenizer, monkeypatch):
    path = write_tsv(tmp_path / "a.tsv", [(f"ban {'bar ' * i}", i % 3) for i in range(20)])
    whole = read_rows(path, Columns(), tokenizer, 12)
    monkeypatch.setattr("finetune.data.CHUNK", 7)
    parts = read_rows(path, Columns(), tokenizer, 12)
    assert whole.sha256() == parts.sha256()
    assert parts.labels.tolist() == [i % 3 for i in range(20)]


def test_the_hash_sees_a_changed_word_and_a_changed_label(tmp_path, tokenizer):
    kinds = [("ban", 0), ("bar", 1)], [("ban", 0), ("bas", 1)], [("ban", 1), ("bar", 0)]
    hashes = {
        read_rows(write_tsv(tmp_path / "a.tsv", kind), Columns(), tokenizer, 12).sha256()
        for kind in kinds
    }
    assert len(hashes) == 3


# --- classes ---------------------------------------------------------------------------------


def test_numbers_are_in_order_of_size_and_names_of_the_alphabet():
    assert name_classes({str(i): "" for i in reversed(range(11))}) == tuple(map(str, range(11)))
    assert name_classes({"b": "", "a": "", "10": ""}) == ("10", "a", "b")


def test_a_class_may_be_called_by_its_place_if_names_are_words():
    assert [class_of(label, ("bad", "good"), "") for label in ("good", "0", "1")] == [1, 0, 1]
    assert class_of("1", ("1", "0"), "") == 0


@pytest.mark.errors
@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["0", "-1"], "at -1: expected a class 0, 1, …, got -1"),
        (["0", "01"], "at 01: expected a class 0, 1, …, got 01"),
        (["0", "3", "1"], "at 3: got class 3, but no row has class 2; number the classes without "
         "a gap, or call them by names"),
        (["1", "2"], "at 2: got class 2, but no row has class 0; number the classes without "
         "a gap, or call them by names"),
    ],
)  # fmt: skip
def test_numbers_have_no_gap(labels, message):
    with pytest.raises(ValueError) as error:
        name_classes({label: f"at {label}" for label in labels})
    assert str(error.value) == message


@pytest.mark.errors
@pytest.mark.parametrize(
    ("names", "label", "message"),
    [
        (("0", "1"), "2", "here: expected a class that is trained (0, 1), got '2'"),
        (("a", "b"), "2", "here: expected a class that is trained (a, b), or 0 to 1, got '2'"),
        (("a", "b"), "-1", "here: expected a class that is trained (a, b), or 0 to 1, got '-1'"),
        (("a", "b"), "A", "here: expected a class that is trained (a, b), or 0 to 1, got 'A'"),
    ],
)
def test_a_label_that_is_no_class_is_told(names, label, message):
    with pytest.raises(ValueError) as error:
        class_of(label, names, "here")
    assert str(error.value) == message


# --- micro-batches ---------------------------------------------------------------------------


def make_batches(count, batch_size, seed=0):
    tokens = token_rows([[i] * (1 + i % 5) for i in range(count)])
    table = Table(Path("rows.tsv"), Columns("text", None, "label"), ("text", "label"))
    return ShuffledBatches(
        LabelledRows(table, tokens, np.arange(count), ("a",), 32), batch_size, seed
    )


@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 5))
def test_an_epoch_has_each_row_once(count, batch_size, seed):
    batches = make_batches(count, batch_size, seed)
    for epoch in range(3):
        of_epoch = range(epoch * batches.per_epoch, (epoch + 1) * batches.per_epoch)
        parts = [batches[index].labels.tolist() for index in of_epoch]
        assert sorted(itertools.chain(*parts)) == list(range(count))
        assert {len(part) for part in parts[:-1]} <= {batch_size}


def test_a_micro_batch_follows_from_its_index_alone():
    forth, back = make_batches(23, 4), make_batches(23, 4)
    ahead = [forth[i].labels.tolist() for i in range(18)]
    assert ahead == [back[i].labels.tolist() for i in reversed(range(18))][::-1]
    # Each epoch and each seed has another order.
    epochs = [sum(ahead[i : i + 6], []) for i in (0, 6, 12)]
    other = sum((make_batches(23, 4, seed=1)[i].labels.tolist() for i in range(6)), [])
    assert len({tuple(order) for order in [*epochs, other, list(range(23))]}) == 5


def test_labels_stay_with_their_rows():
    batches = make_batches(17, 5)
    for index in range(4):
        batch = batches[index]
        starts = batch.packed.sequences.cu_seqlens[:-1].long()
        assert batch.packed.input_ids[starts].tolist() == batch.labels.tolist()
        assert batches.tokens(batch) == len(batch.packed.input_ids)
    assert batches.mean_length == pytest.approx(np.mean([1 + i % 5 for i in range(17)]))
    assert batches.mean_tokens == pytest.approx(batches.mean_length * 17 / 4)
