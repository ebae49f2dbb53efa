"""Read what a compiler made of a kernel: NVIDIA's SASS and AMD's assembly, loops and counts.

Both become a list of `Instruction`s with increasing addresses, in which a loop is a branch to an
earlier address. `count` sorts a stretch of them by the unit of the GPU that they keep busy.
"""

import re
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import triton

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


class Instruction(NamedTuple):
    """One instruction; `target` is the address that a branch goes to."""

    address: int
    opcode: str
    text: str
    target: int | None = None
    ends: bool = False
    """Whether every thread that comes here leaves the kernel."""


class Binary(NamedTuple):
    """A kernel's instructions, and what it reserves for each thread."""

    instructions: list[Instruction]
    registers: int
    local_bytes: int
    """The stack: what was spilled from registers, and arrays that couldn't live in them."""


def read_cubin(cubin: bytes) -> Binary:
    """Disassemble the one kernel in a cubin."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(CUOBJDUMP), "-sass", "-res-usage", file.name]
        listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    instructions = []
    for address, text in re.findall(r"^\s+/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;", listing, re.M):
        plain = re.sub(r"^@!?U?P\w+\s+", "", text)  # the predicate
        opcode = plain.split()[0]
        place = re.search(r"(0x[0-9a-f]+)\s*$", plain)
        branch = int(place[1], 16) if opcode.startswith("BRA") and place else None
        ends = opcode == "EXIT" and plain == text
        if re.match(r"UTC\w*MMA", opcode):
            opcode += tcgen05_shape(plain, instructions)
        instructions.append(Instruction(int(address, 16), opcode, text, branch, ends))
    reserved = {name: int(value) for name, value in re.findall(r"(REG|STACK):(\d+)", listing)}
    return Binary(instructions, reserved["REG"], reserved["STACK"])


def tcgen05_shape(text: str, before: Sequence[Instruction]) -> str:
    """Say the shape of Blackwell's matrix instruction as other opcodes do: .128x64x16.

    The instruction names a register that holds its descriptor (PTX ISA, section "Instruction
    descriptor": the columns over 8 from bit 17, the rows over 16 from bit 24), and a constant is
    moved there before. A descriptor that came in another way has no shape here, which `count`
    refuses.
    """
    register = "".join(re.findall(r"idesc\[(UR\d+)\]", text))
    for instruction in reversed(before):
        written = re.match(rf"(?:@!?U?P\w+\s+)?([\w.]+) {register}, (\S+)", instruction.text)
        if written and written[1] == "UMOV" and written[2].startswith("0x"):
            descriptor = int(written[2], 16)
            rows, columns = (descriptor >> 24 & 31) * 16, (descriptor >> 17 & 63) * 8
            depth = 8 if descriptor >> 7 & 7 == 2 else 16  # tf32, or 16-bit floats
            return f".{rows}x{columns}x{depth}"
        if written:
            break
    return ""


def read_amdgcn(assembly: str) -> Binary:
    """Read AMD's assembly; the lines' numbers serve as addresses."""
    lines = assembly.splitlines()
    labels = {m[1]: i for i, line in enumerate(lines) if (m := re.match(r"(\.?L?BB\w+):", line))}
    instructions = []
    for number, line in enumerate(lines):
        text = line.split(";")[0].strip()
        if not re.match(r"^\s+[a-z]\w+", line) or text.startswith("."):
            continue
        opcode, label = text.split()[0], text.split()[-1]
        branch = labels.get(label) if opcode.startswith(("s_cbranch", "s_branch")) else None
        instructions.append(Instruction(number, opcode, text, branch, opcode == "s_endpgm"))

    def reserved(key: str) -> int:
        return max(map(int, re.findall(rf"\.{key}:\s+(\d+)", assembly)), default=0)

    return Binary(instructions, reserved("vgpr_count"), reserved("private_segment_fixed_size"))


def loops(instructions: Sequence[Instruction]) -> list[list[Instruction]]:
    """Find the innermost loops, in order of address.

    A branch back over an unconditional exit is a waiting path that was laid after the kernel's
    end, not a loop.
    """
    exits = [i.address for i in instructions if i.ends]
    spans = sorted(
        {
            (i.target, i.address)
            for i in instructions
            if i.target is not None
            and i.target < i.address
            and not any(i.target <= e < i.address for e in exits)
        }
    )
    inner = [
        (begin, end)
        for begin, end in spans
        if not any((b, e) != (begin, end) and begin <= b and e <= end for b, e in spans)
    ]
    return [[i for i in instructions if b <= i.address <= e] for b, e in inner]


@dataclass
class Counts:
    """What a stretch of instructions does; all but the first three are counts of instructions."""

    matrix_flops: int = 0
    """Of the whole program."""
    shared_bytes: int = 0
    """Read and written by the whole program, without what wgmma and tcgen05 read themselves."""
    widest_load: int = 0
    """Bits that one thread loads from global memory at once."""
    instructions: int = 0
    matrix: int = 0
    asynchronous: int = 0
    """wgmma and tcgen05: what keeps Hopper's and Blackwell's tensor cores busy."""
    waits: int = 0
    """For wgmma to end."""
    special: int = 0
    """exp2, reciprocal and the like: the unit has a quarter of the others' width or less."""
    local: int = 0
    barriers: int = 0
    shuffles: int = 0
    atomics: int = 0


def _bits(opcode: str) -> int:
    """How wide one thread's access to memory is."""
    amd = re.search(r"(?:dword|_b)(x?\d+)?$", opcode)
    if opcode[0].islower() and amd:
        width = amd[1] or "x1"
        return 32 * int(width[1:]) if width[0] == "x" else int(width)
    if ".128" in opcode:
        return 128
    if ".64" in opcode:
        return 64
    if re.search(r"\.[US]16", opcode):
        return 16
    return 8 if re.search(r"\.[US]8", opcode) else 32


def _shape(pattern: str, text: str) -> tuple[int, int, int]:
    found = re.search(pattern, text)
    if found is None:
        raise ValueError(f"opcode: expected a matrix instruction with a shape, got {text}")
    rows, columns, depth = map(int, found.groups())
    return rows, columns, depth


def count(instructions: Sequence[Instruction], warps: int, lanes: int = 32) -> Counts:
    """Count a stretch of a program of so many warps of so many lanes."""
    counts = Counts(instructions=len(instructions))
    for instruction in instructions:
        _count_matrix(counts, instruction.opcode, warps)
        _count_rest(counts, instruction, warps * lanes)
    return counts


def _count_matrix(counts: Counts, opcode: str, warps: int) -> None:
    """Add a matrix instruction: mma.sync, wgmma (4 warps together), tcgen05 or MFMA."""
    base = opcode.split(".")[0]
    if base in ("HMMA", "DMMA"):
        m, n, k = _shape(r"\.(\d{1,2}?)x?(8)x?(\d+)", opcode)
        counts.matrix_flops += 2 * m * n * k * warps
    elif base == "HGMMA":
        m, n, k = _shape(r"(\d+)x(\d+)x(\d+)", opcode)
        counts.matrix_flops += 2 * m * n * k * warps // 4
        counts.asynchronous += 1
    elif re.match(r"UTC\w*MMA", base):
        m, n, k = _shape(r"(\d+)x(\d+)x(\d+)", opcode)
        counts.matrix_flops += 2 * m * n * k  # one thread issues it for the program
        counts.asynchronous += 1
    elif base.startswith("v_mfma"):
        m, n, k = _shape(r"(\d+)x(\d+)x(\d+)", base)
        counts.matrix_flops += 2 * m * n * k * warps
    else:
        return
    counts.matrix += 1


def _count_rest(counts: Counts, instruction: Instruction, threads: int) -> None:
    """Add any other instruction that has a narrow unit to itself."""
    opcode = instruction.opcode
    base = opcode.split(".")[0]
    if base == "MUFU" or re.match(r"v_(exp|log|rcp|rsq|sqrt)_", base):
        counts.special += 1
    elif base in ("LDL", "STL") or base.startswith("scratch_"):
        counts.local += 1
    elif base == "LDSM":
        matrices = re.search(r"88\.(\d)", opcode)
        counts.shared_bytes += 4 * (int(matrices[1]) if matrices else 1) * threads
    elif base in ("LDS", "STS", "STSM") or base.startswith(("ds_read", "ds_write")):
        counts.shared_bytes += _bits(opcode) // 8 * threads
    elif base in ("LDG", "LDGSTS") or base.startswith(("global_load", "buffer_load")):
        counts.widest_load = max(counts.widest_load, _bits(opcode))
    elif opcode.startswith("WARPGROUP.DEPBAR"):
        counts.waits += 1
    elif base in ("BAR", "s_barrier"):
        counts.barriers += 1
    elif base in ("SHFL", "ds_bpermute_b32", "ds_swizzle_b32") or "dpp" in instruction.text:
        counts.shuffles += 1
    elif base in ("RED", "REDG", "ATOM", "ATOMG") or "atomic" in base:
        counts.atomics += 1
