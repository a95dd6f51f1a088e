"""Launches of the two kernels, without autograd.

Kernels launch on the tensor's own GPU; a CPU tensor is for Triton's interpreter.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from .. import _torch
from ..masks.generator import PhiloxState, reserver
from .configuration import LaunchConfiguration
from .launcher import aligned

Layout = tuple[tuple[int, ...], tuple[int, ...], torch.dtype]  # shape, stride, dtype
NOT_LOADED = (
    "A CUDA graph captures a call whose kernel isn't loaded. Run the same call once before the capture, and "
    "capture without launch hooks of Triton's"
)


def forward(
    configuration: LaunchConfiguration,
    x: Tensor,
    y: Tensor,
    state: PhiloxState,
    bits: Tensor,
    signs: Tensor | None = None,
) -> None:
    """Write y = dropout(act(x), p), and the packed bits at the start of `bits`.

    `x` and `y` are dense in the same layout. If the configuration stores the inputs' signs beside the bits,
    `signs` is their memory.

    Raises:
        RuntimeError: a graph captures and the kernel isn't loaded.
    """
    c = configuration
    seed, offset, on_device = state
    call = offset // 4
    numbers = seed & 0xFFFFFFFF, seed >> 32, call & 0xFFFFFFFF, call >> 32
    scalars: tuple[float | int | Tensor, ...] = (*c.walk, *numbers, *c.forward_scalars)
    kernel = c.forward
    if on_device is not None:
        kernel, scalars = c.in_graphs, scalars + on_device
    tensors = (x, y, bits) if signs is None else (x, y, bits, signs)
    if not kernel(c.grid, tensors, scalars):
        result = aligned(y)
        if not kernel(c.grid, (aligned(x), result, *tensors[2:]), scalars):
            raise RuntimeError(NOT_LOADED)
        if result is not y:
            y.copy_(result)


def backward(
    configuration: LaunchConfiguration, dx: Tensor, dy: Tensor, bits: Tensor, saved: Tensor | None = None
) -> bool:
    """Write dx from dy, the packed bits and the saved x or y, all dense in the same layout.

    `saved` is None if the kernel reads neither x nor y.

    Returns:
        False if a graph captures and the kernel isn't loaded, so that nothing was launched.
    """
    c = configuration
    read = (dy, bits) if saved is None else (dy, saved, bits)
    if c.backward(c.grid, (*read, dx), c.backward_scalars):
        return True
    return c.backward(c.grid, (*map(aligned, read), dx), c.backward_scalars)


def forward_like(
    x: Tensor, configuration: LaunchConfiguration
) -> Callable[[Tensor], tuple[Tensor, Tensor]] | None:
    """Return a function that allocates y and bits, reserves, launches forward, and returns the two.

    It is for tensors like `x`, on the current GPU, with addresses that are multiples of 16. It takes less
    host time than the parts, since a closure looks nothing up. None is returned if the kernel isn't loaded.
    """
    device = x.get_device()
    launch = configuration.forward.on(device)
    if launch is None:
        return None
    empty, reserve = _torch.allocator(x), reserver(device, configuration.plan)
    layout = tuple(x.shape), x.stride(), x.dtype
    bits_layout = configuration.bits_shape, configuration.bits_stride, torch.int32
    grid, scalars, (n, blocks) = configuration.grid, configuration.forward_scalars, configuration.walk

    def quick(x: Tensor) -> tuple[Tensor, Tensor]:
        y, bits = empty(*layout), empty(*bits_layout)
        seed, offset = reserve()
        call = offset >> 2
        # fmt: off
        arguments = (
            x.data_ptr(), y.data_ptr(), bits.data_ptr(), n, blocks,
            seed & 0xFFFFFFFF, seed >> 32, call & 0xFFFFFFFF, call >> 32, *scalars,
        )
        # fmt: on
        if not launch(grid, arguments):
            forward(configuration, x, y, PhiloxState(seed, offset), bits)
        return y, bits

    return quick


def backward_like(
    dy: Tensor, configuration: LaunchConfiguration, layout: Layout
) -> Callable[[Tensor, Tensor, Tensor | None], Tensor | None] | None:
    """Return a function that allocates dx in that layout, launches backward, and returns dx.

    It is for gradients like `dy` on the current GPU, and returns None where `backward` returns False. None is
    returned in its place if the kernel isn't loaded.
    """
    launch = configuration.backward.on(dy.get_device())
    if launch is None:
        return None
    empty = _torch.allocator(dy)
    grid, scalars = configuration.grid, configuration.backward_scalars

    def quick(dy: Tensor, bits: Tensor, saved: Tensor | None = None) -> Tensor | None:
        dx = empty(*layout)
        dx_at, dy_at, bits_at = dx.data_ptr(), dy.data_ptr(), bits.data_ptr()
        either = dx_at | dy_at | bits_at
        if saved is None:
            arguments = dy_at, bits_at, dx_at, *scalars
        else:
            saved_at = saved.data_ptr()
            arguments, either = (dy_at, saved_at, bits_at, dx_at, *scalars), either | saved_at
        launched = not either & 15 and launch(grid, arguments)
        return dx if launched or backward(configuration, dx, dy, bits, saved) else None

    return quick


def ready_to_capture(configuration: LaunchConfiguration, device: int, differentiable: bool) -> bool:
    """Whether a graph's capture can launch forward, and if `differentiable` backward, without loading."""
    c = configuration
    return c.in_graphs.loaded(device) and (not differentiable or c.backward.loaded(device))
