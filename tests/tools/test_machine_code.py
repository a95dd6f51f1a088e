"""The kernels' machine code against its budget, and the counting itself.

Kernels compile in processes of their own: the other tests may have chosen Triton's interpreter.
"""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
from cases import ROOT, environment

from benchmarks import machine_code
from benchmarks.machine_code import full_block, narrow_accesses, parse_amdgcn, parse_sass

# The counts when they were last committed, one file per Triton version: other versions generate other code.
COMMITTED = ROOT / "benchmarks" / "results" / "machine-code"


def committed(version: str) -> list[machine_code.Row]:
    return [machine_code.Row(**row) for row in json.loads((COMMITTED / f"triton-{version}.json").read_text())]


def count(folder: Path, *targets: str) -> tuple["subprocess.Popen[str]", Path]:
    file = folder / f"{targets[0]}.json"
    command = [sys.executable, "-m", "benchmarks.machine_code", "--json", str(file), "--target", *targets]
    command += ["--dtype", "bfloat16", "float16", "float32"]
    output = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env=environment(), **output), file


@pytest.fixture
def version() -> str:
    """Triton's, as committed files are named."""
    triton = pytest.importorskip("triton", reason="needs Triton's compiler")
    return ".".join(triton.__version__.split(".")[:2])


def test_budgets(version, tmp_path):
    """Within its budget, or, beyond it (docs/kernels.md) or without, no more than what is committed."""
    rows = []
    # Two at a time: compiling takes one core each.
    for process, file in [count(tmp_path, "sm_80", "sm_90"), count(tmp_path, "sm_100", "gfx942")]:
        _, errors = process.communicate()
        assert process.returncode == 0, errors
        rows += [machine_code.Row(**row) for row in json.loads(file.read_text())]
    known = (COMMITTED / f"triton-{version}.json").exists()
    last = {identity(row): row.instructions_per_element for row in committed(version)} if known else {}
    wrong = []
    for row in rows:
        if row.spill_bytes or row.shared_bytes or row.barriers or row.narrow_accesses:
            wrong.append(f"a spill, shared memory, a barrier or a narrow access: {row}")
        allowed = max(machine_code.budget(row) or 0, last.get(identity(row), 0))
        compared = known and not machine_code.is_exempt(row)
        if compared and 0 < allowed < row.instructions_per_element:  # 0: the next test's
            wrong.append(f"more than {allowed} instructions per element: {row}")
    assert not wrong, "\n" + "\n".join(wrong)
    if not known:
        pytest.skip(f"instructions per element are not compared: none are committed for Triton {version}")


def identity(row: machine_code.Row) -> tuple[str, ...]:
    return row.kernel, row.activation, row.dtype, row.rng, row.target


def test_every_kernel_has_a_budget_or_committed_counts(version):
    kernels = {(kernel, activation.name, rng) for kernel, activation, rng in machine_code.cases()}
    assert kernels >= machine_code.BUDGETS.keys()
    path = COMMITTED / f"triton-{version}.json"
    if not path.exists():
        pytest.skip(f"none are committed for Triton {version}")
    counted = {(row.kernel, row.activation, row.rng) for row in committed(version)}
    missing = sorted(kernels - machine_code.BUDGETS.keys() - counted)
    assert not missing, f"count them: python -m benchmarks.machine_code --json {path.relative_to(ROOT)}"


def sass(*lines: str) -> str:
    """The lines as `cuobjdump -sass` prints them, 16 bytes apart, each with its encoding."""
    printed = []
    for place, line in enumerate(lines):
        printed.append(f"        /*{place * 16:04x}*/       {line} ;         /* 0x0000000000007919 */")
        printed.append(" " * 60 + "/* 0x000e2e0000002600 */")
    return "\n".join(["\tcode for sm_90a", "\t\tFunction : kernel", *printed, "\t\t.........."])


def test_what_stands_behind_the_end_is_not_counted():
    way = full_block(
        parse_sass(
            sass(
                "LDC R1, c[0x0][0x28]",
                "UIADD3 UR4, UR4, 0x1, URZ",
                "@!P0 LDG.E.128 R4, desc[UR4][R2.64]",  # issued whether or not its predicate holds
                "@P1 LDG.E.U8 R8, desc[UR4][R2.64]",
                "@!UPT UIADD3 UR4, UR4, 0x1, URZ",
                "STG.E [R2.64], R4",
                "EXIT",
                "BRA 0x70",
                "NOP",
                "NOP",
            )
        )
    )
    assert way == (7, [16, 1, 4])


def test_a_slow_path_is_not_counted():
    text = sass(
        "LDG.E R0, desc[UR4][R2.64]",
        "ISETP.NE.AND P0, PT, R0, RZ, PT",
        "@!P0 BRA 0x60",
        "MUFU.RCP R0, R0",
        "FMUL R0, R0, R0",
        "EXIT",
        "MOV R4, 0x90",  # the slow path, out of line and longer
        "MOV R5, RZ",
        "CALL.REL.NOINC 0xb0",
        "FADD R0, R0, R0",
        "BRA 0x40",
        "FADD R0, R0, R0",  # the callee
        "RET.REL.NODEC R4 0x0",
    )
    assert full_block(parse_sass(text)).instructions == 6


def test_an_early_exit_is_not_taken():
    text = sass(
        "ISETP.GE.AND P0, PT, R0, R1, PT", "@P0 EXIT", "BRA 0x40", "NOP", "STG.E.64 [R2.64], R4", "EXIT"
    )
    assert full_block(parse_sass(text)) == (5, [8])


def test_the_way_without_bounds_checks_is_taken():
    text = sass(
        "@P0 BRA 0x60",
        "@P1 LDG.E.128 R4, desc[UR4][R2.64]",
        "FADD R0, R0, R0",
        "FADD R0, R0, R0",
        "@P1 STG.E.128 desc[UR4][R2.64], R4",
        "EXIT",
        "LDG.E.128 R4, desc[UR4][R2.64]",
        "STG.E.128 desc[UR4][R2.64], R4",
        "EXIT",
    )
    assert full_block(parse_sass(text)) == (4, [16, 16])


def test_where_nothing_decides_the_longer_way_is_taken():
    text = sass("@P0 BRA 0x30", "FADD R0, R0, R0", "FADD R0, R0, R0", "EXIT")
    assert full_block(parse_sass(text)).instructions == 4


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (("FADD R0, R0, R0", "@P0 BRA 0x0", "EXIT"), "a loop"),
        (("FADD R0, R0, R0", "BRA.U UP0, 0x0", "EXIT"), "a loop"),
        (("CALL.REL.NOINC 0x20", "EXIT", "RET.REL.NODEC R4 0x0"), "a call on every way"),
        (("BRX R2 -0x10", "EXIT"), "an indirect branch"),
    ],
)
def test_what_cannot_be_counted_is_refused(lines, message):
    with pytest.raises(ValueError, match=message):
        full_block(parse_sass(sass(*lines)))


def test_parted_warps_are_not_a_full_blocks():
    text = sass("BRA.DIV UR4, 0x30", "FADD R0, R0, R0", "EXIT", "BRA 0x10")
    assert full_block(parse_sass(text)).instructions == 3


def test_amd_assembly():
    text = """
	.text
kernel:                                 ; @kernel
.Lfunc_begin0:
; %bb.0:
	.loc	1 155 0 prologue_end            ; dropout.py:155:0
	s_load_dwordx2 s[2:3], s[0:1], 0x0
	s_branch .LBB0_1
	s_nop 0
.LBB0_1:
	s_and_saveexec_b64 s[8:9], vcc
	s_cbranch_execz .LBB0_3
; %bb.2:
	global_load_dwordx4 v[6:9], v[4:5], off
	buffer_load_ushort v1, v0, s[0:3], 0 offen
.LBB0_3:
	s_waitcnt vmcnt(0)
	buffer_store_dword v1, v0, s[0:3], 0 offen
	s_endpgm
	s_nop 0
.Lfunc_end0:
"""
    assert full_block(parse_amdgcn(text)) == (9, [16, 2, 4])


def test_narrow_accesses():
    # 64 bytes of tensors and one word of bits, of which no access is narrow, some are and all are
    assert narrow_accesses([16] * 4 + [4], 64, 1) == 0
    assert narrow_accesses([32] * 2 + [4], 64, 1) == 0
    assert narrow_accesses([16] * 3 + [8] * 2 + [4], 64, 1) == 2
    assert narrow_accesses([4] * 17, 64, 1) == 16
    # bits in bytes
    assert narrow_accesses([16] * 4 + [1] * 4, 64, 1) == 4


def test_json_has_these_keys():
    assert [field.name for field in dataclasses.fields(machine_code.Row)] == [
        "kernel",
        "activation",
        "dtype",
        "rng",
        "target",
        "instructions_per_element",
        "shared_bytes",
        "barriers",
        "spill_bytes",
        "registers",
        "narrow_accesses",
        "bytes_per_element",
        "saved_bytes_per_element",
        "triton",
    ]


def test_refuses_the_interpreter(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(SystemExit, match=r"\ATRITON_INTERPRET is set: [^\n]+\Z"):
        machine_code.main([])


def test_refuses_without_triton(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(SystemExit, match=r"\ATriton is not installed[^\n]+\Z"):
        machine_code.main([])
