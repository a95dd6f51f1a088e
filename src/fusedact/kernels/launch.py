"""Launches of the two kernels for given tensors, without autograd.

Kernels launch on the tensor's own GPU; a CPU tensor is for Triton's interpreter.
"""

from typing import NamedTuple

from torch import Tensor

from .. import _torch
from ..masks.generator import PhiloxState
from .configuration import LaunchConfiguration
from .launcher import aligned
from .tiles import COLUMNS


class Kept(NamedTuple):
    """The bits that forward stores.

    Attributes:
        bits: the packed bits, int32 [programs, planes, COLUMNS].
        signs: a tensor of the same kind whose last plane is the positive mask; None if it wasn't requested.
    """

    bits: Tensor
    signs: Tensor | None


def forward(configuration: LaunchConfiguration, x: Tensor, y: Tensor, state: PhiloxState) -> Kept:
    """Write y = dropout(act(x), p), and return the bits; `x` and `y` are dense in the same layout."""
    c = configuration
    bits = _torch.empty_int32(c.bits_shape, c.bits_stride, x)
    if not c.has_signs:
        forward_into(c, x, y, state, bits, None)
        return Kept(bits, None)
    signs = bits
    stored = None
    if c.stores_signs:
        stored = signs = _torch.empty_int32((c.bits_shape[0], 1, COLUMNS), (COLUMNS, COLUMNS, 1), x)
    forward_into(c, x, y, state, bits, stored)
    return Kept(bits, signs)


def forward_into(
    configuration: LaunchConfiguration,
    x: Tensor,
    y: Tensor,
    state: PhiloxState,
    bits: Tensor,
    signs: Tensor | None,
) -> None:
    """Write y, the packed bits at the start of `bits`, and the signs if they are stored beside them."""
    c = configuration
    seed, offset, on_device = state
    call = offset // 4
    numbers = (seed & 0xFFFFFFFF, seed >> 32, call & 0xFFFFFFFF, call >> 32)
    scalars = (*c.walk, *numbers, *c.forward_scalars, *(on_device or ()))
    kernel = c.forward if on_device is None else c.in_graphs
    if not kernel(c.grid, (x, y, bits, signs), scalars):
        result = aligned(y)
        kernel(c.grid, (aligned(x), result, bits, signs), scalars)
        if result is not y:
            y.copy_(result)


def backward(
    configuration: LaunchConfiguration, dy: Tensor, saved: Tensor | None, bits: Tensor, dx: Tensor
) -> bool:
    """Write dx from dy, the packed bits and the saved x or y, all dense in the same layout.

    Returns:
        False if a graph captures and the kernel isn't loaded, so that nothing was launched.
    """
    c = configuration
    if c.backward(c.grid, (dy, saved, bits, dx), c.backward_scalars):
        return True
    saved = saved if saved is None else aligned(saved)
    return c.backward(c.grid, (aligned(dy), saved, aligned(bits), dx), c.backward_scalars)


def ready_to_capture(configuration: LaunchConfiguration, device: int, differentiable: bool) -> bool:
    """Whether a graph's capture can launch forward, and if `differentiable` backward, without loading."""
    c = configuration
    return c.in_graphs.loaded(device) and (not differentiable or c.backward.loaded(device))
