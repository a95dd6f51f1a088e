"""The counting itself: of made-up machine code, the way of a full block, its pipes and its predicted time."""

import pytest

from benchmarks.machine_code import amdgcn, roofline, sass
from benchmarks.machine_code.program import Instruction, Program, accesses, full_block, narrow_accesses


def counted(program: Program) -> tuple[int, list[int]]:
    way = full_block(program)
    return len(way), accesses(way)


def text(*lines: str) -> str:
    """The lines as `cuobjdump -sass` prints them, 16 bytes apart, each with its encoding."""
    printed = []
    for place, line in enumerate(lines):
        printed.append(f"        /*{place * 16:04x}*/       {line} ;         /* 0x0000000000007919 */")
        printed.append(" " * 60 + "/* 0x000e2e0000002600 */")
    return "\n".join(["\tcode for sm_90a", "\t\tFunction : kernel", *printed, "\t\t.........."])


def test_what_stands_behind_the_end_is_not_counted():
    code = text(
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
    assert counted(sass.parse(code)) == (7, [16, 1, 4])


def test_a_slow_path_is_not_counted():
    code = text(
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
    assert counted(sass.parse(code))[0] == 6


def test_an_early_exit_is_not_taken():
    code = text(
        "ISETP.GE.AND P0, PT, R0, R1, PT", "@P0 EXIT", "BRA 0x40", "NOP", "STG.E.64 [R2.64], R4", "EXIT"
    )
    assert counted(sass.parse(code)) == (5, [8])


def test_the_way_without_bounds_checks_is_taken():
    code = text(
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
    assert counted(sass.parse(code)) == (4, [16, 16])


def test_where_nothing_decides_the_longer_way_is_taken():
    code = text("@P0 BRA 0x30", "FADD R0, R0, R0", "FADD R0, R0, R0", "EXIT")
    assert counted(sass.parse(code))[0] == 4


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
        full_block(sass.parse(text(*lines)))


def test_parted_warps_are_not_a_full_blocks():
    code = text("BRA.DIV UR4, 0x30", "FADD R0, R0, R0", "EXIT", "BRA 0x10")
    assert counted(sass.parse(code))[0] == 3


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
    assert counted(amdgcn.parse(text)) == (9, [16, 2, 4])


def test_narrow_accesses():
    # 64 bytes of tensors and one word of bits, of which no access is narrow, some are and all are
    assert narrow_accesses([16] * 4 + [4], 64, 1) == 0
    assert narrow_accesses([32] * 2 + [4], 64, 1) == 0
    assert narrow_accesses([16] * 3 + [8] * 2 + [4], 64, 1) == 2
    assert narrow_accesses([4] * 17, 64, 1) == 16
    # bits in bytes
    assert narrow_accesses([16] * 4 + [1] * 4, 64, 1) == 4


def test_instructions_take_slots_of_their_pipes():
    names = (
        "IMAD.WIDE.U32 IMAD.U32 LOP3.LUT F2FP.BF16.F32.PACK_AB FFMA FFMA2 HMUL2.BF16_V2 MUFU.EX2 F2F.BF16.F32"
    )
    names += " LDG.E.128 STG.E UIADD3 BRA S2R"
    found = sass.pipes(Instruction(name) for name in names.split())
    assert found == sass.Pipes(alu=2, fma=4, fma_heavy=3, xu=2, memory=2, other=3)


@pytest.mark.parametrize(
    ("slots", "instructions", "bound_by", "picoseconds"),
    [
        # bytes / (0.92 * 3.35 TB/s)
        ({}, 1, "memory", 4 / (0.92 * 3.35)),
        # 132 multiprocessors at 1.755 GHz: 0.23166 per picosecond
        ({}, 40, "issue", 40 / (0.85 * 128 * 0.23166)),
        ({"alu": 30}, 40, "ALU", 30 / (64 * 0.23166)),
        ({"fma": 40, "fma_heavy": 25}, 40, "FMA", 65 / (128 * 0.23166)),
        ({"fma_heavy": 30}, 40, "FMA-heavy", 30 / (64 * 0.23166)),
        ({"xu": 8}, 40, "XU", 8 / (16 * 0.23166)),
    ],
)
def test_the_busiest_resource_takes_the_time(slots, instructions, bound_by, picoseconds):
    h100 = next(gpu for gpu in roofline.GPUS if gpu.name == "H100")
    pipes = sass.Pipes(**{name: slots.get(name, 0) for name in sass.Pipes._fields})
    found = roofline.predict(h100, instructions, pipes, 4)
    assert found.bound_by == bound_by
    assert found.picoseconds == pytest.approx(picoseconds, abs=1e-4)
    assert found.over_memory == pytest.approx(picoseconds / (4 / (0.92 * 3.35)), abs=1e-3)
