"""Memory doesn't grow with the text, and the benchmark that says so reads it as it is."""

import pytest

from benchmarks.prepare_memory import MemoryBenchmark, parse_size, run, write_text
from tests.pretrain import texts


@pytest.mark.parametrize(
    ("text", "size"), [("7", 7), ("1.5KB", 1500), ("50 MB", 50_000_000), ("1GB", 10**9)]
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.errors
def test_what_is_no_size_is_refused():
    with pytest.raises(ValueError, match="^size: expected a number and KB, MB or GB, got '1TB'"):
        parse_size("1TB")


def test_the_text_has_a_long_document_and_a_long_line(tmp_path):
    path = tmp_path / "text.txt"
    write_text(path, ["A paragraph of some thirty characters."], 3_000_000)
    lengths = [len(document) for document in path.read_text().split("\n\n")]
    assert lengths[0] >= 1_000_000 and max(map(len, path.read_text().split("\n"))) >= 300_000
    assert sum(lengths) == pytest.approx(3_000_000, rel=0.01) and len(lengths) > 100


@pytest.mark.slow
def test_three_times_the_text_takes_no_more_memory(tmp_path):
    """Of one shard's size, and of three; a process that kept the text would grow by 64 MB."""
    book = texts.write_text(tmp_path / "book.txt", texts.make_documents(2_000))
    peaks = []
    for size in ("36MB", "108MB"):
        measured = run(MemoryBenchmark(size=size, text=(book,), vocab_size=500))
        assert measured["text_bytes"] >= parse_size(size)
        peaks.append(measured["peak_rss_mb"])
    assert peaks[1] < peaks[0] + 40 and peaks[1] < 1000
