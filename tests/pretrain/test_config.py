from pathlib import Path

import pytest

from pretrain.config import PhaseShape, PretrainConfig


def config(**settings):
    return PretrainConfig(files=(Path("t.txt"),), out=Path("run"), **settings)


def test_without_phases_the_run_is_one():
    (phase,) = config(max_length=64, tokens_per_batch=512).parsed_phases()
    assert phase == PhaseShape("", 64, 512, 1.0)


def test_phases_are_lengths_tokens_and_shares():
    got = config(phases=("64:1024:0.9", "128:2048:0.1")).parsed_phases()
    assert got == [
        PhaseShape("64:1024:0.9", 64, 1024, 0.9),
        PhaseShape("128:2048:0.1", 128, 2048, 0.1),
    ]
    config(phases=("64:1024:0.1",) * 10)


@pytest.mark.errors
@pytest.mark.parametrize(
    ("phases", "message"),
    [
        (("64",), "expected MAX_LENGTH:TOKENS_PER_BATCH:SHARE such as 128:4096:0.9, .*got '64'"),
        (("64:1024:0.9:1",), "expected MAX_LENGTH"),
        (("a:1024:1",), "expected MAX_LENGTH"),
        (("64:1024:nan",), "expected MAX_LENGTH"),
        (("64:1024:0", "64:1024:1"), "expected MAX_LENGTH.*got '64:1024:0'"),
        (("7:1024:1",), "expected MAX_LENGTH"),
        (("64:63:1",), "expected MAX_LENGTH"),
        (("64:1024:0.5",), r"expected shares that add up to 1, not 0.5, got \('64:1024:0.5',\)"),
        (("64:1024:0.5", "129:1024:0.5"), "expected at most max_length, 128, got "),
    ],
)
def test_phases_that_cannot_be_are_refused(phases, message):
    with pytest.raises(ValueError, match=f"^phases: {message}") as error:
        config(phases=phases)
    assert "\n" not in str(error.value)


@pytest.mark.errors
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vector_window": 0, "word_vectors": True}, "vector_window: expected 1 or more, got 0"),
        (
            {"vector_window": 5},
            "vector_window: expected the default, 10, without word_vectors, got 5",
        ),
    ],
)
def test_a_window_that_cannot_be_or_does_nothing_is_refused(changes, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        config(**changes)


@pytest.mark.errors
def test_a_saved_model_keeps_its_own_start(tmp_path):
    with pytest.raises(ValueError, match="^local_start: expected false, since the weights are"):
        config(model=str(tmp_path), local_start=True)
