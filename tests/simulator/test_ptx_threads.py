"""The translation of PTX: exchange between threads, wrong accesses, unsupported instructions."""

import pytest
import torch

from tests.simulator.instruction import run_kernel
from tests.simulator.ptx import Module, UnsupportedError

# Reverses each warp and XORs the next lane's value, reverses the block through shared memory, adds lane 31's.
EXCHANGE = """.visible .entry k(.param .u64 p0) {
  .reg .b64 %rd<4>; .reg .b32 %r<9>; .reg .pred %p<2>; .shared .align 4 .b8 s[512];
  ld.param.u64 %rd1, [p0]; mov.u32 %r1, %tid.x; mul.wide.u32 %rd2, %r1, 4; add.s64 %rd1, %rd1, %rd2;
  ld.global.b32 %r2, [%rd1];
  shfl.sync.bfly.b32 %r3, %r2, 31, 31, -1;
  shfl.sync.idx.b32 %r4|%p1, %r3, 0, 31, -1;
  shfl.sync.down.b32 %r7, %r2, 1, 31, -1;
  mov.u32 %r5, s; shl.b32 %r6, %r1, 2; add.s32 %r5, %r5, %r6; xor.b32 %r3, %r3, %r7;
  st.shared.b32 [%r5], %r3;
  bar.sync 0;
  xor.b32 %r6, %r6, 508; mov.u32 %r5, s; add.s32 %r5, %r5, %r6;
  ld.shared.b32 %r3, [%r5];
  add.s32 %r3, %r3, %r4; st.global.b32 [%rd1], %r3; ret; }"""


def test_shuffles_shared_memory_and_barriers(tmp_path):
    x = torch.randint(0, 2**20, (128,), dtype=torch.int32)
    y = x.clone()
    run_kernel(EXCHANGE, tmp_path, 128, y)
    warps = x.view(4, 32)
    reversed_warps = warps.flip(1)
    next_lane = torch.cat([warps[:, 1:], warps[:, 31:]], 1)
    shared = (reversed_warps ^ next_lane).reshape(-1).flip(0)
    assert torch.equal(y, shared + reversed_warps[:, :1].expand(4, 32).reshape(-1))


def test_reductions_of_warps(tmp_path):
    text = """.visible .entry k(.param .u64 p0) { .reg .b64 %rd<4>; .reg .b32 %r<9>;
      ld.param.u64 %rd1, [p0]; mov.u32 %r1, %tid.x; mul.wide.u32 %rd2, %r1, 4; add.s64 %rd1, %rd1, %rd2;
      ld.global.b32 %r2, [%rd1]; redux.sync.add.s32 %r3, %r2, -1; st.global.b32 [%rd1], %r3; ret; }"""
    x = torch.randint(-1000, 1000, (64,), dtype=torch.int32)
    y = x.clone()
    run_kernel(text, tmp_path, 64, y)
    assert torch.equal(y, x.view(2, 32).sum(1, dtype=torch.int32).repeat_interleave(32))


LOAD = """.visible .entry k(.param .u64 p0) {{ .reg .b64 %rd<3>; .reg .b32 %r<3>;
  ld.param.u64 %rd1, [p0]; ld.global.b32 %r1, [%rd1+{offset}]; ret; }}"""


@pytest.mark.parametrize("offset", [512, -4, 2])
def test_a_wrong_access_is_an_error(offset, tmp_path):
    x = torch.zeros(128, dtype=torch.int32)
    run_kernel(LOAD.format(offset=508), tmp_path, 1, x)
    with pytest.raises(RuntimeError, match=r"4 bytes read at 0x\w+, outside of its ranges"):
        run_kernel(LOAD.format(offset=offset), tmp_path, 1, x)


@pytest.mark.parametrize(
    "instruction", ["vadd4.u32 %r1, %r2, %r1", "cvt.rz.f16.f32 %r1, %r2", "add.s32 %r1, %x, 1"]
)
def test_what_isnt_covered_is_an_error_that_names_it(instruction):
    text = f".visible .entry k(.param .u64 p0) {{ .reg .b32 %r<3>; {instruction}; ret; }}"
    with pytest.raises(UnsupportedError, match=instruction.split()[0]):
        Module(text)
