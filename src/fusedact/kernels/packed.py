"""Pairs of bfloat16 numbers in one 32-bit register, as inline PTX for NVIDIA's sm_80 to sm_90.

From Triton's own conversions, ptxas makes two instructions where it widens a register's upper half, and one
for each number that it rounds. Where PACKED is false they run, with the same results.
"""

import triton
import triton.language as tl


@triton.jit
def widened(numbers, ARITHMETIC: tl.constexpr, PACKED: tl.constexpr):
    """Convert to the arithmetic's type."""
    if PACKED and numbers.dtype == tl.bfloat16:
        wide = tl.inline_asm_elementwise(
            "shl.b32 $0, $2, 16; and.b32 $1, $2, 0xffff0000;",
            "=&r,=r,r",
            [numbers],
            dtype=tl.float32,
            is_pure=True,
            pack=2,
        )
    else:
        wide = numbers.to(ARITHMETIC)
    return wide


@triton.jit
def rounded(numbers, STORED: tl.constexpr, PACKED: tl.constexpr):
    """Round to STORED's numbers, and keep the type."""
    if PACKED and tl.bfloat16 == STORED:
        numbers = tl.inline_asm_elementwise(
            """{ .reg .b32 pair;
            cvt.rn.bf16x2.f32 pair, $3, $2;
            shl.b32 $0, pair, 16;
            and.b32 $1, pair, 0xffff0000; }""",
            "=r,=r,r,r",
            [numbers],
            dtype=tl.float32,
            is_pure=True,
            pack=2,
        )
    elif PACKED and tl.float16 == STORED:
        numbers = tl.inline_asm_elementwise(
            """{ .reg .b32 pair; .reg .b16 low, high;
            cvt.rn.f16x2.f32 pair, $3, $2;
            mov.b32 {low, high}, pair;
            cvt.f32.f16 $0, low;
            cvt.f32.f16 $1, high; }""",
            "=r,=r,r,r",
            [numbers],
            dtype=tl.float32,
            is_pure=True,
            pack=2,
        )
    else:
        numbers = numbers.to(STORED).to(numbers.dtype)
    return numbers
