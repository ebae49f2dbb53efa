"""Cut a file of labelled rows into smaller ones: whole lines, as they stand, in their order.

A cut file is of the same format as the one that it comes from, unpacked and in UTF-8 (a byte that
isn't is U+FFFD, as training reads it), so that the run which learns from it is an ordinary one.
"""

from collections.abc import Sequence
from itertools import count
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from bert.text import TextReport
from finetune.tables import reading
from finetune.whole_file import whole_file


def cut(
    source: Path, starts: Sequence[int], chosen: Int64[np.ndarray, " chosen"], out: Path
) -> None:
    """Write some rows of a file, after what stands before its first row.

    Args:
        source: the file.
        starts: the line, from 1, in which each of its rows starts; see `Task.starts`.
        chosen: the rows, from 0.
        out: the file to write; replaced as a whole.

    Raises:
        ValueError: the source can't be read.
        OSError: the file can't be written.
    """
    places, wanted = {line: row for row, line in enumerate(starts)}, {*chosen.tolist()}
    is_wanted = True
    with reading(source, TextReport()) as lines, whole_file(out) as file:
        for number, text in zip(count(1), lines, strict=False):
            if number in places:
                is_wanted = places[number] in wanted
            if is_wanted:
                file.write(text if text.endswith("\n") else f"{text}\n")


def cut_name(source: Path, name: str) -> str:
    """Name a file that is cut out of another, by the format that it keeps."""
    plain = source.with_suffix("") if source.suffix in (".xz", ".gz") else source
    return f"{name}{plain.suffix}"


def nested_order(classes: Int64[np.ndarray, " rows"], seed: int) -> Int64[np.ndarray, " rows"]:
    """Order rows so that any first n of them have the classes in proportion, and no other order.

    The i-th of a class's c rows, which are shuffled, has the place (i + ½)/c between 0 and 1.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(classes))
    place = np.empty(len(classes))
    for each in np.unique(classes):
        members = order[classes[order] == each]
        place[members] = (np.arange(len(members)) + 0.5) / len(members)
    return order[np.argsort(place[order], kind="stable")]
