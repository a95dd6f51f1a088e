"""The order of calls in one forward of the watched model, for each thread.

The order tells two things about an activation's call: its number in the forward, and the layer that ran
before it. The number of that layer's units tells the axis of the activation's units.
"""

import threading
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import _torch

# Layers whose units stand along the last dimension of their output, whatever their parameters' shapes.
_LAST = (
    nn.Linear
    | nn.Bilinear
    | nn.RMSNorm
    | nn.RNNBase
    | nn.RNNCellBase
    | nn.MultiheadAttention
    | nn.Embedding
    | nn.EmbeddingBag
)
_NORMS = _torch.NORM | nn.GroupNorm


class Units(NamedTuple):
    """The units' number and axis in a layer's output.

    Attributes:
        size: their number.
        axis: their dimension, from the front.
        dims: the number of the output's dimensions.
        last: the layer has its units in the last dimension. Otherwise, as after a convolution, they precede
            the positions.
    """

    size: int
    axis: int
    dims: int
    last: bool


class Forward:
    """The state of one forward of the watched model.

    Attributes:
        inside: the model is running. Outside, each call counts as a forward of its own.
        calls: by layer, the number of its calls.
        before: the units of the last layer that ran; None if none did.
    """

    def __init__(self) -> None:
        self.begin(False)

    def begin(self, inside: bool = True) -> None:
        """Start a forward."""
        self.inside = inside
        self.calls: dict[int, int] = {}
        self.before: Units | None = None

    def end(self) -> None:
        """Note that the model has returned or raised an error."""
        self.inside = False

    def call(self, number: int) -> int:
        """Note a call of the layer `number`; return the call's own number in this forward, from 1."""
        call = self.calls.get(number, 0) + 1 if self.inside else 1
        self.calls[number] = call
        return call


class Order:
    """The current forward of each thread; compiled code shares the forward of the thread that watches."""

    def __init__(self) -> None:
        self._thread = threading.get_ident()
        self._own = Forward()
        self._others = threading.local()

    def now(self) -> Forward:
        """Return the current thread's forward."""
        if torch.compiler.is_compiling() or threading.get_ident() == self._thread:
            return self._own
        if not hasattr(self._others, "forward"):
            self._others.forward = Forward()
        forward: Forward = self._others.forward
        return forward


def is_layer(module: nn.Module) -> bool:
    """Whether a module's output tells the units' axis: convolutions, linear and normalisation layers.

    A module of an unknown class does if it has a parameter of more than one number and no children.
    """
    if isinstance(module, _torch.CONVOLUTION | _NORMS | nn.LayerNorm | _LAST):
        return True
    own = list(module.parameters(recurse=False))
    return next(module.children(), None) is None and any(
        isinstance(parameter, nn.UninitializedParameter) or parameter.numel() > 1 for parameter in own
    )


def units_of(module: nn.Module, output: Any) -> Units | None:
    """Return the units' number and axis in that layer's output; None if they can't be told."""
    if isinstance(output, tuple | list) and output:
        output = output[0]
    if not isinstance(output, Tensor) or output.ndim == 0:
        return None
    shape, dims = output.shape, output.ndim
    if isinstance(module, _torch.CONVOLUTION):
        axis = dims - 1 - len(module.kernel_size)
        return Units(int(shape[axis]), axis, dims, False)
    if isinstance(module, _NORMS):
        size = module.num_channels if isinstance(module, nn.GroupNorm) else module.num_features
        axis = 1 if dims > 1 and shape[1] == size else 0
        return Units(size, axis, dims, axis == dims - 1)
    axis = dims - 1
    if not isinstance(module, _LAST) and type(module) is not nn.LayerNorm:
        found = _by_parameters(module, output)
        if found is None:
            return None
        axis = found
    return Units(int(shape[axis]), axis, dims, axis == dims - 1)


def _by_parameters(module: nn.Module, output: Tensor) -> int | None:
    """Return the units' axis after a layer of an unknown class, by its parameters, or None."""
    shapes = [parameter.shape for parameter in module.parameters(recurse=False)]
    for shape in shapes:
        axis = output.ndim + 1 - len(shape)  # of a convolution with that weight
        if len(shape) > 2 and axis >= 0 and output.shape[axis] == shape[0] > 1:
            return axis
    vectors = {shape.numel() for shape in shapes if shape.numel() == max(shape, default=0)}
    axes = [axis for axis in range(output.ndim) if output.shape[axis] in vectors]
    if axes:
        # A channels-first LayerNorm normalises the last dimension and returns a view with it in front.
        innermost = [axis for axis in axes if output.stride(axis) == 1]
        return innermost[0] if innermost else axes[-1]
    is_linear = any(len(shape) > 1 and output.shape[-1] in shape for shape in shapes)
    return output.ndim - 1 if is_linear else None


def unit_axis(x: Tensor, before: Units | None) -> int:
    """Return the units' dimension of an activation's input, from the front.

    It is the dimension whose length is the number of the last layer's units. If several dimensions have that
    length, the memory layout decides. The units of a layer that has them last are adjacent in memory, and
    views keep the order of a convolution's dimensions.
    """
    dims = x.ndim
    default = 1 if dims > 3 else max(dims - 1, 0)
    if before is None:
        return default
    here = dims - 1 if before.last else before.axis
    if 0 <= here < dims and x.shape[here] == before.size and _is_in_order(x, here, before):
        return here  # the usual case; so a compiler needs no guard on the other dimensions
    axes = [axis for axis in range(dims) if x.shape[axis] == before.size]
    if not axes:  # the output was concatenated, split or flattened
        return here if dims == before.dims else default
    if len(axes) > 1:
        by_memory = sorted(range(dims), key=x.stride, reverse=True)
        moved = by_memory[dims - 1 if before.last else min(before.axis, dims - 1)]
        if moved in axes:
            return moved
    return here if here in axes else axes[-1]


def _is_in_order(x: Tensor, axis: int, before: Units) -> bool:
    """Whether the dimensions' order in memory is that of the layer's own output."""
    if before.last:
        return x.stride(axis) == 1 or x.shape[axis] == 1
    if x.is_contiguous():
        return True
    return (x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)) or (
        x.ndim == 5 and x.is_contiguous(memory_format=torch.channels_last_3d)
    )
