"""The fused kernels as a differentiable call, on tensors of any layout."""

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import _torch
from .activations import Saves
from .kernels import launch
from .kernels.configuration import LaunchConfiguration, unpack
from .masks.generator import PhiloxState
from .masks.plan import scales
from .watcher import Counter

# Looked up once, since every call uses them and a lookup takes host time.
_grad_enabled, _current_device = torch.is_grad_enabled, _torch.current_device
_forward_ad, _is_dynamo_compiling = torch.autograd.forward_ad, torch.compiler.is_dynamo_compiling


class Call(NamedTuple):
    """What backward needs of a call, beside the saved tensors.

    Attributes:
        configuration: the launch configuration.
        layout: the shape, stride and dtype of input and result.
        stride: their stride; None if they are contiguous.
    """

    configuration: LaunchConfiguration
    layout: launch.Layout
    stride: tuple[int, ...] | None

    @classmethod
    def on(cls, input: Tensor, configuration: LaunchConfiguration) -> "Call":
        """Return what backward needs of a call with that input."""
        layout = tuple(input.shape), input.stride(), input.dtype
        return cls(configuration, layout, None if input.is_contiguous() else input.stride())


class Shared:
    """What usual calls with inputs alike share, to save host time.

    Attributes:
        call: what backward needs of each.
        device: the number of the GPU.
        saves_input: backward reads the input.
        takes: whether an input is like theirs.
        run: runs the kernels on an input as a differentiable call; its GPU is the current one.
        forward: `launch.forward_like` for these inputs.
        fits: whether the gradient and the saved tensors are like those of an earlier backward, which were
            right as they are; None before.
        backward: `launch.backward_like` for such gradients; None before.
    """

    __slots__ = "backward", "call", "device", "fits", "forward", "run", "saves_input", "takes"

    def __init__(self, input: Tensor, configuration: LaunchConfiguration, forward: Any) -> None:
        self.call, self.device = Call.on(input, configuration), input.get_device()
        self.saves_input, self.forward, self.takes = configuration.saves_input, forward, _torch.guard(input)
        self.run: Callable[[Tensor], Tensor] = functools.partial(_apply_shared, self)
        self.fits: Callable[..., bool] | None = None
        self.backward: Callable[..., Tensor | None] | None = None


def fused(
    input: Tensor,
    configuration: LaunchConfiguration,
    reserve: Callable[[], PhiloxState],
    inplace: bool,
    counters: tuple[Counter, ...] = (),
) -> Tensor:
    """Run the kernels configured for `input` as a differentiable call; `reserve` returns the Philox state."""
    dense, ordered = is_dense(input), is_ordered(input, configuration)
    if inplace and (
        not dense
        or not ordered
        or configuration.saves_input
        or (input.is_leaf and input.requires_grad and torch.is_grad_enabled())
    ):
        # The kernel can't overwrite the input, backward reads the input, or autograd is about to refuse.
        return input.copy_(fused(input.clone(), configuration, reserve, False, counters))
    # The copy has the layout that eager's activation would give its output.
    x = input if dense else input.clone(memory_format=torch.preserve_format)
    numbered = x if ordered else x.contiguous()
    output: Tensor = _apply(numbered, Call.on(numbered, configuration), reserve, inplace, counters)
    return output if ordered else torch.empty_like(x).copy_(output)


def is_dense(input: Tensor) -> bool:
    """Whether the elements fill memory without gaps or overlaps, and memory holds their values."""
    dense = input.is_contiguous() or torch.ops.aten.is_non_overlapping_and_dense.default(input)
    return dense and not input.is_neg()


def is_ordered(input: Tensor, configuration: LaunchConfiguration) -> bool:
    """Whether the plan numbers a dense input's elements in memory order."""
    return configuration.plan.in_memory_order or input.is_contiguous()


def ordered_as(input: Tensor, stride: Sequence[int] | None) -> Tensor:
    """Return `input` if it has that stride (None: contiguous) and real memory, else a copy that has both."""
    ordered = input.is_contiguous() if stride is None else input.stride() == tuple(stride)
    if ordered and not input.is_neg() and not _torch.is_zero(input):
        return input
    if stride is None:
        return torch.empty_like(input, memory_format=torch.contiguous_format).copy_(input)
    return torch.empty_strided(input.shape, stride, dtype=input.dtype, device=input.device).copy_(input)


class _Fused(torch.autograd.Function):
    """The forward and backward kernels as one differentiable function."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        call: Call,
        reserve: Callable[[], PhiloxState],
        inplace: bool,
        counters: tuple[Counter, ...],
    ) -> Tensor:
        configuration, empty = call.configuration, _torch.allocator(x)
        bits_layout = configuration.bits_shape, configuration.bits_stride, torch.int32
        y = x if inplace else empty(*call.layout)
        bits = empty(*bits_layout)
        signs = empty(*bits_layout) if configuration.stores_signs else None
        launch.forward(configuration, x, y, reserve(), bits, signs)
        for count in counters:
            count(bits if signs is None else signs)
        if inplace:
            ctx.mark_dirty(x)
        if configuration.saves_input:
            ctx.save_for_backward(bits, x)
        elif configuration.saves_output:
            ctx.save_for_backward(bits, y)
        else:
            ctx.save_for_backward(bits)
        ctx.call = call
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        dx, _ = _checked_backward(ctx.call, dy, *ctx.saved_tensors)
        return dx, None, None, None, None


class _Shared(torch.autograd.Function):
    """The same for usual calls, in less host time."""

    @staticmethod
    def forward(ctx: Any, shared: Shared, x: Tensor) -> Tensor:
        y: Tensor
        y, bits = shared.forward(x)
        if shared.saves_input:
            ctx.save_for_backward(bits, x)
        else:
            ctx.save_for_backward(bits)
        ctx.shared = shared
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        shared: Shared = ctx.shared
        tensors = dy, *ctx.saved_tensors
        if (
            _is_dynamo_compiling()  # under compiled autograd
            or shared.fits is None
            or tensors[1].is_nested  # saved tensors, for which hooks may give back anything
            or tensors[-1].is_nested
            or not shared.fits(*tensors)
            or _grad_enabled()
            or _forward_ad._current_level >= 0
            or _current_device() != shared.device  # type: ignore[misc]
        ):
            dx, as_they_are = _checked_backward(shared.call, *tensors)
            if as_they_are and _current_device() == shared.device:  # type: ignore[misc]
                shared.backward = launch.backward_like(dy, shared.call.configuration, shared.call.layout)
                shared.fits = shared.backward and _torch.guard(*tensors)
            return None, dx
        result = shared.backward(*tensors)  # type: ignore[misc]
        return None, _composed_backward(shared.call, *tensors) if result is None else result


_apply, _apply_shared = _torch.quick_apply(_Fused, "call"), _torch.quick_apply(_Shared, "shared")


def shared(input: Tensor, configuration: LaunchConfiguration) -> Shared | None:
    """Return what usual calls with inputs like this share; their GPU is the current one.

    None stands for an input that has to be copied first, and for a kernel that isn't loaded.
    """
    if not is_dense(input) or not is_ordered(input, configuration):
        return None
    forward = launch.forward_like(input, configuration)
    return None if forward is None else Shared(input, configuration, forward)


def _checked_backward(call: Call, dy: Tensor, *saved: Tensor) -> tuple[Tensor, bool]:
    """Return the gradient, whatever the tensors and the circumstances.

    Returned with it is whether the kernel ran on the tensors as they are.
    """
    given, saved = (dy, *saved), _as_saved(call, dy, saved)
    if (
        _grad_enabled()  # under create_graph=True
        or _torch.in_transforms()
        or _torch.is_batched(dy)  # is_grads_batched=True
        or _forward_ad._current_level >= 0
    ):
        return _composed_backward(call, dy, *saved), False
    tensors = ordered_as(dy, call.stride), *saved
    dx = _torch.allocator(dy)(*call.layout)
    if not launch.backward(call.configuration, dx, *tensors):
        return _composed_backward(call, *tensors), False
    return dx, all(map(operator.is_, tensors, given))


def _as_saved(call: Call, dy: Tensor, saved: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return what forward saved, in its layout there, which saved-tensor hooks may have changed."""
    shape, _, dtype = call.layout
    kinds = (call.configuration.bits_shape, torch.int32, None), (shape, dtype, call.stride)
    ordered = []
    for tensor, (wanted_shape, wanted_dtype, stride) in zip(saved, kinds, strict=False):
        right = tensor.dtype is wanted_dtype and tensor.get_device() == dy.get_device()
        if not right or tensor.is_nested or tensor.shape != wanted_shape:
            got = "a nested tensor" if tensor.is_nested else f"one of shape {tuple(tensor.shape)}"
            raise RuntimeError(
                f"saved_tensors_hooks must give back what they got, a tensor of shape {wanted_shape}, "
                f"{wanted_dtype}, on {dy.device}, but gave {got}, {tensor.dtype}, on {tensor.device}. "
                "Undo in the unpack hook what the pack hook does"
            )
        ordered.append(ordered_as(tensor, stride))
    return tuple(ordered)


def _composed_backward(call: Call, dy: Tensor, bits: Tensor, value: Tensor | None = None) -> Tensor:
    """Compute the gradient in PyTorch's operations, for second derivatives and batched gradients.

    `value` is the saved input or output, if backward reads it.
    """
    configuration, stride = call.configuration, call.stride
    row, values, p, plan = configuration.row, configuration.values, configuration.p, configuration.plan
    keep, *flags = (
        plane.view(dy.shape) if stride is None else torch.as_strided(plane, dy.shape, stride)
        for plane in unpack(bits, dy.shape.numel(), plan)
    )
    if torch.is_grad_enabled() and not dy.requires_grad:
        # So that the second derivative is 0, as in eager mode, and not None.
        dy = dy * torch.ones((), dtype=dy.dtype, device=dy.device, requires_grad=True)
    stored = dy.dtype
    if stored is not torch.float64 and not (row.exact and plan.rng == "eager"):
        dy = dy.float()  # rounded once, at the end
    scale = scales(p, stored is torch.float64)
    dx: Tensor
    if value is not None and configuration.saves_output:
        assert row.from_output is not None
        output = value.to(dy.dtype) / scale.forward
        dx = row.from_output(dy * keep * scale.backward, output, *values)
    elif value is not None:
        with torch.enable_grad():
            x = value if value.requires_grad else value.detach().requires_grad_()
            y = row.function(x.to(dy.dtype), *values)
        gradient = dy * keep * scale.backward
        (dx,) = torch.autograd.grad(y, x, gradient, create_graph=torch.is_grad_enabled())
    elif flags:
        dx = dy * keep * scale.backward
        dx = torch.where(flags[0], dx, dx * values[0])
    elif row.saves is Saves.MASK:
        dx = dy * keep * scale.backward
    else:
        dx = torch.where(keep, dy * scale.backward, 0.0)
        dx = dx if row.slope == 1 else dx * row.slope
    return dx.to(stored)
