"""A file that is cut has the same rows as its parts, whatever its format."""

import json
import lzma
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bert.text import TextReport
from finetune import tasks
from finetune.config import Columns, FinetuneConfig
from finetune.entities.conll import read_sentences
from finetune.studies.cutting import cut, cut_name, nested_order
from finetune.tables import records

CONFIG = FinetuneConfig("model", Path("train"), Path("out"))
FILES = {
    "rows.tsv": "text\tlabel\r\na \"quote\tx\r\n\r\nb\ty\r\nc\u2028d\tx",
    "rows.csv": 'text,label\n"two\nlines",x\n\n"a ""b"", c",y\nlast,x\n',
    "rows.jsonl": '\n{"text": "a", "label": 1}\n{"text": "b\\ud800", "label": 2}\n\n{"text": "c"}',
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("packed", [False, True])
def test_the_parts_are_the_whole(name, packed, tmp_path):
    source = tmp_path / (f"{name}.xz" if packed else name)
    (lzma.open if packed else open)(source, "wb").write(FILES[name].encode("utf-8", "replace"))
    rows = [record for _, record in records(source, TextReport())]
    starts = tasks.configured("classification", ()).starts(source, CONFIG)
    assert len(starts) == len(rows) == 3
    for chosen in ([0], [1], [2], [0, 2], [1, 2], [0, 1, 2]):
        out = tmp_path / cut_name(source, "part")
        cut(source, starts, np.array(chosen), out)
        assert [record for _, record in records(out, TextReport())] == [rows[i] for i in chosen]
        assert out.suffix == Path(name).suffix


def test_sentences_are_cut_whole(tmp_path):
    source = tmp_path / "tags.conll"
    source.write_text("-DOCSTART- O\n\na O\nb B-X\n\n\nc O\n\n-DOCSTART- O\n\nd B-X\ne I-X")
    starts = tasks.configured("token-classification", ()).starts(source, CONFIG)
    assert starts == [3, 7, 11]

    def words(path):
        return [s.words for s in read_sentences(path, Columns(), 0, -1, TextReport())]

    for chosen, expected in (([1], [["c"]]), ([0, 2], [["a", "b"], ["d", "e"]])):
        out = tmp_path / cut_name(source, "part")
        cut(source, starts, np.array(chosen), out)
        assert words(out) == expected


@pytest.mark.errors
def test_a_file_of_questions_is_not_cut(tmp_path):
    path = tmp_path / "squad.json"
    path.write_text(json.dumps({"data": []}))
    task = tasks.configured("question-answering", ())
    with pytest.raises(ValueError, match="^train_file: expected a file that can be cut between "):
        task.starts(path, CONFIG)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=80), st.integers(0, 9))
def test_each_beginning_has_the_classes_in_proportion(labels, seed):
    classes = np.array(labels)
    order = nested_order(classes, seed)
    assert sorted(order.tolist()) == list(range(len(classes)))
    for size in range(1, len(classes) + 1):
        for each, count in zip(*np.unique(classes, return_counts=True), strict=True):
            met = (classes[order[:size]] == each).sum()
            # Up to a place p a class has c·p ± ½ rows; so all k have N·p ± k/2, which is `size`.
            assert abs(met - count * size / len(classes)) <= (1 + len(set(labels))) / 2


def test_a_seed_draws_rows_of_its_own():
    classes = np.arange(40) % 2
    first, again, other = (tuple(nested_order(classes, seed)) for seed in (0, 0, 1))
    assert first == again and first[:10] != other[:10]
    assert len({*islice(first, 10)} - {*islice(other, 10)}) > 0
