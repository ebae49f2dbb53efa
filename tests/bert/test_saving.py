"""Directories that are written whole, for everybody that the umask allows."""

import fcntl
import json
import os
import resource
import stat

import pytest
import torch

import bert
from bert.checkpoint import load_pretrained, save_pretrained

CONFIG = bert.BertConfig(
    vocab_size=30, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
    intermediate_size=12, max_position_embeddings=9,
)  # fmt: skip


@pytest.fixture
def model():
    return bert.BertForMaskedLM(CONFIG).eval()


class Words:
    """As much of a tokenizer as saving needs."""

    vocab_size = 2

    def save(self, directory, *, model_max_length):
        assert model_max_length == 9
        (directory / "vocab.txt").write_text("a\nb\n")
        (directory / "tokenizer.json").write_text("{}")


def files(directory):
    return sorted(path.name for path in directory.iterdir())


def same(one, other):
    return all(
        torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True)
    )


def test_everything_that_belongs_to_a_model(tmp_path, model):
    save_pretrained(model, tmp_path / "a" / "b", Words(), "# A model\n")
    found = tmp_path / "a" / "b"
    assert files(found) == [
        "README.md", "config.json", "model.safetensors", "tokenizer.json", "vocab.txt",
    ]  # fmt: skip
    assert (found / "README.md").read_text() == "# A model\n"
    values = json.loads((found / "config.json").read_text())
    assert values["architectures"] == ["BertForMaskedLM"] and values["dtype"] == "float32"
    header = (found / "model.safetensors").read_bytes()[:200]
    assert b'"__metadata__":{"format":"pt"}' in header
    save_pretrained(model, tmp_path / "c")
    assert files(tmp_path / "c") == ["config.json", "model.safetensors"]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_mode_follows_the_umask(tmp_path, model, umask, mode):
    before = os.umask(umask)
    try:
        save_pretrained(model, tmp_path / "m", Words())
    finally:
        os.umask(before)
    for file in (tmp_path / "m").iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == mode, file


def test_a_second_save_replaces_and_leaves_others_alone(tmp_path, model):
    (tmp_path / "notes.txt").write_text("mine")
    save_pretrained(bert.Bert(CONFIG), tmp_path)
    save_pretrained(model, tmp_path)
    assert files(tmp_path) == ["config.json", "model.safetensors", "notes.txt"]
    assert same(load_pretrained(tmp_path), model)


def test_a_link_is_replaced_and_what_it_pointed_to_stays(tmp_path, model):
    store, linked = tmp_path / "blob", tmp_path / "model"
    store.write_bytes(b"another model's")
    linked.mkdir()
    (linked / "model.safetensors").symlink_to(store)
    save_pretrained(model, linked)
    assert store.read_bytes() == b"another model's"
    assert not (linked / "model.safetensors").is_symlink()
    (tmp_path / "other").symlink_to(linked, target_is_directory=True)
    save_pretrained(model, tmp_path / "other")
    assert (tmp_path / "other").is_symlink() and same(load_pretrained(linked), model)


def test_a_full_disk_leaves_the_old_model_whole(tmp_path, model):
    save_pretrained(model, tmp_path)
    bigger = bert.BertForMaskedLM(bert.BertConfig.preset("tiny", vocab_size=3000))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OSError, match=r"model\.safetensors: could not write \d{7} bytes"):
            save_pretrained(bigger, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert files(tmp_path) == ["config.json", "model.safetensors"]
    assert same(load_pretrained(tmp_path), model)


def test_a_failure_half_way_leaves_the_old_model_whole(tmp_path, model):
    class Broken(Words):
        def save(self, directory, *, model_max_length):
            (directory / "vocab.txt").write_text("a")
            raise RuntimeError("broken")

    save_pretrained(model, tmp_path)
    with pytest.raises(RuntimeError, match="broken"):
        save_pretrained(bert.Bert(CONFIG), tmp_path, Broken())
    assert files(tmp_path) == ["config.json", "model.safetensors"]
    assert same(load_pretrained(tmp_path), model)


def test_what_a_killed_process_left_is_swept(tmp_path, model):
    (tmp_path / ".saving-killed").mkdir()
    (tmp_path / ".saving-killed" / "model.safetensors").write_bytes(b"half")
    save_pretrained(model, tmp_path)
    assert files(tmp_path) == ["config.json", "model.safetensors"]


@pytest.mark.errors
def test_two_writers(tmp_path, model):
    lock = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    with pytest.raises(ValueError, match="another process is saving here"):
        save_pretrained(model, tmp_path)
    os.close(lock)
    save_pretrained(model, tmp_path)


@pytest.mark.errors
def test_places_that_cannot_be_written(tmp_path, model):
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(ValueError, match="file: expected a directory, got a file"):
        save_pretrained(model, file)
    with pytest.raises(NotADirectoryError, match="inner"):
        save_pretrained(model, file / "inner")
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere: the read-only directory was not tried")
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    with pytest.raises(PermissionError, match="locked"):
        save_pretrained(model, locked)


@pytest.mark.errors
def test_only_models_of_ours_are_saved(tmp_path):
    with pytest.raises(ValueError, match="model: expected one of bert's models, got Linear"):
        save_pretrained(torch.nn.Linear(2, 2), tmp_path)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


@pytest.mark.errors
def test_a_tokenizer_of_another_vocabulary(tmp_path, model):
    tokenizer = Words()
    tokenizer.vocab_size = 31
    with pytest.raises(ValueError, match=r"tokenizer: expected at most the model's 30 tokens"):
        save_pretrained(model, tmp_path, tokenizer)
    assert not list(tmp_path.iterdir())


def test_transformers_reads_tokenizer_and_model_from_one_directory(tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizer = bert.Tokenizer.train(["a cat sat on a mat, and the cat ate the rat"] * 9, 50)
    model = bert.Bert(bert.BertConfig.preset("tiny", vocab_size=64, max_position_embeddings=32))
    save_pretrained(model, tmp_path, tokenizer)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.model_max_length == 32
    assert theirs("the cat sat")["input_ids"] == list(tokenizer.encode("the cat sat").ids)
    assert transformers.AutoModel.from_pretrained(tmp_path).config.vocab_size == 64
