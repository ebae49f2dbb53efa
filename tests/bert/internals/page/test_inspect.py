"""`bert inspect`: the page that it writes, and what it refuses."""

import json
from dataclasses import asdict, replace

import pytest
import torch

from bert import Bert, save_pretrained
from bert.cli import main
from bert.internals.page.collect import Reading, collect
from tests.bert.internals.page.looked_at import (
    PAIR,
    TEXT,
    config,
    encoded,
    model,
    payload,
    randomised,
    tokenizer,
)
from tests.bert.internals.page.test_page import Elements


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("some") / "run" / "model"
    save_pretrained(model(), path, tokenizer(), model_card="# A card & more")
    return path


def test_the_command_writes_a_page(directory, tmp_path, capsys):
    out = tmp_path / "new" / "page.html"
    argv = ["inspect", str(directory), "--text", TEXT, "--pair", PAIR, "--out", str(out)]
    assert main([*argv, "--answer", "CAT"]) == 0
    assert capsys.readouterr().out.startswith(f"{out}: {len(encoded())} tokens, 0.")
    page = Elements(out.read_text(encoding="utf-8"))
    assert page.payload["name"] == "run" and page.payload["card"] == "# A card & more"
    assert page.payload["attention"] == json.loads(json.dumps(asdict(payload().attention)))
    before = out.read_bytes()
    assert main(argv) == 2
    assert "--out: expected a new file, or --overwrite" in capsys.readouterr().err
    assert out.read_bytes() == before
    assert main([*argv, "--overwrite", "--kernels", "reference"]) == 0
    assert Elements(out.read_text(encoding="utf-8")).payload["backend"] == "REFERENCE"
    assert [path.name for path in out.parent.iterdir()] == ["page.html"]


@pytest.mark.errors
@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["--text", "a", "--out", "x.txt"], "--out: expected a .html file"),
        (["--text", "a " * 50], "--text: expected at most 40 tokens (the lesser of"),
        (["--text", "a " * 9, "--max-length", "8"], "--text: expected at most 8 tokens"),
        (["--text", "a", "--answer", "cat"], "--answer: expected a [MASK] in the text"),
        (["--text", "[MASK]", "--answer", "catcat"], "--answer: expected one token of the voc"),
        (["--text", "a", "--other", "b"], "--other: expected a [MASK] in both texts, got none"),
        (["--text", "[MASK]", "--other", "b"], "--other: expected a [MASK] at token 1, as in"),
        (["--text", "[MASK]", "--other", "[MASK] b"], "--other: expected 3 tokens, as many as"),
        (["--text", "[MASK] a", "--other", "[MASK] b", "--answer", "a", "--other-answer", "a"],
         "--other-answer: expected another token"),
        (["--text", "a", "--other-answer", "b"], "--other-answer: expected none where there is"),
        (["--text", "a", "--top-k", "0"], "--top-k: expected from 1 to 20, got 0"),
        (["--text", "a", "--max-length", "1"], "--max-length: expected 2 or more, got 1"),
    ],
)  # fmt: skip
def test_mistakes(argv, line, directory, tmp_path, capsys):
    out = [] if "--out" in argv else ["--out", str(tmp_path / "page.html")]
    assert main(["inspect", str(directory), *argv, *out]) == 2
    err = capsys.readouterr().err.splitlines()
    assert err[-1].startswith(f"bert inspect: error: {line}")
    assert not list(tmp_path.iterdir())


@pytest.mark.errors
def test_questions_that_a_model_cannot_answer():
    encoder = randomised(Bert(config()))
    for name in ("answer", "other"):
        reading = replace(Reading("[MASK]"), **{name: "a"})
        with pytest.raises(ValueError, match=f"^{name}: expected a model with a masked-word head"):
            collect(encoder, tokenizer(), reading, name="encoder")
    with torch.no_grad():
        encoder.encoder.layers[1].attention.qkv.weight[0] = float("nan")
    with pytest.raises(ValueError, match="^broken: expected attention that is finite"):
        collect(encoder, tokenizer(), Reading("a"), name="broken")
