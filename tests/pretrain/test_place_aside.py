"""What a preparation leaves beside its corpus where it is killed after the corpus is in place."""

import fcntl
import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from pretrain.corpus import Corpus
from pretrain.material import open_corpus
from pretrain.place_aside import delete_leftovers
from pretrain.preparation import prepare
from pretrain.prepare import prepare_files
from pretrain.prepare_config import PrepareConfig
from tests.conftest import ROOT
from tests.pretrain.texts import DOCUMENTS_OF_TEXT, TOKENIZER, make_documents, write_text

KILLED = """
import os, re, signal, sys
from pathlib import Path
from pretrain.prepare import prepare_files
from pretrain.prepare_config import PrepareConfig

def watch(event, arguments):
    if event == "shutil.rmtree" and re.search(sys.argv[3], str(arguments[0])):
        os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(watch)
files, out = (Path(sys.argv[1]),), Path(sys.argv[2])
prepare_files(PrepareConfig(files=files, out=out, vocab_size=90, workers=1))
"""
PARTIAL, VOCABULARY = r"\.data\.partial", r"\.data\.tokenizer-[0-9a-f]{16}"


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@pytest.mark.parametrize(
    ("at", "left"), [(PARTIAL, (PARTIAL, VOCABULARY)), (VOCABULARY, (VOCABULARY,))]
)
def test_killed_at_a_clean_up_the_next_run_does_it(tmp_path, at, left):
    text, out = write_text(tmp_path / "text.txt", make_documents(20)), tmp_path / "data"
    command = [sys.executable, "-c", KILLED, text, out, f"{at}$"]
    assert subprocess.run(command, cwd=ROOT, timeout=120).returncode == -signal.SIGKILL
    *found, corpus, _ = names(tmp_path)
    assert corpus == "data" and len(found) == len(left)
    for pattern, name in zip(left, found, strict=True):
        assert re.fullmatch(pattern, name)
    Corpus.open(out, verify=True)  # whole
    with pytest.raises(ValueError, match="^out: expected a path where nothing is, got .*data$"):
        prepare_files(PrepareConfig(files=(text,), out=out, vocab_size=90))
    assert names(tmp_path) == ["data", "text.txt"]
    Corpus.open(out, verify=True)


def test_vocabularies_of_attempts_that_asked_for_others_go_too(tmp_path):
    text, out = write_text(tmp_path / "text.txt", make_documents(20)), tmp_path / "data"
    for name in (".data.tokenizer-1", ".data2.tokenizer-1"):
        (tmp_path / name).mkdir()
    prepare_files(PrepareConfig(files=(text,), out=out, vocab_size=90, workers=1))
    assert names(tmp_path) == [".data2.tokenizer-1", "data", "text.txt"]


def test_a_training_run_cleans_up_its_own_data(tmp_path):
    text, home = write_text(tmp_path / "text.txt", DOCUMENTS_OF_TEXT), tmp_path / "train"
    prepare([text], home, TOKENIZER, progress=False)
    partial = tmp_path / ".train.partial"
    (partial / "shard-00000").mkdir(parents=True)
    open_corpus((text,), home, TOKENIZER)
    assert names(tmp_path) == ["text.txt", "train"]


READ_ONLY = """
import os, sys
from pathlib import Path
from pretrain.place_aside import place_aside
if os.geteuid() == 0:  # for root nothing is read-only
    os.setgid(65534)
    os.setuid(65534)
try:
    place_aside(Path(sys.argv[1])).__enter__()
except OSError as error:
    print(error)
"""


@pytest.mark.errors
def test_a_directory_that_cannot_be_written_is_named():
    # Not tmp_path, which nobody but its owner may enter.
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o555)
        command = [sys.executable, "-c", READ_ONLY, Path(name) / "out"]
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert f"Permission denied: '{name}/.out.partial'" in ended.stdout, ended.stderr
        os.chmod(name, 0o755)


def test_what_another_process_is_at_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    partial = Path(".out.partial")
    partial.mkdir()
    other = os.open(partial, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    delete_leftovers(Path("out"))
    assert partial.exists()
    os.close(other)
    delete_leftovers(Path("out"))
    assert not partial.exists()
    delete_leftovers(Path("."))  # a directory without a name of its own
