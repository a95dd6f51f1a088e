"""What `fusedact.counting` counts per unit: how often it fires, and of a sample of the input the rest.

A dense input is [outer, units, inner] in memory: units stand last where inner is 1, and before a
convolution's positions otherwise. Counts are 64-bit integers.

- `fired_kernel` reads one bit per element. After `period` = units * inner elements the units are the same
  again, so tiles of the packed bits that are a multiple of it apart have the same units at the same places.
  A program adds up such tiles bit by bit, 32 elements to an instruction: a plane of words holds the sums'
  ones, another their twos, and so on. At the end it takes the sums out and adds them to the units'.
- `input_kernel` reads the input, or every stride-th run of it: a run is a sample's units, or of a
  convolution's output the units at some consecutive positions, so that what is read stands together. A
  program takes a tile of units by samples, its last axis the one along which memory runs, and ROUNDS such
  tiles. |h| is added up in float32 within a program (float64 for float64), in float64 over programs.

What both add to is described at `fusedact.counting.Tally`.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import random
from ..activations import Activation
from ..random import Plan
from . import activations
from .dropout import COLUMNS, TILE
from .launch import WARPS, Kernel, in_tiles, planes

Shape = tuple[int, int, int]  # outer, units, inner

ROUNDS = 16
INPUT_TILE = 2048
# In fewer tiles with the same units, to take the sums out costs more than to read the input.
SHORTEST = 4
LONGEST = 248  # the most multiple of 8 that 8 planes can count
_PROGRAMS = 256  # about two for each multiprocessor of a large GPU
_AXIS = 65535  # programs along a grid's second and third axis


@triton.jit
def _add(a, b, c):
    """The sums of three bits each, as words of their ones and of their twos."""
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
    """Add to counts [1 + units] the number of samples and each unit's bits that are set.

    Words stand in memory as `dropout.forward_kernel` stores them, those of a tile STEP words after the last
    one's; n elements exist. Tiles that are `chains` apart have the same units. ALIKE: so have all groups.

    Bytes per element: 1/8.
    """
    GROUPS: tl.constexpr = 32 // LANES
    SPAN: tl.constexpr = COLUMNS * LANES  # elements of a group
    columns = tl.arange(0, COLUMNS)
    first = tl.program_id(0) + tl.program_id(1).to(tl.int64) * rounds * chains
    # What stands beyond the end, forward leaves undefined.
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
    while done < rounds:  # range() of an argument is more than the interpreter of Triton 3.6 can do
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
    ACTIVITY: tl.constexpr,
    FORWARD: tl.constexpr,
    PARAMETER: tl.constexpr,
    SATURATION: tl.constexpr,
    UNITS_LAST: tl.constexpr,
    UNITS: tl.constexpr,
    SAMPLES: tl.constexpr,
    ROUNDS: tl.constexpr,
    ARITHMETIC: tl.constexpr,
):
    """Add up every stride-th run: with FIRED its positive inputs, with ACTIVITY |h| and its saturated inputs.

    FIRED adds to the first row of counts [2, 1 + units], ACTIVITY to the second and to activity [units]; a
    row begins with the number of samples.

    Bytes per element of b bytes that a run has: b.
    """
    AXIS: tl.constexpr = 0 if UNITS_LAST else 1  # of the samples
    SHAPE: tl.constexpr = [SAMPLES, UNITS] if UNITS_LAST else [UNITS, SAMPLES]
    STEP: tl.constexpr = SAMPLES if UNITS_LAST else 1  # runs in a tile
    units_of_tile = tl.program_id(1) * UNITS + tl.arange(0, UNITS)
    unit = tl.expand_dims(units_of_tile, AXIS)
    lanes = tl.expand_dims(tl.arange(0, SAMPLES), 1 - AXIS)
    first = tl.program_id(0).to(tl.int64) * (STEP * ROUNDS)

    one = tl.full([], 1.0, ARITHMETIC)
    parameter = tl.full([], PARAMETER, ARITHMETIC)
    fired = tl.zeros(SHAPE, tl.int32)
    saturated = tl.zeros(SHAPE, tl.int32)
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
            fired += (x > 0).to(tl.int32)
        if ACTIVITY:
            h, _ = FORWARD(x, inside, one, parameter, parameter, ARITHMETIC)
            activity += tl.abs(h)
            if SATURATION is not None:
                saturated += (x < SATURATION).to(tl.int32)

    inside = units_of_tile < units
    alone = (tl.program_id(0) == 0) & (tl.program_id(1) == 0)
    if FIRED:
        number = tl.sum(fired, AXIS).to(tl.int64)
        tl.atomic_add(counts_ptr + 1 + units_of_tile, number, mask=inside, sem="relaxed")
        tl.atomic_add(counts_ptr, samples, mask=alone, sem="relaxed")
    if ACTIVITY:
        counts_ptr += units + 1
        if SATURATION is not None:
            number = tl.sum(saturated, AXIS).to(tl.int64)
            tl.atomic_add(counts_ptr + 1 + units_of_tile, number, mask=inside, sem="relaxed")
        tl.atomic_add(counts_ptr, samples, mask=alone, sem="relaxed")
        total = tl.sum(activity, AXIS).to(tl.float64)
        tl.atomic_add(activity_ptr + units_of_tile, total, mask=inside, sem="relaxed")


@functools.lru_cache(maxsize=4096)
def _fired(n: int, units: int, inner: int, planes: int, lanes: int) -> tuple[Any, ...] | None:
    """Kernel, grid and scalars; None where sums would be taken out of too few tiles, or beyond a grid."""
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
            "enable_fp_fusion": False,  # as in `launch.specialisation`
        },
        reads=1,
    )


def fired_counter(
    activation: Activation, n: int, plan: Plan, shape: Shape, counts: Tensor
) -> Callable[[Tensor], None] | None:
    """What counts positive inputs and samples, given `launch.forward_with_signs`' signs; None if it can't."""
    stored = planes(activation)
    launch = _fired(n, *shape[1:], stored, plan.lanes) if in_tiles(n, plan) else None
    if launch is None or not _free(launch[0], counts):
        return None
    kernel, grid, scalars = launch
    return lambda signs: kernel(grid, signs.view(-1, stored, COLUMNS)[:, -1], (counts,), scalars)


@functools.lru_cache(maxsize=4096)
def _input(
    activation: Activation,
    dtype: torch.dtype,
    parameter: float,
    shape: Shape,
    run: int,
    stride: int,
    figures: tuple[bool, bool],
) -> tuple[Any, ...] | None:
    """Kernel, grid and scalars; None beyond what a grid or float32 can hold."""
    outer, units, inner = shape
    pieces = triton.cdiv(inner, run)
    runs = triton.cdiv(outer * pieces, stride)
    samples = (
        triton.next_power_of_2(run) if inner > 1 else INPUT_TILE // min(triton.next_power_of_2(units), 128)
    )
    tile_units = INPUT_TILE // samples
    grid = triton.cdiv(runs, ROUNDS * (samples if inner == 1 else 1)), triton.cdiv(units, tile_units), 1
    if grid[1] > _AXIS or abs(parameter) > 1e38:
        return None
    # Triton specialises a kernel by units and inner.
    kernel = _input_kernel(activation, dtype, parameter, figures, units, inner, tile_units, samples)
    return kernel, grid, (outer, pieces, stride), (units, inner)


@functools.lru_cache(maxsize=4096)
def _input_kernel(
    activation: Activation,
    dtype: torch.dtype,
    parameter: float,
    figures: tuple[bool, bool],
    units: int,
    inner: int,
    tile_units: int,
    samples: int,
) -> Kernel:
    return Kernel(
        input_kernel,
        {
            "FIRED": figures[0],
            "ACTIVITY": figures[1],
            "FORWARD": getattr(activations, f"{activation.name}_forward"),
            "PARAMETER": parameter,
            "SATURATION": activation.saturation,
            "UNITS_LAST": inner == 1,
            "UNITS": tile_units,
            "SAMPLES": samples,
            "ROUNDS": ROUNDS,
            "ARITHMETIC": tl.float64 if dtype is torch.float64 else tl.float32,
            "enable_fp_fusion": False,  # as in `launch.specialisation`
        },
        reads=1,
    )


def count_input(
    activation: Activation,
    parameter: float,
    x: Tensor,
    shape: Shape,
    run: int,
    stride: int,
    samples: int,
    figures: tuple[bool, bool],
    counts: Tensor,
    activity: Tensor,
) -> bool:
    """Add every stride-th run, `samples` in all, to a tally; False if it can't.

    `x` is dense, `run` the most positions of a run. Figures are what fired, and |h| with what is saturated.
    """
    launch = _input(activation, x.dtype, parameter, shape, run, stride, figures)
    if launch is None or not _free(launch[0], x):
        return False
    kernel, grid, first, last = launch
    kernel(grid, x, (counts, activity), (*first, samples, *last))
    return True


def _free(kernel: Kernel, tensor: Tensor) -> bool:
    """Whether it can be launched now: nothing can be loaded while a graph is captured."""
    return not (tensor.is_cuda and random.is_capturing(tensor)) or kernel.ready(tensor.get_device())
