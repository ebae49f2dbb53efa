"""`bert pretrain prepare`, and training on what it made."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from bert import BertConfig
from bert.cli import main
from bert.tokenization import Tokenizer
from bert.training.config import TrainingConfig
from pretrain.config import PretrainConfig
from pretrain.corpus import TOKENS, Corpus
from pretrain.documents import Rows
from pretrain.prepare import prepare_files, read_text
from pretrain.prepare_config import PrepareConfig
from pretrain.run import dry_run, pretrain
from tests.pretrain.texts import contents, make_documents, write_text


@pytest.fixture
def text(tmp_path):
    return write_text(tmp_path / "text.txt", make_documents(60))


@pytest.fixture
def home(tmp_path, text):
    """A prepared directory."""
    prepare_files(PrepareConfig(files=(text,), out=tmp_path / "data", vocab_size=90))
    return tmp_path / "data"


def test_the_command_prepares_and_reports(tmp_path, text, capsys):
    rows = tmp_path / "rows.jsonl"
    documents = make_documents(60)
    rows.write_text("".join(json.dumps({"body": "\n".join(d)}) + "\n" for d in documents))
    with rows.open("a") as file:
        file.write('{"body": 3}\n')
    arguments = ["pretrain", "prepare", str(rows), "--out", str(tmp_path / "data"),
                 "--text-field", "body", "--vocab-size", "90", "--workers", "1"]  # fmt: skip
    assert main(arguments) == 2
    assert "rows.jsonl: row 61: expected a text in the field 'body'" in capsys.readouterr().err
    assert main([*arguments, "--skip-bad-rows"]) == 0
    out = capsys.readouterr().out
    corpus = Corpus.open(tmp_path / "data", verify=True)
    assert f"{corpus.manifest['tokens']:,} tokens\n" in out and "1 bad rows" in out
    assert out.endswith(f"prepared: {tmp_path / 'data'}\n")
    # The same text from a text file gives the same tokens, with the same vocabulary.
    same = prepare_files(PrepareConfig(files=(text,), out=tmp_path / "same", vocab_size=90))
    assert same.fingerprint == corpus.fingerprint
    corpus.check_tokenizer(Tokenizer.load(tmp_path / "data" / "tokenizer"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data", "rows.jsonl", "same", "text.txt"]


def test_duplicates_are_left_out_unless_wanted(tmp_path, text):
    documents = make_documents(60)
    twice = write_text(tmp_path / "twice.txt", documents + documents)
    config = PrepareConfig(files=(twice,), out=tmp_path / "data", vocab_size=90)
    distinct = len({str(document) for document in documents})
    assert prepare_files(config).manifest["documents"] == distinct
    config = replace(config, out=tmp_path / "all", keep_duplicates=True)
    assert prepare_files(config).manifest["documents"] == 120


def test_a_given_tokenizer_is_taken(tmp_path, text, home):
    config = PrepareConfig(files=(text,), out=tmp_path / "b", tokenizer=home / "tokenizer")
    prepare_files(config)
    assert contents(tmp_path / "b") == contents(home)


def test_a_learned_vocabulary_is_kept_for_the_next_attempt(tmp_path, text, monkeypatch):
    def failing(*_, **__):
        raise OSError("disk full")

    config = PrepareConfig(files=(text,), out=tmp_path / "data", vocab_size=90)
    with monkeypatch.context() as patch:
        patch.setattr("pretrain.prepare.prepare", failing)
        with pytest.raises(OSError, match="disk full"):
            prepare_files(config)
    with monkeypatch.context() as patch:
        patch.setattr("pretrain.prepare.Tokenizer.train", failing)
        corpus = prepare_files(config)
        with pytest.raises(OSError, match="disk full"):  # another vocabulary is another
            prepare_files(replace(config, out=tmp_path / "other", vocab_size=80))
    assert corpus.manifest["vocab_size"] <= 90
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data", "text.txt"]


def test_a_vocabulary_is_learned_from_a_share_of_each_file(tmp_path):
    files = (tmp_path / "a.txt", tmp_path / "b.txt")
    files[0].write_text("aaaa\n" * 30)
    files[1].write_text("bbbb\n\n" * 10)
    lengths = {c: 0 for c in "ab"}
    for paragraph in read_text(files, Rows(), characters=60):
        lengths[paragraph[0]] += len(paragraph)
    assert lengths == {"a": 44, "b": 20}  # 42 and 17 characters, up to a paragraph's end
    assert len(list(read_text(files, Rows()))) == 40
    assert len(list(read_text(files, Rows(), characters=10**9))) == 40


@pytest.mark.errors
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "o"], "FILES: expected at least one text file, got ()"),
        (["no.txt", "--out", "o"], "no.txt: expected a text file, got none"),
        (["t.txt", "--out", "here"], "--out: expected a path where nothing is, got here"),
        (["t.txt", "--out", "o", "--workers", "0"], "--workers: expected 1 or more, got 0"),
        (["t.txt", "--out", "o", "--vocab-size", "3"], "--vocab-size: expected 16 or more, got 3"),
        (["t.txt", "--out", "o", "--tokenizer", "nowhere"], "nowhere: expected vocab.txt"),
        (["t.txt", "--out", "o", "--worker", "2"], "no option --worker; did you mean --workers?"),
    ],
)
def test_a_users_mistake_is_one_line(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_text(Path("t.txt"), make_documents(3))
    Path("here").mkdir()
    assert main(["pretrain", "prepare", *arguments]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("bert pretrain prepare: error: ") and message in error


def test_a_file_of_the_commands_name_can_be_trained_on(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_text(Path("prepare"), make_documents(5))
    assert main(["pretrain", "./prepare", "--out", "o", "--dry-run"]) == 0
    assert '"files": [\n  "prepare"\n ]' in capsys.readouterr().out


# --- training on it --------------------------------------------------------------------------


@pytest.fixture
def config(tmp_path, home):
    shape = BertConfig(
        vocab_size=500, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=32,
    )  # fmt: skip
    (tmp_path / "shape.json").write_text(json.dumps(shape.to_dict()))
    return PretrainConfig(
        data=home,
        out=tmp_path / "run",
        model=str(tmp_path / "shape.json"),
        max_length=32,
        tokens_per_batch=256,
        training=TrainingConfig(budget="2"),
    )


def test_training_on_data_is_training_on_the_files(config, tmp_path, text):
    on_data = pretrain(config)
    assert not (config.out / "data").exists() and not (config.out / "tokenizer").exists()
    on_files = pretrain(
        replace(config, data=None, files=(text,), vocab_size=90, out=tmp_path / "files")
    )
    weights = [(run.model / "model.safetensors").read_bytes() for run in (on_data, on_files)
               if run.model]  # fmt: skip
    assert len(weights) == 2 and weights[0] == weights[1]
    tokenizer = Tokenizer.load(on_data.model or "")
    assert tokenizer.sha256 == Corpus.open(config.data or "").manifest["tokenizer_sha256"]
    assert "--data" in (config.out / "model" / "README.md").read_text()


@pytest.mark.errors
def test_resuming_on_other_data_is_refused(config, tmp_path):
    pretrain(replace(config, training=TrainingConfig(budget="1")))
    other = write_text(tmp_path / "other.txt", make_documents(60, seed=1))
    tokenizer = config.data / "tokenizer"
    prepare_files(PrepareConfig(files=(other,), out=tmp_path / "other", tokenizer=tokenizer))
    with pytest.raises(ValueError, match="^corpora: expected"):
        pretrain(replace(config, data=tmp_path / "other"))


@pytest.mark.errors
def test_data_that_cannot_be_trained_on_is_named(config, tmp_path, text):
    with pytest.raises(ValueError, match="nowhere/manifest.json: expected the manifest of a prep"):
        pretrain(replace(config, data=tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="nowhere/manifest.json: expected the manifest of a prep"):
        dry_run(replace(config, data=tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="^files: expected none beside data, got"):
        replace(config, files=(text,))
    with pytest.raises(ValueError, match="^files: expected at least one text file, or data, got"):
        replace(config, data=None)
    tokens = config.data / TOKENS
    content = bytearray(tokens.read_bytes())
    content[50] ^= 1
    tokens.write_bytes(content)
    with pytest.raises(ValueError, match=f"{TOKENS}: its SHA-256 is not the one in"):
        pretrain(config)


def test_a_dry_run_knows_the_vocabulary_of_data(config):
    small = dry_run(config)
    larger = dry_run(replace(config, data=None, files=(config.data.with_name("text.txt"),)))
    count = [int(text.split("parameters: ")[1].split()[0].replace(",", ""))
             for text in (small, larger)]  # fmt: skip
    assert count[0] < count[1]
