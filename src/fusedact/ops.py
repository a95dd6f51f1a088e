"""The fused operation: which path a call takes, and its autograd."""

import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import random, reference
from .activations import Activation, check_flag, check_probability
from .random import Draw

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@functools.cache
def kernels() -> Any:
    """The module that launches the Triton kernels; None where Triton isn't installed."""
    if importlib.util.find_spec("triton") is None:
        return None
    from .kernels import launch

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
    if type(training) is not bool or type(inplace) is not bool or rng not in random.RNGS:
        check_flag("training", training)
        check_flag("inplace", inplace)
        check_rng(rng)
    if training and 0 < p < 1 and _runs_kernels(input):
        parameter = parameters[0] if parameters else 0.0
        prepared = _prepared(activation, input.dtype, input.get_device(), input.numel(), parameter, p, rng)
        if prepared is not None:
            return fused(input, prepared, random.draw(input, prepared.plan), inplace)
    return reference.composition(activation, input, parameters, p, training, inplace)


@functools.lru_cache(maxsize=4096)
def _prepared(
    activation: Activation,
    dtype: torch.dtype,
    device: int,
    n: int,
    parameter: float,
    p: float,
    rng: str,
) -> Any:
    """What the launches of a call need; None where no kernel can do what is asked, and eager PyTorch is to.

    That is a parameter beyond float32, and a p that rounds to 0.
    """
    used = random.used_probability(p, rng)
    if used == 0:
        return None
    plan = random.plan(rng, n, dtype.itemsize, *random.processors(device))
    where = torch.device("cuda", device) if device >= 0 else torch.device("cpu")
    return kernels().prepare(activation, dtype, where, n, parameter, used, plan)


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
    # A subclass (DTensor, FakeTensor), a functorch transform, forward-mode differentiation, a tracer
    # and a compiler need operators they can see; a capturing graph needs a seed that each replay
    # refreshes.
    return (
        not torch.compiler.is_compiling()
        and input.is_cuda
        and (type(input) is Tensor or type(input) is torch.nn.Parameter)
        and not input.is_nested
        and torch._C._get_tracing_state() is None
        and torch.autograd.forward_ad._current_level < 0
        and input.numel() > 0
        and not torch._C._are_functorch_transforms_active()
        and not torch.cuda.is_current_stream_capturing()
        and kernels() is not None
    )


def fused(input: Tensor, prepared: Any, draw: Draw, inplace: bool) -> Tensor:
    """The fused kernels, prepared for `input`, with the numbers that were drawn; differentiable."""
    contiguous = input.is_contiguous() and not input.is_neg()
    if contiguous and not inplace:  # as nearly always, and without what the others need to know
        return _apply(input, (prepared, draw, False))
    dense = contiguous or (torch.ops.aten.is_non_overlapping_and_dense.default(input) and not input.is_neg())
    ordered = contiguous or prepared.plan.in_memory_order
    if inplace and (
        not dense
        or not ordered
        or prepared.saves_input
        or (input.is_leaf and input.requires_grad and torch.is_grad_enabled())
    ):
        # The kernel can't write where it stands, backward reads it, or autograd is about to refuse.
        return input.copy_(fused(input.clone(), prepared, draw, False))
    # A copy's layout is the one that eager's activation would have given its output.
    x = input if dense else input.clone(memory_format=torch.preserve_format)
    output = _apply(x if ordered else x.contiguous(), (prepared, draw, inplace))
    return output if ordered else torch.empty_like(x).copy_(output)


class _Fused(torch.autograd.Function):
    """Forward and backward kernel, joined by the packed bits."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, call: tuple[Any, Draw, bool]) -> Tensor:
        prepared, draw, inplace = call
        y = x if inplace else torch.empty_like(x)
        bits = kernels().forward(prepared, x, y, draw)
        if inplace:
            ctx.mark_dirty(x)
        if prepared.saves_input:
            ctx.save_for_backward(bits, x)
        else:
            ctx.save_for_backward(bits)
        ctx.prepared = prepared
        ctx.stride = x.stride()
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # that is under create_graph=True
            return _differentiable_backward(ctx, dy, *ctx.saved_tensors), None
        return _backward(ctx, dy, *ctx.saved_tensors), None


# `Function.apply` without what it does for functorch, which never comes here.
_apply: Callable[[Tensor, tuple[Any, Draw, bool]], Tensor] = super(torch.autograd.Function, _Fused).apply


def _backward(ctx: Any, dy: Tensor, bits: Tensor, x: Tensor | None = None) -> Tensor:
    if dy.stride() != ctx.stride or dy.is_neg() or dy._is_zerotensor():
        # An expanded, sliced or transposed gradient, or one without memory of its own: bring it into
        # the order of the bits.
        dy = torch.empty_strided(dy.shape, ctx.stride, dtype=dy.dtype, device=dy.device).copy_(dy)
    dx = torch.empty_like(dy)
    kernels().backward(ctx.prepared, dy, x, bits, dx)
    return dx


def _differentiable_backward(ctx: Any, dy: Tensor, bits: Tensor, x: Tensor | None = None) -> Tensor:
    dx: Tensor
    if x is None:
        dx = _Linear.apply(dy, ctx, bits)
    else:
        # The composition with the mask that was drawn, through PyTorch's own derivatives.
        activation, parameter, p, plan = ctx.prepared[:4]
        keep = torch.as_strided(kernels().unpack(bits, x.numel(), plan)[0], x.shape, ctx.stride)
        scale = random.scales(p, x.dtype is torch.float64)[1]
        value = activation.eager(x, *((parameter,) if activation.parameter else ()))
        (dx,) = torch.autograd.grad(value, x, dy * keep * scale, create_graph=True)
    return dx


class _Linear(torch.autograd.Function):
    """The backward of an activation that is linear on either side of 0: its own derivative."""

    @staticmethod
    def forward(ctx: Any, dy: Tensor, fused_ctx: Any, bits: Tensor) -> Tensor:
        ctx.fused_ctx = fused_ctx
        ctx.save_for_backward(bits)
        return _backward(fused_ctx, dy, bits)

    @staticmethod
    def backward(ctx: Any, ddx: Tensor) -> tuple[Tensor | None, ...]:
        (bits,) = ctx.saved_tensors
        return _Linear.apply(ddx, ctx.fused_ctx, bits), None, None
