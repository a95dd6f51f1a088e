"""From tensors to kernel launches: shapes of grids and packed bits, and nothing of autograd.

Kernels launch on the tensor's own GPU; a CPU tensor is for Triton's interpreter.
"""

import functools
import struct
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import random
from ..activations import Activation, Saved
from ..random import Draw, Plan
from . import activations
from .dropout import COLUMNS, WARPS, WORD, backward_kernel, forward_kernel, lanes

_TRITON_DTYPES = {
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
    torch.float32: tl.float32,
    torch.float64: tl.float64,
}
# Programs along a grid's second and third axis are limited to 65535 each.
_AXIS = 32768


def planes(activation: Activation) -> int:
    """Bits per element that forward packs."""
    return 2 if activation.saved is Saved.FLAG else 1


@functools.lru_cache(maxsize=4096)
def grid(n: int, plan: Plan) -> tuple[int, int, int]:
    """Programs along each axis: the first covers the threads of eager's grid, the others its loop."""
    threads = 256 * plan.blocks
    iterations = triton.cdiv(n, threads * lanes(plan.vec))
    programs = triton.cdiv(min(threads, triton.cdiv(n, plan.vec)), COLUMNS * WORD // lanes(plan.vec))
    return programs, min(iterations, _AXIS), triton.cdiv(iterations, _AXIS)


def empty_bits(activation: Activation, like: Tensor, plan: Plan) -> Tensor:
    """Room for the packed bits of a tensor: int32 [programs, planes, COLUMNS]."""
    programs, first, second = grid(like.numel(), plan)
    shape = (programs * first * second, planes(activation), COLUMNS)
    return torch.empty(shape, dtype=torch.int32, device=like.device)


def unpack(bits: Tensor, n: int, plan: Plan) -> Tensor:
    """The packed bits as bool [planes, n], in memory order (slow: for tests and double backward)."""
    width = lanes(plan.vec)
    threads = 256 * plan.blocks
    programs, first, second = grid(n, plan)
    shifts = torch.arange(WORD, dtype=torch.int32, device=bits.device)
    flat = (bits.unsqueeze(-1) >> shifts) & 1
    # [iteration, program, plane, column, group, lane] -> [plane, iteration, idx, lane]
    flat = flat.view(first * second, programs, -1, COLUMNS, WORD // width, width)
    flat = flat.permute(2, 0, 1, 4, 3, 5).reshape(flat.shape[2], first * second, -1, width)
    flat = flat[:, :, :threads]
    if plan.vec == 1:
        flat = flat.transpose(2, 3)  # lanes are a whole grid apart
    return flat.reshape(flat.shape[0], -1)[:, :n].bool()


def _signed(word: int) -> int:
    word &= 0xFFFFFFFF
    return word - 2**32 if word >= 2**31 else word


@functools.lru_cache(maxsize=4096)
def _scalars(scale: float, parameter: float, double: bool) -> tuple[float | int, ...]:
    """Scale, parameter and their product as kernel arguments.

    float64 goes as the integer of the same bits.
    """
    values = (scale, parameter, parameter * scale)
    if double:
        return struct.unpack("<3q", struct.pack("<3d", *values))
    try:
        return tuple(random.to_float32(value) for value in values)
    except OverflowError:
        raise ValueError(f"{parameter!r} is too large for the tensor's arithmetic, float32") from None


@functools.cache
def specialisation(activation: Activation, direction: str, dtype: torch.dtype, vec: int) -> dict[str, Any]:
    """The compile-time arguments of the kernel of `direction`, "forward" or "backward"."""
    saved = activation.saved
    own = (
        {"MERGES_FLAG": saved is Saved.ALIVE}
        if direction == "forward"
        else {"SAVES_INPUT": saved is Saved.INPUT}
    )
    return {
        **own,
        direction.upper(): getattr(activations, f"{activation.name}_{direction}"),
        "SAVES_FLAG": saved is Saved.FLAG,
        "ARITHMETIC": tl.float64 if dtype is torch.float64 else tl.float32,
        "STORED": _TRITON_DTYPES[dtype],
        "VEC": vec,
        "LANES": lanes(vec),
        "COLUMNS": COLUMNS,
        "num_warps": WARPS,
    }


def forward(
    activation: Activation, x: Tensor, y: Tensor, bits: Tensor, parameter: float, p: float, draw: Draw
) -> None:
    """Write y = dropout(act(x), p) and the packed bits; `x` and `y` dense in the same layout."""
    double = x.dtype is torch.float64
    call = draw.offset // 4
    with torch.cuda.device_of(x):
        forward_kernel[grid(x.numel(), draw.plan)](
            x,
            y,
            bits,
            x.numel(),
            draw.plan.blocks,
            _signed(draw.seed),
            _signed(draw.seed >> 32),
            _signed(call),
            _signed(call >> 32),
            _signed(random.keep_threshold(p, double)),
            *_scalars(random.scales(p, double)[0], parameter, double),
            **specialisation(activation, "forward", x.dtype, draw.plan.vec),
        )


def backward(
    activation: Activation,
    dy: Tensor,
    x: Tensor | None,
    bits: Tensor,
    dx: Tensor,
    parameter: float,
    p: float,
    plan: Plan,
) -> None:
    """Write dx from dy, the packed bits and, if it was saved, x; all dense in the same layout."""
    double = dy.dtype is torch.float64
    with torch.cuda.device_of(dy):
        backward_kernel[grid(dy.numel(), plan)](
            dy,
            x,
            bits,
            dx,
            dy.numel(),
            plan.blocks,
            *_scalars(random.scales(p, double)[1], parameter, double),
            **specialisation(activation, "backward", dy.dtype, plan.vec),
        )
