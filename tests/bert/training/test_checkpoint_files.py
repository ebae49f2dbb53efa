import os
import resource
import shutil
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bert.training.checkpoint_files import (
    MANIFEST,
    DamagedCheckpoint,
    delete_checkpoint,
    delete_partial,
    list_checkpoints,
    prune,
    read_checkpoint,
    set_aside,
    write_checkpoint,
)

CONTENTS = {"a.bin": bytes(range(256)) * 8, "b.json": b'{"step": 3}\n'}


def write_files(directory: Path) -> None:
    for name, content in CONTENTS.items():
        (directory / name).write_bytes(content)
    (directory / "a.bin").chmod(0o600)


def write(parent: Path, step: int) -> Path:
    return write_checkpoint(parent, step, 2060, write_files)


def names(parent: Path) -> set[str]:
    return {path.name for path in parent.iterdir()}


def test_what_is_written_is_read(tmp_path):
    path = write(tmp_path, 3)
    assert path.name == "step-00000003" and read_checkpoint(path) == CONTENTS
    assert names(tmp_path) == {"step-00000003"}


@pytest.mark.parametrize(
    ("umask", "file", "directory"), [(0o022, 0o644, 0o755), (0o027, 0o640, 0o750)]
)
def test_modes_are_the_umasks_whatever_the_writer_did(tmp_path, umask, file, directory):
    before = os.umask(umask)
    try:
        path = write(tmp_path, 1)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == directory
    assert {stat.S_IMODE(p.stat().st_mode) for p in path.iterdir()} == {file}


def test_all_is_on_the_disk_before_its_name_is(tmp_path, monkeypatch):
    events = []
    fsync, rename = os.fsync, os.rename

    def recorded_fsync(descriptor):
        events.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    def recorded_rename(source, target):
        events.append("rename")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(os, "rename", recorded_rename)
    write(tmp_path, 1)
    partial = str(tmp_path / ".step-00000001.partial")
    assert events == [
        *(f"{partial}/{name}" for name in ("a.bin", "b.json", MANIFEST)),
        partial,
        "rename",
        str(tmp_path),
    ]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return write(tmp_path_factory.mktemp("whole"), 7)


@given(data=st.data())
def test_any_byte_changed_in_any_file_is_noticed(whole, data):
    name = data.draw(st.sampled_from([*CONTENTS, MANIFEST]))
    content = bytearray((whole / name).read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= data.draw(st.integers(1, 255))
    check_noticed(whole, name, bytes(content))


@given(data=st.data())
def test_any_cut_or_lengthening_of_any_file_is_noticed(whole, data):
    name = data.draw(st.sampled_from([*CONTENTS, MANIFEST]))
    content = (whole / name).read_bytes()
    end = data.draw(st.integers(0, len(content) - 1))
    check_noticed(whole, name, data.draw(st.sampled_from([content[:end], content + b"\n"])))


def check_noticed(whole, name, content):
    copy = whole.parent / "copy" / whole.name
    shutil.copytree(whole, copy)
    try:
        (copy / name).write_bytes(content)
        with pytest.raises(DamagedCheckpoint, match=name):
            read_checkpoint(copy)
    finally:
        shutil.rmtree(copy.parent)


@pytest.mark.parametrize("name", [*CONTENTS, MANIFEST])
def test_a_missing_file_is_noticed(tmp_path, name):
    path = write(tmp_path, 7)
    (path / name).unlink()
    with pytest.raises(DamagedCheckpoint, match=f"{name}: can't be read"):
        read_checkpoint(path)


# Each limit cuts another file: a.bin at once and in its midst, then the manifest.
@pytest.mark.parametrize("limit", [0, 1000])
def test_a_full_disk_leaves_nothing_new_and_the_old_whole(tmp_path, limit):
    old = write(tmp_path, 1)
    check_full_disk(tmp_path, old, limit, write_files)


def test_a_disk_that_is_full_at_the_manifest_leaves_nothing_new(tmp_path):
    old = write(tmp_path, 1)
    check_full_disk(tmp_path, old, 50, lambda directory: (directory / "c").write_bytes(b"x" * 50))


def check_full_disk(parent, old, limit, write_files):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(OSError) as error:
            write_checkpoint(parent, 2, 2060, write_files)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(parent / "step-00000002") in str(error.value)
    assert "a checkpoint of 2060 bytes was not written" in str(error.value)
    assert names(parent) == {old.name} and read_checkpoint(old) == CONTENTS


def test_an_error_of_the_writer_leaves_nothing(tmp_path):
    def fail(directory):
        write_files(directory)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(tmp_path, 2, 2060, fail)
    assert names(tmp_path) == set()


def test_what_is_there_is_never_written_over(tmp_path):
    old = write(tmp_path, 2)
    with pytest.raises(OSError, match="step-00000002"):
        write_checkpoint(tmp_path, 2, 2060, lambda directory: (directory / "x").touch())
    assert names(tmp_path) == {old.name} and read_checkpoint(old) == CONTENTS


def test_the_list_is_in_the_order_of_steps_and_knows_only_directories(tmp_path):
    for step in (9, 123_456_789, 10):
        write(tmp_path, step)
    (tmp_path / "step-1").mkdir()
    (tmp_path / ".step-00000011.partial").mkdir()
    (tmp_path / "step-00000012").touch()
    os.symlink(tmp_path / "step-00000009", tmp_path / "step-00000013")
    listed = [path.name for path in list_checkpoints(tmp_path)]
    assert listed == ["step-00000009", "step-00000010", "step-123456789"]


def test_pruning_keeps_the_newest(tmp_path):
    for step in range(1, 6):
        write(tmp_path, step)
    prune(tmp_path, 2)
    assert names(tmp_path) == {"step-00000004", "step-00000005"}
    prune(tmp_path, 9)
    assert len(names(tmp_path)) == 2


def test_deletion_takes_the_name_first(tmp_path, monkeypatch):
    path = write(tmp_path, 1)

    def killed(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        delete_checkpoint(path)
    assert list_checkpoints(tmp_path) == []
    monkeypatch.undo()
    delete_partial(tmp_path)
    assert names(tmp_path) == set()


def test_a_damaged_one_is_kept_under_another_name(tmp_path):
    for _ in range(2):
        aside = set_aside(write(tmp_path, 1))
    assert names(tmp_path) == {"damaged-step-00000001"} == {aside.name}
