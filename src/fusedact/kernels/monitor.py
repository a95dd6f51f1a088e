"""The monitor's two kernels. Per unit they count firing, non-finite and saturated inputs, and add up |h|.

A dense input is [outer, units, inner] in memory. Units are the last axis if inner is 1. Otherwise they
precede a convolution's positions. Counts are 64-bit integers; `fusedact.kernels.counted.Row` describes them.

- `fired_kernel` reads one bit per element. The units repeat after `period` = units * inner elements. So tiles
  of the packed bits whose distance is a multiple of the period have the same units at the same positions. A
  program adds up such tiles bit by bit, 32 elements to an instruction. One plane of words holds the sums'
  ones, another their twos, and so on. At the end the program takes the sums out and adds them to the units'
  counts.
- `input_kernel` reads the input, or every stride-th run of it. A run is a sample's units. After a convolution
  it is the units at some consecutive positions, so that reads are contiguous. A program takes ROUNDS tiles of
  units by samples, whose last axis is contiguous in memory. Within a program |h| is added up in float32
  (float64 for float64), and over programs in float64.
"""

import functools
import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..activations import Activation, Bound, Ranges
from ..masks.plan import Plan
from ..watcher import Counter
from .configuration import WARPS, forward_function, in_tiles, planes
from .counted import Figures, Row, Sampling, Shape
from .launcher import Kernel, capturing
from .tiles import COLUMNS, TILE

ROUNDS = 16  # below 256, since a program keeps four counts in the bytes of a word
INPUT_TILE = 2048
# With fewer tiles of the same units, adding up the sums costs more than reading the input.
SHORTEST = 4
LONGEST = 248  # the most multiple of 8 that 8 planes can count
_PROGRAMS = 256  # about two for each multiprocessor of a large GPU
_AXIS = 65535  # programs along a grid's second and third axis


@triton.jit
def _add(a, b, c):
    """Add three bits in each position; return the words of the sums' ones and of their twos."""
    odd = a ^ b
    return odd ^ c, (a & b) | (odd & c)


@triton.jit(do_not_specialize=["n", "tiles", "chains", "rounds", "units", "inner", "samples"])
def fired_kernel(
    words_ptr,
    counts_ptr,
    n: "i64",
    tiles: "i32",
    chains: "i32",
    rounds: "i32",
    units: "i32",
    inner: "i32",
    samples: "i64",
    STEP: tl.constexpr,
    UNITS_LAST: tl.constexpr,
    ALIKE: tl.constexpr,
    LANES: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Add the number of samples, and each unit's number of set bits, to counts [1 + units].

    `dropout.forward_kernel` has stored the words for n elements. A tile's words begin STEP words after those
    of the tile before. Tiles that are `chains` apart have the same units. ALIKE: all groups have the same
    units.

    Bytes per element: 1/8.
    """
    GROUPS: tl.constexpr = 32 // LANES
    SPAN: tl.constexpr = COLUMNS * LANES  # elements of a group
    columns = tl.arange(0, COLUMNS)
    first = tl.program_id(0) + tl.program_id(1).to(tl.int64) * rounds * chains
    # Forward leaves the bits beyond the end undefined.
    left = (n - (tiles - 1).to(tl.int64) * (32 * COLUMNS)).to(tl.int32)
    zero = tl.zeros([COLUMNS], tl.int32)
    existing = zero
    for place in tl.static_range(32):
        element = place // LANES * SPAN + columns * LANES + place % LANES
        existing = existing * 2 + (element < left).to(tl.int32)

    ones, twos, fours, bits3, bits4, bits5, bits6, bits7 = zero, zero, zero, zero, zero, zero, zero, zero
    words_ptr += first * STEP + columns
    behind = (tiles - 1 - first).to(tl.int32) + zero  # tiles after this one
    done = 0
    while done < rounds:  # the interpreter of Triton 3.6 can't run range() of an argument
        done += 8
        w = ()  # all loads are under way before the first addition
        for _ in tl.static_range(8):
            word = tl.load(words_ptr, mask=behind >= 0, other=0)
            w = w + (tl.where(behind == 0, word & existing, word),)
            words_ptr += chains.to(tl.int64) * STEP
            behind -= chains
        ones, twos0 = _add(ones, w[0], w[1])
        ones, twos1 = _add(ones, w[2], w[3])
        twos, fours0 = _add(twos, twos0, twos1)
        ones, twos0 = _add(ones, w[4], w[5])
        ones, twos1 = _add(ones, w[6], w[7])
        twos, fours1 = _add(twos, twos0, twos1)
        fours, carry = _add(fours, fours0, fours1)
        bits3, carry = bits3 ^ carry, bits3 & carry
        bits4, carry = bits4 ^ carry, bits4 & carry
        bits5, carry = bits5 ^ carry, bits5 & carry
        bits6, carry = bits6 ^ carry, bits6 & carry
        bits7 = bits7 ^ carry

    # Four sums of 8 bits to a word: sums[i] has those of the elements i, 8 + i, 16 + i and 24 + i.
    planes = (ones, twos, fours, bits3, bits4, bits5, bits6, bits7)
    sums = ()
    for i in tl.static_range(8):
        four = zero
        for k in tl.static_range(8):
            four += ((planes[k] >> (7 - i)) & 0x01010101) << k
        sums = sums + (four,)

    if UNITS_LAST:
        inner = 1
    period = units * inner
    begin = (first * (32 * COLUMNS) % period).to(tl.int32)
    for g in tl.static_range(1 if ALIKE else GROUPS):
        place = (begin + g * SPAN + columns * LANES) % period
        unit = place // inner
        rest = (unit + 1) * inner - place  # elements to the next unit's
        fired = zero
        for lane in tl.static_range(LANES):
            for same in tl.static_range(GROUPS if ALIKE else 1):
                four = sums[((g + same) * LANES + lane) % 8]
                fired += (four >> (24 - ((g + same) * LANES + lane) // 8 * 8)) & 255
            rest -= 1
            ends = (rest == 0) | (lane == LANES - 1)
            tl.atomic_add(counts_ptr + 1 + unit, fired.to(tl.int64), mask=ends, sem="relaxed")
            fired = tl.where(ends, 0, fired)
            unit = tl.where(rest == 0, unit + 1, unit)
            unit = tl.where(unit == units, 0, unit)
            rest = tl.where(rest == 0, inner, rest)
    alone = (tl.program_id(0) == 0) & (tl.program_id(1) == 0)
    tl.atomic_add(counts_ptr, samples, mask=alone, sem="relaxed")


_FIRED: tl.constexpr = tl.constexpr(int(Row.FIRED))
_ALIVE: tl.constexpr = tl.constexpr(int(Row.ALIVE))
_NAN: tl.constexpr = tl.constexpr(int(Row.NAN))
_INFINITE: tl.constexpr = tl.constexpr(int(Row.INFINITE))
_SATURATED: tl.constexpr = tl.constexpr(int(Row.SATURATED))
_LEFT_OUT: tl.constexpr = tl.constexpr(int(Row.LEFT_OUT))


@triton.jit
def _within(x, RANGES: tl.constexpr):
    """Return whether x is in one of two ranges, both ends included; the second may be empty."""
    found = (x >= RANGES[0]) & (x <= RANGES[1])
    if RANGES[2] <= RANGES[3]:
        found |= (x >= RANGES[2]) & (x <= RANGES[3])
    return found


@triton.jit
def _count(counts_ptr, units, unit, word, place: tl.constexpr, AXIS: tl.constexpr, row: tl.constexpr):
    """Add one byte of `word`, summed over the samples, to a row of the counts."""
    number = tl.sum((word >> place) & 255, AXIS).to(tl.int64)
    pointer = counts_ptr + row * (units + 1) + 1 + unit
    tl.atomic_add(pointer, number, mask=(unit < units) & (number > 0), sem="relaxed")


@triton.jit(do_not_specialize=["outer", "pieces", "stride", "samples"])
def input_kernel(
    x_ptr,
    counts_ptr,
    activity_ptr,
    outer: "i64",
    pieces: "i32",
    stride: "i64",
    samples: "i64",
    units,
    inner,
    FIRED: tl.constexpr,
    FINITE: tl.constexpr,
    ACTIVITY: tl.constexpr,
    FORWARD: tl.constexpr,
    A: tl.constexpr,
    B: tl.constexpr,
    DEAD: tl.constexpr,
    SATURATED: tl.constexpr,
    UNITS_LAST: tl.constexpr,
    UNITS: tl.constexpr,
    SAMPLES: tl.constexpr,
    ROUNDS: tl.constexpr,
    ARITHMETIC: tl.constexpr,
):
    """Count the figures of every stride-th run, and add them to the rows of counts [6, 1 + units]; see `Row`.

    DEAD and SATURATED are two ranges each, as (low, high, low, high), or None.

    Bytes per element of b bytes that a run has: b.
    """
    AXIS: tl.constexpr = 0 if UNITS_LAST else 1  # of the samples
    SHAPE: tl.constexpr = [SAMPLES, UNITS] if UNITS_LAST else [UNITS, SAMPLES]
    STEP: tl.constexpr = SAMPLES if UNITS_LAST else 1  # runs in a tile
    units_of_tile = tl.program_id(1) * UNITS + tl.arange(0, UNITS)
    unit = tl.expand_dims(units_of_tile, AXIS)
    lanes = tl.expand_dims(tl.arange(0, SAMPLES), 1 - AXIS)
    first = tl.program_id(0).to(tl.int64) * (STEP * ROUNDS)

    a = tl.full([], A, ARITHMETIC)
    b = tl.full([], B, ARITHMETIC)
    found = tl.zeros(SHAPE, tl.int32)  # bytes: fired, alive, NaN, infinite
    read = tl.zeros(SHAPE, tl.int32)  # bytes: saturated, left out
    activity = tl.zeros(SHAPE, ARITHMETIC)
    for i in range(ROUNDS):
        if UNITS_LAST:
            sample = (first + i * STEP + lanes) * stride
            position = tl.zeros_like(lanes)
        else:
            run = (first + i) * stride
            sample = run // pieces + tl.zeros_like(lanes)
            position = (run % pieces).to(tl.int32) * SAMPLES + lanes
        inside = (unit < units) & (sample < outer) & (position < inner)
        offsets = (sample * units + unit) * inner + position
        x = tl.load(x_ptr + offsets, mask=inside, other=0.0).to(ARITHMETIC)
        if FIRED:
            found += (x > 0).to(tl.int32)
            if DEAD is not None:
                found += (inside & ~_within(x, DEAD)).to(tl.int32) << 8
        if FINITE:
            found += (x != x).to(tl.int32) << 16
            found += (tl.abs(x) == float("inf")).to(tl.int32) << 24
        if ACTIVITY:
            h = tl.abs(FORWARD(x, a, b))
            finite = (tl.abs(x) < float("inf")) & (h < float("inf"))
            activity += tl.where(inside & finite, h, 0.0)
            read += (inside & ~finite).to(tl.int32) << 8
            if SATURATED is not None:
                read += (inside & _within(x, SATURATED)).to(tl.int32)

    alone = (tl.program_id(0) == 0) & (tl.program_id(1) == 0)
    row = units + 1
    if FIRED:
        _count(counts_ptr, units, units_of_tile, found, 0, AXIS, _FIRED)
        tl.atomic_add(counts_ptr + _FIRED * row, samples, mask=alone, sem="relaxed")
        if DEAD is not None:
            _count(counts_ptr, units, units_of_tile, found, 8, AXIS, _ALIVE)
    if FINITE:
        _count(counts_ptr, units, units_of_tile, found, 16, AXIS, _NAN)
        _count(counts_ptr, units, units_of_tile, found, 24, AXIS, _INFINITE)
        tl.atomic_add(counts_ptr + _NAN * row, samples, mask=alone, sem="relaxed")
    if ACTIVITY:
        if SATURATED is not None:
            _count(counts_ptr, units, units_of_tile, read, 0, AXIS, _SATURATED)
        _count(counts_ptr, units, units_of_tile, read, 8, AXIS, _LEFT_OUT)
        tl.atomic_add(counts_ptr + _SATURATED * row, samples, mask=alone, sem="relaxed")
        tl.atomic_add(counts_ptr + _ALIVE * row, 1, mask=alone, sem="relaxed")
        total = tl.sum(activity, AXIS).to(tl.float64)
        tl.atomic_add(activity_ptr + units_of_tile, total, mask=units_of_tile < units, sem="relaxed")


@functools.lru_cache(maxsize=4096)
def _fired(n: int, units: int, inner: int, planes: int, lanes: int) -> tuple[Any, ...] | None:
    """Return kernel, grid and scalars; None if too few tiles share their units, or the grid is too large."""
    period = units * inner
    tiles, chains = triton.cdiv(n, TILE), period // math.gcd(period, TILE)
    longest = triton.cdiv(tiles, chains)
    rounds = min(LONGEST, max(ROUNDS, triton.cdiv(tiles, 8 * _PROGRAMS) * 8), triton.cdiv(longest, 8) * 8)
    grid = chains, triton.cdiv(longest, rounds), 1
    if period > 2**30 or tiles < SHORTEST * chains or grid[1] > _AXIS:
        return None
    kernel = _fired_kernel(planes * COLUMNS, inner == 1, COLUMNS * lanes % period == 0, lanes)
    return kernel, grid, (n, tiles, chains, rounds, units, inner, n // units)


@functools.cache
def _fired_kernel(step: int, units_last: bool, alike: bool, lanes: int) -> Kernel:
    return Kernel(
        fired_kernel,
        {
            "STEP": step,
            "UNITS_LAST": units_last,
            "ALIKE": alike,
            "LANES": lanes,
            "COLUMNS": COLUMNS,
            "num_warps": WARPS,
            "enable_fp_fusion": False,  # as in `configuration.constants`
        },
    )


def fired_counter(row: Activation, n: int, plan: Plan, shape: Shape, counts: Tensor) -> Counter | None:
    """Return a function that counts samples and positive inputs from signs; None if no kernel can."""
    stored = planes(row)
    launch = _fired(n, shape.units, shape.inner, stored, plan.lanes) if in_tiles(n, plan) else None
    if launch is None or not _free(launch[0], counts):
        return None
    kernel, grid, scalars = launch

    def count(signs: Tensor) -> None:
        kernel(grid, (signs.view(-1, stored, COLUMNS)[:, -1], counts), scalars)

    return count


class _Launch(NamedTuple):
    """A kernel, its grid, and its scalars before and after the number of samples."""

    kernel: Kernel
    grid: tuple[int, int, int]
    before: tuple[int, ...]
    after: tuple[int, ...]


@functools.lru_cache(maxsize=4096)
def _input(
    bound: Bound,
    dtype: torch.dtype,
    shape: Shape,
    run: int,
    stride: int,
    figures: Figures,
) -> _Launch | None:
    """Return the launch; None if the grid is too large, or float32 can't hold a parameter."""
    outer, units, inner = shape
    pieces = triton.cdiv(inner, run)
    runs = triton.cdiv(outer * pieces, stride)
    samples = (
        triton.next_power_of_2(run) if inner > 1 else INPUT_TILE // min(triton.next_power_of_2(units), 128)
    )
    tile_units = INPUT_TILE // samples
    grid = triton.cdiv(runs, ROUNDS * (samples if inner == 1 else 1)), triton.cdiv(units, tile_units), 1
    if grid[1] > _AXIS or any(abs(value) > 1e38 for value in bound.values):
        return None
    # Triton specialises a kernel by units and inner.
    kernel = _input_kernel(bound, dtype, figures, units, inner, tile_units, samples)
    return _Launch(kernel, grid, (outer, pieces, stride), (units, inner))


@functools.lru_cache(maxsize=4096)
def _input_kernel(
    bound: Bound,
    dtype: torch.dtype,
    figures: Figures,
    units: int,
    inner: int,
    tile_units: int,
    samples: int,
) -> Kernel:
    a, b, *_ = (*bound.row.values_in(bound.values, dtype), 0.0, 0.0)
    return Kernel(
        input_kernel,
        {
            "FIRED": figures.fired,
            "FINITE": figures.finite,
            "ACTIVITY": figures.activity,
            "FORWARD": forward_function(bound.row, dtype),
            "A": a,
            "B": b,
            "DEAD": None if bound.dies_where_negative else _two(bound.dead),
            "SATURATED": _two(bound.saturated),
            "UNITS_LAST": inner == 1,
            "UNITS": tile_units,
            "SAMPLES": samples,
            "ROUNDS": ROUNDS,
            "ARITHMETIC": tl.float64 if dtype is torch.float64 else tl.float32,
            "enable_fp_fusion": False,  # as in `configuration.constants`
        },
    )


def _two(ranges: Ranges) -> tuple[float, ...] | None:
    """Return at most two ranges as four numbers; None for no range."""
    return (*ranges[0], *(ranges[1] if len(ranges) > 1 else (math.inf, -math.inf))) if ranges else None


def count_input(
    bound: Bound, x: Tensor, sampling: Sampling, figures: Figures, counts: Tensor, activity: Tensor
) -> bool:
    """Add the figures of a dense `x` to its counts, and |h| to `activity`; return False if no launch can."""
    shape, run, stride, samples = sampling
    launch = _input(bound, x.dtype, shape, run, stride, figures)
    if launch is None or not _free(launch.kernel, x):
        return False
    return launch.kernel(launch.grid, (x, counts, activity), (*launch.before, samples, *launch.after))


def _free(kernel: Kernel, tensor: Tensor) -> bool:
    """Whether `kernel` can be launched now; while a graph is captured, only if it is loaded."""
    return not capturing(tensor) or kernel.loaded(tensor.get_device())
