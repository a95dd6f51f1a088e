"""The two operators that a compiler sees. They take any strides, and seed and offset as tensors."""

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import _torch
from .activations import ROWS, Activation, Saves
from .masks.generator import PhiloxState, drawn_on_device
from .masks.plan import ITERATION, graph_plan, used_probability
from .watcher import Watchers

if TYPE_CHECKING:
    from .kernels.configuration import LaunchConfiguration

DEVICE = "cuda"  # where a compiler is given the operators


def can_compute(row: Activation, values: tuple[float, ...], p: float, rng: str) -> bool:
    """Whether a kernel supports the call; the code can be traced by a compiler; see `configure`."""
    return used_probability(p, rng) > 0 and all(abs(value) < 3.4e38 for value in values)


def activation_dropout(
    row: Activation,
    input: Tensor,
    values: tuple[float, ...],
    p: float,
    inplace: bool,
    rng: str,
    watchers: Watchers,
) -> Tensor:
    """Return `dropout(act(input), p)` by the operators, with a seed drawn on the device by the graph."""
    if row.widens and _torch.is_widened(input):
        wide = activation_dropout(row, input.float(), values, p, False, rng, watchers)
        return input.copy_(wide) if inplace else wide
    state = drawn_on_device(input.device)
    assert state.on_device is not None
    # Backward reads x, so the result must not overwrite it.
    x = input.clone() if inplace and row.saves is Saves.INPUT else input
    numbers = list(values)
    output, bits, signs = _forward(x, *state.on_device, row.name, numbers, p, rng, watchers != ())
    signs = bits if row.saves is Saves.TWO_BITS else signs
    for watcher in watchers:
        watcher.compiled(input, signs, output.stride(), rng)
    return input.copy_(output) if inplace else output


@functools.lru_cache(maxsize=4096)
def _configured(
    name: str,
    dtype: torch.dtype,
    n: int,
    values: tuple[float, ...],
    p: float,
    rng: str,
    watched: bool = False,
) -> "LaunchConfiguration":
    from .kernels.configuration import configure

    plan = graph_plan(rng, n, dtype.itemsize)
    result = configure(ROWS[name], dtype, n, values, used_probability(p, rng), plan, watched=watched)
    assert result is not None  # `can_compute` has checked it
    return result


@torch.library.custom_op("fusedact::activation_dropout", mutates_args=())
def _forward(
    x: Tensor,
    seed: Tensor,
    offset: Tensor,
    activation: str,
    values: list[float],
    p: float,
    rng: str,
    watched: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return `dropout(act(x), p)` in x's layout, made dense, the packed bits, and the inputs' signs.

    `seed` and `offset` are int64 tensors of one element on x's device. The bits are int32
    [tiles * planes * 128]. The signs are int32 [tiles * 128] if `watched` and the bits don't have them, else
    [0].
    """
    from .autograd import ordered_as
    from .kernels import launch

    y, bits, signs = _forward_fake(x, seed, offset, activation, values, p, rng, watched)
    if x.numel() > 0:
        configuration = _configured(activation, x.dtype, x.numel(), tuple(values), p, rng, watched)
        stored = signs if configuration.stores_signs else None
        state = PhiloxState(0, 0, (seed, offset))
        launch.forward(configuration, ordered_as(x, y.stride()), y, state, bits, stored)
    return y, bits, signs


@_forward.register_fake
def _forward_fake(
    x: Tensor,
    seed: Tensor,
    offset: Tensor,
    activation: str,
    values: list[float],
    p: float,
    rng: str,
    watched: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    from .kernels.configuration import planes
    from .kernels.tiles import COLUMNS, TILE

    n, count = x.numel(), planes(ROWS[activation])
    # Of several iterations of `graph_plan`, the last may be left with most of its tiles unused.
    spare = torch.sym_min(n // ITERATION, 1) * (ITERATION // TILE)
    words = ((n + TILE - 1) // TILE + spare) * COLUMNS
    return (
        torch.empty_like(x),
        x.new_empty((words * count,), dtype=torch.int32),
        x.new_empty((words if watched and count == 1 else 0,), dtype=torch.int32),
    )


@torch.library.custom_op("fusedact::activation_dropout_backward", mutates_args=())
def _backward(
    dy: Tensor,
    x: Tensor | None,
    bits: Tensor,
    stride: Sequence[int],
    activation: str,
    values: list[float],
    p: float,
    rng: str,
) -> Tensor:
    """Return the gradient of x, with y's stride `stride`; `x` is None if the row doesn't save it."""
    from .autograd import ordered_as
    from .kernels import launch

    dx: Tensor = _backward_fake(dy, x, bits, stride, activation, values, p, rng)
    if dy.numel() > 0:
        configuration = _configured(activation, dy.dtype, dy.numel(), tuple(values), p, rng)
        saved = ordered_as(x, stride) if x is not None and configuration.saves_input else None
        if not launch.backward(configuration, dx, ordered_as(dy, stride), bits, saved):
            raise RuntimeError(launch.NOT_LOADED)
    return dx


@_backward.register_fake
def _backward_fake(
    dy: Tensor,
    x: Tensor | None,
    bits: Tensor,
    stride: Sequence[int],
    activation: str,
    values: list[float],
    p: float,
    rng: str,
) -> Tensor:
    return torch.empty_strided(dy.shape, stride, dtype=dy.dtype, device=dy.device)


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, _, _, activation, *rest, _ = inputs
    y, bits, _ = output
    ctx.save_for_backward(x if ROWS[activation].saves is Saves.INPUT else None, bits)
    ctx.rest = (y.stride(), activation, *rest)


def _operators_backward(ctx: Any, dy: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    return _backward(dy, *ctx.saved_tensors, *ctx.rest), *[None] * 7


_forward.register_autograd(_operators_backward, setup_context=_keep_for_backward)
