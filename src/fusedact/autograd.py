"""The fused kernels as a differentiable call, on tensors of any layout."""

from collections.abc import Sequence
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
_grad_enabled = torch.is_grad_enabled
_in_transforms, _is_batched, _is_zero = _torch.in_transforms, _torch.is_batched, _torch.is_zero
_int32 = torch.int32


class _Call(NamedTuple):
    """The facts about one call that forward and backward need.

    Attributes:
        configuration: the launch configuration.
        state: the Philox state.
        inplace: the result is written into the input.
        stride: the input's stride; None if it is contiguous.
        counters: the monitors' counters of the input's signs.
    """

    configuration: LaunchConfiguration
    state: PhiloxState
    inplace: bool
    stride: Sequence[int] | None
    counters: tuple[Counter, ...]


def fused(
    input: Tensor,
    configuration: LaunchConfiguration,
    state: PhiloxState,
    inplace: bool,
    counters: tuple[Counter, ...] = (),
) -> Tensor:
    """Run the kernels configured for `input`, with the reserved random numbers, as a differentiable call."""
    contiguous = input.is_contiguous() and not input.is_neg()
    if contiguous and not inplace:  # the usual case, which needs none of the checks below
        return _apply(  # type: ignore[no-any-return]
            input, tuple.__new__(_Call, (configuration, state, False, None, counters))
        )
    dense = contiguous or is_dense(input)
    ordered = contiguous or configuration.plan.in_memory_order
    if inplace and (
        not dense
        or not ordered
        or configuration.saves_input
        or (input.is_leaf and input.requires_grad and torch.is_grad_enabled())
    ):
        # The kernel can't overwrite the input, backward reads the input, or autograd is about to refuse.
        return input.copy_(fused(input.clone(), configuration, state, False, counters))
    # The copy has the layout that eager's activation would give its output.
    x = input if dense else input.clone(memory_format=torch.preserve_format)
    numbered = x if ordered else x.contiguous()
    output: Tensor = _apply(numbered, _Call(configuration, state, inplace, numbered.stride(), counters))
    return output if ordered else torch.empty_like(x).copy_(output)


def is_dense(input: Tensor) -> bool:
    """Whether the elements fill memory without gaps or overlaps, and memory holds their values."""
    return torch.ops.aten.is_non_overlapping_and_dense.default(input) and not input.is_neg()


def ordered_as(input: Tensor, stride: Sequence[int] | None) -> Tensor:
    """Return `input` if it has that stride (None: contiguous) and real memory, else a copy that has both."""
    ordered = input.is_contiguous() if stride is None else input.stride() == tuple(stride)
    if ordered and not input.is_neg() and not _is_zero(input):
        return input
    if stride is None:
        return torch.empty_like(input, memory_format=torch.contiguous_format).copy_(input)
    return torch.empty_strided(input.shape, stride, dtype=input.dtype, device=input.device).copy_(input)


class _Fused(torch.autograd.Function):
    """The forward and backward kernels as one differentiable function."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, call: _Call) -> Tensor:
        configuration = call.configuration
        empty = _torch.allocator(x)
        y = x if call.inplace else empty(tuple(x.shape), x.stride(), x.dtype)
        shape, stride = configuration.bits_shape, configuration.bits_stride
        bits = empty(shape, stride, _int32)
        signs = empty(shape, stride, _int32) if configuration.stores_signs else None
        launch.forward(configuration, x, y, call.state, bits, signs)
        for count in call.counters:
            count(bits if signs is None else signs)
        if call.inplace:
            ctx.mark_dirty(x)
        if configuration.saves_input:
            ctx.save_for_backward(bits, x)
        elif configuration.saves_output:
            ctx.save_for_backward(bits, y)
        else:
            ctx.save_for_backward(bits)
        ctx.call = call  # one attribute in place of five, since each assignment takes host time
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        call = ctx.call
        configuration, stride = call.configuration, call.stride
        bits, value = (*ctx.saved_tensors, None)[:2]
        bits = _as_saved(bits, dy, _int32, configuration.bits_shape, None)
        if value is not None:
            value = _as_saved(value, dy, dy.dtype, dy.shape, stride)
        if (
            _grad_enabled()  # under create_graph=True
            or _in_transforms()
            or _is_batched(dy)  # is_grads_batched=True
        ):
            return _composed_backward(call, dy, bits, value), None
        dy = ordered_as(dy, stride)
        dx = _torch.allocator(dy)(tuple(dy.shape), dy.stride(), dy.dtype)
        if not launch.backward(configuration, dy, value, bits, dx):
            return _composed_backward(call, dy, bits, value), None
        return dx, None


_apply = _torch.quick_apply(_Fused)


def _as_saved(
    tensor: Tensor, dy: Tensor, dtype: torch.dtype, shape: tuple[int, ...], stride: Sequence[int] | None
) -> Tensor:
    """Return a tensor that forward saved, in its layout there, which saved-tensor hooks may have changed."""
    if tensor.dtype is not dtype or tensor.get_device() != dy.get_device() or tensor.shape != shape:
        wanted = f"a tensor of shape {tuple(shape)}, {dtype}, on {dy.device}"
        raise RuntimeError(
            f"saved_tensors_hooks must give back what they got, {wanted}, but gave "
            f"one of shape {tuple(tensor.shape)}, {tensor.dtype}, on {tensor.device}. "
            "Undo in the unpack hook what the pack hook does"
        )
    return ordered_as(tensor, stride)


def _composed_backward(call: _Call, dy: Tensor, bits: Tensor, value: Tensor | None) -> Tensor:
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
