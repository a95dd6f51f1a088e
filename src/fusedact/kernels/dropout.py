"""The two kernels, activation + dropout forward and backward, for every activation, dtype and mapping.

`tiles` says how they walk a tensor. Arithmetic is float32, or float64 for float64 tensors. STORED is the
dtype to which eager PyTorch rounds between activation and dropout, where its bits are wanted; else it is
the arithmetic's own, which rounds nothing.

The fast mapping's Philox call makes 8 numbers of 16 bits, for 4 consecutive elements and the 4 that lie
TILE / 2 further.
"""

import triton
import triton.language as tl

from .philox import philox4x32
from .tiles import inside_of, joined, offsets_of, origin, split, unpack, with_bits, word_offsets

FAST_ROUNDS: tl.constexpr = tl.constexpr(7)  # of Philox; eager's are PyTorch's 10


@triton.jit
def _number(single, double, ARITHMETIC: tl.constexpr):
    """A number of the arithmetic type: `single`, or for float64 the one whose 64 bits `double` has.

    A float argument reaches a kernel as float32. An integer without an annotation has a type that depends on
    its value. float32 does not travel as bits too, since ptxas makes more instructions of those.
    """
    number = single
    if tl.float64 == ARITHMETIC:
        number = double.to(tl.int64).to(tl.float64, bitcast=True)
    return number


@triton.jit
def _parameter(single, double, ARITHMETIC: tl.constexpr, UNIT: tl.constexpr):
    """An activation's parameter; as a constant where UNIT says that it is 1, which saves products."""
    return tl.full([], 1.0, ARITHMETIC) if UNIT else _number(single, double, ARITHMETIC)


@triton.jit
def _rounded(value, STORED: tl.constexpr):
    return value.to(STORED).to(value.dtype)


@triton.jit
def _gradient(
    dy,
    keep,
    flag,
    saved,
    scale,
    a,
    b,
    BACKWARD: tl.constexpr,
    SAVES: tl.constexpr,
    SLOPE: tl.constexpr,
    STORED: tl.constexpr,
):
    """dy * (scale if keep else 0) * act'(x); where eager's bits are wanted, STORED rounds between the two."""
    if SAVES == "one_bit":
        # A dead element's gradient is 0 in eager mode, whatever dy is; a dropped one's is dy * 0. The bit
        # can't tell which this is, and a select decides for 0. A select after the product would be
        # moved behind the rounding to a half precision, where it costs more.
        dx = tl.where(keep, dy, 0.0) * scale
        if SLOPE != 1.0:
            dx = _rounded(dx, STORED) * SLOPE
    else:
        # A product and no select: a dropped inf or NaN is NaN in eager mode.
        dx = _rounded(dy * tl.where(keep, scale, 0.0), STORED)
        if SAVES == "two_bits":
            dx = tl.where(flag, dx, dx * a)
        elif SAVES != "mask":
            dx *= BACKWARD(saved, a, b)
    return dx


@triton.jit
def _sum(words, number):
    """The 64-bit number whose low and high word are given, plus another, in words again."""
    number += (words[1].to(tl.uint64) << 32) + words[0]
    return number.to(tl.uint32), (number >> 32).to(tl.uint32)


@triton.jit
def _eager_words(g, k, first, key, call, LANES: tl.constexpr, COLUMNS: tl.constexpr):
    """Per lane, the 32 random bits that PyTorch's dropout kernel compares with the keep probability."""
    idx = (first + g * COLUMNS + tl.arange(0, COLUMNS)).to(tl.uint32)
    zero = tl.zeros_like(idx)
    number = (call[1].to(tl.uint64) << 32) + call[0] + k.to(tl.uint64) * (2 if LANES == 8 else 1)
    words = philox4x32(number.to(tl.uint32), (number >> 32).to(tl.uint32), idx, zero, key, 10)
    if LANES == 8:
        number += 1
        words = words + philox4x32(number.to(tl.uint32), (number >> 32).to(tl.uint32), idx, zero, key, 10)
    return words


@triton.jit
def _fast_words(g, key, call, LANES: tl.constexpr, COLUMNS: tl.constexpr):
    """Per lane 32 random bits: the high half for group g, the low one for the group TILE / 2 further."""
    # 8 COLUMNS = TILE / 4 numbers of 4 elements each; half of them have a Philox call of their own.
    quad = g * COLUMNS + tl.arange(0, COLUMNS)
    quads = tl.program_id(0).to(tl.int64) * (4 * COLUMNS)
    low = quads.to(tl.uint32)
    high = (quads >> 32).to(tl.uint32)
    if LANES == 2:
        a0, a1, a2, a3 = philox4x32(call[0], call[1], low + (quad // 2).to(tl.uint32), high, key, FAST_ROUNDS)
        words = (tl.where(quad % 2 == 0, a0, a2), tl.where(quad % 2 == 0, a1, a3))
    elif LANES == 4:
        words = philox4x32(call[0], call[1], low + quad.to(tl.uint32), high, key, FAST_ROUNDS)
    else:
        low += (2 * quad).to(tl.uint32)
        words = philox4x32(call[0], call[1], low, high, key, FAST_ROUNDS)
        words = words + philox4x32(call[0], call[1], low + 1, high, key, FAST_ROUNDS)
    return words


@triton.jit(
    do_not_specialize=[
        "n",
        "blocks",
        "seed_low",
        "seed_high",
        "call_low",
        "call_high",
        "threshold",
        "scale",
        "a",
        "b",
        "scale_64",
        "a_64",
        "b_64",
        "seed_ptr",
        "offset_ptr",
    ]
)
def forward_kernel(
    x_ptr,
    y_ptr,
    bits_ptr,
    signs_ptr,
    n: "i64",
    blocks: "i32",
    seed_low: "u32",
    seed_high: "u32",
    call_low: "u32",
    call_high: "u32",
    threshold: "u32",
    scale: "fp32",
    a: "fp32",
    b: "fp32",
    scale_64: "i64",
    a_64: "i64",
    b_64: "i64",
    seed_ptr,
    offset_ptr,
    FORWARD: tl.constexpr,
    PASSES: tl.constexpr,
    VANISHES: tl.constexpr,
    SAVES: tl.constexpr,
    UNIT: tl.constexpr,
    ARITHMETIC: tl.constexpr,
    STORED: tl.constexpr,
    FAST: tl.constexpr,
    VEC: tl.constexpr,
    LANES: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """y = act(x) * (scale if kept else 0), and the bits that backward needs.

    The random numbers' key is the seed and the first of their counters the call, in two words each. What
    a graph may not hold as a number, since it is another at every replay, is read from memory and added: a
    seed, and a generator's offset, 4 to a call. Where both pointers are None, nothing is compiled for them.

    A plane of (x > 0), for who counts them, goes to `signs_ptr` where that isn't None.

    VANISHES: where the gradient doesn't pass, act(x) is 0, and it doesn't matter whether dropout keeps it.

    Bytes per element of b bytes: 2 b, and 1/8 for each plane of bits.
    """
    GROUPS: tl.constexpr = 32 // LANES
    STEP: tl.constexpr = COLUMNS if VEC == 1 and not FAST else COLUMNS * LANES
    SAVES_FLAG: tl.constexpr = SAVES == "two_bits"
    PACKS_FLAG: tl.constexpr = PASSES is not None and not VANISHES
    # Packed before the product, the bits of half precisions need fewer predicates at a time; others' don't.
    EARLY: tl.constexpr = LANES == 8
    k, first, base, left = origin(n, blocks, FAST, VEC, LANES, COLUMNS)
    offsets = offsets_of(blocks, FAST, VEC, LANES, COLUMNS)
    x_ptr += base
    y_ptr += base
    scale = _number(scale, scale_64, ARITHMETIC)
    a = _parameter(a, a_64, ARITHMETIC, UNIT)
    b = _number(b, b_64, ARITHMETIC)
    # In the interpreter an integer's type goes by its value.
    key = (seed_low.to(tl.uint32), seed_high.to(tl.uint32))
    call = (call_low.to(tl.uint32), call_high.to(tl.uint32))
    if seed_ptr is not None:
        key = _sum(key, tl.load(seed_ptr).to(tl.uint64, bitcast=True))
        call = _sum(call, tl.load(offset_ptr).to(tl.uint64, bitcast=True) >> 2)
    threshold = threshold.to(tl.uint32)

    xs = ()  # all loads are under way before the arithmetic starts
    for g in tl.static_range(GROUPS):
        inside = inside_of(g, offsets, first, left, blocks, FAST, VEC, LANES, COLUMNS)
        xs = xs + (tl.load(x_ptr + g * STEP + offsets, mask=inside),)

    kept = tl.zeros([COLUMNS], tl.int32)
    flagged = tl.zeros([COLUMNS], tl.int32)
    positive = tl.zeros([COLUMNS], tl.int32)
    drawn = ()
    for g in tl.static_range(GROUPS):
        if not FAST:
            words = _eager_words(g, k, first, key, call, LANES, COLUMNS)
        elif g < GROUPS // 2:
            words = _fast_words(g, key, call, LANES, COLUMNS)
            drawn = drawn + (words,)
        else:
            words = ()
            for lane in tl.static_range(LANES):
                words = words + (drawn[g - GROUPS // 2][lane] << 16,)
        keeps = ()
        for lane in tl.static_range(LANES):
            keeps = keeps + (words[lane] < threshold,)
        x = xs[g].to(ARITHMETIC)
        keep = joined(keeps, COLUMNS, LANES)
        if VANISHES:
            keep &= PASSES(x, a, b)
            keeps = split(keep, COLUMNS, LANES)
        elif PASSES is not None:
            flags = split(PASSES(x, a, b), COLUMNS, LANES)
        if EARLY:
            kept = with_bits(kept, keeps, g, LANES)
        # A product and no select: a dropped inf or NaN is NaN in eager mode.
        y = _rounded(FORWARD(x, a, b), STORED) * tl.where(keep, scale, 0.0)
        inside = inside_of(g, offsets, first, left, blocks, FAST, VEC, LANES, COLUMNS)
        tl.store(y_ptr + g * STEP + offsets, y.to(y_ptr.dtype.element_ty), mask=inside)
        if not EARLY:
            kept = with_bits(kept, keeps, g, LANES)
        if PACKS_FLAG:
            flagged = with_bits(flagged, flags, g, LANES)
        if signs_ptr is not None:
            positive = with_bits(positive, split(x > 0, COLUMNS, LANES), g, LANES)
    if PACKS_FLAG and not SAVES_FLAG:
        kept &= flagged
    PLANES: tl.constexpr = 2 if SAVES_FLAG else 1
    tl.store(bits_ptr + word_offsets(k, 0, PLANES, COLUMNS), kept)
    if SAVES_FLAG:
        tl.store(bits_ptr + word_offsets(k, 1, PLANES, COLUMNS), flagged)
    if signs_ptr is not None:
        tl.store(signs_ptr + word_offsets(k, 0, 1, COLUMNS), positive)


@triton.jit(
    do_not_specialize=[
        "n",
        "blocks",
        "scale",
        "inverse",
        "a",
        "b",
        "scale_64",
        "inverse_64",
        "a_64",
        "b_64",
    ]
)
def backward_kernel(
    dy_ptr,
    saved_ptr,
    bits_ptr,
    dx_ptr,
    n: "i64",
    blocks: "i32",
    scale: "fp32",
    inverse: "fp32",
    a: "fp32",
    b: "fp32",
    scale_64: "i64",
    inverse_64: "i64",
    a_64: "i64",
    b_64: "i64",
    BACKWARD: tl.constexpr,
    SAVES: tl.constexpr,
    SLOPE: tl.constexpr,
    UNIT: tl.constexpr,
    ARITHMETIC: tl.constexpr,
    STORED: tl.constexpr,
    FAST: tl.constexpr,
    VEC: tl.constexpr,
    LANES: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """dx = dy * (scale if kept else 0) * act'(x) from the bits, and from x or y where it was saved.

    Of a saved y, `inverse` times it is act(x).

    Bytes per element of b bytes: 2 b, 1/8 for each plane of bits, and b for x or y where it was saved.
    """
    GROUPS: tl.constexpr = 32 // LANES
    STEP: tl.constexpr = COLUMNS if VEC == 1 and not FAST else COLUMNS * LANES
    k, first, base, left = origin(n, blocks, FAST, VEC, LANES, COLUMNS)
    offsets = offsets_of(blocks, FAST, VEC, LANES, COLUMNS)
    dy_ptr += base
    dx_ptr += base
    READS_SAVED: tl.constexpr = SAVES == "input" or SAVES == "output"
    if READS_SAVED:
        saved_ptr += base
    scale = _number(scale, scale_64, ARITHMETIC)
    a = _parameter(a, a_64, ARITHMETIC, UNIT)
    b = _number(b, b_64, ARITHMETIC)

    SAVES_FLAG: tl.constexpr = SAVES == "two_bits"
    PLANES: tl.constexpr = 2 if SAVES_FLAG else 1
    kept = tl.load(bits_ptr + word_offsets(k, 0, PLANES, COLUMNS))
    flagged = kept
    if SAVES_FLAG:
        flagged = tl.load(bits_ptr + word_offsets(k, 1, PLANES, COLUMNS))
    dys = ()
    saveds = ()
    for g in tl.static_range(GROUPS):
        inside = inside_of(g, offsets, first, left, blocks, FAST, VEC, LANES, COLUMNS)
        dys = dys + (tl.load(dy_ptr + g * STEP + offsets, mask=inside),)
        if READS_SAVED:
            saveds = saveds + (tl.load(saved_ptr + g * STEP + offsets, mask=inside),)

    for g in tl.static_range(GROUPS):
        keep = unpack(kept, g, COLUMNS, LANES)
        flag = unpack(flagged, g, COLUMNS, LANES) if SAVES_FLAG else keep
        dy = dys[g].to(ARITHMETIC)
        saved = saveds[g].to(ARITHMETIC) if READS_SAVED else dy
        if SAVES == "output":
            saved *= _number(inverse, inverse_64, ARITHMETIC)
        dx = _gradient(dy, keep, flag, saved, scale, a, b, BACKWARD, SAVES, SLOPE, STORED)
        inside = inside_of(g, offsets, first, left, blocks, FAST, VEC, LANES, COLUMNS)
        tl.store(dx_ptr + g * STEP + offsets, dx.to(dx_ptr.dtype.element_ty), mask=inside)
