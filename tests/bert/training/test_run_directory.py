import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from bert.training.run_directory import RunDirectory, refuse_file

ROOT = Path(__file__).resolve().parents[3]


def python(code: str, *arguments: object) -> subprocess.Popen:
    """Start a process that needs no torch."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


HOLD = """
import os, sys, time
from pathlib import Path
from bert.training.run_directory import RunDirectory
with RunDirectory(Path(sys.argv[1])):
    if os.fork() == 0:
        print("child", os.getpid(), flush=True)
        time.sleep(60)
    time.sleep(60)
"""


def test_a_second_writer_is_refused_until_the_first_is_dead(tmp_path):
    first = python(HOLD, tmp_path / "run")
    assert first.stdout is not None
    child = int(first.stdout.readline().split()[1])
    try:
        with pytest.raises(ValueError, match=f"^run_dir: process {first.pid} trains in"):
            RunDirectory(tmp_path / "run").__enter__()
        first.kill()
        first.wait()
        # Its child lives on, as loader workers do for a while, and holds nothing.
        os.kill(child, 0)
        with RunDirectory(tmp_path / "run"):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        first.communicate()


def test_one_process_cannot_train_twice_in_it(tmp_path):
    with RunDirectory(tmp_path):
        (tmp_path / "link").symlink_to(tmp_path)
        for path in (tmp_path, tmp_path / "link"):
            with pytest.raises(ValueError, match="^run_dir: this process trains in"):
                RunDirectory(path).__enter__()
        with pytest.raises(ValueError, match="^run_dir: this process"):
            RunDirectory(tmp_path).__enter__()
        probe = python(HOLD.replace("60", "0"), tmp_path)
        assert f"process {os.getpid()} trains in" in probe.communicate()[1]
    with RunDirectory(tmp_path):
        pass


def test_the_directory_may_be_a_link(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "disk")
    with RunDirectory(tmp_path / "run") as run:
        assert run.path == tmp_path / "disk"
    assert (tmp_path / "disk" / "checkpoints").is_dir()


@pytest.mark.errors
@pytest.mark.parametrize(
    "name", ["lock", "log.jsonl", "checkpoints", "snapshots", "trackers", "run.json"]
)
@pytest.mark.parametrize("target", ["there", "nowhere"])
def test_links_in_it_are_refused_and_their_targets_left(tmp_path, name, target):
    (tmp_path / "there").write_text("precious")
    run = tmp_path / "run"
    run.mkdir()
    (run / name).symlink_to(tmp_path / target)
    with pytest.raises(
        ValueError, match=f"^run_dir: expected no symbolic link in it, got .*{name}"
    ):
        RunDirectory(run).__enter__()
    assert (tmp_path / "there").read_text() == "precious"
    assert not (tmp_path / "nowhere").exists()


ENTER = """
import os, sys
from pathlib import Path
from bert.training.run_directory import RunDirectory
if os.geteuid() == 0:  # for root nothing is read-only
    os.setgid(65534)
    os.setuid(65534)
try:
    RunDirectory(Path(sys.argv[1])).__enter__()
except OSError as error:
    print(error)
"""


@pytest.mark.errors
@pytest.mark.parametrize("inner", ["", "new"])
def test_a_directory_that_cannot_be_written_is_named(inner):
    # Not tmp_path, which nobody but its owner may enter.
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o555)
        out, _ = python(ENTER, Path(name) / inner).communicate()
        assert "Permission denied" in out and name in out
        os.chmod(name, 0o755)


@pytest.mark.errors
def test_a_file_in_its_place_is_named(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(OSError, match=str(tmp_path / "file")):
            RunDirectory(path).__enter__()


@pytest.mark.errors
def test_a_file_is_refused_as_an_out(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    for out, got in (("file", "the file file"), ("file/a/b", "file/a/b, below the file file")):
        with pytest.raises(ValueError, match=f"^out: expected a directory, got {got}$"):
            refuse_file(Path(out))
    (tmp_path / "link").symlink_to(tmp_path)
    for out in (Path("new"), Path("."), tmp_path / "link" / "a" / "b"):
        refuse_file(out)


def test_clearing_deletes_the_run_and_nothing_else(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with RunDirectory(tmp_path) as run:
        assert not run.has_run()
        for place in (run.checkpoints, run.snapshots, run.trackers):
            (place / "step-00000001").mkdir(parents=True)
        assert run.has_run()
        run.log.touch()
        run.describe({"config": 1})
        run.clear()
        assert not run.has_run()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoints", "lock", "notes.txt"]


def test_what_a_killed_process_had_begun_is_swept(tmp_path):
    (tmp_path / "checkpoints" / ".step-00000004.partial").mkdir(parents=True)
    (tmp_path / "checkpoints" / ".step-00000004.partial" / "x").touch()
    with RunDirectory(tmp_path) as run:
        assert list(run.checkpoints.iterdir()) == []
