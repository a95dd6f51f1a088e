"""What `fusedact.activity` counts of an activation's input, per unit, in one read of it.

A dense input is [outer, units, inner] in memory: units stand last where inner is 1, and before a
convolution's positions otherwise. A program takes a tile of units by samples, its last axis the one along
which memory runs, goes ROUNDS tiles further along outer, adds up in registers, and ends with one atomic
addition per unit and figure. Counts are 64-bit integers; |h| is added up in float32 within a program
(float64 for float64), in float64 over programs.
"""

import functools
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..activations import Activation
from . import activations

TILE = 2048
ROUNDS = 16
_AXIS = 65535  # programs along a grid's second and third axis


@triton.jit
def activity_kernel(
    x_ptr,
    counts_ptr,
    activity_ptr,
    outer,
    units,
    inner,
    FORWARD: tl.constexpr,
    PARAMETER: tl.constexpr,
    SATURATION: tl.constexpr,
    UNITS_LAST: tl.constexpr,
    UNITS: tl.constexpr,
    SAMPLES: tl.constexpr,
    ROUNDS: tl.constexpr,
    ARITHMETIC: tl.constexpr,
):
    """Add to counts [3, units] positive, saturated and all inputs, and to activity [units] the sum of |h|.

    Bytes per element of b bytes: b.
    """
    AXIS: tl.constexpr = 0 if UNITS_LAST else 1  # of the samples
    SHAPE: tl.constexpr = [SAMPLES, UNITS] if UNITS_LAST else [UNITS, SAMPLES]
    STEP: tl.constexpr = SAMPLES if UNITS_LAST else 1  # outer samples in a tile
    units_of_tile = tl.program_id(1) * UNITS + tl.arange(0, UNITS)
    unit = tl.expand_dims(units_of_tile, AXIS)
    lanes = tl.expand_dims(tl.arange(0, SAMPLES), 1 - AXIS)
    # A unit's samples are outer ones where units stand last, else inner ones.
    row, position = lanes, tl.zeros_like(lanes)
    if not UNITS_LAST:
        row, position = position, tl.program_id(2) * SAMPLES + lanes
    first = tl.program_id(0).to(tl.int64) * (STEP * ROUNDS)

    one = tl.full([], 1.0, ARITHMETIC)
    parameter = tl.full([], PARAMETER, ARITHMETIC)
    fired = tl.zeros(SHAPE, tl.int32)
    saturated = tl.zeros(SHAPE, tl.int32)
    activity = tl.zeros(SHAPE, ARITHMETIC)
    for i in range(ROUNDS):
        sample = first + i * STEP + row
        inside = (unit < units) & (sample < outer) & (position < inner)
        offsets = (sample * units + unit) * inner + position
        x = tl.load(x_ptr + offsets, mask=inside, other=0.0).to(ARITHMETIC)
        h, _ = FORWARD(x, inside, one, parameter, parameter, ARITHMETIC)
        fired += (x > 0).to(tl.int32)
        if SATURATION is not None:
            saturated += (inside & (x < SATURATION)).to(tl.int32)
        activity += tl.abs(h)

    inside = units_of_tile < units
    counts_ptr += units_of_tile
    tl.atomic_add(counts_ptr, tl.sum(fired, AXIS).to(tl.int64), mask=inside, sem="relaxed")
    if SATURATION is not None:
        number = tl.sum(saturated, AXIS).to(tl.int64)
        tl.atomic_add(counts_ptr + units, number, mask=inside, sem="relaxed")
    number = tl.minimum(outer - first, STEP * ROUNDS)
    if not UNITS_LAST:
        number *= tl.minimum(inner - tl.program_id(2) * SAMPLES, SAMPLES)
    number += tl.zeros([UNITS], tl.int64)
    tl.atomic_add(counts_ptr + 2 * units, number, mask=inside, sem="relaxed")
    total = tl.sum(activity, AXIS).to(tl.float64)
    tl.atomic_add(activity_ptr + units_of_tile, total, mask=inside, sem="relaxed")


@functools.lru_cache(maxsize=4096)
def _launch(
    activation: Activation, parameter: float, double: bool, outer: int, units: int, inner: int
) -> tuple[tuple[int, int, int], dict[str, Any]]:
    """The grid, and the compile-time arguments."""
    last = inner == 1
    if last:
        tile_units = min(triton.next_power_of_2(units), 128)
        samples = TILE // tile_units
        grid = (triton.cdiv(outer, samples * ROUNDS), triton.cdiv(units, tile_units), 1)
    else:
        samples = min(triton.next_power_of_2(inner), 512)
        tile_units = TILE // samples
        grid = (triton.cdiv(outer, ROUNDS), triton.cdiv(units, tile_units), triton.cdiv(inner, samples))
    return grid, {
        "FORWARD": getattr(activations, f"{activation.name}_forward"),
        "PARAMETER": parameter,
        "SATURATION": activation.saturation,
        "UNITS_LAST": last,
        "UNITS": tile_units,
        "SAMPLES": samples,
        "ROUNDS": ROUNDS,
        "ARITHMETIC": tl.float64 if double else tl.float32,
        "enable_fp_fusion": False,  # as in `launch.specialisation`
    }


def count(
    activation: Activation, x: Tensor, dim: int, parameter: float, counts: Tensor, activity: Tensor
) -> bool:
    """Add `x` to the tally of its units along `dim` (see `fusedact.activity.count`); False if it can't."""
    if not torch.ops.aten.is_non_overlapping_and_dense.default(x) or x.is_neg():
        x = x.clone(memory_format=torch.contiguous_format)
    units = x.shape[dim]
    inner = x.stride(dim) if units > 1 else 1
    outer = x.numel() // (units * inner)
    grid, constants = _launch(activation, parameter, x.dtype is torch.float64, outer, units, inner)
    if max(grid[1:]) > _AXIS or abs(parameter) > 1e38:
        return False
    with torch.cuda.device_of(x):
        activity_kernel[grid](x, counts, activity, outer, units, inner, **constants)
    return True
