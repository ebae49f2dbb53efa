"""Text files → a prepared corpus (`pretrain.corpus`), by any number of processes.

    files ─> paragraphs ─> texts of shards ─> shards, many at a time ─> one corpus
             documents.py  shard_texts.py     shards.py                 merging.py

One process reads, leaves duplicates out and cuts the stream into texts; workers turn those into
shards. Documents that are held out make a second corpus inside of the first. The same files,
tokenizer, options and versions give the same bytes, whoever makes the shards. All happens in a
directory aside (`pretrain.place_aside`), where shards that are whole outlive what goes wrong: the
next attempt makes the others.

In each process memory stays within bounds that don't depend on the text.
"""

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from bert.text import TextReport
from bert.tokenization import Tokenizer
from pretrain import shard_texts
from pretrain.corpus import (
    DOCUMENTS,
    FORMAT,
    MANIFEST,
    SENTENCES,
    TOKENIZER,
    VALIDATION,
    Corpus,
    read_manifest,
    render_manifest,
)
from pretrain.documents import PACKED, Rows, describe_sources, read_paragraphs
from pretrain.hashed_file import HashedFile
from pretrain.merging import merge_shards
from pretrain.place_aside import move_into_place, place_aside, refuse_what_is_there
from pretrain.quality import describe_quality
from pretrain.shard_texts import Duplicates, ShardText, write_shard_texts
from pretrain.shard_workers import ShardWorkers, collect, local_workers
from pretrain.shards import is_whole, prepare_shard, versions

_MERGED, _SEEN = "corpus", "seen.sqlite"


def prepare(
    files: Sequence[str | Path],
    out: str | Path,
    tokenizer: Tokenizer,
    *,
    max_sentence_tokens: int = 128,
    rows: Rows | None = None,
    drop_duplicates: bool = False,
    validation_share: float = 0.0,
    workers: int | ShardWorkers = 1,
    progress: bool = True,
) -> Corpus:
    """Prepare a corpus from text files and open it.

    Args:
        files: in the order in which they are read; see `pretrain.documents`.
        out: the directory to make; nothing may be there.
        tokenizer: its report stays as it is; the manifest has the counts.
        max_sentence_tokens: a longer sentence is cut into equal parts.
        rows: how .jsonl files are read.
        drop_duplicates: keep the first of several documents with the same words.
        validation_share: how many of the documents, duplicates not counted, are held out.
        workers: processes that make shards, or what starts workers elsewhere. A text of one shard
            (32 MB) is prepared in this process.
        progress: whether to draw a progress bar.

    Raises:
        ValueError: a file is missing, no file, broken or there twice; a row is bad; `out` exists
            or is being written; there are fewer than two documents with text, in all or held out.
        OSError: the disk is full, a worker was killed or the like. Shards that are whole stay in
            `.NAME.partial`, if there are any.
    """
    out, paths = Path(out), [Path(file) for file in files]
    rows = replace(rows or Rows(), skipped=0)
    if max_sentence_tokens < 1:
        raise ValueError(f"max_sentence_tokens: expected 1 or more, got {max_sentence_tokens}")
    if isinstance(workers, int) and workers < 1:
        raise ValueError(f"workers: expected 1 or more, got {workers}")
    if not 0 <= validation_share < 1:
        raise ValueError(
            f"validation_share: expected 0 or a share below 1, got {validation_share}"
        )
    refuse_what_is_there(out)
    sources = describe_sources(paths)
    report = TextReport()
    with place_aside(out) as place, ExitStack() as stack:
        duplicates = Duplicates(place / _SEEN) if drop_duplicates else None
        if duplicates:
            stack.callback(duplicates.close)
        paragraphs = chain.from_iterable(read_paragraphs(path, report, rows) for path in paths)
        texts = write_shard_texts(paragraphs, place, duplicates, validation_share)
        with _progress_bar(paths, sources, progress) as bar:
            training, held_out = _make_shards(
                texts, place, tokenizer, max_sentence_tokens, workers, bar
            )
        _check_documents(training, held_out, validation_share)
        described = {
            "duplicates": duplicates.dropped if duplicates else 0,
            "skipped_rows": rows.skipped,
            "max_sentence_tokens": max_sentence_tokens,
            "token_dtype": "<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4",
            "vocab_size": tokenizer.vocab_size,
            "tokenizer_sha256": tokenizer.sha256,
            "validation_share": validation_share,
            "sources": sources,
            "versions": versions(),
        }
        merged = place / _MERGED
        merged.mkdir()
        validation = None
        if held_out:
            home = merged / VALIDATION
            home.mkdir()
            validation = _write_corpus(held_out, home, tokenizer, report, described)
        described["validation_sha256"] = validation
        _write_corpus(training, merged, tokenizer, report, described)
        move_into_place(merged, out)
    return Corpus.open(out)


def _check_documents(training: list[Path], held_out: list[Path], share: float) -> None:
    """Refuse too few documents, and delete their shards."""
    trained, judged = (
        sum(read_manifest(shard / MANIFEST)["documents"] for shard in shards)
        for shards in (training, held_out)
    )
    message = None
    if trained + judged < 2:
        message = (
            f"files: expected at least 2 documents with text, parted by blank lines "
            f"(next-sentence pairs take one from another), got {trained + judged}"
        )
    elif share and min(trained, judged) < 2:
        message = (
            f"validation_share: expected a share that holds out 2 documents and leaves 2, got "
            f"{share}, which holds out {judged} of {trained + judged}"
        )
    if message:
        for shard in (*training, *held_out):
            shutil.rmtree(shard)
        raise ValueError(message)


def _write_corpus(
    shards: list[Path],
    out: Path,
    tokenizer: Tokenizer,
    report: TextReport,
    described: dict[str, Any],
) -> str:
    """Merge shards into the files of a corpus.

    Args:
        shards: in order.
        out: a directory for them.
        tokenizer: saved beside them.
        report: what reading the sources met.
        described: what else the manifest says.

    Returns:
        The manifest's own SHA-256.
    """
    counts = merge_shards(shards, out)
    for name, number in asdict(report).items():
        counts["text"][name] += number
    offsets = (np.memmap(out / name, "<i8", mode="r") for name in (SENTENCES, DOCUMENTS))
    quality = describe_quality(counts, *offsets)
    tokenizer.save(out / TOKENIZER)
    content = render_manifest({**FORMAT, **counts, "quality": quality, **described})
    with HashedFile(out / MANIFEST) as file:
        file.write(content)
    return json.loads(content)["sha256"]


def _make_shards(
    texts: Iterator[ShardText],
    place: Path,
    tokenizer: Tokenizer,
    max_sentence_tokens: int,
    workers: int | ShardWorkers,
    bar: tqdm,
) -> tuple[list[Path], list[Path]]:
    """Make the shards that aren't there yet; return those to train on and those held out."""
    shards: tuple[list[Path], list[Path]] = [], []
    waiting: set[Any] = set()
    first = [text for text in (next(texts, None), next(texts, None)) if text]
    with ExitStack() as stack:
        executor = None
        if workers != 1 and sum(text.bytes for text in first) > shard_texts.SHARD:
            start = partial(local_workers, workers) if isinstance(workers, int) else workers
            executor = stack.enter_context(start(place, tokenizer, max_sentence_tokens))
        for text in chain(first, texts):
            shard = place / f"shard-{text.name}"
            shards[text.is_held_out].append(shard)
            if is_whole(shard, text.sha256, tokenizer, max_sentence_tokens):
                text.path.unlink()
                bar.update(text.bytes)
                continue
            shutil.rmtree(shard, ignore_errors=True)
            if executor is None:
                prepare_shard(text.path, shard, tokenizer, max_sentence_tokens, bar.update)
                text.path.unlink()
                continue
            future = executor.submit(text.path, shard)
            future.add_done_callback(lambda _, text=text: _is_done(text, bar))
            # One text more than there are workers, so that none of them waits for the reader.
            waiting = collect({*waiting, future}, leave=executor.at_once)
        collect(waiting, leave=0)
    return shards


def _is_done(text: ShardText, bar: tqdm) -> None:
    text.path.unlink(missing_ok=True)
    bar.update(text.bytes)


@contextmanager
def _progress_bar(
    paths: Sequence[Path], sources: Sequence[dict[str, Any]], progress: bool
) -> Iterator[tqdm]:
    """Draw how much of the text is done, which for packed files is not known as a share."""
    is_packed = any(path.suffix in PACKED for path in paths)
    total = None if is_packed else sum(source["bytes"] for source in sources)
    hidden = None if progress else True  # None: hidden where no terminal is
    with tqdm(desc="prepare", total=total, unit="B", unit_scale=True, disable=hidden) as bar:
        yield bar
        if total:  # what was left out (blank lines, duplicates, markup of rows) is done as well
            bar.update(total - bar.n)
