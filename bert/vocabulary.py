"""Where a WordPiece vocabulary comes from: learned from text, or read from a file.

Learning (Wu et al. 2016, section 4.1; as pair merging, Sennrich et al. 2016): begin with single
characters; again and again, join the two neighbouring pieces that stand together most often,
"t" "##h" -> "th", "th" "##e" -> "the", until the vocabulary is full.
"""

import gzip
import json
import re
import reprlib
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, trainers

from bert.text import SPECIAL_TOKENS, TextReport, clean, parts, read_lines

LARGEST_FILE = 32 * 2**20  # bytes; LaBSE's 500,000 tokens take 14 MiB
IN_MEMORY = 16 * 2**20  # bytes of a packed copy of the training text; a larger one goes to disk

# A word of more than 100 characters is [UNK], so it teaches nothing. Chinese is left alone: there
# each character is a word.
_TOO_LONG = re.compile(r"[^\W_\u2e80-\u9fff\uf900-\ufaff]{101,}")


@dataclass(frozen=True)
class Normalization:
    """What is done to a text before WordPiece sees its words.

    Args:
        lowercase: Whether the vocabulary is uncased.
        strip_accents: None means: if lowercase.
        handle_chinese_chars: Whether each Chinese character is a word of its own.
    """

    lowercase: bool = True
    strip_accents: bool | None = None
    handle_chinese_chars: bool = True

    def backend(self, ids: dict[str, int] | None = None) -> tokenizers.Tokenizer:
        """Build the tokenizer of the `tokenizers` library that cleans and splits as BERT does."""
        backend = tokenizers.Tokenizer(models.WordPiece(ids or {}, unk_token="[UNK]"))
        backend.normalizer = normalizers.BertNormalizer(
            clean_text=True,
            handle_chinese_chars=self.handle_chinese_chars,
            strip_accents=self.strip_accents,
            lowercase=self.lowercase,
        )
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        return backend


def index(vocab: Sequence[str], place: Callable[[int], str] = "id {}".format) -> dict[str, int]:
    """Map each token of a vocabulary to its id.

    Args:
        vocab: The tokens in the order of their ids.
        place: Names the place of an id, for the errors.

    Raises:
        ValueError: a token is there twice, is empty, or cannot be a line of vocab.txt; or a
            special token is missing.
    """
    ids: dict[str, int] = {}
    for number, token in enumerate(vocab):
        if token in ids:
            first = place(ids[token])
            raise ValueError(f"{place(number)}: the token {token!r} is at {first} already")
        if not re.fullmatch("[^\r\n\ud800-\udfff]+", token):
            raise ValueError(f"{place(number)}: expected a token, got {reprlib.repr(token)}")
        ids[token] = number
    missing = [token for token in SPECIAL_TOKENS if token not in ids]
    if missing:
        raise ValueError(f"{place(len(ids))}: the vocabulary ends without {' '.join(missing)}")
    return ids


# Learned from text


def learn(
    source: Iterable[str | Path],
    vocab_size: int,
    normalization: Normalization,
    min_frequency: int,
    report: TextReport,
    show_progress: bool,
) -> list[str]:
    """Learn a vocabulary: the same text gives the same one, in any process and with any threads.

    `tokenizers` alone does not promise that: it numbers the characters as they come out of a
    randomly seeded hash table, and those numbers decide which of two equally frequent pairs is
    joined. So the characters are counted and numbered first, on the way to a packed copy of the
    text, and the training reads the copy. Memory grows with the number of different words, not
    with the text.
    """
    if isinstance(source, str | Path):
        raise ValueError(f"source: expected texts and Paths, got one {type(source).__name__}")
    if vocab_size < 10:
        raise ValueError(f"vocab_size: expected at least 10, got {vocab_size}")
    backend = normalization.backend()
    characters: Counter[str] = Counter()
    with tempfile.SpooledTemporaryFile(max_size=IN_MEMORY) as copy:
        with gzip.open(copy, "wt", compresslevel=1, encoding="utf-8") as file:
            for text in _usable(source, report):
                characters.update(text)
                file.write(text + "\n")
        kept, inside = _choose_characters(characters, backend, vocab_size, min_frequency)
        first = [*SPECIAL_TOKENS, *kept, *(f"##{character}" for character in inside)]
        trainer = trainers.WordPieceTrainer(
            vocab_size=vocab_size,
            min_frequency=min_frequency,
            special_tokens=first,  # here the word only means: these have the first ids
            initial_alphabet=kept,
            limit_alphabet=len(kept),
            show_progress=show_progress,
        )
        copy.seek(0)
        with gzip.open(copy, "rt", encoding="utf-8") as file:
            backend.train_from_iterator(file, trainer)
    ids = backend.get_vocab()
    return sorted(ids, key=ids.__getitem__)


def _usable(source: Iterable[str | Path], report: TextReport) -> Iterator[str]:
    for item in source:
        if not isinstance(item, str | Path):
            raise ValueError(f"source: expected texts and Paths, got a {type(item).__name__}")
        for text in read_lines(item, report) if isinstance(item, Path) else [item]:
            for _, part in parts(clean(text, report)):
                has_long = max(map(len, part.split()), default=0) > 100
                yield _TOO_LONG.sub(" ", part) if has_long else part


def _choose_characters(
    characters: Counter[str],
    backend: tokenizers.Tokenizer,
    vocab_size: int,
    min_frequency: int,
) -> tuple[list[str], list[str]]:
    """Choose the characters that get a piece, most frequent first, for at most half the ids.

    Returns:
        All of them, and those that can stand inside a word, so need a "##" piece too:
        punctuation and Chinese characters are always words of their own.
    """
    normalize, split = backend.normalizer.normalize_str, backend.pre_tokenizer.pre_tokenize_str
    counts: Counter[str] = Counter()
    for raw, count in characters.items():
        for character in normalize(raw).replace(" ", ""):
            counts[character] += count
    kept: list[str] = []
    inside: list[str] = []
    room = (vocab_size - len(SPECIAL_TOKENS)) // 2
    for character, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        is_inside = len(split(normalize(f"a{character}a"))) == 1
        room -= 1 + is_inside
        if room < 0 or count < min_frequency:
            break
        kept.append(character)
        inside += [character] * is_inside
    if not kept:
        raise ValueError(
            f"text: expected enough for {vocab_size} tokens, got {characters.total()} characters "
            f"in all, none of which occurs {min_frequency} times and fits"
        )
    return kept, inside


# Read from a file

# Where a setting of tokenizer.json lies, and what it may say; all else is refused by name.
_TOKENIZER_JSON: dict[tuple[str, str], tuple[Any, ...]] = {
    ("model", "type"): ("WordPiece", None),
    ("model", "unk_token"): ("[UNK]",),
    ("model", "continuing_subword_prefix"): ("##",),
    ("model", "max_input_chars_per_word"): (100,),
    ("normalizer", "type"): ("BertNormalizer",),
    ("normalizer", "clean_text"): (True,),
    ("normalizer", "lowercase"): (True, False),
    ("normalizer", "strip_accents"): (True, False, None),
    ("normalizer", "handle_chinese_chars"): (True, False),
    ("pre_tokenizer", "type"): ("BertPreTokenizer",),
}
# The same for tokenizer_config.json, where each may be absent.
_TOKENIZER_CONFIG: dict[str, tuple[Any, ...]] = {
    "do_lower_case": (True, False),
    "strip_accents": (True, False, None),
    "tokenize_chinese_chars": (True, False),
    "do_basic_tokenize": (True,),
    "never_split": (None, []),
    "word_tokenizer_type": ("basic", None),
    "subword_tokenizer_type": ("wordpiece", None),
    **{f"{token[1:-1].lower()}_token": (token,) for token in SPECIAL_TOKENS},
}


def read(path: Path, lowercase: bool | None) -> tuple[list[str], Normalization]:
    """Read vocab.txt, tokenizer.json, or the directory that holds them.

    A setting is what `lowercase` says, else tokenizer_config.json beside the file, else
    tokenizer.json, else BERT's default; a cased vocab.txt must be said to be one. The truncation,
    padding and frame in tokenizer.json are not read: those are the caller's and ours.

    Raises:
        ValueError: one line that names the file and the place in it.
    """
    if path.is_dir():
        here = [path / name for name in ("tokenizer.json", "vocab.txt")]
        path = next((file for file in here if file.is_file()), path)
    if not path.is_file():
        raise ValueError(f"{path}: expected vocab.txt, tokenizer.json or a directory with one")
    is_json = path.suffix == ".json"
    vocab, said = _read_tokenizer_json(path) if is_json else (_read_vocab_txt(path), {})
    said |= _read_tokenizer_config(path.with_name("tokenizer_config.json"))
    if lowercase is not None:
        said["lowercase"] = lowercase
    cased = (token for token in vocab if token != token.lower() and token[0] not in "[<")
    if "lowercase" not in said and (token := next(cased, None)):
        raise ValueError(
            f"{path}: the vocabulary is cased ({token!r}): say lowercase=False, or write"
            ' {"do_lower_case": false} to tokenizer_config.json beside it'
        )
    return vocab, Normalization(**said)


def _read_vocab_txt(path: Path) -> list[str]:
    lines = _read_text(path).replace("\r\n", "\n").replace("\r", "\n").removesuffix("\n")
    vocab = lines.split("\n")  # not `splitlines`: U+2028 and others can be tokens
    index(vocab, lambda number: f"{path}: line {number + 1}")
    return vocab


def _read_tokenizer_json(path: Path) -> tuple[list[str], dict[str, Any]]:
    content = _read_json(path)
    for part in ("model", "normalizer", "pre_tokenizer"):
        if not isinstance(content.get(part), dict):
            raise ValueError(f"{path}: {part}: expected BERT's, got {_show(content.get(part))}")
    for (part, key), allowed in _TOKENIZER_JSON.items():
        _expect(f"{path}: {part}.{key}", content[part].get(key), allowed)
    ids = content["model"].get("vocab")
    if not isinstance(ids, dict):
        raise ValueError(f"{path}: model.vocab: expected tokens and ids, got {_show(ids)}")
    vocab = [""] * len(ids)
    for token, number in ids.items():
        if type(number) is not int or not 0 <= number < len(ids) or vocab[number]:
            raise ValueError(
                f"{path}: model.vocab[{_show(token)}]: expected an id of its own in"
                f" 0..{len(ids) - 1}, got {_show(number)}"
            )
        vocab[number] = token
    index(vocab, lambda number: f"{path}: model.vocab: id {number}")
    added = content.get("added_tokens") or []
    for number, token in enumerate(added if isinstance(added, list) else [added]):
        name = token.get("content") if isinstance(token, dict) else token
        _expect(f"{path}: added_tokens[{number}].content", name, SPECIAL_TOKENS)
    keys = ("lowercase", "strip_accents", "handle_chinese_chars")
    return vocab, {key: content["normalizer"].get(key) for key in keys}


def _read_tokenizer_config(path: Path) -> dict[str, Any]:
    config = _read_json(path) if path.is_file() else {}
    for key, allowed in _TOKENIZER_CONFIG.items():
        if key in config:
            value = config[key]
            if key.endswith("_token") and isinstance(value, dict):
                value = value.get("content")
            _expect(f"{path}: {key}", value, allowed)
    ours = {"do_lower_case": "lowercase", "tokenize_chinese_chars": "handle_chinese_chars"}
    ours["strip_accents"] = "strip_accents"
    return {ours[key]: config[key] for key in ours if key in config}


def _expect(place: str, value: Any, allowed: tuple[Any, ...]) -> None:
    if not any(type(value) is type(option) and value == option for option in allowed):
        options = " or ".join(map(repr, allowed))
        raise ValueError(f"{place}: expected {options}, got {_show(value)}")


def _show(value: Any) -> str:
    return reprlib.repr(value)


def _read_json(path: Path) -> dict[str, Any]:
    text = _read_text(path)
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: line {error.lineno}: not JSON: {error.msg}") from error
    except ValueError as error:  # `int` refuses more than 4,300 digits
        raise ValueError(f"{path}: not JSON: {error}") from error
    except RecursionError as error:
        raise ValueError(f"{path}: nested too deeply") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a JSON object, got {_show(content)}")
    return content


def _read_text(path: Path) -> str:
    size = path.stat().st_size
    if not 0 < size <= LARGEST_FILE:
        raise ValueError(f"{path}: expected 1 to {LARGEST_FILE} bytes, got {size}")
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}: line {line}: not UTF-8") from error
