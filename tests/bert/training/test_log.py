import json
import os

import pytest

from bert.training.log import RunLog, read_log


@pytest.fixture
def log(tmp_path):
    log = RunLog(tmp_path / "log.jsonl")
    yield log
    log.close()


def test_what_is_written_is_read_at_once(log):
    log.write("step", 1, loss=0.5, losses={"mlm": 0.25})
    log.write("evaluation", 1, results={"accuracy": 1.0})
    assert list(read_log(log.path)) == [
        {"kind": "step", "step": 1, "loss": 0.5, "losses": {"mlm": 0.25}},
        {"kind": "evaluation", "step": 1, "results": {"accuracy": 1.0}},
    ]
    assert [record["loss"] for record in read_log(log.path, "step")] == [0.5]


def test_what_json_cannot_say_is_a_string(log):
    log.write("step", 1, loss=float("nan"), parts=[{"a": float("inf")}], low=-float("inf"))
    strict = json.loads(log.path.read_text(), parse_constant=pytest.fail)
    assert strict == {
        "kind": "step", "step": 1, "loss": "nan", "parts": [{"a": "inf"}], "low": "-inf",
    }  # fmt: skip
    assert float(strict["loss"]) != float(strict["loss"])


def test_going_on_cuts_what_will_be_written_again(log):
    for step in range(1, 6):
        log.write("step", step)
    assert log.cut_after(3, 0) == 2
    log.write("step", 4)
    assert [record["step"] for record in read_log(log.path)] == [1, 2, 3, 4]
    assert log.cut_after(9, 0) == 0


def test_an_evaluation_that_the_checkpoint_does_not_know_is_cut(log):
    log.write("step", 2)
    log.write("evaluation", 2)
    log.write("step", 4)
    log.write("evaluation", 4)
    log.write("checkpoint", 4)
    assert log.cut_after(4, 4) == 0
    assert log.cut_after(4, 2) == 2
    assert [record["kind"] for record in read_log(log.path)] == ["step", "evaluation", "step"]


@pytest.mark.parametrize(
    "rest", [b'{"kind": "step", "st', b"\x00\xff\n", b"[]\n", b'{"step": 1}\n']
)
def test_a_damaged_end_is_cut(log, rest):
    log.write("step", 1)
    with open(log.path, "ab") as file:
        file.write(rest)
    assert log.cut_after(5, 0) == 1
    log.write("step", 2)
    assert [record["step"] for record in read_log(log.path)] == [1, 2]


def test_a_line_under_way_is_left_out(log):
    log.write("step", 1)
    with open(log.path, "ab") as file:
        file.write(b'{"kind": "step", "step": 2')
    assert [record["step"] for record in read_log(log.path)] == [1]


@pytest.mark.errors
def test_a_damaged_line_is_named(log):
    log.write("step", 1)
    with open(log.path, "ab") as file:
        file.write(b"oops\n")
    with pytest.raises(ValueError, match=r"log\.jsonl, line 2: expected a JSON object"):
        list(read_log(log.path))


@pytest.mark.errors
def test_a_link_is_not_followed(tmp_path):
    (tmp_path / "elsewhere").touch()
    os.symlink(tmp_path / "elsewhere", tmp_path / "log.jsonl")
    with pytest.raises(OSError, match=r"log\.jsonl"):
        RunLog(tmp_path / "log.jsonl")


@pytest.mark.errors
def test_a_full_disk_names_the_file_and_the_bytes(tmp_path):
    log = RunLog(tmp_path / "log.jsonl")
    os.dup2(os.open("/dev/full", os.O_WRONLY), log._file.fileno())
    with pytest.raises(OSError, match=r"No space.*a line of 28 bytes.*log\.jsonl"):
        log.write("step", 1)
    log.close()
