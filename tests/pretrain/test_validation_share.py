"""Documents that are held out when a corpus is prepared, and the evaluation on them."""

import hashlib
import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from bert import BertConfig
from bert.cli import main
from bert.training.config import TrainingConfig
from bert.training.log import read_log
from pretrain import preparation
from pretrain.config import CONFIG_DEFAULTS, PretrainConfig
from pretrain.corpus import MANIFEST, SENTENCES, TOKENIZER, TOKENS, VALIDATION, Corpus
from pretrain.preparation import prepare
from pretrain.run import pretrain
from pretrain.shards import prepare_shard
from tests.pretrain import texts
from tests.pretrain.test_preparation import documents_in
from tests.pretrain.texts import contents, make_documents, write_text

SHARE = 0.2
DOCUMENTS = make_documents(120)


def is_held_out(document: list[str], share: float = SHARE) -> bool:
    """The rule, on a document's words: a corpus that is prepared anew is split as before."""
    words = "".join(" ".join(paragraph.split()) + " " for paragraph in document)
    digest = hashlib.blake2b(words.encode(), digest_size=16).hexdigest()
    return int(digest[:12], 16) < share * 16**12


def prepared(directory: Path, documents: list[list[str]], **options) -> tuple[Corpus, Corpus]:
    """Prepare documents; return the corpora to train on and to judge on."""
    directory.mkdir()
    text = write_text(directory / "text.txt", documents)
    options = {"validation_share": SHARE, "progress": False, **options}
    corpus = prepare([text], directory / "out", texts.TOKENIZER, **options)
    corpus.verify()
    held_out = corpus.held_out()
    assert held_out is not None
    return corpus, held_out


def counted(corpus: Corpus) -> Counter[str]:
    return Counter(" ".join(document) for document in documents_in(corpus))


def alone(tmp_path: Path, documents: list[list[str]], name: str) -> dict[str, bytes]:
    """The files of a corpus of these documents and no others."""
    text = write_text(tmp_path / f"{name}.txt", documents)
    corpus = prepare([text], tmp_path / name, texts.TOKENIZER, progress=False)
    return {name: (corpus.directory / name).read_bytes() for name in corpus.manifest["files"]}


def test_each_side_is_the_corpus_of_its_documents(tmp_path):
    sides = [[d for d in DOCUMENTS if is_held_out(d) == held_out] for held_out in (False, True)]
    assert 10 < len(sides[1]) < 40
    for corpus, documents in zip(prepared(tmp_path / "both", DOCUMENTS), sides, strict=True):
        expected = alone(tmp_path, documents, f"{len(documents)}")
        assert {n: (corpus.directory / n).read_bytes() for n in expected} == expected
        assert corpus.manifest["documents"] == len(documents)
        assert (corpus.directory / TOKENIZER).is_dir()


def test_a_document_stays_on_its_side_when_others_come(tmp_path):
    few, many = (prepared(tmp_path / f"{n}", DOCUMENTS[:n], drop_duplicates=True)[1]
                 for n in (60, 120))  # fmt: skip
    assert documents_in(few) == documents_in(many)[: len(documents_in(few))]


def test_the_same_words_are_never_on_both_sides(tmp_path):
    spaced = [[f" {paragraph}  " for paragraph in document] for document in DOCUMENTS]
    training, held_out = prepared(tmp_path / "all", DOCUMENTS + spaced + DOCUMENTS)
    assert not counted(training) & counted(held_out)
    assert (training.manifest["documents"] + held_out.manifest["documents"]) == 360
    once = prepared(tmp_path / "once", DOCUMENTS + spaced, drop_duplicates=True)
    assert set(counted(once[0])) == set(counted(training))
    assert set(counted(once[1])) == set(counted(held_out))


@pytest.mark.parametrize("workers", [1, 2])
def test_shards_and_blocks_of_any_size_give_the_same_bytes(tmp_path, monkeypatch, workers):
    whole, _ = prepared(tmp_path / "whole", DOCUMENTS)
    monkeypatch.setattr("pretrain.shard_texts.SHARD", 500)
    monkeypatch.setattr("pretrain.hashed_file._BLOCK", 7)
    cut, _ = prepared(tmp_path / "cut", DOCUMENTS, workers=workers)
    assert contents(cut.directory) == contents(whole.directory)
    assert sorted(path.name for path in (tmp_path / "cut").iterdir()) == ["out", "text.txt"]


def test_stopped_it_goes_on_to_the_same_bytes(tmp_path, monkeypatch):
    whole, _ = prepared(tmp_path / "whole", DOCUMENTS)
    monkeypatch.setattr("pretrain.shard_texts.SHARD", 500)
    text, made = write_text(tmp_path / "text.txt", DOCUMENTS), []

    def stopping(source, directory, *rest):
        if directory.name == "shard-validation-00002":
            raise ZeroDivisionError
        made.append(directory.name)
        prepare_shard(source, directory, *rest)

    def again(source, directory, *rest):
        assert directory.name not in made
        prepare_shard(source, directory, *rest)

    arguments = ([text], tmp_path / "out", texts.TOKENIZER)
    monkeypatch.setattr(preparation, "prepare_shard", stopping)
    with pytest.raises(ZeroDivisionError):
        prepare(*arguments, validation_share=SHARE, progress=False)
    assert "shard-validation-00001" in made
    monkeypatch.setattr(preparation, "prepare_shard", again)
    prepare(*arguments, validation_share=SHARE, progress=False)
    assert contents(tmp_path / "out") == contents(whole.directory)


def test_without_a_share_nothing_is_held_out(tmp_path):
    text = write_text(tmp_path / "text.txt", DOCUMENTS)
    corpus = prepare([text], tmp_path / "out", texts.TOKENIZER, progress=False)
    assert corpus.held_out() is None and not (corpus.directory / VALIDATION).exists()
    # As in the manifests of before there were shares.
    assert (
        replace(corpus, manifest={**corpus.manifest, "validation_sha256": None}).held_out() is None
    )


@pytest.mark.errors
@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_what_is_no_share_is_refused(tmp_path, share):
    text = write_text(tmp_path / "text.txt", DOCUMENTS)
    with pytest.raises(ValueError, match="^validation_share: expected 0 or a share below 1, got"):
        prepare([text], tmp_path / "out", texts.TOKENIZER, validation_share=share)


@pytest.mark.errors
@pytest.mark.parametrize(("share", "held_out"), [(1e-9, 0), (1 - 1e-9, 120)])
def test_a_side_without_pairs_is_refused_and_leaves_nothing(tmp_path, share, held_out):
    text = write_text(tmp_path / "text.txt", DOCUMENTS)
    message = f"validation_share: expected .* which holds out {held_out} of 120$"
    with pytest.raises(ValueError, match=message):
        prepare([text], tmp_path / "out", texts.TOKENIZER, validation_share=share, progress=False)
    assert [*tmp_path.iterdir()] == [text]


# --- training on it --------------------------------------------------------------------------


@pytest.fixture
def config(tmp_path):
    """A run on 120 documents of which a fifth is held out."""
    text = write_text(tmp_path / "text.txt", DOCUMENTS)
    assert main(["pretrain", "prepare", str(text), "--out", str(tmp_path / "data"),
                 "--vocab-size", "90", "--validation-share", str(SHARE)]) == 0  # fmt: skip
    shape = BertConfig(
        vocab_size=90, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=32,
    )  # fmt: skip
    (tmp_path / "shape.json").write_text(json.dumps(shape.to_dict()))
    return PretrainConfig(
        data=tmp_path / "data", out=tmp_path / "run", model=str(tmp_path / "shape.json"),
        max_length=32, tokens_per_batch=256,
        training=TrainingConfig(budget="2", evaluate_every="1"),
    )  # fmt: skip


def evaluations(run_dir: Path) -> list[dict[str, float]]:
    return [line["results"] for line in read_log(run_dir / "log.jsonl", "evaluation")]


def test_a_run_is_judged_on_what_its_data_hold_out(capsys, config, tmp_path):
    held_out = Corpus.open(config.data).held_out()
    count = f"{held_out.manifest['documents']} documents, {held_out.manifest['tokens']:,} tokens"
    assert f"held out: {count}\n" in capsys.readouterr().out
    pretrain(config)
    on_data = evaluations(config.out)
    assert len(on_data) == 2 and "masked_loss" in on_data[0] and "nsp_majority" in on_data[0]
    assert "no text is held out" not in capsys.readouterr().err
    # The same documents as a file of their own, which counts where there are both.
    judged = write_text(tmp_path / "judged.txt", [d for d in DOCUMENTS if is_held_out(d)])
    named = replace(config, validation_files=(judged,), out=tmp_path / "named")
    pretrain(named)
    assert evaluations(named.out) == on_data
    other = write_text(tmp_path / "other.txt", [d for d in DOCUMENTS if not is_held_out(d)])
    pretrain(replace(named, validation_files=(other,), out=tmp_path / "other"))
    assert evaluations(tmp_path / "other") != on_data


@pytest.mark.errors
def test_held_out_documents_that_changed_are_named(config, tmp_path):
    home = config.data / VALIDATION
    whole = contents(home)
    for name in (TOKENS, SENTENCES, MANIFEST):
        changed = bytearray(whole[name])
        changed[len(changed) // 2] ^= 1
        (home / name).write_bytes(changed)
        with pytest.raises(ValueError, match=f"{VALIDATION}/{name}: "):
            pretrain(config)
        (home / name).unlink()
        with pytest.raises(ValueError, match=f"{VALIDATION}/{name}: .*No such file"):
            pretrain(config)
        (home / name).write_bytes(whole[name])
    other = tmp_path / "other"
    arguments = ["pretrain", "prepare", str(tmp_path / "text.txt"), "--out", str(other)]
    tokenizer = ["--tokenizer", str(config.data / TOKENIZER), "--validation-share", "0.3"]
    assert main([*arguments, *tokenizer]) == 0
    shutil.rmtree(home)
    shutil.copytree(other / VALIDATION, home)
    with pytest.raises(ValueError, match=f"{MANIFEST}: not prepared together with .*data$"):
        pretrain(config)


@pytest.mark.errors
def test_an_interval_of_evaluations_needs_held_out_text(config, tmp_path):
    text = tmp_path / "text.txt"
    assert main(["pretrain", "prepare", str(text), "--out", str(tmp_path / "all"),
                 "--tokenizer", str(config.data / TOKENIZER)]) == 0  # fmt: skip
    message = "^training.evaluate_every: expected none without validation_files or data that"
    with pytest.raises(ValueError, match=message):
        pretrain(replace(config, data=tmp_path / "all"))
    default = replace(config.training, evaluate_every=CONFIG_DEFAULTS.evaluate_every)
    assert pretrain(replace(config, data=tmp_path / "all", training=default)).model
