"""The two kernels, activation + dropout forward and backward, for every activation and dtype.

Both walk the same tile. A program owns GROUPS x COLUMNS counters of Philox and, for each, LANES
elements: 32 elements for each of COLUMNS columns, so that a column's bits make one 32-bit word. Where
the compiler gives a column to a thread (for VEC > 1, Triton 3.8 and later do), packing and unpacking
need no other thread. Which elements those are
follows the loop of PyTorch's own dropout kernel, whose masks this reproduces: with T = 256 * blocks
threads, iteration k and thread idx, the elements are

    VEC > 1:  (k T + idx) VEC + lane      VEC consecutive elements, one 16-byte access
    VEC = 1:  (4 k + lane) T + idx        the 4 words of one Philox call, T apart

The grid's first axis covers idx; the other two cover k, so that neither needs a division.
"""

import triton
import triton.language as tl

from .philox import philox4x32

COLUMNS = 128
WARPS = 4
WORD = 32


def lanes(vec):
    """Elements of one Philox counter (of one 16-byte access, but for vec = 1)."""
    return 4 if vec == 1 else vec


@triton.jit
def _tile(n, blocks, VEC: tl.constexpr, LANES: tl.constexpr, COLUMNS: tl.constexpr):
    """This program's iteration k, its idx, and its elements: a 64-bit base, 32-bit offsets, which exist."""
    GROUPS: tl.constexpr = 32 // LANES
    k = tl.program_id(2) * tl.num_programs(1) + tl.program_id(1)
    threads = blocks * 256
    rows = tl.arange(0, GROUPS)[:, None]
    columns = tl.arange(0, COLUMNS)[None, :]
    idx = (tl.program_id(0) * GROUPS + rows) * COLUMNS + columns
    lane = tl.arange(0, LANES)[None, None, :]
    if VEC == 1:
        base = k.to(tl.int64) * (threads * 4)
        offsets = idx[:, :, None] + lane * threads
        left = tl.maximum(tl.minimum(n.to(tl.int64) - base, 4 * threads), 0).to(tl.int32)
        inside = (idx < threads)[:, :, None] & (offsets < left)
    else:
        chunk = k.to(tl.int64) * threads
        base = chunk * VEC
        offsets = idx[:, :, None] * VEC + lane
        left = tl.maximum(tl.minimum(n.to(tl.int64) // VEC - chunk, threads), 0).to(tl.int32)
        inside = (idx < left)[:, :, None]
    return k, idx, base, offsets, inside


@triton.jit
def _word(k, plane, PLANES: tl.constexpr, COLUMNS: tl.constexpr):
    """Offsets of this program's words in the packed bits: its planes stand beside each other."""
    program = k.to(tl.int64) * tl.num_programs(0) + tl.program_id(0)
    return (program * PLANES + plane) * COLUMNS + tl.arange(0, COLUMNS)


@triton.jit
def _shifts(LANES: tl.constexpr):
    """The place of each of a column's 32 elements in its word."""
    rows = tl.arange(0, 32 // LANES)[:, None, None]
    return rows * LANES + tl.arange(0, LANES)[None, None, :]


@triton.jit
def _pack(bit, LANES: tl.constexpr):
    return tl.sum(tl.sum(tl.where(bit, 1 << _shifts(LANES), 0), axis=2), axis=0)


@triton.jit
def _unpack(words, LANES: tl.constexpr):
    return (words[None, :, None] & (1 << _shifts(LANES))) != 0


@triton.jit
def _scalars(scale, param, scaled, ARITHMETIC: tl.constexpr):
    # A float argument reaches a kernel as float32: float64 travels as its 64 bits.
    if tl.float64 == ARITHMETIC:
        scale = scale.to(tl.int64).to(tl.float64, bitcast=True)
        param = param.to(tl.int64).to(tl.float64, bitcast=True)
        scaled = scaled.to(tl.int64).to(tl.float64, bitcast=True)
    return scale, param, scaled


@triton.jit
def _random(idx, k, seed_low, seed_high, call_low, call_high, VEC: tl.constexpr, LANES: tl.constexpr):
    """The 32 random bits that PyTorch's dropout kernel compares with the keep probability, per lane."""
    zero = tl.zeros_like(idx).to(tl.uint32)
    idx = idx.to(tl.uint32)
    key0 = seed_low.to(tl.uint32, bitcast=True)
    key1 = seed_high.to(tl.uint32, bitcast=True)
    call = call_high.to(tl.uint32, bitcast=True).to(tl.uint64) << 32
    call += call_low.to(tl.uint32, bitcast=True).to(tl.uint64)
    call += k.to(tl.uint64) * (2 if VEC == 8 else 1)
    a0, a1, a2, a3 = philox4x32(call.to(tl.uint32), (call >> 32).to(tl.uint32), idx, zero, key0, key1, 10)
    if LANES == 2:
        words = (a0, a1)
    elif LANES == 4:
        words = (a0, a1, a2, a3)
    else:
        call += 1
        b0, b1, b2, b3 = philox4x32(call.to(tl.uint32), (call >> 32).to(tl.uint32), idx, zero, key0, key1, 10)
        words = (a0, a1, a2, a3, b0, b1, b2, b3)
    return words


@triton.jit
def _tile_of(words, LANES: tl.constexpr):
    """The words as a tile whose last axis is the lane."""
    # A join makes its arguments neighbours along a new last axis, so the last join is the lowest
    # bit of the lane.
    if LANES == 2:
        tile = tl.join(words[0], words[1])
    elif LANES == 4:
        tile = tl.join(tl.join(words[0], words[2]), tl.join(words[1], words[3]))
    else:
        even = tl.join(tl.join(words[0], words[4]), tl.join(words[2], words[6]))
        odd = tl.join(tl.join(words[1], words[5]), tl.join(words[3], words[7]))
        tile = tl.join(even, odd)
    return tl.reshape(tile, [words[0].shape[0], words[0].shape[1], LANES])


@triton.jit
def _pack_kept(words, threshold, LANES: tl.constexpr):
    """What `_pack` gives for the tile of `words < threshold`, lane by lane.

    A reduction of that tile would have a layout of its own, in which the compiler would draw all
    numbers a second time; these columns are in the layout that they were drawn in.
    """
    places = (tl.arange(0, 32 // LANES) * LANES)[:, None]
    packed = tl.zeros_like(words[0]).to(tl.int32)
    for lane in tl.static_range(LANES):
        packed += tl.where(words[lane] < threshold, 1 << (places + lane), 0)
    return tl.sum(packed, axis=0)


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
    ]
)
def forward_kernel(
    x_ptr,
    y_ptr,
    bits_ptr,
    n: "i64",
    blocks: "i32",
    seed_low: "i32",
    seed_high: "i32",
    call_low: "i32",
    call_high: "i32",
    threshold: "i32",
    scale,
    param,
    scaled,
    FORWARD: tl.constexpr,
    SAVES_FLAG: tl.constexpr,
    MERGES_FLAG: tl.constexpr,
    ARITHMETIC: tl.constexpr,
    STORED: tl.constexpr,
    VEC: tl.constexpr,
    LANES: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """y = act(x) * (scale if kept else 0), and the bits that backward needs.

    Bytes per element of b bytes: 2 b, and 1/8 for each plane of bits.
    """
    k, idx, base, offsets, inside = _tile(n, blocks, VEC, LANES, COLUMNS)
    x = tl.load(x_ptr + base + offsets, mask=inside, other=0.0).to(ARITHMETIC)
    words = _random(idx, k, seed_low, seed_high, call_low, call_high, VEC, LANES)
    threshold = threshold.to(tl.uint32, bitcast=True)
    keep = _tile_of(words, LANES) < threshold
    scale, param, scaled = _scalars(scale, param, scaled, ARITHMETIC)
    y, flag = FORWARD(x, keep, scale, param, scaled, STORED)
    tl.store(y_ptr + base + offsets, y.to(y_ptr.dtype.element_ty), mask=inside)
    PLANES: tl.constexpr = 2 if SAVES_FLAG else 1
    kept = _pack(keep & flag, LANES) if MERGES_FLAG else _pack_kept(words, threshold, LANES)
    tl.store(bits_ptr + _word(k, 0, PLANES, COLUMNS), kept)
    if SAVES_FLAG:
        tl.store(bits_ptr + _word(k, 1, PLANES, COLUMNS), _pack(flag, LANES))


@triton.jit(do_not_specialize=["n", "blocks", "scale", "param", "scaled"])
def backward_kernel(
    dy_ptr,
    x_ptr,
    bits_ptr,
    dx_ptr,
    n: "i64",
    blocks: "i32",
    scale,
    param,
    scaled,
    BACKWARD: tl.constexpr,
    SAVES_FLAG: tl.constexpr,
    SAVES_INPUT: tl.constexpr,
    ARITHMETIC: tl.constexpr,
    STORED: tl.constexpr,
    VEC: tl.constexpr,
    LANES: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """dx = dy * (scale if kept else 0) * act'(x) from the bits, and from x where it was saved.

    Bytes per element of b bytes: 2 b, 1/8 for each plane of bits, and b for x where it was saved.
    """
    k, _, base, offsets, inside = _tile(n, blocks, VEC, LANES, COLUMNS)
    dy = tl.load(dy_ptr + base + offsets, mask=inside, other=0.0).to(ARITHMETIC)
    PLANES: tl.constexpr = 2 if SAVES_FLAG else 1
    keep = _unpack(tl.load(bits_ptr + _word(k, 0, PLANES, COLUMNS)), LANES)
    flag = keep
    if SAVES_FLAG:
        flag = _unpack(tl.load(bits_ptr + _word(k, 1, PLANES, COLUMNS)), LANES)
    x = dy
    if SAVES_INPUT:
        x = tl.load(x_ptr + base + offsets, mask=inside, other=0.0).to(ARITHMETIC)
    scale, param, scaled = _scalars(scale, param, scaled, ARITHMETIC)
    dx = BACKWARD(dy, keep, flag, x, scale, param, scaled, STORED)
    tl.store(dx_ptr + base + offsets, dx.to(dx_ptr.dtype.element_ty), mask=inside)
