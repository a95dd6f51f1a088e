"""The two kernels, activation + dropout forward and backward, for every activation, dtype and mapping.

Both walk the same tile. A program owns COLUMNS columns of 32 elements, one column per thread: GROUPS
groups of LANES elements, each group one 16-byte access. A column's bits make one 32-bit word, the
first element's bit the highest. Everything between the loads and the stores stands lane by lane, in
tensors of one dimension, or in tiles joined of those: they have the layout in which the random
numbers are drawn and the accesses are made, so nothing moves between threads (docs/kernels.md). The one
exception is eager at VEC = 1, an odd size: Triton moves tiles through shared memory there.

Which elements a program owns, and which random word each has, is the mapping's:

- eager follows the loop of PyTorch's own dropout kernel, whose masks it reproduces. With
  T = 256 * blocks threads, iteration k and thread idx, the elements are

      VEC > 1:  (k T + idx) VEC + lane      VEC consecutive elements
      VEC = 1:  (4 k + lane) T + idx        the 4 words of one Philox call, T apart

  The grid's first axis covers idx; the other two cover k, so that neither needs a division.
- fast takes TILE = 32 COLUMNS consecutive elements per program. A Philox call makes 8 numbers of
  16 bits, for 4 consecutive elements and the 4 that lie TILE / 2 further.
"""

import triton
import triton.language as tl

from .philox import philox4x32

COLUMNS = 128
WORD = 32
TILE = COLUMNS * WORD
FAST_ROUNDS: tl.constexpr = tl.constexpr(7)  # of Philox; eager's are PyTorch's 10


@triton.jit
def _origin(n, blocks, FAST: tl.constexpr, VEC: tl.constexpr, LANES: tl.constexpr, COLUMNS: tl.constexpr):
    """Eager's iteration, this program's first idx in it, its first element, and how many there are from it.

    Elements are counted in 64 bits, and from the first one on in 32.
    """
    if FAST:
        k = 0
        first = 0
        base = tl.program_id(0).to(tl.int64) * (32 * COLUMNS)
        left = tl.minimum(n - base, 32 * COLUMNS)
    else:
        k = tl.program_id(2) * tl.num_programs(1) + tl.program_id(1)
        first = tl.program_id(0) * (32 // LANES * COLUMNS)
        threads = blocks * 256
        if VEC == 1:
            base = k.to(tl.int64) * (threads * 4) + first
            left = tl.minimum(n - base, 4 * threads - first)
        else:
            base = (k.to(tl.int64) * threads + first) * VEC
            left = tl.minimum(n - base, (threads - first) * VEC)
    return k, first, base, tl.maximum(left, 0).to(tl.int32)


@triton.jit
def _offsets(blocks, FAST: tl.constexpr, VEC: tl.constexpr, LANES: tl.constexpr, COLUMNS: tl.constexpr):
    """Where group 0's elements are, from the program's first one: [COLUMNS, LANES]."""
    columns = tl.arange(0, COLUMNS)[:, None]
    lane = tl.arange(0, LANES)[None, :]
    return columns + lane * (blocks * 256) if VEC == 1 and not FAST else columns * LANES + lane


@triton.jit
def _inside(
    g,
    offsets,
    first,
    left,
    blocks,
    FAST: tl.constexpr,
    VEC: tl.constexpr,
    LANES: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Which elements of group g exist; where n is a multiple of VEC, all of an access or none."""
    if VEC > 1:
        inside = (tl.arange(0, COLUMNS) * LANES < left - g * COLUMNS * LANES)[:, None]
    elif FAST:
        inside = offsets < left - g * COLUMNS * LANES
    else:
        thread = first + g * COLUMNS + tl.arange(0, COLUMNS)
        inside = (thread < blocks * 256)[:, None] & (offsets < left - g * COLUMNS)
    return inside


@triton.jit
def _tile(lanes, COLUMNS: tl.constexpr, LANES: tl.constexpr):
    """LANES tensors [COLUMNS] as one tile [COLUMNS, LANES]; moves nothing."""
    # A join makes its arguments neighbours along a new last axis, so the last join is the lowest
    # bit of the lane.
    if LANES == 2:
        tile = tl.join(lanes[0], lanes[1])
    elif LANES == 4:
        tile = tl.join(tl.join(lanes[0], lanes[2]), tl.join(lanes[1], lanes[3]))
    else:
        even = tl.join(tl.join(lanes[0], lanes[4]), tl.join(lanes[2], lanes[6]))
        odd = tl.join(tl.join(lanes[1], lanes[5]), tl.join(lanes[3], lanes[7]))
        tile = tl.join(even, odd)
    return tl.reshape(tile, [COLUMNS, LANES])


@triton.jit
def _lanes(tile, COLUMNS: tl.constexpr, LANES: tl.constexpr):
    """The inverse of `_tile`."""
    if LANES == 2:
        lanes = tl.split(tile)
    elif LANES == 4:
        even, odd = tl.split(tl.reshape(tile, [COLUMNS, 2, 2]))
        a0, a2 = tl.split(even)
        a1, a3 = tl.split(odd)
        lanes = (a0, a1, a2, a3)
    else:
        even, odd = tl.split(tl.reshape(tile, [COLUMNS, 2, 2, 2]))
        a04, a26 = tl.split(even)
        a15, a37 = tl.split(odd)
        a0, a4 = tl.split(a04)
        a2, a6 = tl.split(a26)
        a1, a5 = tl.split(a15)
        a3, a7 = tl.split(a37)
        lanes = (a0, a1, a2, a3, a4, a5, a6, a7)
    return lanes


@triton.jit
def _with_bit(word, bit, PLACE: tl.constexpr, BY: tl.constexpr):
    """`word` with one bit more, for PLACE = 0 to 31 in turn, from the highest down.

    All three say the same. What the compiler makes of them differs from kernel to kernel: docs/kernels.md
    has the counts.
    """
    VALUE: tl.constexpr = -2147483648 if PLACE == 0 else 1 << (31 - PLACE)
    if BY == "selecting":
        word = tl.where(bit, word + VALUE, word)
    elif BY == "adding":
        word += tl.where(bit, VALUE, 0)
    else:
        word = word * 2 + bit.to(tl.int32)
    return word


@triton.jit
def _unpack(words, g, COLUMNS: tl.constexpr, LANES: tl.constexpr):
    """Group g's bits as a tile of booleans."""
    bits = ()
    for lane in tl.static_range(LANES):
        bits = bits + (((words << (g * LANES + lane)) < 0),)
    return _tile(bits, COLUMNS, LANES)


@triton.jit
def _word(k, plane, PLANES: tl.constexpr, COLUMNS: tl.constexpr):
    """Offsets of this program's words in the packed bits: its planes stand beside each other."""
    program = tl.program_id(0) + tl.num_programs(0).to(tl.int64) * k
    return (program * PLANES + plane) * COLUMNS + tl.arange(0, COLUMNS)


@triton.jit
def _scalars(scale, param, scaled, ARITHMETIC: tl.constexpr):
    # A float argument reaches a kernel as float32, so numbers travel as the integers of their bits. These
    # are annotated: of others Triton takes the type from the value, and the launcher asks for it only once.
    WIDTH: tl.constexpr = tl.int64 if tl.float64 == ARITHMETIC else tl.int32
    scale = scale.to(WIDTH).to(ARITHMETIC, bitcast=True)
    param = param.to(WIDTH).to(ARITHMETIC, bitcast=True)
    scaled = scaled.to(WIDTH).to(ARITHMETIC, bitcast=True)
    return scale, param, scaled


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
        "param",
        "scaled",
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
    scale: "i64",
    param: "i64",
    scaled: "i64",
    seed_ptr,
    offset_ptr,
    FORWARD: tl.constexpr,
    SAVES_FLAG: tl.constexpr,
    MERGES_FLAG: tl.constexpr,
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

    Bytes per element of b bytes: 2 b, and 1/8 for each plane of bits.
    """
    GROUPS: tl.constexpr = 32 // LANES
    STEP: tl.constexpr = COLUMNS if VEC == 1 and not FAST else COLUMNS * LANES
    KEPT_BY: tl.constexpr = (
        "doubling" if FAST and MERGES_FLAG else "adding" if FAST and SAVES_FLAG else "selecting"
    )
    k, first, base, left = _origin(n, blocks, FAST, VEC, LANES, COLUMNS)
    offsets = _offsets(blocks, FAST, VEC, LANES, COLUMNS)
    x_ptr += base
    y_ptr += base
    scale, param, scaled = _scalars(scale, param, scaled, ARITHMETIC)
    # In the interpreter an integer's type goes by its value.
    key = (seed_low.to(tl.uint32), seed_high.to(tl.uint32))
    call = (call_low.to(tl.uint32), call_high.to(tl.uint32))
    if seed_ptr is not None:
        key = _sum(key, tl.load(seed_ptr).to(tl.uint64, bitcast=True))
        call = _sum(call, tl.load(offset_ptr).to(tl.uint64, bitcast=True) >> 2)
    threshold = threshold.to(tl.uint32)

    xs = ()  # all loads are under way before the arithmetic starts
    for g in tl.static_range(GROUPS):
        inside = _inside(g, offsets, first, left, blocks, FAST, VEC, LANES, COLUMNS)
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
        keep = _tile(keeps, COLUMNS, LANES)
        y, flag = FORWARD(xs[g].to(ARITHMETIC), keep, scale, param, scaled, STORED)
        inside = _inside(g, offsets, first, left, blocks, FAST, VEC, LANES, COLUMNS)
        tl.store(y_ptr + g * STEP + offsets, y.to(y_ptr.dtype.element_ty), mask=inside)
        flags = _lanes(flag, COLUMNS, LANES)
        for lane in tl.static_range(LANES):
            bit = keeps[lane] & flags[lane] if MERGES_FLAG else keeps[lane]
            kept = _with_bit(kept, bit, g * LANES + lane, KEPT_BY)
            if SAVES_FLAG:
                flagged = _with_bit(flagged, flags[lane], g * LANES + lane, "selecting")
        if signs_ptr is not None:
            flags = _lanes(xs[g].to(ARITHMETIC) > 0, COLUMNS, LANES)
            for lane in tl.static_range(LANES):
                positive = _with_bit(positive, flags[lane], g * LANES + lane, "selecting")
    PLANES: tl.constexpr = 2 if SAVES_FLAG else 1
    tl.store(bits_ptr + _word(k, 0, PLANES, COLUMNS), kept)
    if SAVES_FLAG:
        tl.store(bits_ptr + _word(k, 1, PLANES, COLUMNS), flagged)
    if signs_ptr is not None:
        tl.store(signs_ptr + _word(k, 0, 1, COLUMNS), positive)


@triton.jit(do_not_specialize=["n", "blocks", "scale", "param", "scaled"])
def backward_kernel(
    dy_ptr,
    x_ptr,
    bits_ptr,
    dx_ptr,
    n: "i64",
    blocks: "i32",
    scale: "i64",
    param: "i64",
    scaled: "i64",
    BACKWARD: tl.constexpr,
    SAVES_FLAG: tl.constexpr,
    SAVES_INPUT: tl.constexpr,
    ARITHMETIC: tl.constexpr,
    STORED: tl.constexpr,
    FAST: tl.constexpr,
    VEC: tl.constexpr,
    LANES: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """dx = dy * (scale if kept else 0) * act'(x) from the bits, and from x where it was saved.

    Bytes per element of b bytes: 2 b, 1/8 for each plane of bits, and b for x where it was saved.
    """
    GROUPS: tl.constexpr = 32 // LANES
    STEP: tl.constexpr = COLUMNS if VEC == 1 and not FAST else COLUMNS * LANES
    k, first, base, left = _origin(n, blocks, FAST, VEC, LANES, COLUMNS)
    offsets = _offsets(blocks, FAST, VEC, LANES, COLUMNS)
    dy_ptr += base
    dx_ptr += base
    if SAVES_INPUT:
        x_ptr += base
    scale, param, scaled = _scalars(scale, param, scaled, ARITHMETIC)

    PLANES: tl.constexpr = 2 if SAVES_FLAG else 1
    kept = tl.load(bits_ptr + _word(k, 0, PLANES, COLUMNS))
    flagged = kept
    if SAVES_FLAG:
        flagged = tl.load(bits_ptr + _word(k, 1, PLANES, COLUMNS))
    dys = ()
    xs = ()
    for g in tl.static_range(GROUPS):
        inside = _inside(g, offsets, first, left, blocks, FAST, VEC, LANES, COLUMNS)
        dys = dys + (tl.load(dy_ptr + g * STEP + offsets, mask=inside),)
        if SAVES_INPUT:
            xs = xs + (tl.load(x_ptr + g * STEP + offsets, mask=inside),)

    for g in tl.static_range(GROUPS):
        keep = _unpack(kept, g, COLUMNS, LANES)
        flag = _unpack(flagged, g, COLUMNS, LANES) if SAVES_FLAG else keep
        dy = dys[g].to(ARITHMETIC)
        x = xs[g].to(ARITHMETIC) if SAVES_INPUT else dy
        dx = BACKWARD(dy, keep, flag, x, scale, param, scaled, STORED)
        inside = _inside(g, offsets, first, left, blocks, FAST, VEC, LANES, COLUMNS)
        tl.store(dx_ptr + g * STEP + offsets, dx.to(dx_ptr.dtype.element_ty), mask=inside)
