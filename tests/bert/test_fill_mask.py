"""`bert fill-mask`: the guesses against transformers', and what is done with odd input."""

import io
import json
import sys

import pytest
import torch

from bert import Bert, BertConfig, BertForMaskedLM, BertForPreTraining, Tokenizer, save_pretrained
from bert.architectures import ARCHITECTURES
from bert.cli import main
from bert.fill_mask import fill_mask, load
from bert.finetuning import BertForSequenceClassification

WORDS = "the cat sat on mat and dog ran to it , . ! we are in old house".split()
LETTERS = "abcdefghijklmnopqrstuvwxyz"
SPARE = 3  # rows of the embedding that no token of the tokenizer has


@pytest.fixture(scope="module")
def tokenizer():
    pieces = [*LETTERS, *("##" + letter for letter in LETTERS)]
    return Tokenizer(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *pieces])


@pytest.fixture(scope="module")
def model(tokenizer):
    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=tokenizer.vocab_size + SPARE,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=20,
        initializer_range=0.3,
    )
    model = BertForPreTraining(config).eval()
    with torch.no_grad():
        model.mlm_head.bias.normal_()
        model.mlm_head.bias[-SPARE:] = 9.0  # what nobody may guess is what the model likes best
    return model


@pytest.fixture(scope="module")
def directory(model, tokenizer, tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "model"
    save_pretrained(model, path, tokenizer)
    return path


def test_the_guesses_are_those_of_transformers(directory, model, tokenizer):
    transformers = pytest.importorskip("transformers")
    text = "The [MASK] sat on the [MASK], zyx!"
    guesses = fill_mask(model, tokenizer, text, top_k=len(tokenizer.vocab))

    theirs = transformers.BertForMaskedLM.from_pretrained(directory).eval()
    words = transformers.AutoTokenizer.from_pretrained(directory)
    encoded = words(text, return_tensors="pt")
    masks = (encoded.input_ids[0] == words.mask_token_id).nonzero()[:, 0]
    assert len(guesses) == len(masks) == 2
    with torch.no_grad():
        logits = theirs(**encoded).logits[0, masks, : tokenizer.vocab_size]
    for found, expected in zip(guesses, logits.softmax(-1), strict=True):
        by_id = torch.tensor([g.probability for g in sorted(found, key=lambda g: g.id)])
        torch.testing.assert_close(by_id, expected, rtol=1e-4, atol=1e-6)
        assert [g.id for g in found] == expected.argsort(descending=True).tolist()
        assert [g.token for g in found] == words.convert_ids_to_tokens([g.id for g in found])
    assert guesses[0] != guesses[1]


def test_top_k(model, tokenizer):
    best = fill_mask(model, tokenizer, "a [MASK]", top_k=3)
    everything = fill_mask(model, tokenizer, "a [MASK]", top_k=10**6)
    assert [len(mask) for mask in best] == [3] and best[0] == everything[0][:3]
    assert len(everything[0]) == tokenizer.vocab_size
    assert sum(guess.probability for guess in everything[0]) == pytest.approx(1, abs=1e-5)
    assert [g.probability for g in best[0]] == sorted(
        (g.probability for g in best[0]), reverse=True
    )


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("The cat", r"^text: expected at least one \[MASK\], got 'The cat'$"),
        ("a [mask]", r"^text: expected at least one \[MASK\], got 'a \[mask\]'$"),
        ("", r"^text: expected at least one \[MASK\], got ''$"),
        ("x" * 90, r"^text: expected at least one \[MASK\], got 'x{59}…'$"),
        ("a " * 18 + "[MASK]", "^text: expected at most 20 tokens, got 21$"),
    ],
)
def test_a_text_that_cannot_be_used(text, error, model, tokenizer):
    with pytest.raises(ValueError, match=error):
        fill_mask(model, tokenizer, text)


def test_a_text_as_long_as_can_be(model, tokenizer):
    assert len(fill_mask(model, tokenizer, "a " * 17 + "[MASK]")) == 1


def test_both_kinds_of_directory_and_a_run(directory, model, tokenizer, tmp_path):
    only_words = BertForMaskedLM(model.config, pooler=False)
    only_words.load_state_dict(model.state_dict(), strict=False)
    save_pretrained(only_words, tmp_path, tokenizer)
    expected = fill_mask(model, tokenizer, "The [MASK] sat.")
    for place in (directory, directory.parent, tmp_path):
        assert fill_mask(*load(place, "cpu"), "The [MASK] sat.") == expected


def test_a_tokenizer_of_another_model(directory, tmp_path):
    for file in directory.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "tokenizer.json").unlink()
    with (tmp_path / "vocab.txt").open("a") as vocab:
        vocab.writelines(f"more{i}\n" for i in range(SPARE + 1))
    with pytest.raises(ValueError, match="expected a tokenizer of at most the model's 78 tokens"):
        load(tmp_path, "cpu")


# --- the command -----------------------------------------------------------------------------


def test_the_command_prints_a_line_for_each_guess(directory, model, tokenizer, capsys):
    text = "The [MASK] sat on the [MASK]."
    assert main(["fill-mask", text, "--model", str(directory), "--top-k", "2"]) == 0
    expected = []
    for number, mask in enumerate(fill_mask(model, tokenizer, text, 2), start=1):
        expected += [f"[MASK] {number}"]
        expected += [f"  {100 * g.probability:6.2f}%  {g.token}" for g in mask]
    assert capsys.readouterr() == ("\n".join(expected) + "\n", "")


def test_the_command_writes_json(directory, model, tokenizer, capsys):
    assert main(["fill-mask", "--json", "é [MASK]", "--model", str(directory)]) == 0
    record = json.loads(capsys.readouterr().out)
    (guesses,) = fill_mask(model, tokenizer, "é [MASK]")
    assert record == {"text": "é [MASK]", "masks": [[vars(guess) for guess in guesses]]}


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Pipe(io.TextIOWrapper):
    def __init__(self, content):
        super().__init__(io.BytesIO(content))


@pytest.mark.parametrize("as_json", [False, True])
def test_lines_of_the_input_and_a_bad_one_among_them(as_json, directory, capsys, monkeypatch):
    content = b"a [MASK]\r\nno mask\n\xff\x00 [MASK]\nthe \xed\xb2\x80[MASK]"
    monkeypatch.setattr(sys, "stdin", Pipe(content))
    options = ["--json"] if as_json else []
    assert main(["fill-mask", "--model", str(directory), "--top-k", "1", *options]) == 1
    out, err = capsys.readouterr()
    assert err == "line 2: text: expected at least one [MASK], got 'no mask'\n"
    if as_json:
        records = [json.loads(line) for line in out.splitlines()]
        assert [len(record.get("masks", [])) for record in records] == [1, 0, 1, 1]
        assert records[0]["text"] == "a [MASK]"
        assert records[1]["error"] == "text: expected at least one [MASK], got 'no mask'"
    else:
        assert out.startswith("a [MASK]\n  ") and out.count("%") == 3


def test_all_lines_good(directory, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", Pipe(b"a [MASK]\n"))
    assert main(["fill-mask", "--model", str(directory)]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["a [MASK]"], "--model: expected a directory, got none; a run of `bert pretrain"),
        (["a [MASK]", "--model", "nosuch"], "nosuch: expected a directory with config.json"),
        (["--model", "nosuch"], "TEXT: expected a text with a [MASK], got nothing"),
        (["a", "--model", "{}"], "TEXT: expected at least one [MASK], got 'a'"),
        (["[MASK]", "--model", "{}", "--device", "moon"], "--device: expected auto, cpu"),
    ],
)
def test_mistakes(argv, line, directory, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", Terminal())
    assert main(["fill-mask", *(word.format(directory) for word in argv)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert err.startswith(f"bert fill-mask: error: {line}")


@pytest.mark.parametrize(
    ("model_class", "takes"),
    [(Bert, "bert embed"), (BertForSequenceClassification, "bert predict")],
)
def test_a_model_without_the_head_is_told_by_its_name(
    model_class, takes, directory, tmp_path, capsys
):
    model, tokenizer = load(directory)
    save_pretrained(model_class(model.config), tmp_path, tokenizer)
    assert main(["fill-mask", "a [MASK]", "--model", str(tmp_path)]) == 2
    name = ARCHITECTURES[model_class]
    assert capsys.readouterr().err == (
        f"bert fill-mask: error: --model: expected one for masked words, got {tmp_path}, a "
        f"{name}; {takes} takes it\n"
    )
