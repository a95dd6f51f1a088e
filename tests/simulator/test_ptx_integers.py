"""The translation of PTX's integer instructions, against Python's integers."""

import random

import pytest

from tests.simulator.instruction import check, signed

R = random.Random(5)


def words(bits, count):
    edges = [0, 1, 2, 2 ** (bits - 1) - 1, 2 ** (bits - 1), 2**bits - 1, 2**bits - 2]
    return [tuple(R.choice([*edges, R.getrandbits(bits)]) for _ in range(count)) for _ in range(500)]


def shifts(bits):
    return [(R.getrandbits(bits), R.randrange(80)) for _ in range(300)]


def fields(bits):
    return [(R.getrandbits(bits), R.randrange(70), R.randrange(70)) for _ in range(500)]


def high(bits, sign):
    value = (lambda x: signed(x, bits)) if sign else (lambda x: x)
    return lambda x, y: value(x) * value(y) >> bits


def field(bits, sign):
    def extracted(x, place, size):
        if size == 0:
            return 0
        top = (signed(x, bits) >> min(place + size - 1, bits - 1)) & 1 if sign else 0
        inside = [x >> (place + i) & 1 if i < size and place + i < bits else top for i in range(bits)]
        return sum(bit << i for i, bit in enumerate(inside))

    return extracted


def remainder(bits):
    def of(x, y):
        x, y = signed(x, bits), signed(y, bits)
        return abs(x) % abs(y) * (1 if x >= 0 else -1)

    return of


@pytest.mark.parametrize("bits", [32, 64])
def test_of_both_widths(bits, tmp_path):
    word = f"b{bits}"
    one, two = words(bits, 1), words(bits, 2)
    less = lambda x, y: int(signed(x, bits) < signed(y, bits))  # noqa: E731
    either = lambda x, y: 7 if x > y else 9  # noqa: E731
    least = lambda x, y: min(x, y, key=lambda value: signed(value, bits))  # noqa: E731
    for instruction, inputs, out, rows, expected in (
        ("mul.hi.u{} %d, %a, %b;", [word, word], word, two, high(bits, False)),
        ("mul.hi.s{} %d, %a, %b;", [word, word], word, two, high(bits, True)),
        ("mad.lo.s{} %d, %a, %b, %c;", [word] * 3, word, words(bits, 3), lambda x, y, z: x * y + z),
        ("sub.s{} %d, %a, %b;", [word, word], word, two, lambda x, y: x - y),
        ("bfe.u{} %d, %a, %b, %c;", [word, "b32", "b32"], word, fields(bits), field(bits, False)),
        ("bfe.s{} %d, %a, %b, %c;", [word, "b32", "b32"], word, fields(bits), field(bits, True)),
        ("shr.s{} %d, %a, %b;", [word, "b32"], word, shifts(bits), lambda x, n: signed(x, bits) >> n),
        ("shr.u{} %d, %a, %b;", [word, "b32"], word, shifts(bits), lambda x, n: x >> n),
        ("shl.b{} %d, %a, %b;", [word, "b32"], word, shifts(bits), lambda x, n: x << n),
        ("min.s{} %d, %a, %b;", [word, word], word, two, least),
        ("max.u{} %d, %a, %b;", [word, word], word, two, max),
        ("neg.s{} %d, %a;", [word], word, one, lambda x: -x),
        ("abs.s{} %d, %a;", [word], word, one, lambda x: abs(signed(x, bits))),
        ("setp.lt.s{} %p1, %a, %b; @%p1 mov.b32 %d, 1;", [word, word], "b32", two, less),
        ("setp.hi.u{} %p1, %a, %b; selp.b32 %d, 7, 9, %p1;", [word] * 2, "b32", two, either),
    ):  # fmt: skip
        check(instruction.format(bits), inputs, out, rows, expected, tmp_path)
    divisible = [row for row in words(bits, 2) if row[1] not in (0, 2**bits - 1)]
    check(f"rem.s{bits} %d, %a, %b;", [word, word], word, divisible, remainder(bits), tmp_path)
    check(f"div.u{bits} %d, %a, %b;", [word, word], word, divisible, lambda x, y: x // y, tmp_path)


def funnel(left, wrap):
    def shifted(a, c, n):
        n = n % 32 if wrap else min(n, 32)
        return ((c << 32 | a) << n) >> 32 if left else (c << 32 | a) >> n

    return shifted


def permuted(a, b, selector):
    result = 0
    for i in range(4):
        nibble = selector >> 4 * i & 15
        byte = (b << 32 | a) >> 8 * (nibble & 7) & 255
        if nibble & 8:
            byte = 255 if byte & 128 else 0
        result |= byte << 8 * i
    return result


def test_of_words(tmp_path):
    word = "b32"
    funnels = [(R.getrandbits(32), R.getrandbits(32), R.randrange(80)) for _ in range(300)]
    product = lambda x, y: signed(x, 32) * signed(y, 32)  # noqa: E731
    inserted = lambda a, b: b & ~0xFF00 | (a & 255) << 8  # noqa: E731
    wide = [(R.getrandbits(32), R.getrandbits(32), R.getrandbits(64)) for _ in range(300)]
    for instruction, inputs, out, rows, expected in (
        ("mul.wide.s32 %d, %a, %b;", [word, word], "b64", words(32, 2), product),
        ("mad.wide.u32 %d, %a, %b, %c;", [word, word, "b64"], "b64", wide, lambda x, y, z: x * y + z),
        ("shf.l.wrap.b32 %d, %a, %b, %c;", [word] * 3, word, funnels, funnel(left=True, wrap=True)),
        ("shf.r.wrap.b32 %d, %a, %b, %c;", [word] * 3, word, funnels, funnel(left=False, wrap=True)),
        ("shf.r.clamp.b32 %d, %a, %b, %c;", [word] * 3, word, funnels, funnel(left=False, wrap=False)),
        ("lop3.b32 %d, %a, %b, %c, 0x6A;", [word] * 3, word, words(32, 3), lambda a, b, c: a & b ^ c),
        ("lop3.b32 %d, %a, %b, %c, 0xCA;", [word] * 3, word, words(32, 3), lambda a, b, c: a & b | ~a & c),
        ("prmt.b32 %d, %a, %b, %c;", [word] * 3, word, words(32, 3), permuted),
        ("bfi.b32 %d, %a, %b, 8, 8;", [word, word], word, words(32, 2), inserted),
        ("brev.b32 %d, %a;", [word], word, words(32, 1), lambda a: int(f"{a:032b}"[::-1], 2)),
        ("popc.b32 %d, %a;", [word], word, words(32, 1), lambda a: f"{a:b}".count("1")),
        ("clz.b32 %d, %a;", [word], word, words(32, 1), lambda a: 32 - a.bit_length()),
        ("not.b32 %d, %a;", [word], word, words(32, 1), lambda a: ~a),
        ("cvt.s64.s32 %d, %a;", [word], "b64", words(32, 1), lambda a: signed(a, 32)),
        ("cvt.u64.u32 %d, %a;", [word], "b64", words(32, 1), lambda a: a),
        ("cvt.s32.s8 %d, %a;", [word], word, words(32, 1), lambda a: signed(a, 8)),
        ("cvt.u32.u16 %d, %a;", ["b16"], word, words(16, 1), lambda a: a),
    ):  # fmt: skip
        check(instruction, inputs, out, rows, expected, tmp_path)
