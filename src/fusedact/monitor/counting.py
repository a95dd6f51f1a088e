"""Addition of an input to a tally: by the kernels if they support it, else by PyTorch."""

import functools
import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _torch, kernels
from .._torch import in_backward
from ..activations import ROWS, Bound
from ..dispatch import DTYPES
from ..kernels.counted import Figures, Row, Sampling, Shape
from ..masks.plan import Plan, graph_plan
from ..watcher import Counter
from .facts import compute, within
from .tally import Tally

RUN = 64  # positions of a convolution's output that are read together
WHOLE = 2**16  # elements; smaller inputs are read whole, since they are cached and a launch takes longer

_EVERYTHING = Figures(fired=True, finite=True, activity=True)
_lock = threading.Lock()  # of tallies that PyTorch adds to: threads may share a model


@functools.cache
def _kernels() -> Any:
    """Return the module whose kernels count; None where Triton isn't installed."""
    if not kernels.INSTALLED:
        return None
    from ..kernels import monitor

    return monitor


def add_up(
    input: Tensor,
    axis: int,
    bound: Bound,
    stride: int,
    tally: Tally,
    plan: Plan | None,
) -> Counter | None:
    """Add an activation's input to its tally, without synchronisation; in a backward pass, do nothing.

    Args:
        input: any shape.
        axis: along which the units stand, from the front.
        bound: the activation.
        stride: see `ActivityMonitor`.
        tally: of that many units.
        plan: how the kernels will walk the input and store its signs; None if they won't.

    Returns:
        A function that counts the rest from the signs; None if nothing is left to count.
    """
    if in_backward():
        return None
    # Hidden from dispatch modes: a selective checkpoint would save results that its second forward never asks
    # for.
    with torch.no_grad(), _torch.hidden_from_modes():
        x = input.detach()
        if x.ndim < 2:
            x, axis = x.reshape(1, -1), 1
        if x.is_neg() or not torch.ops.aten.is_non_overlapping_and_dense.default(x):
            x, plan = x.clone(memory_format=torch.preserve_format), None
        units = x.shape[axis]
        inner = x.stride(axis) if units > 1 else 1
        shape = Shape(x.numel() // (units * inner), units, inner)

        def read(stride: int, figures: Figures) -> None:
            _read(x, sampling(shape, stride), figures, bound, tally)

        if stride == 1 or x.numel() <= WHOLE:
            read(1, _EVERYTHING)
            return None
        counter: Counter | None = None
        if plan is not None and bound.dies_where_negative:
            counter = _kernels().fired_counter(bound.row, x.numel(), plan, shape, tally.counts)
        # Signs don't tell NaN and infinities, so with signs these are counted in the samples that are read.
        read(stride, Figures(fired=False, finite=counter is not None, activity=True))
        if counter is None:
            read(1, Figures(fired=True, finite=True, activity=False))
        return counter


@functools.lru_cache(maxsize=4096)
def sampling(shape: Shape, stride: int) -> Sampling:
    """Return the sampling that reads every stride-th run of an input."""
    outer, _, inner = shape
    run = min(inner, RUN)
    if stride == 1:
        return Sampling(shape, run, stride, outer * inner)
    pieces = -(-inner // run)
    runs = range(0, outer * pieces, stride)
    return Sampling(shape, run, stride, sum(min(run, inner - number % pieces * run) for number in runs))


def _read(
    x: Tensor,
    sampling: Sampling,
    figures: Figures,
    bound: Bound,
    tally: Tally,
) -> None:
    """Add the figures of a dense `x` to its tally."""
    by_kernel = x.is_cuda and x.dtype in DTYPES and _kernels() is not None
    if by_kernel and _kernels().count_input(bound, x, sampling, figures, *tally):
        return
    outer, units, inner = sampling.shape
    part, exists = _runs(x.as_strided((outer, units, inner), (units * inner, inner, 1)), sampling)
    if part.dtype is not torch.float64:
        part = part.float()
    counts, samples = tally.counts, sampling.samples

    def add(to: Row, found: Tensor) -> None:
        counts[to, 1:] += (found & exists).sum((0, 2))

    with _lock:
        if figures.fired:
            counts[Row.FIRED, 0] += samples
            add(Row.FIRED, part > 0)
            if not bound.dies_where_negative:
                add(Row.ALIVE, ~within(part, bound.dead))
        if figures.finite:
            counts[Row.NAN, 0] += samples
            add(Row.NAN, part.isnan())
            add(Row.INFINITE, part.isinf())
        if figures.activity:
            counts[Row.ALIVE, 0] += 1
            counts[Row.SATURATED, 0] += samples
            if bound.saturated:
                add(Row.SATURATED, within(part, bound.saturated))
            h = compute(bound, part).abs()
            finite = part.isfinite() & h.isfinite()
            add(Row.LEFT_OUT, ~finite)
            h = torch.where(finite & exists, h, 0.0)
            tally.activity.add_(h.sum((0, 2), dtype=torch.float64))


def _runs(x: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Return every stride-th run of x [outer, units, inner] as [runs, units, positions], and which exist."""
    (outer, _, inner), run, stride, _ = sampling
    if stride == 1 or inner <= run:
        return x[::stride], torch.ones((), dtype=torch.bool, device=x.device)
    pieces = -(-inner // run)
    number = torch.arange(0, outer * pieces, stride, device=x.device).unsqueeze(1)
    position = number % pieces * run + torch.arange(run, device=x.device)
    values = x[number // pieces, :, position.clamp(max=inner - 1)].transpose(1, 2)
    return values, (position < inner).unsqueeze(1)


def count(
    input: Tensor,
    signs: Tensor | None,
    signs_stride: Sequence[int],
    rng: str,
    axis: int,
    activation: str,
    values: list[float],
    stride: int,
    counts: Tensor,
    activity: Tensor,
) -> None:
    """Add an activation's `input` to its tally, see `add_up`.

    Args:
        input: any shape.
        signs: the input's signs as the fused operator stored them for a tensor of strides `signs_stride`;
            None if it didn't run.
        signs_stride: see `signs`.
        rng: see `signs`.
        axis: along which the units stand.
        activation: its row's name.
        values: of the activation's parameters.
        stride: see `ActivityMonitor`.
        counts: see `Tally`.
        activity: see `Tally`.
    """
    if input.numel() == 0:
        return
    bound, plan = Bound(ROWS[activation], tuple(values)), None
    if signs is not None and input.stride() == tuple(signs_stride):
        plan = graph_plan(rng, input.numel(), input.element_size())
    counter = add_up(input, axis, bound, stride, Tally(counts, activity), plan)
    if counter is not None and signs is not None:
        counter(signs)


# One operator for compilers, since only at run time is it known whether a backward pass runs it.
count_operator = torch.library.custom_op(
    "fusedact::count_activity", count, mutates_args=("counts", "activity")
)


@count_operator.register_fake
def _(
    input: Tensor,
    signs: Tensor | None,
    signs_stride: Sequence[int],
    rng: str,
    axis: int,
    activation: str,
    values: list[float],
    stride: int,
    counts: Tensor,
    activity: Tensor,
) -> None:
    pass
