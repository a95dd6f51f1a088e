"""Launch configurations, computed once per layer and size, and the shapes of grids and packed bits."""

import functools
import struct
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..activations import Activation, Saves
from ..masks.plan import Plan, keep_threshold, scales, to_float32
from . import bfloat16, half, mathematics
from .dropout import backward_kernel, forward_kernel
from .launcher import Grid, Kernel
from .tiles import COLUMNS, TILE, WORD

_TRITON_DTYPES = {
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
    torch.float32: tl.float32,
    torch.float64: tl.float64,
}
# Programs along a grid's second and third axis are limited to 65535 each.
_AXIS = 32768
WARPS = COLUMNS // (64 if torch.version.hip else 32)  # a thread for each column


def planes(row: Activation) -> int:
    """Return the number of bits per element that forward packs."""
    return 2 if row.saves is Saves.TWO_BITS else 1


def grid(n: int, plan: Plan) -> Grid:
    """Return the programs along each axis. For eager, the first covers the threads, the others the loop."""
    if plan.rng == "fast":
        return triton.cdiv(n, TILE), 1, 1
    threads = 256 * plan.blocks
    iterations = triton.cdiv(n, threads * plan.lanes)
    programs = triton.cdiv(min(threads, triton.cdiv(n, plan.vec)), TILE // plan.lanes)
    return programs, min(iterations, _AXIS), triton.cdiv(iterations, _AXIS)


def unpack(bits: Tensor, n: int, plan: Plan) -> Tensor:
    """Return the packed bits as bool [planes, n], in memory order (slow: for tests and double backward)."""
    programs, first, second = grid(n, plan)
    places = torch.arange(WORD - 1, -1, -1, dtype=torch.int32, device=bits.device)
    flat = (bits.unsqueeze(-1) >> places) & 1
    # [iteration, program, plane, column, group, lane] -> [plane, iteration, idx, lane]
    flat = flat.view(first * second, programs, -1, COLUMNS, WORD // plan.lanes, plan.lanes)
    flat = flat.permute(2, 0, 1, 4, 3, 5).reshape(flat.shape[2], first * second, -1, plan.lanes)
    if plan.rng == "eager":
        flat = flat[:, :, : 256 * plan.blocks]
        if plan.vec == 1:
            flat = flat.transpose(2, 3)  # lanes are a whole grid apart
    return flat.reshape(flat.shape[0], -1)[:, :n].bool()


def in_tiles(n: int, plan: Plan) -> bool:
    """Whether the packed bits' program t holds the elements from t * TILE on, in memory order."""
    span = 256 * plan.blocks * plan.vec  # of one iteration
    return plan.in_memory_order and (plan.rng == "fast" or n <= span or span % TILE == 0)


class LaunchConfiguration(NamedTuple):
    """Everything that the launches for one layer and size need and no call changes, but for device memory.

    Attributes:
        row: the activation.
        values: its numbers.
        p: the dropout probability that the mapping uses.
        plan: the way in which the kernels walk the tensor.
        saves_input: backward reads forward's input.
        saves_output: backward reads forward's output.
        has_signs: forward stores which inputs are positive, in the packed bits or beside them.
        stores_signs: forward stores them beside the packed bits, in a tensor of the same shape.
        grid: the grid of both kernels.
        bits_shape: the shape of the packed bits, int32 [programs, planes, COLUMNS].
        bits_stride: the stride of the packed bits.
        forward: the forward kernel that takes seed and offset as scalars.
        in_graphs: the forward kernel that loads seed and offset from device memory.
        backward: the backward kernel.
        walk: n and blocks, the first scalars of both kernels.
        forward_scalars: threshold, scale, a and b, see `_scalars`.
        backward_scalars: n, blocks, scale, its inverse, a and b, see `_scalars`.
    """

    row: Activation
    values: tuple[float, ...]
    p: float
    plan: Plan
    saves_input: bool
    saves_output: bool
    has_signs: bool
    stores_signs: bool
    grid: Grid
    bits_shape: tuple[int, int, int]
    bits_stride: tuple[int, int, int]
    forward: Kernel
    in_graphs: Kernel
    backward: Kernel
    walk: tuple[int, int]
    forward_scalars: tuple[float | int, ...]
    backward_scalars: tuple[float | int, ...]


def configure(
    row: Activation,
    dtype: torch.dtype,
    n: int,
    values: tuple[float, ...],
    p: float,
    plan: Plan,
    from_output: bool = False,
    watched: bool = False,
) -> LaunchConfiguration | None:
    """Return the launch configuration; None if float32 can't hold a parameter.

    With `from_output`, backward reads forward's output in place of its input. If the call is `watched` and
    the bits are `in_tiles`, forward stores its inputs' signs too.
    """
    double = dtype is torch.float64
    scale = scales(p, double)
    a, b, *_ = (*row.values_in(values, dtype), 0.0, 0.0)
    try:
        forward = _scalars(double, scale.forward, a, b)
        backward = _scalars(double, scale.backward, 1 / scale.forward, a, b)
    except OverflowError:
        return None
    programs, iterations, rounds = shape = grid(n, plan)
    has_signs = watched and in_tiles(n, plan)
    stores_signs = has_signs and row.saves is not Saves.TWO_BITS
    kind = Plan(plan.rng, plan.vec, plan.lanes, 0, 0)  # the fields that the compiled code depends on
    count = planes(row)
    return LaunchConfiguration(
        row=row,
        values=values,
        p=p,
        plan=plan,
        saves_input=row.saves is Saves.INPUT and not from_output,
        saves_output=from_output,
        has_signs=has_signs,
        stores_signs=stores_signs,
        grid=shape,
        bits_shape=(programs * iterations * rounds, count, COLUMNS),
        bits_stride=(count * COLUMNS, COLUMNS, 1),
        forward=_forward_kernel(row, dtype, kind, a == 1, False, stores_signs),
        in_graphs=_forward_kernel(row, dtype, kind, a == 1, True, stores_signs),
        backward=_backward_kernel(row, dtype, kind, a == 1, from_output),
        walk=(n, plan.blocks),
        forward_scalars=(keep_threshold(p, double, plan.rng), *forward),
        backward_scalars=(n, plan.blocks, *backward),
    )


def _scalars(double: bool, *numbers: float) -> tuple[float | int, ...]:
    """Return the numbers as the kernels take them; raise OverflowError beyond float32.

    The numbers come twice: first as float32, then as the bits of float64 in integers. The kernels read one of
    the two, and the other is 0.
    """
    nothing = (0,) * len(numbers)
    if double:
        bits = struct.unpack(f"<{len(numbers)}q", struct.pack(f"<{len(numbers)}d", *numbers))
        return *map(float, nothing), *bits
    return *map(to_float32, numbers), *nothing


@functools.cache
def packs() -> bool:
    """Return whether every GPU has the instructions of `packed`, and gains by them."""
    if torch.version.hip or triton.knobs.runtime.interpret:
        return False
    gpus = range(torch.cuda.device_count())
    return all(packs_on(torch.cuda.get_device_capability(gpu)) for gpu in gpus)


def packs_on(capability: tuple[int, int]) -> bool:
    """Return the same for one compute capability. From sm_100 on, ptxas itself widens pairs."""
    return (8, 0) <= capability < (10, 0)


def constants(row: Activation, dtype: torch.dtype, plan: Plan, unit: bool, rounds: bool) -> dict[str, Any]:
    """Return the compile-time arguments and options of both kernels.

    Args:
        row: the activation.
        dtype: the tensor's dtype.
        plan: see `Plan`.
        unit: the first parameter is 1.
        rounds: the kernel rounds to the dtype between activation and dropout, as eager does.
    """
    arithmetic = tl.float64 if dtype is torch.float64 else tl.float32
    return {
        "SAVES": row.saves.name.lower(),
        "UNIT": unit,
        "ARITHMETIC": arithmetic,
        "STORED": _TRITON_DTYPES[dtype] if rounds and plan.rng == "eager" else arithmetic,
        "PACKED": packs(),
        "FAST": plan.rng == "fast",
        "VEC": plan.vec,
        "LANES": plan.lanes,
        "COLUMNS": COLUMNS,
        # The source asks for each FMA by itself, so that the interpreter computes the same as a GPU.
        "enable_fp_fusion": False,
        "num_warps": WARPS,
    }


def forward_constants(
    row: Activation, dtype: torch.dtype, plan: Plan, unit: bool, in_graphs: bool, stores_signs: bool
) -> dict[str, Any]:
    """Return forward's compile-time arguments.

    With `in_graphs`, forward takes seed and offset from device memory. With `stores_signs`, it stores its
    inputs' signs beside the packed bits.
    """
    passes = row.saves in (Saves.ONE_BIT, Saves.TWO_BITS)
    unused = (() if in_graphs else ("seed_ptr", "offset_ptr")) + (() if stores_signs else ("signs_ptr",))
    return {
        **constants(row, dtype, plan, unit, row.exact and not row.representable),
        "FORWARD": forward_function(row, dtype),
        "VANISHES": row.vanishes,
        "CLAMPS": row.clamps,
        # The derivative is 1 or a, and x times it is act(x).
        "LINEAR": row.saves is Saves.TWO_BITS and row.homogeneous,
        "PASSES": (row.backward or named(f"{row.name}_passes", dtype)) if passes else None,
        **dict.fromkeys(unused),
    }


def backward_constants(
    row: Activation, dtype: torch.dtype, plan: Plan, unit: bool, from_output: bool
) -> dict[str, Any]:
    """Return backward's compile-time arguments."""
    function = None
    if from_output:
        function = getattr(mathematics, f"{row.name}_derivative_from_output")
    elif row.saves is Saves.INPUT:
        function = row.backward or named(f"{row.name}_derivative", dtype)
    # If the gradient is one product, the store is the only rounding, as in eager mode.
    one_product = row.saves is Saves.MASK or (row.saves is Saves.ONE_BIT and row.slope == 1)
    return {
        **constants(row, dtype, plan, unit, row.exact and not one_product),
        "SAVES": "output" if from_output else row.saves.name.lower(),
        "BACKWARD": function,
        "SLOPE": row.slope,
        **({"saved_ptr": None} if function is None else {}),
    }


def forward_function(row: Activation, dtype: torch.dtype) -> Any:
    """Return the Triton function of act(x) for tensors of that dtype."""
    return row.forward or named(row.name, dtype)


def named(name: str, dtype: torch.dtype) -> Any:
    """Return the Triton function of that name, in the quickest form that suffices for the dtype."""
    forms = [mathematics]
    if dtype.itemsize == 2:
        forms.insert(0, half)
    if dtype is torch.bfloat16:
        forms.insert(0, bfloat16)
    return next(getattr(form, name) for form in forms if hasattr(form, name))


@functools.cache
def _forward_kernel(
    row: Activation, dtype: torch.dtype, plan: Plan, unit: bool, in_graphs: bool, stores_signs: bool
) -> Kernel:
    other = None if in_graphs else _forward_kernel(row, dtype, plan, unit, True, stores_signs)
    fixed = forward_constants(row, dtype, plan, unit, in_graphs, stores_signs)
    return Kernel(forward_kernel, fixed, other)


@functools.cache
def _backward_kernel(
    row: Activation, dtype: torch.dtype, plan: Plan, unit: bool, from_output: bool
) -> Kernel:
    return Kernel(backward_kernel, backward_constants(row, dtype, plan, unit, from_output))
