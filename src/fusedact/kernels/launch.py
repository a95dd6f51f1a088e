"""Launches of the two kernels for given tensors, without autograd.

Kernels launch on the tensor's own GPU; a CPU tensor is for Triton's interpreter.
"""

from torch import Tensor

from ..masks.generator import PhiloxState
from .configuration import LaunchConfiguration
from .launcher import aligned

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
    # The usual case comes first, in fewer steps than any other takes.
    device, x_at, y_at, bits_at = x.get_device(), x.data_ptr(), y.data_ptr(), bits.data_ptr()
    if (
        signs is None
        and not (x_at | y_at | bits_at) & 15
        and kernel.launch_loaded(c.grid, device, device, (x_at, y_at, bits_at, *scalars))
    ):
        return
    tensors = (x, y, bits) if signs is None else (x, y, bits, signs)
    if not kernel(c.grid, tensors, scalars):
        result = aligned(y)
        if not kernel(c.grid, (aligned(x), result, *tensors[2:]), scalars):
            raise RuntimeError(NOT_LOADED)
        if result is not y:
            y.copy_(result)


def backward(
    configuration: LaunchConfiguration, dy: Tensor, saved: Tensor | None, bits: Tensor, dx: Tensor
) -> bool:
    """Write dx from dy, the packed bits and the saved x or y, all dense in the same layout.

    `saved` is None if the kernel reads neither x nor y.

    Returns:
        False if a graph captures and the kernel isn't loaded, so that nothing was launched.
    """
    c = configuration
    tensors: tuple[Tensor, ...]
    addresses: tuple[int, ...]
    device, dy_at, bits_at, dx_at = dy.get_device(), dy.data_ptr(), bits.data_ptr(), dx.data_ptr()
    if saved is None:
        tensors, addresses, either = (dy, bits, dx), (dy_at, bits_at, dx_at), dy_at | bits_at | dx_at
    else:
        saved_at = saved.data_ptr()
        tensors, addresses = (dy, saved, bits, dx), (dy_at, saved_at, bits_at, dx_at)
        either = dy_at | saved_at | bits_at | dx_at
    arguments = *addresses, *c.backward_scalars
    # The usual case comes first, as in `forward`.
    if not either & 15 and c.backward.launch_loaded(c.grid, device, device, arguments):
        return True
    if c.backward(c.grid, tensors, c.backward_scalars):
        return True
    return c.backward(c.grid, (*map(aligned, tensors[:-1]), dx), c.backward_scalars)


def ready_to_capture(configuration: LaunchConfiguration, device: int, differentiable: bool) -> bool:
    """Whether a graph's capture can launch forward, and if `differentiable` backward, without loading."""
    c = configuration
    return c.in_graphs.loaded(device) and (not differentiable or c.backward.loaded(device))
