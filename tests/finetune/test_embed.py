"""Texts as vectors: beside sentence-transformers, in its directories and into them."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bert.export import export
from bert.finetuning import BertForSequenceClassification
from bert.model import Bert
from bert.saving import save_pretrained
from bert.sentence_layout import SentenceLayout
from finetune.embed import EmbedConfig, embed, run
from finetune.sentence_encoder import SentenceEncoder
from tests.finetune.conftest import TINY

TEXTS = ["ban bar bas", "", "yes", "no " * 60, "ban, bar"]


@pytest.fixture(scope="module")
def encoder(tokenizer):
    torch.manual_seed(4)
    return SentenceEncoder(Bert(TINY), tokenizer, SentenceLayout())


def by_hand(encoder, text, pooling, is_normalized):
    """A text's vector by the definition, alone in a padded batch, in float64."""
    model = Bert(TINY)
    model.load_state_dict(encoder.model.state_dict())
    ids = encoder.tokenizer.encode(text, max_length=40).ids
    with torch.no_grad():
        hidden = model.double().eval()(torch.tensor([ids])).last_hidden_state[0].numpy()
    vector = hidden.mean(0) if pooling == "mean" else hidden[0]
    return vector / np.sqrt((vector**2).sum()) if is_normalized else vector


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("is_normalized", [False, True])
@pytest.mark.parametrize("batch_tokens", [1, 10_000])
def test_a_vector_is_what_its_definition_says(encoder, pooling, is_normalized, batch_tokens):
    layout = SentenceLayout(pooling, is_normalized)
    found = SentenceEncoder(
        encoder.model, encoder.tokenizer, layout, batch_tokens=batch_tokens
    ).encode(TEXTS)
    expected = [by_hand(encoder, text, pooling, is_normalized) for text in TEXTS]
    # Measured: 1.0e-6 at the most.
    np.testing.assert_allclose(found, expected, rtol=0, atol=5e-6)
    assert found.dtype == np.float32 and found.std(0).max() > 0.01


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("is_normalized", [False, True])
def test_the_layout_is_written_as_it_is_read(tmp_path, pooling, is_normalized):
    layout = SentenceLayout(pooling, is_normalized, 33)
    layout.write(tmp_path, 32)
    assert SentenceLayout.read(tmp_path) == layout
    (tmp_path / "1_Pooling" / "config.json").write_text(
        json.dumps({"embedding_dimension": 32, "pooling_mode": pooling, "include_prompt": True})
    )
    assert SentenceLayout.read(tmp_path) == layout  # as newer versions write it


def test_without_a_layout_it_is_the_mean(tmp_path):
    assert SentenceLayout.read(tmp_path) == SentenceLayout("mean", False, None)


@pytest.mark.slow  # sentence-transformers takes many seconds to be imported
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_sentence_transformers_takes_what_is_exported(tokenizer, tmp_path, pooling):
    library = pytest.importorskip("sentence_transformers")
    torch.manual_seed(5)
    classifier = BertForSequenceClassification(TINY)  # its head is left out
    save_pretrained(classifier, tmp_path / "saved", tokenizer)
    export(tmp_path / "saved", tmp_path / "out", sentences=SentenceLayout(pooling, True))
    ours = SentenceEncoder.load(tmp_path / "out", device="cpu")
    assert ours.layout == SentenceLayout(pooling, True, 40)
    theirs = library.SentenceTransformer(str(tmp_path / "out"), device="cpu")
    np.testing.assert_allclose(ours.encode(TEXTS), theirs.encode(TEXTS), rtol=0, atol=5e-6)


# --- the command -----------------------------------------------------------------------------


def stream(encoder, content, **options):
    messages = io.StringIO()
    embed(encoder, io.BytesIO(content), EmbedConfig(Path("unused"), **options), messages)
    return messages.getvalue().splitlines()


LINES = b'{"text": "ban bar bas"}\n{"x": 1}\n{"text": "yes"}\n{\n'


def test_each_line_has_a_vector_or_an_error(encoder, tmp_path, capsys):
    expected = encoder.encode(["ban bar bas", "yes"])
    told = stream(encoder, LINES, format="jsonl", window=2)
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [record["row"] for record in records] == [1, 2, 3, 4]
    assert ["error" in record for record in records] == [False, True, False, True]
    vectors = np.array([records[i]["embedding"] for i in (0, 2)], np.float32)
    np.testing.assert_allclose(vectors, expected, rtol=0, atol=2e-6)
    assert told[0] == "row 2: expected a text under the key text, got the keys x"
    assert told[-1] == "4 rows; 2 with errors"


@pytest.mark.parametrize("window", [1, 3, 1000])
def test_a_matrix_has_a_row_for_each_line(encoder, tmp_path, window):
    texts = [f"ban {'bar ' * (i % 7)}" for i in range(20)]
    out = tmp_path / "vectors.npy"
    stream(encoder, "\n".join(texts).encode(), out=out, window=window)
    found = np.load(out, allow_pickle=False)
    assert found.shape == (20, TINY.hidden_size) and found.dtype == np.float32
    np.testing.assert_allclose(found, encoder.encode(texts), rtol=0, atol=2e-6)
    stream(encoder, LINES, out=out, format="jsonl")
    assert np.isnan(np.load(out)).all(1).tolist() == [False, True, False, True]
    stream(encoder, b"", out=out)
    assert np.load(out).shape == (0, TINY.hidden_size)


def test_jsonl_in_a_file_holds_every_bit(encoder, tmp_path):
    out = tmp_path / "vectors.jsonl"
    stream(encoder, b"ban bar\nyes\n", out=out)
    records = [json.loads(line) for line in out.read_text().splitlines()]
    found = np.array([record["embedding"] for record in records], np.float32)
    assert np.array_equal(found, encoder.encode(["ban bar", "yes"]))


def test_what_was_not_finished_is_no_file(encoder, tmp_path, monkeypatch):
    class Broken(io.BytesIO):
        def readline(self, size=-1):
            raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        embed(encoder, Broken(), EmbedConfig(Path("unused"), out=tmp_path / "v.npy"))
    assert list(tmp_path.iterdir()) == []


def test_what_is_cut_is_counted(encoder):
    layout = SentenceLayout(max_length=6)
    short = SentenceEncoder(encoder.model, encoder.tokenizer, layout)
    short.encode(["ban", "bar " * 9])
    assert short.full == 1


# --- mistakes --------------------------------------------------------------------------------


@pytest.mark.errors
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("modules.json", [{"type": "a.Transformer", "path": ""}, {"type": "a.Dense", "path": "1"}],
         "expected Transformer, Pooling and, may be, Normalize, got Transformer, Dense"),
        ("modules.json", [{"type": 1}], "expected a list of modules, each with type, path"),
        ("modules.json", {"a": 1}, "expected a list of modules, each with type, path"),
        ("1_Pooling/config.json", {"pooling_mode_max_tokens": True},
         "pooling_mode: expected mean or cls, got ['max']"),
        ("1_Pooling/config.json", {"pooling_mode": ["mean", "cls"]},
         "pooling_mode: expected mean or cls, got ['mean', 'cls']"),
        ("1_Pooling/config.json", [], "expected an object, got list"),
        ("sentence_bert_config.json", {"do_lower_case": True},
         "do_lower_case: expected false, as tokenizers lower, got true"),
        ("sentence_bert_config.json", {"max_seq_length": "9"},
         "max_seq_length: expected 3 tokens or more, got '9'"),
        ("config_sentence_transformers.json", {"default_prompt_name": "query"},
         "default_prompt_name: expected none, got 'query'"),
    ],
)  # fmt: skip
def test_what_is_not_done_here_is_refused_by_file(tmp_path, name, content, message):
    SentenceLayout("mean", True, 9).write(tmp_path, 32)
    (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises(ValueError) as error:
        SentenceLayout.read(tmp_path)
    assert str(error.value) == f"{tmp_path / name}: {message}"


@pytest.mark.errors
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"out": Path("v.txt")}, "out: expected a name that ends in .npy or .jsonl, got 'v.txt'"),
        ({"max_length": 2}, "max_length: expected 3 or more, got 2"),
        ({"window": 0}, "window: expected 1 or more, got 0"),
        ({"batch_tokens": 0}, "batch_tokens: expected 1 or more, got 0"),
    ],
)
def test_a_wrong_option_is_told(changes, message):
    with pytest.raises(ValueError) as error:
        EmbedConfig(Path("m"), **changes)
    assert str(error.value).startswith(message)


@pytest.mark.errors
def test_a_file_that_is_there_stays(tmp_path):
    out = tmp_path / "v.npy"
    out.write_text("mine")
    with pytest.raises(ValueError, match="^out: expected no file, got .*--overwrite replaces it"):
        run(EmbedConfig(tmp_path, out=out))
    assert out.read_text() == "mine"


@pytest.mark.errors
def test_more_tokens_than_the_model_takes_are_refused(encoder):
    layout = replace(encoder.layout, max_length=41)
    with pytest.raises(ValueError, match="^max_length: expected at most 40"):
        SentenceEncoder(encoder.model, encoder.tokenizer, layout)
