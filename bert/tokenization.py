"""Turn text into WordPiece ids and back (Devlin et al. 2018, section 3; Wu et al. 2016, 4.1).

What happens to "Émbeddings aren't magic", with BERT's uncased vocabulary:

1. Clean: control characters go, every kind of space becomes a plain one (bert/text.py).
2. Lower-case and strip accents; a cased vocabulary skips this:  embeddings aren't magic
3. Split into words, at spaces and around each punctuation mark and each Chinese character:
   embeddings | aren | ' | t | magic
4. Cut each word into pieces of the vocabulary: the longest piece that starts the word, then the
   longest that goes on from there. "##" marks a piece inside a word.
   "embeddings" starts with "em" ("emb" is no piece), goes on with "##bed", "##ding", "##s".
   A word that gets stuck, or has more than 100 characters, is one [UNK].
5. Frame: [CLS] A [SEP], or [CLS] A [SEP] B [SEP] for a pair.

Text that is odd (lone surrogates, a literal "[MASK]", a line of 10 MB, ...) follows the policies
at the head of bert/text.py; `Tokenizer.report` counts it. How a vocabulary is learned and how its
file is read: bert/vocabulary.py.

One policy cannot be saved: tokenizer.json has no place for "a literal [MASK] is text", so
transformers reads a [MASK] in any text as the mask, unless told `split_special_tokens=True`.
"""

import hashlib
import json
from array import array
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, get_args

import numpy as np
import tokenizers
from jaxtyping import Int32, Int64
from tokenizers import decoders, processors

from bert import vocabulary
from bert.framing import Encoding, Segment, Truncation, frame, kept_lengths
from bert.text import SPECIAL_TOKENS, TextReport, clean, parts, split_at_spaces
from bert.vocabulary import Normalization

# Characters of the words whose ids are remembered: about 100 MB. After that it starts anew.
REMEMBERED = 4_000_000


class Tokenizer:
    """WordPiece with one vocabulary.

    Args:
        vocab: The tokens in the order of their ids; the five special ones may have any.
        normalization: What the vocabulary was learned with.
    """

    def __init__(self, vocab: Sequence[str], normalization: Normalization | None = None) -> None:
        self.vocab = tuple(vocab)
        self.normalization = normalization or Normalization()
        self.report = TextReport()  # counts from here on; put a new one here to start anew
        self._ids = vocabulary.index(self.vocab)
        self.special_ids = tuple(self._ids[token] for token in SPECIAL_TOKENS)
        self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = self.special_ids
        self._backend = self._build_backend()
        self._backend.encode_special_tokens = True  # "[MASK]" in a text is text
        self._pieces = _Pieces(self._backend)

    @classmethod
    def train(
        cls,
        source: Iterable[str | Path],
        vocab_size: int,
        *,
        lowercase: bool = True,
        strip_accents: bool | None = None,
        handle_chinese_chars: bool = True,
        min_frequency: int = 2,
        show_progress: bool = False,
    ) -> "Tokenizer":
        """Learn a vocabulary from text, the same one each time (`vocabulary.learn`).

        Args:
            source: Texts; a Path is a file to be read line by line. A generator will do.
            vocab_size: The special tokens are the ids 0 to 4. A small text gives fewer tokens.
            lowercase: See `Normalization`, for the next two as well.
            strip_accents: None means: if lowercase.
            handle_chinese_chars: Whether each Chinese character is a word of its own.
            min_frequency: Characters and pairs seen less often get no piece.
            show_progress: Whether to draw progress bars.

        Raises:
            ValueError: there is no text, or a packed file is broken.
        """
        normalization = Normalization(lowercase, strip_accents, handle_chinese_chars)
        report = TextReport()
        tokenizer = cls(
            vocabulary.learn(
                source, vocab_size, normalization, min_frequency, report, show_progress
            ),
            normalization,
        )
        tokenizer.report = report
        return tokenizer

    @classmethod
    def load(cls, path: str | Path, *, lowercase: bool | None = None) -> "Tokenizer":
        """Read vocab.txt, tokenizer.json or their directory (`vocabulary.read`).

        Args:
            path: The settings of a tokenizer_config.json beside the file count.
            lowercase: Overrides what the files say.

        Raises:
            ValueError: one line that names the file and the place in it.
        """
        return cls(*vocabulary.read(Path(path), lowercase))

    def save(self, directory: str | Path, *, model_max_length: int = 512) -> None:
        """Write tokenizer.json, tokenizer_config.json and vocab.txt, for us and transformers.

        Args:
            directory: Made if it is not there.
            model_max_length: Tokens; where transformers truncates when asked to.
        """
        config: dict[str, Any] = {
            "tokenizer_class": "BertTokenizer",
            "do_lower_case": self.normalization.lowercase,
            "strip_accents": self.normalization.strip_accents,
            "tokenize_chinese_chars": self.normalization.handle_chinese_chars,
            "model_max_length": model_max_length,
            **{f"{token[1:-1].lower()}_token": token for token in SPECIAL_TOKENS},
        }
        content = {
            "tokenizer.json": self._backend.to_str(),
            "tokenizer_config.json": json.dumps(config, indent=2),
            "vocab.txt": "\n".join(self.vocab),
        }
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        for name, text in content.items():
            (directory / name).write_text(text + "\n", encoding="utf-8", newline="\n")

    def encode(
        self,
        text: str,
        pair: str | None = None,
        *,
        max_length: int | None = None,
        truncation: Truncation = "longest_first",
        allow_special: bool = False,
    ) -> Encoding:
        """Encode one text or pair, as `encode_batch` does."""
        pairs = None if pair is None else [pair]
        return self.encode_batch(
            [text],
            pairs,
            max_length=max_length,
            truncation=truncation,
            allow_special=allow_special,
        )[0]

    def encode_batch(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] | None = None,
        *,
        max_length: int | None = None,
        truncation: Truncation = "longest_first",
        allow_special: bool = False,
    ) -> list[Encoding]:
        """Encode and frame texts, each with its pair if there are pairs.

        Args:
            texts: The first texts.
            pairs: As many second texts.
            max_length: Tokens, with the frame; None keeps all.
            truncation: What a row that is longer loses (`framing.kept_lengths`).
            allow_special: Whether a literal "[MASK]" (or another) is the special token.

        Raises:
            ValueError: a row is not text; a row is too long and the strategy cannot help, with
                the row and its lengths.
        """
        if truncation not in get_args(Truncation):
            raise ValueError(f"truncation: expected {get_args(Truncation)}, got {truncation!r}")
        if pairs is not None and len(pairs) != len(texts):
            raise ValueError(f"pairs: expected {len(texts)}, as many as texts, got {len(pairs)}")
        special = 2 if pairs is None else 3
        if max_length is not None and max_length < special:
            raise ValueError(f"max_length: expected at least {special}, got {max_length}")
        room = None if max_length is None else max_length - special
        enough = room if truncation == "longest_first" else None
        firsts = self._tokenize("texts", texts, enough, allow_special)
        seconds: Sequence[Segment | None] = [None] * len(firsts)
        if pairs is not None:
            seconds = self._tokenize("pairs", pairs, enough, allow_special)
        encodings = []
        for row, (first, second) in enumerate(zip(firsts, seconds, strict=True)):
            if room is not None:
                lengths = len(first.ids), len(second.ids) if second else 0
                kept = kept_lengths(*lengths, room, truncation, row)
                first, second = first.keep(kept[0]), second and second.keep(kept[1])
            encodings.append(frame(self.cls_id, self.sep_id, first, second))
        return encodings

    def encode_plain(self, texts: Iterable[str]) -> list[list[int]]:
        """Give the ids of each text, without a frame; see `encode_flat`."""
        return [memoryview(ids).cast("i").tolist() for ids in self._plain(texts)]

    def encode_flat(
        self, texts: Iterable[str]
    ) -> tuple[Int32[np.ndarray, " tokens"], Int64[np.ndarray, " texts"]]:
        """Give the ids of all texts end to end, without frames, and the length of each text.

        This is for pretraining. A word's ids do not depend on its neighbours, so each word is
        cut once and looked up from then on: over ten times as fast as `encode_batch`.
        """
        plain = self._plain(texts)
        lengths = np.fromiter(map(len, plain), np.int64, len(plain)) // array("i").itemsize
        return np.frombuffer(bytearray().join(plain), np.int32), lengths

    def decode(
        self,
        ids: Iterable[int] | Int64[np.ndarray, " tokens"],
        *,
        skip_special_tokens: bool = True,
    ) -> str:
        """Join the tokens of ids to a text; what cleaning and lower-casing took is not back."""
        numbers = [int(number) for number in ids]
        for place, number in enumerate(numbers):
            if not 0 <= number < self.vocab_size:
                raise ValueError(f"ids[{place}]: expected 0..{self.vocab_size - 1}, got {number}")
        return self._backend.decode(numbers, skip_special_tokens=skip_special_tokens)

    @property
    def vocab_size(self) -> int:
        """The number of tokens; ids are 0 to one less."""
        return len(self.vocab)

    def token_to_id(self, token: str) -> int | None:
        """Give a token's id; None if the vocabulary lacks it."""
        return self._ids.get(token)

    @cached_property
    def sha256(self) -> str:
        """A fingerprint of everything that decides the ids of a text."""
        content = json.dumps([self.vocab, repr(self.normalization)])
        return hashlib.sha256(content.encode()).hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tokenizer) and self.sha256 == other.sha256

    def __hash__(self) -> int:
        return hash(self.sha256)

    def __reduce__(self) -> tuple[Any, ...]:
        # The backend's own pickle forgets `encode_special_tokens`, as its file does.
        return Tokenizer, (self.vocab, self.normalization)

    def _build_backend(self) -> tokenizers.Tokenizer:
        backend = self.normalization.backend(self._ids)
        backend.decoder = decoders.WordPiece(prefix="##")
        backend.add_special_tokens(list(SPECIAL_TOKENS))
        # We frame by hand, below; this is for those who load the saved tokenizer.json.
        backend.post_processor = processors.TemplateProcessing(
            single="[CLS]:0 $A:0 [SEP]:0",
            pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
            special_tokens=[("[CLS]", self.cls_id), ("[SEP]", self.sep_id)],
        )
        return backend

    @cached_property
    def _special_backend(self) -> tokenizers.Tokenizer:
        return self._build_backend()  # reads a literal "[MASK]" as the mask

    def _tokenize(
        self, name: str, texts: Sequence[str], enough: int | None, allow_special: bool
    ) -> list[Segment]:
        """Tokenize texts without their frames, a long one until there are `enough` tokens."""
        backend = self._special_backend if allow_special else self._backend
        cleaned = [
            clean(text, self.report, allow_special=allow_special) for text in _checked(texts, name)
        ]
        heads = [next(parts(text), (0, ""))[1] for text in cleaned]
        segments = []
        encoded = backend.encode_batch(heads, add_special_tokens=False)
        for text, head in zip(cleaned, encoded, strict=True):
            segment = Segment(head.ids, head.offsets, head.tokens, head.word_ids)
            for start, part in islice(parts(text), 1, None):
                if enough is not None and len(segment.ids) >= enough:
                    break
                segment.append(backend.encode(part, add_special_tokens=False), start)
            self.report.empty += not segment.ids
            segments.append(segment)
        return segments

    def _plain(self, texts: Iterable[str]) -> list[bytes]:
        """Give the ids of each text as the bytes of int32 numbers."""
        plain = []
        for text in _checked(texts, "texts"):
            runs = split_at_spaces(clean(text, self.report))
            plain.append(b"".join(map(self._pieces.__getitem__, runs)))
            self.report.empty += not plain[-1]
        return plain


def _checked(texts: Iterable[object], name: str) -> Iterator[str]:
    if isinstance(texts, str):
        raise ValueError(f"{name}: expected a sequence of texts, got one text")
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"{name}[{row}]: expected text, got {type(text).__name__}")
        yield text


class _Pieces(dict[str, bytes]):
    """The ids, as the bytes of int32 numbers, of each run without a space that was asked for."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        self.backend = backend
        self.characters = 0

    def __missing__(self, run: str) -> bytes:
        ids = array("i", self.backend.encode(run, add_special_tokens=False).ids).tobytes()
        self.characters += len(run)
        if self.characters > REMEMBERED:
            self.clear()
            self.characters = len(run)
        self[run] = ids
        return ids
