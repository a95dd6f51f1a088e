"""The fused operation: which path a call takes, and its autograd."""

import functools
import importlib.util
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from . import random, reference
from .activations import ROWS, Activation, Saved, check_flag, check_probability
from .random import Draw, Plan

_TRITON = importlib.util.find_spec("triton") is not None
_OPERATORS = "cuda"  # where a compiler is given the operators
# Looked up once: they are asked at every call.
_forward_ad = torch.autograd.forward_ad
_tracing_state = torch._C._get_tracing_state
_in_transforms = torch._C._are_functorch_transforms_active
_grad_enabled = torch.is_grad_enabled
_is_compiling = torch.compiler.is_compiling
_strided = torch.strided
_empty_like = torch.empty_like
_is_batched = torch._C._functorch.is_legacy_batchedtensor
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@functools.cache
def kernels() -> Any:
    """The module that launches the Triton kernels; None where Triton isn't installed."""
    if not _TRITON:
        return None
    from .kernels import launch

    return launch


# Counts from a call's signs, once they are there; see `kernels.launch.forward_with_signs`.
Counter = Callable[[Tensor], None]


class Watcher(Protocol):
    """Who counts what goes into a call; `fusedact.monitor` has one per layer."""

    def wants(self, training: bool) -> bool:
        """Whether it watches such a call."""

    def __call__(self, input: Tensor, plan: Plan | None = None) -> Counter | None:
        """Count, before `input` may be overwritten; what signs of that plan tell may be left to a counter."""

    def compiled(self, input: Tensor, signs: Tensor, stride: Sequence[int], rng: str) -> None:
        """Count in a compiler's graph, from the signs that the operator stored of a tensor of that stride."""


def activation_dropout(
    activation: Activation,
    input: Tensor,
    parameters: tuple[float, ...],
    p: float,
    training: bool,
    inplace: bool,
    rng: str,
    watchers: tuple[Watcher, ...] = (),
) -> Tensor:
    """`dropout(act(input), p)` by the kernels where they can run, by eager PyTorch elsewhere."""
    if type(p) is not float or not 0.0 <= p <= 1.0:  # these tests are quicker than the calls
        p = check_probability(p)
    if type(training) is not bool or type(inplace) is not bool or rng not in random.RNGS:
        check_flag("training", training)
        check_flag("inplace", inplace)
        check_rng(rng)
    if watchers:
        watchers = tuple(watcher for watcher in watchers if watcher.wants(training))
    if training and 0 < p < 1 and _runs_kernels(input):
        parameter = parameters[0] if parameters else 0.0
        from_output = inplace and activation.from_output is not None
        n, device, watched = input.numel(), input.device, watchers != ()
        prepared = _prepared(activation, input.dtype, device, n, parameter, p, rng, from_output, watched)
        if prepared is not None:
            capturing = torch.cuda.is_current_stream_capturing()
            if not capturing or kernels().loaded(prepared, input):
                counters = _counters(watchers, input, prepared) if watched else ()
                draw = random.draw_for_graph if capturing else random.draw
                return fused(input, prepared, draw(input, prepared.plan), inplace, counters)
    check_input(input)
    if training and 0 < p < 1 and _runs_operators(input):
        parameter = parameters[0] if parameters else 0.0
        if _can_scale(parameter, p, rng):
            return operated(activation, input, parameter, p, inplace, rng, watchers)
    for watcher in watchers:
        watcher(input)
    return reference.composition(activation, input, parameters, p, training, inplace)


@functools.lru_cache(maxsize=4096)
def _prepared(
    activation: Activation,
    dtype: torch.dtype,
    device: torch.device,
    n: int,
    parameter: float,
    p: float,
    rng: str,
    from_output: bool = False,
    watched: bool = False,
) -> Any:
    """What the launches of a call need; None where no kernel can do what is asked, and eager PyTorch is to.

    That is a parameter beyond float32, a p that rounds to 0, no element, another dtype, no Triton.
    """
    used = random.used_probability(p, rng)
    if used == 0 or n == 0 or dtype not in DTYPES or kernels() is None:
        return None
    plan = random.plan(rng, n, dtype.itemsize, *random.processors(device))
    # From the output where it tells the sign of the input, and in the dtype doesn't overflow.
    from_output = from_output and 0 <= parameter <= torch.finfo(dtype).max * (1 - used)
    return kernels().prepare(activation, dtype, device, n, parameter, used, plan, from_output, watched)


def _counters(watchers: tuple[Watcher, ...], input: Tensor, prepared: Any) -> tuple[Counter, ...]:
    """Let all count; what some have left to count from the bits."""
    counters = [watcher(input, prepared.plan if prepared.has_signs else None) for watcher in watchers]
    return tuple(counter for counter in counters if counter is not None)


def check_input(input: Tensor) -> None:
    """TypeError unless `input` is a tensor that the operation is defined for."""
    if not isinstance(input, Tensor):
        raise TypeError(f"input has to be a torch.Tensor, but got {type(input).__name__}")
    if input.dtype not in DTYPES:
        allowed = ", ".join(str(dtype) for dtype in DTYPES)
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
    # and a compiler need operators they can see.
    return (
        (type(input) is Tensor or type(input) is torch.nn.Parameter)
        and not _is_compiling()
        and input.is_cuda
        and input.layout is _strided
        and not input.is_nested
        and _tracing_state() is None
        and _forward_ad._current_level < 0
        and not _in_transforms()
    )


def _runs_operators(input: Tensor) -> bool:
    # On a CPU the composition is what a compiler fuses best. Derivatives of functorch and forward mode
    # don't know of the operators: they would silently be 0. In words that a compiler can trace.
    return (
        torch.compiler.is_compiling()
        and input.device.type == _OPERATORS
        and (type(input) is Tensor or type(input) is torch.nn.Parameter)
        and not input.is_nested
        and torch._C._get_tracing_state() is None
        and not torch._C._are_functorch_transforms_active()
        and torch.autograd.forward_ad._current_level < 0
        and _TRITON
    )


def _can_scale(parameter: float, p: float, rng: str) -> bool:
    """Whether a kernel can do what is asked, in words that a compiler can trace; see `_prepared`."""
    used = random.used_probability(p, rng)
    return used > 0 and abs(parameter) / (1.0 - used) < 1e38


def fused(
    input: Tensor, prepared: Any, draw: Draw, inplace: bool, counters: tuple[Counter, ...] = ()
) -> Tensor:
    """The fused kernels, prepared for `input`, with the numbers that were drawn; differentiable."""
    contiguous = input.is_contiguous() and not input.is_neg()
    if contiguous and not inplace:  # as nearly always, and without what the others need to know
        return _apply(input, (prepared, draw, False, None, counters))
    dense = contiguous or (torch.ops.aten.is_non_overlapping_and_dense.default(input) and not input.is_neg())
    ordered = contiguous or prepared.plan.in_memory_order
    if inplace and (
        not dense
        or not ordered
        or prepared.saves_input
        or (input.is_leaf and input.requires_grad and torch.is_grad_enabled())
    ):
        # The kernel can't write where it stands, backward reads it, or autograd is about to refuse.
        return input.copy_(fused(input.clone(), prepared, draw, False, counters))
    # A copy's layout is the one that eager's activation would have given its output.
    x = input if dense else input.clone(memory_format=torch.preserve_format)
    numbered = x if ordered else x.contiguous()
    output = _apply(numbered, (prepared, draw, inplace, numbered.stride(), counters))
    return output if ordered else torch.empty_like(x).copy_(output)


# What a call was prepared for, its numbers, whether in place, the input's strides (None: contiguous), and
# who counts.
Call = tuple[Any, Draw, bool, Sequence[int] | None, tuple[Counter, ...]]


class _Fused(torch.autograd.Function):
    """Forward and backward kernel, joined by the packed bits."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, call: Call) -> Tensor:
        prepared, draw, inplace, _, counters = call
        y = x if inplace else _empty_like(x)
        if prepared.has_signs:
            bits, signs = kernels().forward_with_signs(prepared, x, y, draw)
            for count in counters:
                count(signs)
        else:
            bits = kernels().forward(prepared, x, y, draw)
        if inplace:
            ctx.mark_dirty(x)
        if prepared.saves_input:
            ctx.save_for_backward(bits, x)
        elif prepared.saves_output:
            ctx.save_for_backward(bits, y)
        else:
            ctx.save_for_backward(bits)
        ctx.call = call  # each attribute takes its time
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        if (
            _grad_enabled()  # under create_graph=True
            or _in_transforms()
            or _is_batched(dy)  # is_grads_batched=True
        ):
            return _composed_backward(ctx.call, dy, *ctx.saved_tensors), None
        return _backward(ctx.call, dy, *ctx.saved_tensors), None


# `Function.apply` without what it does for functorch, which never comes here.
_apply: Callable[[Tensor, Call], Tensor] = super(torch.autograd.Function, _Fused).apply


def _backward(call: Call, dy: Tensor, bits: Tensor, x: Tensor | None = None) -> Tensor:
    prepared, _, _, stride, _ = call
    dy = _ordered(dy, stride)
    dx = _empty_like(dy)
    kernels().backward(prepared, dy, x, bits, dx)
    return dx


def _ordered(input: Tensor, stride: Sequence[int] | None) -> Tensor:
    """`input` with that stride, the order of the bits, and with memory of its own: a copy where it hasn't."""
    ordered = input.is_contiguous() if stride is None else input.stride() == tuple(stride)
    if ordered and not input.is_neg() and not input._is_zerotensor():
        return input
    if stride is None:
        return torch.empty_like(input, memory_format=torch.contiguous_format).copy_(input)
    return torch.empty_strided(input.shape, stride, dtype=input.dtype, device=input.device).copy_(input)


def _composed_backward(call: Call, dy: Tensor, bits: Tensor, x: Tensor | None = None) -> Tensor:
    """`_backward` in PyTorch's operations, which can be differentiated again, and batched."""
    prepared, _, _, stride, _ = call
    activation, parameter, p, plan = prepared[:4]
    planes = kernels().unpack(bits, dy.shape.numel(), plan)
    keep, *flags = (
        plane.view(dy.shape) if stride is None else torch.as_strided(plane, dy.shape, stride)
        for plane in planes
    )
    if torch.is_grad_enabled() and not dy.requires_grad:
        # A second derivative of 0, as in eager mode, and not none at all.
        dy = dy * torch.ones((), dtype=dy.dtype, device=dy.device, requires_grad=True)
    stored = dy.dtype
    if plan.rng == "fast" and stored is not torch.float64:
        dy = dy.float()  # rounded once, at the end
    scale = random.scales(p, stored is torch.float64)[1]
    dx: Tensor
    if x is not None and prepared.saves_output:
        output = x.to(dy.dtype) / random.scales(p, stored is torch.float64)[0]
        dx = activation.from_output(dy * keep * scale, output, parameter)
    elif x is not None:
        with torch.enable_grad():
            x = x if x.requires_grad else x.detach().requires_grad_()
            value = activation.eager(x.to(dy.dtype), *((parameter,) if activation.parameter else ()))
        (dx,) = torch.autograd.grad(value, x, dy * keep * scale, create_graph=torch.is_grad_enabled())
    elif flags:
        dx = dy * keep * scale
        dx = torch.where(flags[0], dx, dx * parameter)
    else:
        dx = torch.where(keep, dy * scale, 0.0)
    return dx.to(stored)


# What a compiler sees: two operators, on any strides, whose numbers come in a tensor.


def operated(
    activation: Activation,
    input: Tensor,
    parameter: float,
    p: float,
    inplace: bool,
    rng: str,
    watchers: tuple[Watcher, ...] = (),
) -> Tensor:
    """The same by the registered operators, with numbers that are drawn wherever the graph runs."""
    draw = random.draw_on_device(input)
    # What backward reads must not be written over.
    x = input.clone() if inplace and activation.saved is Saved.INPUT else input
    arguments = activation.name, parameter, p, rng, watchers != ()
    output, bits, signs = _forward_operator(x, *draw.device, *arguments)
    signs = bits if activation.saved is Saved.FLAG else signs
    for watcher in watchers:
        watcher.compiled(input, signs, output.stride(), rng)
    return input.copy_(output) if inplace else output


@functools.lru_cache(maxsize=4096)
def _prepared_operator(
    activation: str,
    dtype: torch.dtype,
    device: torch.device,
    n: int,
    parameter: float,
    p: float,
    rng: str,
    watched: bool = False,
) -> Any:
    used = random.used_probability(p, rng)
    plan = random.graph_plan(rng, n, dtype.itemsize)
    return kernels().prepare(ROWS[activation], dtype, device, n, parameter, used, plan, watched=watched)


@torch.library.custom_op("fusedact::activation_dropout", mutates_args=())
def _forward_operator(
    x: Tensor,
    seed: Tensor,
    offset: Tensor,
    activation: str,
    parameter: float,
    p: float,
    rng: str,
    watched: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """`dropout(act(x), p)` in x's layout, made dense, packed bits, and if `watched` the inputs' signs.

    `seed` and `offset` are int64 tensors of one element on x's device; bits int32 [tiles * planes * 128],
    signs int32 [tiles * 128], or [0] where there are none or the bits have them.
    """
    y, bits, signs = _forward_fake(x, seed, offset, activation, parameter, p, rng, watched)
    if x.numel() > 0:
        arguments = activation, x.dtype, x.device, x.numel(), parameter, p, rng, watched
        draw = Draw(0, 0, (seed, offset))
        prepared = _prepared_operator(*arguments)
        stored = None if prepared.signs is None else signs
        kernels().forward(prepared, _ordered(x, y.stride()), y, draw, bits, stored)
    return y, bits, signs


@_forward_operator.register_fake
def _forward_fake(
    x: Tensor,
    seed: Tensor,
    offset: Tensor,
    activation: str,
    parameter: float,
    p: float,
    rng: str,
    watched: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    n, launch = x.numel(), kernels()
    # Of several iterations of `random.graph_plan`, the last may be left with most of its tiles unused.
    spare = torch.sym_min(n // random.ITERATION, 1) * (random.ITERATION // launch.TILE)
    words = ((n + launch.TILE - 1) // launch.TILE + spare) * launch.COLUMNS
    planes = launch.planes(ROWS[activation])
    bits = x.new_empty((words * planes,), dtype=torch.int32)
    return (
        torch.empty_like(x),
        bits,
        x.new_empty((words if watched and planes == 1 else 0,), dtype=torch.int32),
    )


@torch.library.custom_op("fusedact::activation_dropout_backward", mutates_args=())
def _backward_operator(
    dy: Tensor,
    x: Tensor | None,
    bits: Tensor,
    stride: Sequence[int],
    activation: str,
    parameter: float,
    p: float,
    rng: str,
) -> Tensor:
    """The gradient of x, with `stride`, the one of y; `x` is needed where the activation's row says so."""
    dx: Tensor = _backward_fake(dy, x, bits, stride, activation, parameter, p, rng)
    if dy.numel() > 0:
        prepared = _prepared_operator(activation, dy.dtype, dy.device, dy.numel(), parameter, p, rng)
        x = x if x is None else _ordered(x, stride)
        kernels().backward(prepared, _ordered(dy, stride), x, bits, dx)
    return dx


@_backward_operator.register_fake
def _backward_fake(
    dy: Tensor,
    x: Tensor | None,
    bits: Tensor,
    stride: Sequence[int],
    activation: str,
    parameter: float,
    p: float,
    rng: str,
) -> Tensor:
    return torch.empty_strided(dy.shape, stride, dtype=dy.dtype, device=dy.device)


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, _, _, activation, *rest, _ = inputs
    y, bits, _ = output
    ctx.save_for_backward(x if ROWS[activation].saved is Saved.INPUT else None, bits)
    ctx.rest = (y.stride(), activation, *rest)


def _operators_backward(ctx: Any, dy: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    return _backward_operator(dy, *ctx.saved_tensors, *ctx.rest), *[None] * 7


_forward_operator.register_autograd(_operators_backward, setup_context=_keep_for_backward)
