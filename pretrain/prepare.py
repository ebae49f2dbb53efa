"""`bert pretrain prepare`: files of text → a prepared corpus with its tokenizer."""

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from bert.text import TextReport
from bert.tokenization import Tokenizer
from pretrain.corpus import Corpus
from pretrain.documents import Rows, describe_sources, read_paragraphs
from pretrain.place_aside import refuse_what_is_there
from pretrain.preparation import prepare
from pretrain.prepare_config import PrepareConfig
from pretrain.quality import render_quality


def run(config: PrepareConfig) -> int:
    """Run the command; return its exit code."""
    corpus = prepare_files(config)
    print(render_quality(corpus.manifest))
    if held_out := corpus.held_out():
        documents, tokens = held_out.manifest["documents"], held_out.manifest["tokens"]
        print(f"held out: {documents:,} documents, {tokens:,} tokens")
    print(f"prepared: {corpus.directory}")
    return 0


def prepare_files(config: PrepareConfig) -> Corpus:
    """Load or learn the tokenizer, and prepare the files.

    Raises:
        ValueError: the files, the tokenizer or the place can't be used.
        OSError: something could not be written.
    """
    if config.out.exists():  # a finished attempt that was killed may have left them
        _delete_vocabularies(config.out)
    refuse_what_is_there(config.out)
    rows = Rows(config.text_field, config.skip_bad_rows)
    home = config.tokenizer or _learned(config, rows)
    corpus = prepare(
        config.files,
        config.out,
        Tokenizer.load(home),
        max_sentence_tokens=config.max_sentence_tokens,
        rows=rows,
        drop_duplicates=not config.keep_duplicates,
        validation_share=config.validation_share,
        workers=config.workers or os.cpu_count() or 1,
    )
    _delete_vocabularies(config.out)
    return corpus


def read_text(files: Sequence[Path], rows: Rows, characters: int | None = None) -> Iterator[str]:
    """Yield the paragraphs of files, as a vocabulary is learned from them.

    Args:
        files: see `pretrain.documents`.
        rows: how .jsonl files are read.
        characters: how many at most, and a paragraph of each file: of each the first ones, as many
            as its share of all bytes; None for all.
    """
    total = sum(path.stat().st_size for path in files) or 1
    for path in files:
        left = None if characters is None else characters * path.stat().st_size // total
        for paragraph in read_paragraphs(path, TextReport(), rows):
            if paragraph is None:
                continue
            yield paragraph
            if left is not None and (left := left - len(paragraph)) <= 0:
                break


def _learned(config: PrepareConfig, rows: Rows) -> Path:
    """Learn a vocabulary and keep it beside `out`, where the next attempt finds it."""
    asked = [
        describe_sources(config.files), config.vocab_size, config.cased, config.vocab_characters,
        rows.text_field, rows.skip_bad,
    ]  # fmt: skip
    key = hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]
    home = config.out.with_name(f"{_vocabularies(config.out)}{key}")
    if not home.exists():
        print(f"learning a vocabulary of {config.vocab_size:,} tokens", file=sys.stderr)
        text = read_text(config.files, rows, config.vocab_characters)
        tokenizer = Tokenizer.train(text, config.vocab_size, lowercase=not config.cased)
        partial = home.with_name(f"{home.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        tokenizer.save(partial)
        partial.rename(home)
    return home


def _vocabularies(out: Path) -> str:
    """Return how the names begin of those that were learned for `out`."""
    return f".{out.name}.tokenizer-"


def _delete_vocabularies(out: Path) -> None:
    """Delete what this and earlier attempts have learned for `out`, which now has its own."""
    for path in out.absolute().parent.iterdir():
        if path.name.startswith(_vocabularies(out.absolute())):
            shutil.rmtree(path, ignore_errors=True)
