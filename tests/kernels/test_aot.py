"""The reader of machine code on code written by hand, the gate on made-up reports, a compile."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

from kernels.aot import KNOWN, Report, every_case, faults, main
from kernels.gpus import ARCHITECTURES
from kernels.machine_code import Instruction, count, loops, read_amdgcn, tcgen05_shape

ROOT = Path(__file__).resolve().parents[2]
RECORD = ROOT / "benchmarks" / "results" / "kernels_aot.json"


def code(*lines):
    """Instructions 16 bytes apart, from text; `BRA n` goes to the n-th."""
    made = []
    for number, text in enumerate(lines):
        opcode = text.split()[0]
        target = 16 * int(text.split()[1]) if opcode == "BRA" else None
        made.append(Instruction(16 * number, opcode, text, target, opcode == "EXIT"))
    return made


def test_innermost_loops_are_found_and_waiting_paths_are_not():
    nested = code("MOV", "FADD", "FMUL", "BRA 2", "BRA 1", "EXIT", "SYNCS", "BRA 4")
    assert [[i.opcode for i in body] for body in loops(nested)] == [["FMUL", "BRA"]]
    assert loops(code("FADD", "EXIT")) == []


def test_instructions_are_counted_by_unit():
    counts = count(
        code(
            "HGMMA.64x128x16.F32.BF16", "HMMA.16816.F32.BF16", "MUFU.EX2", "LDL.64", "STL",
            "LDSM.16.M88.4", "STS.128", "LDG.E.128", "LDG.E.64", "BAR.SYNC",
            "SHFL.BFLY", "RED.E.ADD", "FADD", "UTCHMMA.128x64x16", "WARPGROUP.DEPBAR.LE",
            "DMMA.16x8x16",
        ),
        warps=8,
    )  # fmt: skip
    by_warp, by_warpgroup, by_program = 2 * 16 * 8 * 16, 2 * 64 * 128 * 16, 2 * 128 * 64 * 16
    assert counts.matrix_flops == 2 * by_warp * 8 + by_warpgroup * 2 + by_program
    assert (counts.matrix, counts.asynchronous, counts.waits) == (4, 2, 1)
    assert (counts.special, counts.local) == (1, 2)
    assert counts.shared_bytes == (16 + 16) * 32 * 8
    assert (counts.widest_load, counts.instructions) == (128, 16)
    assert (counts.barriers, counts.shuffles, counts.atomics) == (1, 1, 1)


MMA = "UTCHMMA gdesc[UR6], gdesc[UR8], tmem[UR44], tmem[UR30], idesc[UR31], !UPT"


@pytest.mark.parametrize(
    ("before", "shape"),
    [
        (["UMOV UR31, 0x8200490"], ".128x128x16"),
        (["UMOV UR31, 0x4110490", "UMOV UR30, 0x8200490"], ".64x64x16"),
        (["UMOV UR31, 0x8200910"], ".128x128x8"),
        (["UMOV UR31, 0x8200490", "@UP0 UIADD3 UR31, UR5, 0x1, URZ"], ""),
        (["UMOV UR31, UR7"], ""),
        ([], ""),
    ],
)
def test_blackwells_shapes_are_read_from_the_descriptor(before, shape):
    """Which a constant must have come to, or the shape isn't known: `count` refuses that."""
    assert tcgen05_shape(MMA, code(*before)) == shape


def test_a_matrix_instruction_of_unknown_shape_is_refused():
    with pytest.raises(ValueError, match="^opcode: expected a matrix instruction with a shape"):
        count(code(MMA), warps=4)


def test_amd_assembly_is_read():
    binary = read_amdgcn(
        """
kernel:
	s_load_dwordx4 s[0:3], s[4:5]
.LBB0_1: ; a loop
	v_mfma_f32_32x32x8_bf16 a[0:15], v[0:1], v[2:3], a[0:15]
	ds_read_b128 v[0:3], v4
	v_exp_f32_e32 v0, v1
	global_load_dwordx4 v[0:3], v4
	s_cbranch_scc1 .LBB0_1
	s_endpgm
  .vgpr_count:     42
  .private_segment_fixed_size: 16
"""
    )
    (body,) = loops(binary.instructions)
    counts = count(body, warps=4, lanes=64)
    assert (counts.matrix_flops, counts.special) == (2 * 32 * 32 * 8 * 4, 1)
    assert (counts.shared_bytes, counts.widest_load) == (16 * 256, 128)
    assert (binary.registers, binary.local_bytes) == (42, 16)


GOOD = Report("k", "sm90", 4, 64, 0, 1024, 4, 10.0, 1.0, 8, 2, 0, 0, 0, 128, 0, "")


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({}, None),
        ({"instructions_per_element": 10.5}, None),
        ({"instructions_per_element": 10.6}, "10.6 instructions an element, the record says 10.0"),
        ({"shared_bytes": 232449}, "shared memory 232449, there is 232448"),
        ({"local_in_loops": 2}, "2 accesses to local memory inside loops"),
        ({"matrix_work": 1.5}, "1.5 times the matrix work that is needed"),
        ({"asynchronous": 0, "waits": 0}, "matrix work without wgmma or tcgen05"),
        ({"waits": 0, "architecture": "sm100"}, None),
        (
            {"asynchronous": 0, "waits": 0, "architecture": "sm100"},
            "matrix work without wgmma or tcgen05",
        ),
        ({"asynchronous": 0, "waits": 0, "architecture": "sm80"}, None),
        ({"waits": 7}, None),
        ({"waits": 8}, "a wait after every wgmma: registers did not suffice to keep them going"),
        ({"atomics": 1}, "1 atomic operations: the result would depend on their order"),
    ],
)
def test_the_gate_says_what_is_wrong(change, fault):
    found = faults(dataclasses.replace(GOOD, **change), {"instructions_per_element": 10.0})
    assert found == ([] if fault is None else [fault])


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"local_in_loops": 8, "matrix_work": 1.5}, None),
        ({"local_in_loops": 9}, "9 accesses to local memory inside loops, 8 are known"),
        ({"local_in_loops": 0}, "0 accesses to local memory inside loops, 8 are known: lower"),
        ({"matrix_work": 2.0}, "2.0 times the matrix work that is needed, 1.5 are known"),
        ({"architecture": "sm80"}, "8 accesses to local memory inside loops"),
    ],
)
def test_known_faults_pass_with_their_figure_and_no_more(monkeypatch, change, fault):
    monkeypatch.setitem(KNOWN, "k | sm90", {"local_in_loops": 8, "matrix_work": 1.5})
    known = dataclasses.replace(GOOD, local_in_loops=8, matrix_work=1.5)
    found = faults(dataclasses.replace(known, **change), {"instructions_per_element": 10.0})
    assert found == [] if fault is None else found[0].startswith(fault)


def test_known_faults_are_of_recorded_kernels():
    assert set(KNOWN) <= set(json.loads(RECORD.read_text())["kernels"])


def test_the_gate_misses_a_kernel_without_a_record():
    assert faults(GOOD, None) == ["not in the record: write it anew with --json"]


def test_the_record_has_every_kernel_on_every_target():
    recorded = set(json.loads(RECORD.read_text())["kernels"])
    assert recorded == {f"{c.name} | {a}" for a in ARCHITECTURES for c in every_case(a)}


def test_the_command_prints_holds_and_writes(monkeypatch, capsys, tmp_path):
    """With compilation replaced by the record, or by a kernel that grew by 6 %."""
    record = json.loads(RECORD.read_text())["kernels"]
    grown = 1.0

    def recorded(case, architecture):
        found = Report(**record[f"{case.name} | {architecture}"])
        found.instructions_per_element *= grown
        return found

    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr("kernels.aot.report", recorded)
    written = tmp_path / "record.json"
    assert main(["--check", str(RECORD), "--json", str(written)]) == 0
    assert json.loads(written.read_text())["kernels"] == record
    assert len(capsys.readouterr().out.splitlines()) == 1 + len(record)
    # A part of it is written into the record that is there: the rest stays.
    part = {k: v for k, v in record.items() if k != "column_sums | sm90"}
    written.write_text(json.dumps({"kernels": part}))
    assert main(["--targets", "sm90", "--only", "column_sums", "--json", str(written)]) == 0
    assert json.loads(written.read_text())["kernels"] == record
    capsys.readouterr()
    grown = 1.06
    assert main(["--check", str(RECORD), "--targets", "sm90", "--only", "column_sums"]) == 1
    assert "FAILS: 13.5" in capsys.readouterr().out


def compiled(*arguments):
    """Run the command in a process of its own, where kernels aren't interpreted."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, "-m", "kernels.aot", "--check", str(RECORD), *arguments],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1200,
    )  # fmt: skip


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_kernel_compiles_as_recorded(architecture):
    result = compiled("--targets", architecture)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count(f" {architecture} ") == len(every_case(architecture))


@pytest.mark.parametrize(
    "command",
    [["kernels.aot", "--targets", "gfx942", "--only", "column_sums"], ["benchmarks.roofline"]],
    ids=lambda c: c[0],
)
def test_a_reader_may_leave(command):
    """Into a pipe that nobody reads any more, as after `| head`."""
    reader, writer = os.pipe()
    os.close(reader)
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    result = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=ROOT, env=environment, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=120,
    )  # fmt: skip
    os.close(writer)
    assert (result.returncode, result.stderr) == (141, "")


@pytest.mark.errors
def test_errors_of_the_command(monkeypatch, capsys):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(SystemExit, match="2"):
        main([])
    assert "TRITON_INTERPRET: expected it unset" in capsys.readouterr().err


@pytest.mark.errors
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--targets", "sm90,sm99,x"],
            "--targets: expected some of sm80,sm90,sm100,gfx942, got 'sm99,x'",
        ),
        (["--only", "gelu,"], "--only: expected a part of a kernel's name, got 'gelu,'"),
        (
            ["--check", "no.json"],
            "no.json: expected a record that --json wrote, got FileNotFoundError",
        ),
        (
            ["--check", "pyproject.toml"],
            "pyproject.toml: expected a record that --json wrote, got JSONDecodeError",
        ),
        (
            ["--only", "gelu", "--json", "README.md"],
            "README.md: expected a record that --json wrote, got JSONDecodeError",
        ),
        (
            ["--json", "nowhere/x.json"],
            "--json: expected a file in a folder that is there, got nowhere/x.json",
        ),
    ],
)
def test_mistakes_are_found_before_anything_is_compiled(monkeypatch, capsys, arguments, message):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert capsys.readouterr().err.splitlines()[-1].endswith(message)


def test_cards_with_less_shared_memory_run_the_kernels_of_an_a100():
    """99 KB, where an A100 has 163: all attention kernels fit but one, which has a smaller tile.

    (That one is in the record with the tile that doesn't fit.)
    """
    record = json.loads(RECORD.read_text())["kernels"]
    a100 = {c.name: c for c in every_case("sm80")}
    for target in ("sm86", "sm89", "sm120"):
        cases = {c.name: c for c in every_case(target)}
        others = {n for n, c in cases.items() if c.constants != a100[n].constants}
        assert others == {name for name in cases if name.startswith("attention short backward")}
        for name in cases.keys() - others:
            assert record[f"{name} | sm80"]["shared_bytes"] <= 99 * 1024
