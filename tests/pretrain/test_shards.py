"""Shards: the same corpus whoever makes them, however often that is stopped."""

import os
import random
import resource
import signal
import subprocess
import sys
import time
from multiprocessing import active_children

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pretrain import preparation
from pretrain.corpus import MANIFEST, SENTENCES, TOKENS, Corpus
from pretrain.documents import Rows
from pretrain.merging import merge_shards
from pretrain.preparation import prepare
from pretrain.shard_workers import collect, local_workers, wait_for_workers
from pretrain.shards import prepare_shard
from tests.conftest import ROOT
from tests.pretrain.texts import TOKENIZER, contents, make_documents, write_text


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr("pretrain.shard_texts.SHARD", 1000)


@pytest.fixture
def text(tmp_path):
    return write_text(tmp_path / "text.txt", make_documents(100))


@pytest.fixture
def expected(tmp_path, text):
    """The corpus as one shard."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pretrain.shard_texts.SHARD", 1 << 25)
        corpus = prepare([text], tmp_path / "one shard", TOKENIZER, progress=False)
    return contents(corpus.directory)


@pytest.fixture
def made(monkeypatch):
    """The shards that are made in this process, by name."""
    names = []

    def counted(text, directory, *rest):
        names.append(directory.name)
        prepare_shard(text, directory, *rest)

    monkeypatch.setattr(preparation, "prepare_shard", counted)
    return names


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_any_number_of_workers_gives_the_same_bytes(tmp_path, text, expected, made, workers):
    corpus = prepare([text], tmp_path / "out", TOKENIZER, workers=workers, progress=False)
    assert contents(corpus.directory) == expected
    assert (len(made) > 10) == (workers == 1)
    assert not active_children() and not (tmp_path / ".out.partial").exists()


documents = st.lists(
    st.lists(st.sampled_from(["The cat sat.", "A dog", "\x00", "\x07 ", "we saw it. It"])
             | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n"),
                       max_size=9),
             max_size=4),
    max_size=12,
)  # fmt: skip


@given(documents, st.integers(10, 200), st.booleans())
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_shards_of_any_size_give_the_same_corpus(tmp_path_factory, texts, size, drop):
    home = tmp_path_factory.mktemp("shards")
    path = write_text(home / "text.txt", [["One."], *texts, ["Two."]])
    made = []
    with pytest.MonkeyPatch.context() as patch:
        for shard in (size, 1 << 25):
            patch.setattr("pretrain.shard_texts.SHARD", shard)
            out = home / str(shard)
            prepare([path], out, TOKENIZER, drop_duplicates=drop, progress=False)
            made.append(contents(out))
    assert made[0] == made[1]


def test_a_shard_is_a_corpus_of_its_own(tmp_path, text, expected):
    shard_text = tmp_path / "shard.txt"
    shard_text.write_text(text.read_text() + "\n")
    prepare_shard(shard_text, tmp_path / "shard", TOKENIZER, 128)
    shard = Corpus.open(tmp_path / "shard", verify=True)
    for name in shard.manifest["files"]:
        assert (shard.directory / name).read_bytes() == expected[name]


class Stopped(Exception):
    pass


@pytest.mark.usefixtures("small_shards")
def test_what_is_whole_is_not_made_again(tmp_path, text, expected, made, monkeypatch):
    def stopping(*arguments):
        if len(made) == 5:
            raise Stopped
        counted(*arguments)

    counted = preparation.prepare_shard
    monkeypatch.setattr(preparation, "prepare_shard", stopping)
    with pytest.raises(Stopped):
        prepare([text], tmp_path / "out", TOKENIZER, progress=False)
    partial = tmp_path / ".out.partial"
    first = [f"shard-{number:05d}" for number in range(5)]
    assert sorted(path.name for path in partial.iterdir()) == first == made

    # One shard is damaged, one cut, one lost.
    tokens = partial / first[1] / TOKENS
    content = bytearray(tokens.read_bytes())
    content[7] ^= 1
    tokens.write_bytes(content)
    (partial / first[2] / SENTENCES).write_bytes(b"")
    (partial / first[3] / MANIFEST).unlink()
    made.clear()
    monkeypatch.setattr(preparation, "prepare_shard", counted)
    corpus = prepare([text], tmp_path / "out", TOKENIZER, progress=False)
    assert made[:4] == [*first[1:4], "shard-00005"]
    assert contents(corpus.directory) == expected


@pytest.mark.usefixtures("small_shards")
def test_shards_of_another_text_or_other_options_are_made_anew(tmp_path, text, made, monkeypatch):
    def stopping(*arguments):
        counted(*arguments)
        if len(made) % 5 == 0:
            raise Stopped

    counted = preparation.prepare_shard
    out = tmp_path / "out"
    monkeypatch.setattr(preparation, "prepare_shard", stopping)
    with pytest.raises(Stopped):
        prepare([text], out, TOKENIZER, progress=False)
    with pytest.raises(Stopped):
        prepare([text], out, TOKENIZER, max_sentence_tokens=3, progress=False)
    other = tmp_path / "other.txt"
    other.write_text(text.read_text().replace("The ", "A ", 1))  # in the first shard only
    with pytest.raises(Stopped):
        prepare([other], out, TOKENIZER, max_sentence_tokens=3, progress=False)
    first = [f"shard-{number:05d}" for number in range(5)]
    assert made[:11] == [*first, *first, "shard-00000"]


RESTARTED = """
import sys
import pretrain.shard_texts
from pretrain.preparation import prepare
from tests.pretrain.texts import TOKENIZER
if __name__ == "__main__":
    pretrain.shard_texts.SHARD = 20_000
    prepare([sys.argv[1]], sys.argv[2], TOKENIZER, workers=2, drop_duplicates=True, progress=False)
"""


@pytest.mark.parametrize("kills", [2, pytest.param(50, marks=pytest.mark.slow)])
def test_killed_at_random_points_it_ends_with_the_same_bytes(tmp_path, kills):
    text = write_text(tmp_path / "text.txt", make_documents(4_000))
    expected = prepare([text], tmp_path / "whole", TOKENIZER, drop_duplicates=True, progress=False)
    rng, killed, whole, runs = random.Random(0), 0, 0, 0
    out, partial = tmp_path / "out", tmp_path / ".out.partial"
    while killed < kills:
        runs += 1
        command = [sys.executable, "-c", RESTARTED, text, out]
        child = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
        # From the moment when there is something to lose.
        deadline = time.monotonic() + 60
        while child.poll() is None and time.monotonic() < deadline:
            if len([*partial.glob("shard-*[0-9]")]) >= min(whole + rng.randint(0, 4), 30):
                time.sleep(rng.uniform(0, 0.3))
                break
            time.sleep(0.01)
        child.send_signal(signal.SIGKILL)
        if child.wait() == 0:
            assert contents(out) == contents(expected.directory)
            subprocess.run(["rm", "-rf", out, partial], check=True)
        else:
            killed += 1
            wait_for_workers(partial)  # they end by themselves
            whole = len([*partial.glob("shard-*[0-9]")])
            assert not out.exists()
    code = subprocess.run([sys.executable, "-c", RESTARTED, text, out], cwd=ROOT, timeout=100)
    assert code.returncode == 0
    assert contents(out) == contents(expected.directory)
    assert not partial.exists()


@pytest.mark.usefixtures("small_shards")
def test_a_full_disk_leaves_whole_shards_and_no_halves(tmp_path, text, expected, made):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6000, limits[1]))  # too little for all tokens
    try:
        with pytest.raises(OSError, match=f"[0-9]+ more bytes were to be written: .*{TOKENS}"):
            prepare([text], tmp_path / "out", TOKENIZER, progress=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    left = sorted(path.name for path in (tmp_path / ".out.partial").iterdir())
    assert left == made and not (tmp_path / "out").exists()
    corpus = prepare([text], tmp_path / "out", TOKENIZER, progress=False)
    assert made == left, "none is made again"
    assert contents(corpus.directory) == expected


@pytest.mark.usefixtures("small_shards")
def test_a_shard_that_is_damaged_before_it_is_merged_is_named(tmp_path, text, monkeypatch):
    def damaging(shards, out):
        path = shards[3] / SENTENCES
        content = bytearray(path.read_bytes())
        content[9] ^= 4
        path.write_bytes(content)
        return merge_shards(shards, out)

    monkeypatch.setattr(preparation, "merge_shards", damaging)
    with pytest.raises(ValueError, match=f"shard-00003/{SENTENCES}: its SHA-256 is not the one"):
        prepare([text], tmp_path / "out", TOKENIZER, progress=False)
    assert not (tmp_path / "out").exists()


def test_a_worker_that_is_killed_is_an_error_and_no_hang(tmp_path):
    text = write_text(tmp_path / "text.txt", make_documents(200) * 200)
    with pytest.raises(OSError, match="a process that makes shards was killed"):
        with local_workers(2, tmp_path, TOKENIZER, 128) as executor:
            future = executor.submit(text, tmp_path / "shard-00000")
            while not (tmp_path / "shard-00000.making").exists():
                time.sleep(0.01)
            for child in active_children():
                child.kill()
            collect({future}, leave=0)
    assert not active_children()


def test_workers_end_at_once_when_something_fails(tmp_path):
    text = write_text(tmp_path / "text.txt", make_documents(200) * 200)
    with pytest.raises(Stopped):
        with local_workers(1, tmp_path, TOKENIZER, 128) as executor:
            executor.submit(text, tmp_path / "shard-00000")
            while not (tmp_path / "shard-00000.making").exists():
                time.sleep(0.01)
            raise Stopped
    assert not active_children()
    assert not (tmp_path / "shard-00000").exists()


# --- duplicates ------------------------------------------------------------------------------


@pytest.mark.usefixtures("small_shards")
def test_the_first_of_the_same_documents_is_kept(tmp_path):
    unique = make_documents(60)
    rng = random.Random(0)
    repeated = [*unique, *rng.choices(unique, k=60)]
    rng.shuffle(repeated)
    kept = []
    for document in repeated:
        if document not in kept:
            kept.append(document)
    # The same words, however they are laid out.
    laid_out = [[" \t".join("\u3000".join(p.split(" ")) for p in d)] if i % 2 else d
                for i, d in enumerate(repeated)]  # fmt: skip
    home = write_text(tmp_path / "repeated.txt", repeated)
    other = write_text(tmp_path / "laid out.txt", laid_out)
    bare = write_text(tmp_path / "kept.txt", kept)
    corpus = prepare([home, other], tmp_path / "out", TOKENIZER, drop_duplicates=True,
                     workers=2, progress=False)  # fmt: skip
    expected = prepare([bare], tmp_path / "expected", TOKENIZER, progress=False)
    for name in expected.manifest["files"]:
        assert (corpus.directory / name).read_bytes() == (expected.directory / name).read_bytes()
    assert corpus.manifest["duplicates"] == 240 - len(kept)
    assert expected.manifest["duplicates"] == 0
    everything = prepare([home], tmp_path / "everything", TOKENIZER, progress=False)
    assert everything.manifest["documents"] == 120


def test_words_that_differ_are_no_duplicates(tmp_path):
    texts = ["The cat.", "the cat.", "The cat .", "Thecat.", "The cat. The cat.", "T he cat."]
    path = write_text(tmp_path / "text.txt", [[text] for text in texts])
    corpus = prepare([path], tmp_path / "out", TOKENIZER, drop_duplicates=True, progress=False)
    assert corpus.manifest["documents"] == len(texts)


def test_skipped_rows_are_in_the_manifest(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "The cat."}\n{}\n{"text": "A dog."}\n')
    rows = Rows(skip_bad=True)
    for name in ("out", "again"):
        corpus = prepare([path], tmp_path / name, TOKENIZER, rows=rows, progress=False)
        assert (corpus.manifest["skipped_rows"], corpus.manifest["documents"]) == (1, 2)


@pytest.mark.errors
def test_no_workers_are_refused(tmp_path, text):
    with pytest.raises(ValueError, match="workers: expected 1 or more, got 0"):
        prepare([text], tmp_path / "out", TOKENIZER, workers=0, progress=False)
    assert not os.path.lexists(tmp_path / ".out.partial")
