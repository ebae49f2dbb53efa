"""How long each kernel takes at least, on GPUs that are not here: a model, not a measurement.

    python -m benchmarks.roofline                                           print the table
    python -m benchmarks.roofline --json benchmarks/results/roofline.json   write it too

For each kernel at BERT's shapes the model adds up, for every unit of the GPU by itself, how long
that unit would be busy; the longest is the prediction, and names what binds.

    memory       bytes that must cross between the GPU's memory and its processors / bandwidth
    matrix       multiplications and additions, times what the binary does beyond those / peak
    issue        instructions an element in the compiled loop × elements / issue slots
    exponential  instructions of the special function unit in that loop × elements / its rate
    shared       where the record of the compiled kernels names it; elsewhere it is not among the
                 two busiest units, and is left out

Instructions come from the machine code (`kernels/aot.py`, benchmarks/results/kernels_aot.json),
which was compiled at BERT-base's width; BERT-large is taken to cost as much an element.

What the model takes for granted, so that real times are longer: every unit runs at its peak and
all at once; multiprocessors are evenly loaded at the boost clock; every byte crosses once, and
what a cache can hold stays in it; a launch costs nothing; sums over programs, sorting, small
vectors and prologues are free. A share of the matrix peak that no library reaches stays in it.

Sources, looked up in November 2026: the makers' data sheets, as the pages named here quote them.

    A100 80GB SXM  2,039 GB/s, 312 TFLOP/s dense bfloat16, 108 multiprocessors, 1.41 GHz
                   (glennklockwood.com/garden/processors/A100; a device reports a bus of 5,120
                   bits at 1,593 MHz, which is the same)
    H100 SXM5      3.35 TB/s, 989 TFLOP/s, 132 multiprocessors, 1.83 GHz (the same site, /h100)
    B200 (HGX)     2,250 TFLOP/s (the same site, /B200). 7.7 TB/s: NVIDIA's Blackwell data sheet by
                   github.com/ai-dynamo/aiconfigurator/pull/1246; it was announced with 8. A device
                   reports 7,680 bits at 3,996 MHz, and 148 multiprocessors
                   (github.com/pytorch/ao/pull/4002); these reach the peak at 1.85 GHz
    MI300X         5.3 TB/s, 304 compute units, 1,307 TFLOP/s at 2.1 GHz (AMD's CDNA 3 white paper
                   and rocm.docs.amd.com, "AMD Instinct MI300 series microarchitecture")

What a multiprocessor does in a cycle: `kernels/gpus.py`.
"""

import argparse
import json
import re
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from kernels.aot import every_case, read_record, until_the_reader_leaves
from kernels.aot_cases import VOCAB, Case
from kernels.cross_entropy import padded_vocab
from kernels.gpus import ARCHITECTURES

ROOT = Path(__file__).resolve().parents[1]
RECORD = ROOT / "benchmarks" / "results" / "kernels_aot.json"
Direction = Literal["forward", "backward"]


class Card(NamedTuple):
    """What a data sheet says."""

    architecture: str
    multiprocessors: int
    ghz: float
    bandwidth: float
    """Bytes a second."""


CARDS = {
    "A100": Card("sm80", 108, 1.41, 2.039e12),
    "H100": Card("sm90", 132, 1.83, 3.35e12),
    "B200": Card("sm100", 148, 1.85, 7.7e12),
    "MI300X": Card("gfx942", 304, 2.1, 5.3e12),
}


class Shape(NamedTuple):
    """A model's sizes and a batch of sequences of one length, in bfloat16."""

    name: str
    hidden: int
    heads: int
    parameters: int
    """Of the whole model, which the optimiser moves."""
    sequences: int
    length: int

    @property
    def tokens(self) -> int:
        """Rows of the packed batch."""
        return self.sequences * self.length

    @property
    def masked(self) -> int:
        """Rows that the masked-LM loss sees: 15 % of them."""
        return self.tokens * 15 // 100

    @property
    def scores(self) -> int:
        """Pairs of a query and a key, over all heads."""
        return self.heads * self.sequences * self.length**2


TOKENS = 32768
SHAPES = tuple(
    Shape(f"{name}, {length}", hidden, heads, parameters, TOKENS // length, length)
    for name, hidden, heads, parameters in (
        ("base", 768, 12, 110_106_428),
        ("large", 1024, 16, 336_226_108),
    )
    for length in (128, 512)
)


class Work(NamedTuple):
    """What one launch of a kernel must do for an operation."""

    operation: str
    direction: Direction
    kernel: str
    """Its name in the record; "matrix product" is the library's."""
    elements: int
    bytes: float
    flops: float = 0.0


@dataclass(frozen=True)
class Prediction:
    """How long one kernel takes, in microseconds, and why."""

    operation: str
    direction: Direction
    kernel: str
    shape: str
    card: str
    microseconds: float
    binds: str
    megabytes: float
    busy: dict[str, float]
    """Each unit's own microseconds."""


def rows_work(shape: Shape) -> list[Work]:
    """List the work of the operations that go through rows of the hidden state."""
    wide, inner = shape.tokens * shape.hidden, 4 * shape.tokens * shape.hidden
    statistics = 8 * shape.tokens  # a float32 mean and 1/deviation each row
    return [
        Work("layer_norm", "forward", "layer_norm forward", wide, 4 * wide + statistics),
        Work("layer_norm", "backward", "layer_norm backward", wide, 6 * wide + statistics),
        Work(
            "add_layer_norm", "forward", "add_layer_norm forward", wide, 8 * wide + statistics
        ),
        Work(
            "add_layer_norm", "backward", "add_layer_norm backward", wide, 6 * wide + statistics
        ),
        Work(
            "add_layer_norm, dropout", "forward", "add_layer_norm forward, dropout", wide,
            8 * wide + statistics,
        ),
        Work(
            "add_layer_norm, dropout", "backward", "add_layer_norm backward, dropout", wide,
            8 * wide + statistics,
        ),
        Work("bias_gelu", "forward", "bias_gelu forward, erf", inner, 4 * inner),
        Work("bias_gelu", "backward", "bias_gelu backward, erf", inner, 6 * inner),
        Work("bias_gelu, tanh", "forward", "bias_gelu forward, tanh", inner, 4 * inner),
        Work("bias_gelu, tanh", "backward", "bias_gelu backward, tanh", inner, 6 * inner),
        Work("dropout", "forward", "dropout", wide, 4 * wide),
        Work("dropout", "backward", "dropout", wide, 4 * wide),
        # The word table's rows are read; positions and types stay in a cache.
        Work(
            "embedding_layer_norm, dropout", "forward", "embedding forward, dropout", wide,
            4 * wide + statistics,
        ),
        Work(
            "embedding_layer_norm, dropout", "backward", "embedding backward, dropout", wide,
            6 * wide + statistics,
        ),
        *[Work("embedding_layer_norm, dropout", "backward", "segment_sum, rows", wide, 2 * wide)]
        * 3,
    ]  # fmt: skip


def attention_work(shape: Shape, names: set[str]) -> list[Work]:
    """List attention's work; short sequences have kernels of their own where these ship."""
    tensor, row = 2 * shape.tokens * shape.hidden, 4 * shape.tokens * shape.heads
    product = 2 * (shape.hidden // shape.heads) * shape.scores  # one of the matrix products
    short, works = shape.length <= 128, []
    for dropped in ("", ", dropout"):
        operation, forward = f"attention{dropped}", f"attention forward{dropped}"
        if short and f"{forward}, short" in names:
            forward += ", short"
        works.append(
            Work(operation, "forward", forward, shape.scores, 4 * tensor + row, 2 * product)
        )
        backward = (
            [("short backward", 8 * tensor + row, 5)]
            if short
            else [("dq", 6 * tensor + 2 * row, 3), ("dkdv", 6 * tensor + 2 * row, 4)]
        )
        works += [
            Work(
                operation, "backward", f"attention {kernel}{dropped}", shape.scores, moved,
                products * product,
            )
            for kernel, moved, products in backward
        ]  # fmt: skip
    return works


def loss_and_optimizer_work(shape: Shape) -> list[Work]:
    """List the work of the masked-LM loss, whose gradients come forward too, and of LAMB."""
    rows, hidden = shape.masked, shape.hidden
    product, logits = 2.0 * rows * VOCAB * hidden, rows * padded_vocab(VOCAB)
    matrices = 2 * (rows * hidden + VOCAB * hidden)  # read by one of three products
    gradients = 2 * rows * hidden + 4 * VOCAB * hidden  # written by the two others
    loss = "linear_cross_entropy, gradient"
    return [
        Work(loss, "forward", "matrix product", 0, 3 * matrices + gradients, 3 * product),
        Work(loss, "forward", "cross_entropy, gradient", logits, 0),  # in the second level cache
        Work(
            "lamb_step", "forward", "lamb moments", shape.parameters, 24.0 * shape.parameters
        ),
        Work("lamb_step", "forward", "lamb apply", shape.parameters, 16.0 * shape.parameters),
    ]  # fmt: skip


def busy(
    work: Work, card: Card, case: Case | None, record: dict[str, Any] | None
) -> dict[str, float]:
    """Give each unit's microseconds; a library's kernel has neither case nor record."""
    machine = ARCHITECTURES[card.architecture]
    cycle = 1 / (card.ghz * 1e3 * card.multiprocessors)  # µs, shared among multiprocessors
    units = {
        "memory": work.bytes / card.bandwidth * 1e6,
        "matrix": work.flops / machine.matrix_flops * cycle,
    }
    if case is None or record is None:
        return units
    units["matrix"] *= max(record["matrix_work"], 1.0)
    special = record["special"] * case.constants["num_warps"] * machine.lanes / case.elements
    units["exponential"] = work.elements * special / machine.special * cycle
    instructions = record["instructions_per_element"] / machine.lanes
    units["issue"] = work.elements * instructions / machine.issue * cycle
    if shared := shared_share(record["limit"]):
        other, share = shared
        if other in ("exponential", "issue", "matrix"):
            units["shared"] = units[other] * share
    return units


def shared_share(limit: str) -> tuple[str, float] | None:
    """Read "shared (then issue, 80%)" as shared memory's time over that of the other unit."""
    found = re.fullmatch(r"(\w+) \(then (\w+), (\d+)%\)", limit)
    if found is None:
        raise ValueError(f"limit: expected 'unit (then unit, percent)', got {limit!r}")
    first, second, percent = found[1], found[2], int(found[3]) / 100
    if first == "shared" and percent:
        return second, 1 / percent
    return (first, percent) if second == "shared" else None


def predict(shape: Shape, name: str, records: dict[str, Any]) -> list[Prediction]:
    """Predict every kernel of the record on one card."""
    card = CARDS[name]
    cases = {case.name: case for case in every_case(card.architecture)}
    predictions = []
    for work in (
        *rows_work(shape),
        *attention_work(shape, set(cases)),
        *loss_and_optimizer_work(shape),
    ):
        is_library = work.kernel == "matrix product"
        record = None if is_library else records.get(f"{work.kernel} | {card.architecture}")
        if record is None and not is_library:
            raise ValueError(
                f"{RECORD.name}: expected {work.kernel!r} on {card.architecture} in it"
            )
        units = busy(work, card, cases.get(work.kernel), record)
        binds = max(units, key=units.__getitem__)
        predictions.append(
            Prediction(
                work.operation, work.direction, work.kernel, shape.name, name,
                round(units[binds], 2), binds, round(work.bytes / 1e6, 2),
                {unit: round(time, 2) for unit, time in units.items()},
            )
        )  # fmt: skip
    return predictions


def main(arguments: list[str] | None = None) -> int:
    """Write the table down, print it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write the predictions to this file")
    options = parser.parse_args(arguments)
    records = read_record(RECORD)
    predictions = [p for shape in SHAPES for name in CARDS for p in predict(shape, name, records)]
    if options.json:
        # An entry a line: a change of the kernels shows as a change of a line.
        rows = ",\n ".join(json.dumps(asdict(p), ensure_ascii=False) for p in predictions)
        written = f'{{"tokens": {TOKENS}, "predictions": [\n {rows}\n]}}\n'
        options.json.write_text(written, encoding="utf-8")
    print(f"{TOKENS:,} tokens a batch, bfloat16; predicted µs at least, by a model")
    print(f"{'shape':11} {'card':7} {'kernel':36} {'MB':>8} {'µs':>9}  binds (then)")
    for p in predictions:
        second = max(p.busy.keys() - {p.binds}, key=p.busy.__getitem__)
        then = f"{p.binds} ({second}, {p.busy[second] / p.microseconds:.0%})"
        print(
            f"{p.shape:11} {p.card:7} {p.kernel:36} {p.megabytes:8.1f} "
            f"{p.microseconds:9.1f}  {then}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(until_the_reader_leaves(main))
