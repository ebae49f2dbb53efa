"""How much memory it takes to prepare a large text, and how long.

    python -m benchmarks.prepare_memory --size 1GB --workers 2

Makes a text of that size from the paragraphs of real books in random order, a third of it one
single document, 10 MB of it one single line; prepares it in a process of its own, which starts the
workers; and prints and writes down what that process and the largest worker needed at their peaks.
"""

import json
import multiprocessing
import os
import platform
import random
import re
import resource
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import tyro

from bert.text import read_lines
from bert.tokenization import Tokenizer
from pretrain.preparation import prepare

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "prepare_memory.json"
BOOKS = (("demo/data/books", "*.txt.xz"), ("../shared/data/books_pd", "train-*.txt.xz"))
UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}
LONG_LINE = 10 * 10**6


@dataclass(frozen=True)
class MemoryBenchmark:
    """Prepare a large text and measure the memory that it takes."""

    size: str = "1GB"
    """Of the text, such as 50MB."""
    text: tuple[Path, ...] = field(default_factory=lambda: find_books())
    """Books to take paragraphs from; by default those that are here."""
    vocab_size: int = 8192
    """Tokens of the vocabulary, which is learned from the books."""
    workers: int = 1
    """Processes that make shards."""
    out: Path = RESULTS
    """Where to write the result."""


def find_books() -> tuple[Path, ...]:
    """Find the books of the demo, or of the data collection beside the repository."""
    found = ([*(ROOT / folder).glob(pattern)] for folder, pattern in BOOKS)
    return tuple(sorted(next(filter(None, found), [])))


def parse_size(size: str) -> int:
    """Read "50MB" as bytes."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]B|)", size)
    if match is None:
        raise ValueError(f"size: expected a number and KB, MB or GB, got {size!r}")
    return int(float(match[1]) * UNITS[match[2]])


def write_text(path: Path, paragraphs: list[str], size: int) -> None:
    """Write `size` bytes of paragraphs: a third in one document, then a long line, then the rest.

    The other documents have 20 to 60 paragraphs.
    """
    rng = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        while file.tell() < size // 3:
            file.write("\n".join(rng.choices(paragraphs, k=1000)) + "\n")
        file.write("\n")
        line_end = file.tell() + min(LONG_LINE, size // 10)
        while file.tell() < line_end:
            file.write(" ".join(rng.choices(paragraphs, k=100)) + " ")
        file.write("\n\n")
        while file.tell() < size:
            file.write("\n".join(rng.choices(paragraphs, k=rng.randint(20, 60))) + "\n\n")


def measure(text: Path, tokenizer: Path, out: Path, workers: int, results: Any) -> None:
    """Prepare the text, and put what this process and its workers needed into the queue."""
    loaded = Tokenizer.load(tokenizer)
    before = peak_memory("self")
    largest_worker = LargestWorker()
    begin, begin_cpu = time.perf_counter(), time.process_time()
    manifest = prepare([text], out, loaded, drop_duplicates=True, workers=workers).manifest
    seconds, cpu_seconds = time.perf_counter() - begin, time.process_time() - begin_cpu
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_seconds += ended.ru_utime + ended.ru_stime
    results.put(
        {
            "text_bytes": text.stat().st_size,
            "documents": manifest["documents"],
            "duplicates": manifest["duplicates"],
            "sentences": manifest["sentences"],
            "tokens": manifest["tokens"],
            "peak_rss_mb": round(peak_memory("self") / 1e6, 1),
            "peak_rss_before_mb": round(before / 1e6, 1),
            "peak_rss_of_a_worker_mb": round(largest_worker.stop() / 1e6, 1),
            "seconds": round(seconds, 1),
            "cpu_seconds": round(cpu_seconds, 1),
            "tokens_per_second": round(manifest["tokens"] / seconds),
            "tokens_per_cpu_second": round(manifest["tokens"] / cpu_seconds),
        }
    )


class LargestWorker:
    """Watches this process's children while it works, for the largest peak of one."""

    def __init__(self) -> None:
        self._peak = 0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> int:
        """Return the largest peak, in bytes; 0 if there were no children."""
        self._stopped.set()
        self._thread.join()
        return self._peak

    def _watch(self) -> None:
        while not self._stopped.wait(0.1):
            # Not by `multiprocessing.active_children`, which would take their exit codes.
            for listed in Path("/proc/self/task").glob("*/children"):
                with suppress(OSError):  # a thread has ended
                    children = listed.read_text().split()
                    self._peak = max([self._peak, *map(peak_memory, children)])


def peak_memory(process: str) -> int:
    """Return the most bytes that a process has held resident; 0 if it has ended.

    From the kernel's own mark: that of `getrusage` starts from the parent's peak.
    """
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return 0
    match = re.search(r"VmHWM:\s+(\d+) kB", status)
    return int(match[1]) * 1024 if match else 0


def processor() -> str:
    """Name the processor."""
    match = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return match[1] if match else platform.machine()


def run(config: MemoryBenchmark) -> dict[str, Any]:
    """Make the text, prepare it in a new process, and return what was measured."""
    size = parse_size(config.size)
    if not config.text:
        raise ValueError("text: expected books to take paragraphs from, found none")
    context = multiprocessing.get_context("spawn")  # a fork would start with our memory
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        paragraphs = [line for path in config.text for line in read_lines(path) if line.strip()]
        Tokenizer.train(config.text, config.vocab_size).save(directory / "tokenizer")
        text = directory / "text.txt"
        write_text(text, paragraphs, size)
        results = context.Queue()
        arguments = (text, directory / "tokenizer", directory / "corpus", config.workers, results)
        child = context.Process(target=measure, args=arguments)
        child.start()
        child.join()
        if child.exitcode != 0:
            raise RuntimeError(f"the preparation ended with exit code {child.exitcode}")
        measured = results.get()
    machine = {
        "processor": processor(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("numpy", "tokenizers")},
    }
    asked = {"size": config.size, "vocab_size": config.vocab_size, "workers": config.workers}
    return {**asked, **measured, "machine": machine}


def main() -> None:
    """Run the benchmark from the command line."""
    config = tyro.cli(MemoryBenchmark)
    try:
        result = run(config)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error
    config.out.parent.mkdir(parents=True, exist_ok=True)
    config.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
