"""The translation of PTX's float instructions, against PyTorch's arithmetic and exact fractions."""

import math
import operator
import random
import struct
from fractions import Fraction

import pytest
import torch

from tests.simulator.instruction import check, signed

R = random.Random(6)
WORD = "b32"
NAN = 0x7FFFFFFF
SPECIAL = [
    0, 0x80000000, 1, 0x80000001, 0x00800000, 0x3F800000, 0x7F7FFFFF, 0x7F800000, 0xFF800000, 0x7FC00000,
    0x7F800001, 0x33800000, 0x477FEFFF, 0x477FF000, 0x3F808000, 0x3F818000,
]  # fmt: skip
VALUES = (
    SPECIAL + [R.getrandbits(32) for _ in range(400)] + [0x38000000 + R.getrandbits(28) for _ in range(300)]
)
ONE = [(value,) for value in VALUES]
TWO = [(R.choice(VALUES), R.choice(VALUES)) for _ in range(800)]


def real(bits):
    return struct.unpack("<f", struct.pack("<I", bits))[0]


def bits_of(x):
    return struct.unpack("<I", struct.pack("<f", x))[0]


def by_torch(function, dtype=torch.float32):
    """Bits of a function of tensors; a NaN's are the GPU's."""
    integer = {torch.float32: torch.int32, torch.float16: torch.int16, torch.bfloat16: torch.int16}
    size = 32 if dtype is torch.float32 else 16

    def of(*words):
        values = [torch.tensor([signed(word, size)], dtype=integer[dtype]).view(dtype) for word in words]
        result = function(*values)
        if result.isnan().item():
            return NAN if result.dtype is torch.float32 else 0x7FFF
        return result.view(integer[result.dtype]).item()

    return of


def fused(a, b, c, rounded=round):
    """a * b + c rounded once, where all are finite."""
    exact = Fraction(real(a)) * Fraction(real(b)) + Fraction(real(c))
    if exact == 0:
        return bits_of(real(a) * real(b) + real(c))
    exponent = -126
    while abs(exact) >= Fraction(2) ** (exponent + 1):
        exponent += 1
    unit = Fraction(2) ** (exponent - 23)
    try:
        return bits_of(float(rounded(exact / unit) * unit)) | (exact < 0) << 31
    except OverflowError:
        return 0xFF800000 if exact < 0 else 0x7F800000


def test_arithmetic_is_rounded_to_nearest(tmp_path):
    for name, function in (("add", operator.add), ("mul", operator.mul), ("div", operator.truediv)):
        check(f"{name}.rn.f32 %d, %a, %b;", [WORD] * 2, WORD, TWO, by_torch(function), tmp_path)
    finite = [value for value in VALUES if math.isfinite(real(value))]
    three = [tuple(R.choice(finite) for _ in range(3)) for _ in range(500)]
    check("fma.rn.f32 %d, %a, %b, %c;", [WORD] * 3, WORD, three, fused, tmp_path)
    moderate = [row for row in three if all(2**-30 < abs(real(value)) < 2**30 for value in row)]
    down = lambda a, b, c: fused(a, b, c, math.floor)  # noqa: E731
    check("fma.rm.f32 %d, %a, %b, %c;", [WORD] * 3, WORD, moderate, down, tmp_path)


@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_pairs_of_halves(kind, tmp_path):
    dtype = torch.float16 if kind == "f16" else torch.bfloat16
    low = [(R.getrandbits(32), R.getrandbits(32)) for _ in range(600)]
    for name, function in (("add", operator.add), ("mul", operator.mul), ("sub", operator.sub)):

        def each(a, b, function=function):
            half = by_torch(function, dtype)
            return (half(a >> 16, b >> 16) & 0xFFFF) << 16 | half(a & 0xFFFF, b & 0xFFFF) & 0xFFFF

        check(f"{name}.rn.{kind}x2 %d, %a, %b;", [WORD] * 2, WORD, low, each, tmp_path)
    for name, signs in (("neg", lambda a: a ^ 0x80008000), ("abs", lambda a: a & ~0x80008000)):
        check(f"{name}.{kind}x2 %d, %a;", [WORD], WORD, ONE, signs, tmp_path)


def integer_of(x, low, high, rounded):
    if x != x:
        return 0
    return high if x >= high else low if x <= low else rounded(x)


def test_conversions(tmp_path):
    half, bfloat = by_torch(lambda a: a.half()), by_torch(lambda a: a.bfloat16())
    check("cvt.rn.f16.f32 %d, %a;", [WORD], "b16", ONE, half, tmp_path)
    check("cvt.rn.bf16.f32 %d, %a;", [WORD], "b16", ONE, bfloat, tmp_path)
    for kind, rounded in (("f16x2", half), ("bf16x2", bfloat)):

        def pair(a, b, rounded=rounded):
            return (rounded(a) & 0xFFFF) << 16 | rounded(b) & 0xFFFF

        check(f"cvt.rn.{kind}.f32 %d, %a, %b;", [WORD] * 2, WORD, TWO, pair, tmp_path)
    sixteen = [(value,) for value in range(0, 65536, 67)]
    check(
        "cvt.f32.f16 %d, %a;", ["b16"], WORD, sixteen, by_torch(lambda a: a.float(), torch.float16), tmp_path
    )
    words = [(R.getrandbits(32),) for _ in range(500)]
    check("cvt.rn.f32.u32 %d, %a;", [WORD], WORD, words, lambda a: bits_of(float(a)), tmp_path)
    to_signed = lambda a: integer_of(real(a), -(2**31), 2**31 - 1, int)  # noqa: E731
    to_unsigned = lambda a: integer_of(real(a), 0, 2**32 - 1, round)  # noqa: E731
    check("cvt.rzi.s32.f32 %d, %a;", [WORD], WORD, ONE, to_signed, tmp_path)
    check("cvt.rni.u32.f32 %d, %a;", [WORD], WORD, ONE, to_unsigned, tmp_path)


@pytest.mark.parametrize("name", ["lt", "le", "gt", "ge", "eq", "ne"])
def test_comparisons_with_and_without_order(name, tmp_path):
    compare = getattr(operator, name)
    unordered = lambda a, b: math.isnan(real(a)) or math.isnan(real(b))  # noqa: E731
    ordered = lambda a, b: int(not unordered(a, b) and compare(real(a), real(b)))  # noqa: E731
    either = lambda a, b: int(unordered(a, b) or compare(real(a), real(b)))  # noqa: E731
    for suffix, expected in (("", ordered), ("u", either)):
        instruction = f"setp.{name}{suffix}.f32 %p1, %a, %b; selp.b32 %d, 1, 0, %p1;"
        check(instruction, [WORD] * 2, WORD, TWO, expected, tmp_path)


@pytest.mark.parametrize("name", ["min", "max"])
@pytest.mark.parametrize("nan_wins", [False, True])
def test_extremes_of_nan_and_zeros(name, nan_wins, tmp_path):
    def extreme(a, b):
        x, y = real(a), real(b)
        if x != x or y != y:
            return NAN if nan_wins or (x != x and y != y) else (b if x != x else a)
        if x == y:
            negative, positive = (a, b) if a >> 31 else (b, a)
            return positive if name == "max" else negative
        return a if (x > y) == (name == "max") else b

    check(f"{name}{'.NaN' * nan_wins}.f32 %d, %a, %b;", [WORD] * 2, WORD, TWO, extreme, tmp_path)
