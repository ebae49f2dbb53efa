"""Vocabulary files: what is saved comes back, what is broken is named in one line."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend

from bert import vocabulary
from bert.text import SPECIAL_TOKENS
from bert.tokenization import Tokenizer
from bert.vocabulary import Normalization
from tests.bert.test_tokenization import VOCAB


def write(directory, *lines, config=None):
    path = directory / "vocab.txt"
    path.write_bytes("\n".join(lines).encode())
    if config is not None:
        (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return path


@pytest.mark.parametrize("lowercase", [True, False])
@pytest.mark.parametrize("strip_accents", [True, False, None])
@pytest.mark.parametrize("handle_chinese_chars", [True, False])
def test_what_is_saved_comes_back(tmp_path, lowercase, strip_accents, handle_chinese_chars):
    normalization = Normalization(lowercase, strip_accents, handle_chinese_chars)
    tokenizer = Tokenizer([*VOCAB, "\u2028", "\x85", "É"], normalization)
    tokenizer.save(tmp_path / "new" / "place")
    files = sorted(path.name for path in (tmp_path / "new" / "place").iterdir())
    assert files == ["tokenizer.json", "tokenizer_config.json", "vocab.txt"]
    for name in ("", "tokenizer.json", "vocab.txt"):
        twin = Tokenizer.load(tmp_path / "new" / "place" / name)
        assert twin == tokenizer
        assert twin.encode("[MASK] É中").ids == tokenizer.encode("[MASK] É中").ids
    (tmp_path / "new" / "place" / "tokenizer_config.json").unlink()
    alone = Tokenizer.load(tmp_path / "new" / "place")  # tokenizer.json knows it too
    assert alone == tokenizer


def test_the_configuration_says_what_transformers_asks_for(tmp_path):
    Tokenizer(VOCAB, Normalization(False, True, False)).save(tmp_path, model_max_length=128)
    assert json.loads((tmp_path / "tokenizer_config.json").read_text()) == {
        "tokenizer_class": "BertTokenizer",
        "do_lower_case": False,
        "strip_accents": True,
        "tokenize_chinese_chars": False,
        "model_max_length": 128,
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
    }
    assert (tmp_path / "vocab.txt").read_bytes() == ("\n".join(VOCAB) + "\n").encode()
    framed = Backend.from_file(str(tmp_path / "tokenizer.json")).encode("a", "[MASK]")
    assert framed.tokens == ["[CLS]", "a", "[SEP]", "[MASK]", "[SEP]"]
    assert framed.type_ids == [0, 0, 0, 1, 1]


def test_a_vocabulary_file_of_any_system_is_read(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(VOCAB).encode() + b"\r\n")
    assert Tokenizer.load(path).vocab == tuple(VOCAB)


def test_the_argument_goes_before_the_configuration_before_tokenizer_json(tmp_path):
    def lowercase(**options):
        return Tokenizer.load(tmp_path, **options).normalization.lowercase

    Tokenizer(VOCAB, Normalization(lowercase=False)).save(tmp_path)
    config = tmp_path / "tokenizer_config.json"
    config.write_text("{}")
    assert lowercase() is False
    config.write_text('{"do_lower_case": true}')
    assert lowercase() is True
    assert lowercase(lowercase=False) is False
    (tmp_path / "tokenizer.json").unlink()
    config.unlink()
    assert lowercase() is True  # BERT's default, for want of another word


def test_a_cased_vocabulary_must_be_called_one(tmp_path):
    path = write(tmp_path, *VOCAB, "The")
    with pytest.raises(
        ValueError, match=r"vocab\.txt: the vocabulary is cased \('The'\): say low"
    ):
        Tokenizer.load(path)
    assert not Tokenizer.load(path, lowercase=False).normalization.lowercase
    write(tmp_path, *VOCAB, "The", config={"do_lower_case": False})
    assert not Tokenizer.load(tmp_path).normalization.lowercase


S = list(SPECIAL_TOKENS)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["a", *S, "b", "a"], "vocab.txt: line 8: the token 'a' is at {path}: line 1 already"),
        (["a", *S[:4], "b"], "vocab.txt: line 7: the vocabulary ends without [MASK]"),
        (["a", *S, "", "b"], "vocab.txt: line 7: expected a token, got ''"),
        ([], "vocab.txt: expected 1 to 33554432 bytes, got 0"),
    ],
)
def test_a_bad_vocabulary_file_is_named_with_its_line(tmp_path, lines, message):
    path = write(tmp_path, *lines)
    with pytest.raises(ValueError) as error:
        Tokenizer.load(path)
    assert str(error.value) == f"{tmp_path}/{message.format(path=path)}"


def test_a_file_that_is_not_text_is_named_with_its_line(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_bytes(b"a\nb\n\xff\n")
    with pytest.raises(ValueError, match=r"vocab\.txt: line 3: not UTF-8$"):
        Tokenizer.load(path)


def test_what_is_no_file_is_named(tmp_path):
    for path in (tmp_path, tmp_path / "nowhere", "/dev/zero"):
        with pytest.raises(
            ValueError, match=f"{path}: expected vocab.txt, tokenizer.json or a dir"
        ):
            Tokenizer.load(path)


def test_a_huge_file_is_not_read(tmp_path, monkeypatch):
    path = write(tmp_path, *VOCAB)
    monkeypatch.setattr(vocabulary, "LARGEST_FILE", 50)
    with pytest.raises(ValueError, match=r"vocab\.txt: expected 1 to 50 bytes, got \d+$"):
        Tokenizer.load(path)


def test_a_vocabulary_in_memory_is_checked_too():
    with pytest.raises(ValueError, match="^id 5: the token 'a' is at id 4 already"):
        Tokenizer([*S[:4], "a", "a"])
    for wrong in ("two\nlines", "\r", "\ud800"):
        with pytest.raises(ValueError, match="^id 5: expected a token, got"):
            Tokenizer([*S, wrong])


# --- tokenizer.json and tokenizer_config.json


def at(content, path, value):
    """Set what lies at a path of keys."""
    *parents, last = path
    for key in parents:
        content = content[key]
    content[last] = value


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["model", "type"], "BPE", "model.type: expected 'WordPiece' or None, got 'BPE'"),
        (["model"], None, "model: expected BERT's, got None"),
        (["normalizer"], None, "normalizer: expected BERT's, got None"),
        (["normalizer", "type"], "NFC", "normalizer.type: expected 'BertNormalizer', got 'NFC'"),
        (["normalizer", "lowercase"], 1, "normalizer.lowercase: expected True or False, got 1"),
        (["pre_tokenizer", "type"], "Whitespace", "pre_tokenizer.type: expected 'BertPreTok"),
        (["model", "max_input_chars_per_word"], 9, "model.max_input_chars_per_word: expected 100"),
        (["model", "unk_token"], "<unk>", "model.unk_token: expected '[UNK]', got '<unk>'"),
        (["model", "continuing_subword_prefix"], "@", "model.continuing_subword_prefix: expected"),
        (["model", "vocab"], ["a"], "model.vocab: expected tokens and ids, got ['a']"),
        (["model", "vocab", "em"], 1, "model.vocab['##bed']: expected an id of its own in 0.."),
        (["model", "vocab", "em"], -1, "model.vocab['em']: expected an id of its own in 0.."),
        (["model", "vocab", "em"], 99, "model.vocab['em']: expected an id of its own in 0.."),
        (["model", "vocab", "em"], 0.0, "model.vocab['em']: expected an id of its own in 0.."),
        (["model", "vocab", "em"], False, "model.vocab['em']: expected an id of its own in 0.."),
        (["added_tokens", 0, "content"], "[E1]", "added_tokens[0].content: expected '[PAD]' or"),
        (["added_tokens"], 7, "added_tokens[0].content: expected '[PAD]' or"),
    ],
)
def test_a_tokenizer_json_that_is_not_berts_is_refused_by_name(tmp_path, path, value, message):
    Tokenizer(VOCAB).save(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    at(content, path, value)
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ValueError) as error:
        Tokenizer.load(tmp_path)
    assert str(error.value).startswith(f"{tmp_path}/tokenizer.json: {message}")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("do_lower_case", None),
        ("strip_accents", "no"),
        ("strip_accents", {}),
        ("tokenize_chinese_chars", 0),
        ("do_basic_tokenize", False),
        ("never_split", ["x"]),
        ("word_tokenizer_type", "mecab"),
        ("cls_token", "<s>"),
        ("mask_token", {"content": "<mask>"}),
    ],
)
def test_a_configuration_that_is_not_berts_is_refused_by_name(tmp_path, key, value):
    write(tmp_path, *VOCAB, config={key: value})
    with pytest.raises(ValueError, match=rf"tokenizer_config\.json: {key}: expected .*, got "):
        Tokenizer.load(tmp_path)
    assert Tokenizer.load(write(tmp_path, *VOCAB, config={"mask_token": {"content": "[MASK]"}}))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{\n'a': 1}", "line 2: not JSON: Expecting property name enclosed in double quotes"),
        ("[1]", "expected a JSON object, got [1]"),
        ("[" * 100_000, "nested too deeply"),
        ("1" * 10_000, "not JSON: Exceeds the limit (4300 digits)"),
    ],
)
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_what_is_no_json_is_named_with_its_line(tmp_path, name, content, message):
    write(tmp_path, *VOCAB)
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError) as error:
        Tokenizer.load(tmp_path)
    assert str(error.value).startswith(f"{tmp_path}/{name}: {message}")


# --- files of noise: a tokenizer, or our own error in one line


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    directory = tmp_path_factory.mktemp("saved")
    Tokenizer(VOCAB).save(directory)
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def load_or_refuse(directory, files):
    for name, content in files.items():
        (directory / name).write_bytes(content)
    try:
        tokenizer = Tokenizer.load(directory)
    except ValueError as error:
        assert type(error) is ValueError, f"not our own error: {error!r}"
        assert str(directory) in str(error) and "\n" not in str(error)
    else:
        assert tokenizer.decode(tokenizer.encode("[MASK] em", allow_special=True).ids) is not None


NAMES = st.sampled_from(["tokenizer.json", "tokenizer_config.json", "vocab.txt"])


@given(st.data())
def test_files_with_bytes_changed(tmp_path_factory, saved, data):
    directory = tmp_path_factory.mktemp("fuzz")
    name = data.draw(NAMES)
    content = saved[name]
    start = data.draw(st.integers(0, len(content)))
    end = data.draw(st.integers(start, min(len(content), start + 20)))
    noise = data.draw(
        st.binary(max_size=20) | st.sampled_from([b"\n", b"\\ud800", b"}", b"[" * 9999])
    )
    files = {**saved, name: content[:start] + noise + content[end:]}
    if name == "vocab.txt":
        del files["tokenizer.json"]
    load_or_refuse(directory, files)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(st.data())
def test_files_with_values_changed(tmp_path_factory, saved, data):
    directory = tmp_path_factory.mktemp("fuzz")
    name = data.draw(st.sampled_from(["tokenizer.json", "tokenizer_config.json"]))
    content = json.loads(saved[name])
    place, path = content, []
    while isinstance(place, dict | list) and place and (not path or data.draw(st.booleans())):
        keys = list(place) if isinstance(place, dict) else range(len(place))
        path.append(data.draw(st.sampled_from(keys)))
        place = place[path[-1]]
    at(content, path, data.draw(json_values))
    load_or_refuse(directory, {**saved, name: json.dumps(content).encode()})


@given(st.binary(max_size=200), NAMES)
def test_files_of_nothing_but_noise(tmp_path_factory, saved, noise, name):
    load_or_refuse(tmp_path_factory.mktemp("fuzz"), {**saved, name: noise})
