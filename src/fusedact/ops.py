"""The fused operation: which path a call takes, and its autograd."""

import functools
from types import ModuleType

import torch
from torch import Tensor

from . import random, reference
from .activations import Activation, Saved, check_flag, check_probability
from .random import Draw

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@functools.cache
def kernels() -> ModuleType | None:
    """The module that launches the Triton kernels; None where Triton isn't installed."""
    try:
        from .kernels import launch
    except ImportError:
        return None
    return launch


def activation_dropout(
    activation: Activation,
    input: Tensor,
    parameters: tuple[float, ...],
    p: float,
    training: bool,
    inplace: bool,
    rng: str,
) -> Tensor:
    """`dropout(act(input), p)` by the kernels where they can run, by eager PyTorch elsewhere."""
    check_input(input)
    p = check_probability(p)
    check_flag("training", training)
    check_flag("inplace", inplace)
    check_rng(rng)
    if not training or p == 0 or p == 1 or not _runs_kernels(input):
        return reference.composition(activation, input, parameters, p, training, inplace)
    return fused(activation, input, parameters, p, random.draw(input), inplace)


def check_input(input: Tensor) -> None:
    """TypeError unless `input` is a tensor that the operation is defined for."""
    if not isinstance(input, Tensor):
        raise TypeError(f"input has to be a torch.Tensor, but got {type(input).__name__}")
    if input.dtype not in _DTYPES:
        allowed = ", ".join(str(dtype) for dtype in _DTYPES)
        raise TypeError(f"input has to have one of the dtypes {allowed}, but got {input.dtype}")
    if input.layout not in (torch.strided, torch.jagged):
        raise TypeError(f"input has to be a dense tensor (layout torch.strided), but got {input.layout}")


def check_rng(rng: str) -> str:
    """`rng`; ValueError unless it names a mapping from generator to mask."""
    if rng in random.RNGS:
        return rng
    allowed = " or ".join(repr(name) for name in random.RNGS)
    raise ValueError(f"rng has to be {allowed}, but got rng={rng!r}")


def _runs_kernels(input: Tensor) -> bool:
    # A subclass (DTensor, FakeTensor), a functorch transform and a compiler need operators they can
    # see; a capturing graph needs a seed that each replay refreshes.
    return (
        input.is_cuda
        and (type(input) is Tensor or type(input) is torch.nn.Parameter)
        and input.numel() > 0
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
        and not torch.cuda.is_current_stream_capturing()
        and kernels() is not None
    )


def fused(
    activation: Activation, input: Tensor, parameters: tuple[float, ...], p: float, draw: Draw, inplace: bool
) -> Tensor:
    """The fused kernels for a given draw, 0 < p < 1; differentiable."""
    parameter = parameters[0] if parameters else 0.0
    dense = torch.ops.aten.is_non_overlapping_and_dense.default(input)
    if inplace and (not dense or activation.saved is Saved.INPUT):
        # Backward reads the input, or the kernel can't write where it stands.
        return input.copy_(fused(activation, input.clone(), parameters, p, draw, False))
    if not dense:
        # The copy's layout is the one that eager's activation would have given its output.
        input = input.clone(memory_format=torch.preserve_format)
    return _Fused.apply(input, activation, parameter, p, draw, inplace)  # type: ignore[no-any-return]


class _Fused(torch.autograd.Function):
    """Forward and backward kernel, joined by the packed bits."""

    @staticmethod
    def forward(ctx, input, activation, parameter, p, draw, inplace):  # type: ignore[no-untyped-def]
        launch = kernels()
        output = input if inplace else torch.empty_like(input)
        bits = launch.empty_bits(activation, input, draw.plan)
        launch.forward(activation, input, output, bits, parameter, p, draw)
        if inplace:
            ctx.mark_dirty(input)
        ctx.save_for_backward(bits, input if activation.saved is Saved.INPUT else None)
        ctx.activation, ctx.parameter, ctx.p, ctx.plan = activation, parameter, p, draw.plan
        ctx.layout = (input.shape, input.stride())
        return output

    @staticmethod
    def backward(ctx, dy):  # type: ignore[no-untyped-def]
        bits, input = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True
            dx = _differentiable_backward(ctx, dy, bits, input)
        else:
            dx = _backward(ctx, dy, bits, input)
        return dx, None, None, None, None, None


def _backward(ctx, dy: Tensor, bits: Tensor, input: Tensor | None) -> Tensor:  # type: ignore[no-untyped-def]
    shape, stride = ctx.layout
    dx = torch.empty_strided(shape, stride, dtype=dy.dtype, device=dy.device)
    if dy.stride() != stride:
        # An expanded, sliced or transposed gradient: bring it into the order of the bits.
        dy = torch.empty_like(dx).copy_(dy)
    kernels().backward(ctx.activation, dy, input, bits, dx, ctx.parameter, ctx.p, ctx.plan)  # type: ignore[union-attr]
    return dx


def _differentiable_backward(ctx, dy: Tensor, bits: Tensor, input: Tensor | None) -> Tensor:  # type: ignore[no-untyped-def]
    if input is None:
        return _Linear.apply(dy, ctx, bits)  # type: ignore[no-any-return]
    launch = kernels()
    keep = launch.unpack(bits, dy.numel(), ctx.plan)[0]  # type: ignore[union-attr]
    keep = torch.as_strided(keep, *ctx.layout)
    scale = random.scales(ctx.p, dy.dtype is torch.float64)[1]
    parameters = (ctx.parameter,) if ctx.activation.parameter else ()
    value = ctx.activation.eager(input, *parameters)
    (dx,) = torch.autograd.grad(value, input, dy * keep * scale, create_graph=True)
    return dx


class _Linear(torch.autograd.Function):
    """The backward of an activation that is linear on either side of 0: its own derivative."""

    @staticmethod
    def forward(ctx, dy, fused_ctx, bits):  # type: ignore[no-untyped-def]
        ctx.fused_ctx = fused_ctx
        ctx.save_for_backward(bits)
        return _backward(fused_ctx, dy, bits, None)

    @staticmethod
    def backward(ctx, ddx):  # type: ignore[no-untyped-def]
        (bits,) = ctx.saved_tensors
        return _Linear.apply(ddx, ctx.fused_ctx, bits), None, None
