"""The walk of a program through its tile, for both kernels: positions, bounds, lanes and packed bits.

A program owns COLUMNS columns of 32 elements, one column per thread. A column has GROUPS groups of LANES
elements, and a thread reads a group in one 16-byte access. A column's bits make one 32-bit word, in which the
first element has the highest bit. Between the loads and the stores, all values are tensors of one dimension
per lane, or tiles joined from them. Random numbers and accesses have the same layout, so nothing moves
between threads (docs/kernels.md).

The mapping decides the elements that a program owns:

- eager follows the loop of PyTorch's own dropout kernel, whose masks it reproduces. With
  T = 256 * blocks threads, iteration k and thread idx, the elements are

      VEC > 1:  (k T + idx) VEC + lane      VEC consecutive elements
      VEC = 1:  (4 k + lane) T + idx        the 4 words of one Philox call, T apart

  The grid's first axis covers idx; the other two cover k, so that neither needs a division.
- fast takes TILE = 32 COLUMNS consecutive elements per program.
"""

import triton
import triton.language as tl

COLUMNS = 128
WORD = 32
TILE = COLUMNS * WORD


@triton.jit
def origin(n, blocks, FAST: tl.constexpr, VEC: tl.constexpr, LANES: tl.constexpr, COLUMNS: tl.constexpr):
    """Return eager's iteration k, this program's first idx, its first element and the elements left from it.

    The first element's position has 64 bits. Positions relative to it have 32.
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
def offsets_of(blocks, FAST: tl.constexpr, VEC: tl.constexpr, LANES: tl.constexpr, COLUMNS: tl.constexpr):
    """Return the positions of group 0's elements, relative to the program's first one: [COLUMNS, LANES]."""
    columns = tl.arange(0, COLUMNS)[:, None]
    lane = tl.arange(0, LANES)[None, :]
    return columns + lane * (blocks * 256) if VEC == 1 and not FAST else columns * LANES + lane


@triton.jit
def inside_of(
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
    """Return which elements of group g exist. If VEC > 1, one check serves a whole access."""
    if VEC > 1:
        inside = (tl.arange(0, COLUMNS) * LANES < left - g * COLUMNS * LANES)[:, None]
    elif FAST:
        inside = offsets < left - g * COLUMNS * LANES
    else:
        thread = first + g * COLUMNS + tl.arange(0, COLUMNS)
        inside = (thread < blocks * 256)[:, None] & (offsets < left - g * COLUMNS)
    return inside


@triton.jit
def joined(lanes, COLUMNS: tl.constexpr, LANES: tl.constexpr):
    """Join LANES tensors [COLUMNS] to one tile [COLUMNS, LANES], without moving data between threads."""
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
def split(tile, COLUMNS: tl.constexpr, LANES: tl.constexpr):
    """Split a tile into its lanes, the inverse of `joined`."""
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
def with_bits(words, bits, g: tl.constexpr, LANES: tl.constexpr):
    """Return the words with group g's bits added, given by lane; the first element's bit is the highest."""
    for lane in tl.static_range(LANES):
        # As a signed number the highest bit is -2^31.
        words = tl.where(
            bits[lane], words + (-(2**31) if g + lane == 0 else 2 ** (31 - g * LANES - lane)), words
        )
    return words


@triton.jit
def unpack(words, g, COLUMNS: tl.constexpr, LANES: tl.constexpr):
    """Return group g's bits as a tile of booleans."""
    bits = ()
    for lane in tl.static_range(LANES):
        bits = bits + (((words << (g * LANES + lane)) < 0),)
    return joined(bits, COLUMNS, LANES)


@triton.jit
def word_offsets(k, plane, PLANES: tl.constexpr, COLUMNS: tl.constexpr):
    """Return the offsets of this program's words of one plane; a program's planes are adjacent."""
    program = tl.program_id(0) + tl.num_programs(0).to(tl.int64) * k
    return (program * PLANES + plane) * COLUMNS + tl.arange(0, COLUMNS)
