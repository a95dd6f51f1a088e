"""What ran before an activation: the layer that tells along which axis its units stand, and which call it is.

Both go by the order of calls in one forward of the watched model, in each thread apart.
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
    """Where the units of a layer's output stand.

    Attributes:
        size: how many there are.
        axis: their dimension, from the front.
        dims: how many dimensions the output has.
        last: layers of the kind have them last; else, as after a convolution, before the positions.
    """

    size: int
    axis: int
    dims: int
    last: bool


class Forward:
    """How far one forward of the watched model has come.

    Attributes:
        inside: the model is running; other calls are a forward each.
        calls: by layer, how often it was called.
        before: the units of the last layer that ran; None if none did.
    """

    def __init__(self) -> None:
        self.begin(False)

    def begin(self, inside: bool = True) -> None:
        """Start anew."""
        self.inside = inside
        self.calls: dict[int, int] = {}
        self.before: Units | None = None

    def end(self) -> None:
        """The model has returned, or raised an error."""
        self.inside = False

    def call(self, number: int) -> int:
        """Note a call of the layer of that number; return which one it is, from 1."""
        call = self.calls.get(number, 0) + 1 if self.inside else 1
        self.calls[number] = call
        return call


class Order:
    """The forward that is under way in each thread; compiled code shares that of the thread that watches."""

    def __init__(self) -> None:
        self._thread = threading.get_ident()
        self._own = Forward()
        self._others = threading.local()

    def now(self) -> Forward:
        """Return the current thread's."""
        if torch.compiler.is_compiling() or threading.get_ident() == self._thread:
            return self._own
        if not hasattr(self._others, "forward"):
            self._others.forward = Forward()
        forward: Forward = self._others.forward
        return forward


def is_layer(module: nn.Module) -> bool:
    """Whether a module's output tells where units stand: convolutions, linear and normalisation layers.

    Of classes that nobody here knows, those with parameters of more than one number and without children.
    """
    if isinstance(module, _torch.CONVOLUTION | _NORMS | nn.LayerNorm | _LAST):
        return True
    own = list(module.parameters(recurse=False))
    return next(module.children(), None) is None and any(
        isinstance(parameter, nn.UninitializedParameter) or parameter.numel() > 1 for parameter in own
    )


def units_of(module: nn.Module, output: Any) -> Units | None:
    """Return where the units of that layer's output stand; None if it is no tensor."""
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
        axis = _by_parameters(module, output)
    return Units(int(shape[axis]), axis, dims, axis == dims - 1)


def _by_parameters(module: nn.Module, output: Tensor) -> int:
    """Return the axis along which a layer of one's own has as many entries as its parameters."""
    vectors = {p.numel() for p in module.parameters(recurse=False) if p.numel() == max(p.shape, default=0)}
    axes = [axis for axis in range(output.ndim) if output.shape[axis] in vectors]
    if not axes:
        return output.ndim - 1
    # A channels-first LayerNorm normalises the last dimension, and moves it to the front in a view.
    innermost = [axis for axis in axes if output.stride(axis) == 1]
    return innermost[0] if innermost else axes[-1]


def unit_axis(x: Tensor, before: Units | None) -> int:
    """Return the dimension along which the units of an activation's input stand, from the front.

    It is as long as the layer's units are many. Where several dimensions are, as memory tells: units of a
    layer that has them last are adjacent there, and views keep the order of a convolution's dimensions.
    """
    dims = x.ndim
    default = 1 if dims > 3 else max(dims - 1, 0)
    if before is None:
        return default
    here = dims - 1 if before.last else before.axis
    if 0 <= here < dims and x.shape[here] == before.size and _is_in_order(x, here, before):
        return here  # as nearly always; a compiler needs no guard on the other dimensions
    axes = [axis for axis in range(dims) if x.shape[axis] == before.size]
    if not axes:  # concatenated, split or flattened since
        return here if dims == before.dims else default
    if len(axes) > 1:
        by_memory = sorted(range(dims), key=x.stride, reverse=True)
        moved = by_memory[dims - 1 if before.last else min(before.axis, dims - 1)]
        if moved in axes:
            return moved
    return here if here in axes else axes[-1]


def _is_in_order(x: Tensor, axis: int, before: Units) -> bool:
    """Whether the dimensions stand in memory as a layer's own output has them."""
    if before.last:
        return x.stride(axis) == 1 or x.shape[axis] == 1
    if x.is_contiguous():
        return True
    return (x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)) or (
        x.ndim == 5 and x.is_contiguous(memory_format=torch.channels_last_3d)
    )
