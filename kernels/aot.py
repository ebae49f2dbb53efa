"""Compile every kernel for GPUs that are not here, report what came out, hold it to its record.

    python -m kernels.aot                                   print the table
    python -m kernels.aot --json benchmarks/results/kernels_aot.json    write the record too
    python -m kernels.aot --check benchmarks/results/kernels_aot.json   fail where it got worse

Triton brings the compilers for NVIDIA and AMD with it, so no GPU and no driver is needed. A kernel
fails the check if it asks for more shared memory than there is, touches local memory (spilled
registers) inside a loop, does more matrix work than the mathematics asks, does it on Hopper or
Blackwell without wgmma or tcgen05, waits after every wgmma, or issues over 5 % more instructions
an element than the record says. What is known and let pass is named in KNOWN, with its figure.
What only a GPU shows, races and real speed, is not known from this.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kernels.aot_attention_cases import attention_cases
from kernels.aot_cases import Case, cases
from kernels.gpus import ARCHITECTURES, SHARED_BYTES, Architecture
from kernels.machine_code import Counts, Instruction, count, loops, read_amdgcn, read_cubin

GROWTH = 1.05
ALL = ",".join(ARCHITECTURES)
KNOWN = {
    # Without any: 128 × 32, of which shared memory asks 11 % more, or one stage, no loads ahead.
    "attention forward, head_dim 128, dropout | sm80": {"local_in_loops": 1},
    # 32 × 32 on 16 warps has 57.
    "attention dq, float32 | sm90": {"local_in_loops": 3},
    "attention dq, float32 | sm100": {"local_in_loops": 2},
}
"""Faults that are let pass, by kernel and target, with their figure: more than that fails."""


@dataclass
class Report:
    """What a kernel became on one architecture."""

    kernel: str
    architecture: str
    warps: int
    registers: int
    local_bytes: int
    shared_bytes: int
    programs_per_multiprocessor: int
    instructions_per_element: float
    matrix_work: float
    """Matrix operations done over those needed; 0 where there are none."""
    asynchronous: int
    """wgmma or tcgen05 instructions; those, and the waits, in the whole kernel."""
    waits: int
    special: int
    barriers: int
    atomics: int
    widest_load_bits: int
    local_in_loops: int
    limit: str
    """The unit that is busy longest, and by how much of the time the next one is."""


def every_case(architecture: str) -> list[Case]:
    """List every kernel in the configurations that ship for this architecture."""
    return cases(architecture) + attention_cases(architecture)


def compile_case(case: Case, architecture: str) -> Any:
    """Compile one kernel with the types and constants that its launcher would give."""
    named = {n: kind for names, kind in case.types.items() for n in names.split()}
    constants = {k: v for k, v in case.constants.items() if k not in case.options}
    signature, attributes = {}, {}
    for index, name in enumerate(case.kernel.arg_names):
        kind, _, divisor = ("constexpr" if name in constants else named[name]).partition(":")
        signature[name] = kind
        # PyTorch's tensors begin at multiples of 16 bytes, and the launcher tells Triton so.
        if kind.startswith("*") or divisor:
            attributes[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(case.kernel, signature, constants, attributes)
    if architecture.startswith("sm"):
        target = GPUTarget("cuda", int(architecture[2:]), 32)
    else:
        target = GPUTarget("hip", architecture, 64)
    options = {k: v for k, v in case.constants.items() if k in case.options}
    return triton.compile(source, target=target, options=options)


def report(case: Case, architecture: str) -> Report:
    """Compile one kernel and read what came out."""
    compiled = compile_case(case, architecture)
    amd = architecture.startswith("gfx")
    binary = read_amdgcn(compiled.asm["amdgcn"]) if amd else read_cubin(compiled.asm["cubin"])
    machine, warps = ARCHITECTURES[architecture], case.constants["num_warps"]
    whole = count(binary.instructions, warps, machine.lanes)
    bodies = loops(binary.instructions)
    part = whole
    if case.per == "loop":
        part = max(
            (count(body, warps, machine.lanes) for body in bodies),
            key=lambda c: (c.matrix, c.instructions),
        )
    flops = case.matrix_flops_per_element * case.elements
    return Report(
        kernel=case.name,
        architecture=architecture,
        warps=warps,
        registers=binary.registers,
        local_bytes=binary.local_bytes,
        shared_bytes=compiled.metadata.shared,
        programs_per_multiprocessor=_residents(
            machine, binary.registers, warps, compiled.metadata.shared
        ),
        instructions_per_element=round(
            part.instructions * warps * machine.lanes / case.elements, 2
        ),
        matrix_work=round(part.matrix_flops / flops, 3) if flops else 0.0,
        asynchronous=whole.asynchronous,
        waits=whole.waits,
        special=part.special,
        barriers=part.barriers,
        atomics=whole.atomics,
        widest_load_bits=whole.widest_load,
        local_in_loops=sum(_local(body) for body in bodies),
        limit=_limit(machine, part, case),
    )


def _local(instructions: list[Instruction]) -> int:
    return count(instructions, 1).local


def _residents(machine: Architecture, registers: int, warps: int, shared: int) -> int:
    """Count the programs that fit on a multiprocessor together."""
    by_registers = machine.registers // (-(-max(registers, 1) // 8) * 8 * machine.lanes * warps)
    by_shared = machine.shared // (shared + 1024) if shared else 32
    return min(by_registers, machine.warps // warps, by_shared, 32)


def _limit(machine: Architecture, part: Counts, case: Case) -> str:
    """Name the unit that is busy for most cycles, were all others free; then the second."""
    warps = case.constants["num_warps"]
    cycles = {
        "matrix": part.matrix_flops * case.matrix_cost / machine.matrix_flops,
        "issue": part.instructions * warps / machine.issue,
        "exponential": part.special * warps * machine.lanes / machine.special,
        "shared": part.shared_bytes / SHARED_BYTES,
        "memory": case.bytes_per_element * case.elements / machine.memory_bytes,
    }
    first, second = sorted(cycles, key=cycles.__getitem__, reverse=True)[:2]
    return f"{first} (then {second}, {cycles[second] / cycles[first]:.0%})"


def faults(found: Report, record: dict[str, Any] | None) -> list[str]:
    """Say what the gate holds against a kernel."""
    machine, says = ARCHITECTURES[found.architecture], []
    if found.shared_bytes > machine.shared_limit:
        says.append(f"shared memory {found.shared_bytes}, there is {machine.shared_limit}")
    known = KNOWN.get(f"{found.kernel} | {found.architecture}", {})
    for attribute, least, what in (
        ("local_in_loops", 0, "accesses to local memory inside loops"),
        ("matrix_work", 1.0, "times the matrix work that is needed"),
    ):
        value, allowed = getattr(found, attribute), known.get(attribute, least)
        beside = f", {allowed} are known" if attribute in known else ""
        if value > 1.01 * allowed:
            says.append(f"{value} {what}{beside}")
        elif beside and value < 0.99 * allowed:
            says.append(f"{value} {what}{beside}: lower that in KNOWN")
    if found.architecture in ("sm90", "sm100") and found.matrix_work and not found.asynchronous:
        says.append("matrix work without wgmma or tcgen05")
    if found.waits and found.waits >= found.asynchronous:
        says.append("a wait after every wgmma: registers did not suffice to keep them going")
    if found.atomics:
        says.append(f"{found.atomics} atomic operations: the result would depend on their order")
    if record is None:
        says.append("not in the record: write it anew with --json")
    elif found.instructions_per_element > GROWTH * record["instructions_per_element"]:
        says.append(
            f"{found.instructions_per_element} instructions an element, "
            f"the record says {record['instructions_per_element']}"
        )
    return says


HEADER = (
    f"{'kernel':49} {'target':6} {'warps':>5} {'regs':>4} {'local':>5} {'shared':>6} "
    f"{'fit':>3} {'ins/elt':>7}  limit"
)


def line(r: Report) -> str:
    """Format one row of the table."""
    return (
        f"{r.kernel:49} {r.architecture:6} {r.warps:5} {r.registers:4} {r.local_bytes:5} "
        f"{r.shared_bytes:6} {r.programs_per_multiprocessor:3} "
        f"{r.instructions_per_element:7.2f}  {r.limit}"
    )


def main(arguments: list[str] | None = None) -> int:
    """Print the table; write or hold against a record; exit code 1 where a kernel fails."""
    options, jobs = _parse(arguments)
    reports, failed = [], 0
    print(HEADER)
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # the compilers let go of Python's lock
        for found in pool.map(lambda job: report(*job), jobs):
            reports.append(found)
            print(line(found), flush=True)
            if options.check:
                key = f"{found.kernel} | {found.architecture}"
                for fault in faults(found, options.record.get(key)):
                    print(f"    FAILS: {fault}", flush=True)
                    failed += 1
    if options.json:
        kernels = {f"{r.kernel} | {r.architecture}": asdict(r) for r in reports}
        written = {"triton": triton.__version__, "kernels": options.others | kernels}
        options.json.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
    return 1 if failed else 0


def _parse(arguments: list[str] | None) -> tuple[argparse.Namespace, list[tuple[Case, str]]]:
    """Read the command line and the records that it names; refuse before anything is compiled."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--json", type=Path, help="write the record to this file, or a part of it anew"
    )
    parser.add_argument("--check", type=Path, help="hold the kernels against this record")
    parser.add_argument("--only", default="", help="kernels whose name contains this")
    parser.add_argument("--targets", default=ALL, help=f"comma-separated (default: {ALL})")
    options = parser.parse_args(arguments)
    if os.environ.get("TRITON_INTERPRET", "0") == "1":
        parser.error(
            "TRITON_INTERPRET: expected it unset, since interpreted kernels don't compile"
        )
    targets = options.targets.split(",")
    if unknown := [target for target in targets if target not in ARCHITECTURES]:
        parser.error(f"--targets: expected some of {ALL}, got {','.join(unknown)!r}")
    jobs = [
        (case, architecture)
        for architecture in targets
        for case in every_case(architecture)
        if options.only in case.name
    ]
    if not jobs:
        parser.error(f"--only: expected a part of a kernel's name, got {options.only!r}")
    is_part = options.json and options.json.exists() and (options.only or options.targets != ALL)
    try:
        options.record = read_record(options.check) if options.check else {}
        options.others = read_record(options.json) if is_part else {}
    except ValueError as error:
        parser.error(str(error))
    if options.json and not options.json.parent.is_dir():
        parser.error(f"--json: expected a file in a folder that is there, got {options.json}")
    return options, jobs


def read_record(path: Path) -> dict[str, Any]:
    """Read what the kernels became, by kernel and target.

    Raises:
        ValueError: the file isn't there, or isn't a record.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))["kernels"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{path}: expected a record that --json wrote, got {type(error).__name__}"
        ) from error


def until_the_reader_leaves(main: Callable[[], int]) -> int:
    """Run a command; end it without a traceback if whoever reads its output has gone, as `head`.

    Returns: the exit code, which is 141 then, as a shell says for a closed pipe.
    """
    try:
        code = main()
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # Python would complain at exit, where it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


if __name__ == "__main__":
    sys.exit(until_the_reader_leaves(main))
