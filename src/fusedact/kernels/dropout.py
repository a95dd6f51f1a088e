"""The two kernels, activation + dropout forward and backward, for every activation, dtype and mapping.

`tiles` describes the walk through a tensor. Arithmetic is float32, or float64 for float64 tensors. To give
eager's bits, a kernel rounds to STORED between activation and dropout, as eager PyTorch does. Otherwise
STORED is the arithmetic's own dtype, which rounds nothing.

The fast mapping's Philox call makes 8 numbers of 16 bits, for 4 consecutive elements and the 4 that lie
TILE / 2 further.
"""

import triton
import triton.language as tl

from .packed import rounded, widened
from .philox import philox4x32
from .tiles import inside_of, joined, offsets_of, origin, split, unpack, with_bits, word_offsets

FAST_ROUNDS: tl.constexpr = tl.constexpr(7)  # of Philox; eager's are PyTorch's 10


@triton.jit
def _number(single, double, ARITHMETIC: tl.constexpr):
    """Return a number of the arithmetic type: `single`, or for float64 the number with the 64 bits `double`.

    A float argument reaches a kernel as float32, so float64 is passed as bits. float32 is passed as it is,
    since ptxas makes more instructions of bits. All are annotated: without, an integer's type depends on its
    value.
    """
    number = single
    if tl.float64 == ARITHMETIC:
        number = double.to(tl.int64).to(tl.float64, bitcast=True)
    return number


@triton.jit
def _parameter(single, double, ARITHMETIC: tl.constexpr, UNIT: tl.constexpr):
    """Return an activation's parameter, as a constant if it is 1 (UNIT), which saves products."""
    return tl.full([], 1.0, ARITHMETIC) if UNIT else _number(single, double, ARITHMETIC)


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
    PACKED: tl.constexpr,
):
    """Return dy * (scale if keep else 0) * act'(x), rounded to STORED between the two products."""
    # In float16 the compiler's own rounding needs fewer instructions here.
    PAIRS: tl.constexpr = PACKED and tl.bfloat16 == STORED
    if SAVES == "one_bit":
        # In eager mode a dead element's gradient is 0 for any dy, and a dropped element's is dy * 0. The bit
        # can't tell the two apart, so a select gives 0 for both. The compiler would move a select after the
        # product behind the rounding to half precision, where it costs more.
        dx = tl.where(keep, dy, 0.0) * scale
        if SLOPE != 1.0:
            dx = rounded(dx, STORED, PAIRS) * SLOPE
    else:
        # A product, not a select: in eager mode a dropped inf or NaN gives NaN.
        dx = rounded(dy * tl.where(keep, scale, 0.0), STORED, PAIRS)
        if SAVES == "two_bits":
            dx = tl.where(flag, dx, dx * a)
        elif SAVES != "mask":
            dx *= BACKWARD(saved, a, b)
    return dx


@triton.jit
def _sum(words, number):
    """Add to the 64-bit number in two words, low and high; return the sum in two words."""
    number += (words[1].to(tl.uint64) << 32) + words[0]
    return number.to(tl.uint32), (number >> 32).to(tl.uint32)


@triton.jit
def _eager_words(g, k, first, key, call, LANES: tl.constexpr, COLUMNS: tl.constexpr):
    """Return per lane the 32 random bits that PyTorch's dropout kernel compares with the keep probability."""
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
    """Return 32 bits per lane: the high half for group g, the low half for the group TILE / 2 further on."""
    # A tile has 8 COLUMNS quads of 4 elements. Half of them have a Philox call of their own.
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
    CLAMPS: tl.constexpr,
    LINEAR: tl.constexpr,
    SAVES: tl.constexpr,
    UNIT: tl.constexpr,
    ARITHMETIC: tl.constexpr,
    STORED: tl.constexpr,
    PACKED: tl.constexpr,
    FAST: tl.constexpr,
    VEC: tl.constexpr,
    LANES: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Store y = act(x) * (scale if kept else 0), and the bits that backward needs.

    Philox's key is the seed, and the first half of its counter is the call's number, in two words each. CUDA
    graphs bake scalars in, so a seed and a generator's offset are also loaded from device memory and added. A
    call's number is the offset divided by 4. If both pointers are None, the loads aren't compiled.

    If `signs_ptr` isn't None, a plane of (x > 0) is stored there for a monitor.

    VANISHES: if the gradient doesn't pass, act(x) is 0, so it doesn't matter whether dropout keeps the
    element. CLAMPS: act(x) is x or a constant. LINEAR: it is x if the gradient passes, else a x.

    Bytes per element of b bytes: 2 b, and 1/8 for each plane of bits.
    """
    GROUPS: tl.constexpr = 32 // LANES
    STEP: tl.constexpr = COLUMNS if VEC == 1 and not FAST else COLUMNS * LANES
    SAVES_FLAG: tl.constexpr = SAVES == "two_bits"
    PACKS_FLAG: tl.constexpr = SAVES == "one_bit" and not VANISHES
    # In half precision, bits packed before the product need fewer predicates at a time.
    EARLY: tl.constexpr = LANES == 8
    k, first, base, left = origin(n, blocks, FAST, VEC, LANES, COLUMNS)
    offsets = offsets_of(blocks, FAST, VEC, LANES, COLUMNS)
    x_ptr += base
    y_ptr += base
    scale = _number(scale, scale_64, ARITHMETIC)
    a = _parameter(a, a_64, ARITHMETIC, UNIT)
    b = _number(b, b_64, ARITHMETIC)
    # In the interpreter an integer's type depends on its value.
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
        if SAVES_FLAG:
            flag = PASSES(xs[g].to(ARITHMETIC), a, b)
            flagged = with_bits(flagged, split(flag, COLUMNS, LANES), g, LANES)
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
        x = widened(xs[g], ARITHMETIC, PACKED and not CLAMPS)
        keep = joined(keeps, COLUMNS, LANES)
        if VANISHES:
            keep &= PASSES(x, a, b)
            keeps = split(keep, COLUMNS, LANES)
        elif PACKS_FLAG:
            flags = split(PASSES(x, a, b), COLUMNS, LANES)
        if EARLY:
            kept = with_bits(kept, keeps, g, LANES)
        if LINEAR:
            y = rounded(tl.where(flag, x, x * a), STORED, PACKED)
        elif CLAMPS:
            y = widened(FORWARD(x, a, b).to(xs[g].dtype), ARITHMETIC, PACKED)
        else:
            # The compiler's own rounding needs fewer instructions between other activations and the product.
            y = rounded(FORWARD(x, a, b), STORED, False)
        # A product, not a select: in eager mode a dropped inf or NaN gives NaN.
        y *= tl.where(keep, scale, 0.0)
        inside = inside_of(g, offsets, first, left, blocks, FAST, VEC, LANES, COLUMNS)
        tl.store(y_ptr + g * STEP + offsets, y.to(y_ptr.dtype.element_ty), mask=inside)
        if not EARLY:
            kept = with_bits(kept, keeps, g, LANES)
        if PACKS_FLAG:
            flagged = with_bits(flagged, flags, g, LANES)
        if signs_ptr is not None:
            positive = with_bits(positive, split(x > 0, COLUMNS, LANES), g, LANES)
    if PACKS_FLAG:
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
    PACKED: tl.constexpr,
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
        dy = widened(dys[g], ARITHMETIC, PACKED)
        saved = widened(saveds[g], ARITHMETIC, PACKED) if READS_SAVED else dy
        if SAVES == "output":
            saved *= _number(inverse, inverse_64, ARITHMETIC)
        dx = _gradient(dy, keep, flag, saved, scale, a, b, BACKWARD, SAVES, SLOPE, STORED, PACKED)
        inside = inside_of(g, offsets, first, left, blocks, FAST, VEC, LANES, COLUMNS)
        tl.store(dx_ptr + g * STEP + offsets, dx.to(dx_ptr.dtype.element_ty), mask=inside)
