"""Launches of the two kernels for given tensors, without autograd.

Kernels launch on the tensor's own GPU; a CPU tensor is for Triton's interpreter.
"""

from torch import Tensor

from ..masks.generator import PhiloxState
from .configuration import LaunchConfiguration
from .launcher import aligned


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
    """
    c = configuration
    seed, offset, on_device = state
    call = offset // 4
    numbers = seed & 0xFFFFFFFF, seed >> 32, call & 0xFFFFFFFF, call >> 32
    scalars: tuple[float | int | Tensor, ...] = (*c.walk, *numbers, *c.forward_scalars)
    kernel = c.forward
    if on_device is not None:
        kernel, scalars = c.in_graphs, scalars + on_device
    # The usual case comes first, in fewer steps than any other takes.
    device, first, second, third = x.get_device(), x.data_ptr(), y.data_ptr(), bits.data_ptr()
    if (
        signs is None
        and not (first | second | third) & 15
        and kernel.launch_loaded(c.grid, device, device, (first, second, third, *scalars))
    ):
        return
    tensors = (x, y, bits) if signs is None else (x, y, bits, signs)
    if not kernel(c.grid, tensors, scalars):
        result = aligned(y)
        kernel(c.grid, (aligned(x), result, *tensors[2:]), scalars)
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
    device, first, second, third = dy.get_device(), dy.data_ptr(), bits.data_ptr(), dx.data_ptr()
    addresses: tuple[int, ...]
    if saved is None:
        addresses, either = (first, second, third), first | second | third
    else:
        value = saved.data_ptr()
        addresses, either = (first, value, second, third), first | value | second | third
    arguments = *addresses, *c.backward_scalars
    if not either & 15 and c.backward.launch_loaded(c.grid, device, device, arguments):  # as in `forward`
        return True
    tensors = (dy, bits, dx) if saved is None else (dy, saved, bits, dx)
    if c.backward(c.grid, tensors, c.backward_scalars):
        return True
    return c.backward(c.grid, (*map(aligned, tensors[:-1]), dx), c.backward_scalars)


def ready_to_capture(configuration: LaunchConfiguration, device: int, differentiable: bool) -> bool:
    """Whether a graph's capture can launch forward, and if `differentiable` backward, without loading."""
    c = configuration
    return c.in_graphs.loaded(device) and (not differentiable or c.backward.loaded(device))
