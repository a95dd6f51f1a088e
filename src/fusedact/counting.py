"""What is counted of an activation's input, per unit: by the kernels where they can, else by PyTorch.

A dense input is [outer, units, inner] in memory. Its samples are read in runs: of one sample, or after a
convolution, where inner is above 1, of some consecutive positions.
"""

import contextlib
import functools
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from .activations import ROWS, Activation
from .ops import DTYPES, Counter, kernels
from .random import Plan, graph_plan

RUN = 64  # positions of a convolution's output that are read together
WHOLE = 2**16  # elements of inputs that are read whole: they are in a cache, and take the time of a launch

_lock = threading.Lock()  # of tallies that PyTorch adds to: threads may share a model


class Tally(NamedTuple):
    """What has been counted of a layer's units, where they are.

    Attributes:
        counts: int64 [2, 1 + units]: the number of samples, and each unit's positive inputs; of the samples
            that were read for what follows their number, and each unit's saturated inputs.
        activity: float64 [units]: the sum of |h| over the samples that were read.
    """

    counts: Tensor
    activity: Tensor

    @classmethod
    def zeros(cls, units: int, device: torch.device | str) -> "Tally":
        """An empty one."""
        return cls(
            torch.zeros(2, 1 + units, dtype=torch.int64, device=device),
            torch.zeros(units, dtype=torch.float64, device=device),
        )


@functools.cache
def _kernels() -> Any:
    """The module whose kernels count; None where Triton isn't installed."""
    if kernels() is None:
        return None
    from .kernels import counting

    return counting


def add_up(
    input: Tensor,
    dim: int,
    activation: Activation,
    parameters: list[float],
    stride: int,
    tally: Tally,
    plan: Plan | None,
) -> Counter | None:
    """See `count`. If the signs of a dense `input` are stored by a plan, they may be left to a counter."""
    if torch._C._current_graph_task_id() != -1:
        return None
    # No mode sees any of it: a selective checkpoint would save what its second forward doesn't ask for.
    modes = torch._C._len_torch_dispatch_stack()
    with torch.no_grad(), _disable_current_modes() if modes else contextlib.nullcontext():
        x = input.detach()
        if x.ndim < 2:
            x, dim = x.reshape(1, -1), 1
        if x.is_neg() or not torch.ops.aten.is_non_overlapping_and_dense.default(x):
            x, plan = x.clone(memory_format=torch.preserve_format), None
        units = x.shape[dim]
        inner = x.stride(dim) if units > 1 else 1
        shape = x.numel() // (units * inner), units, inner  # as x lies in memory
        if stride == 1 or x.numel() <= WHOLE:
            _read(x, shape, 1, (True, True), activation, parameters, tally)
            return None
        _read(x, shape, stride, (False, True), activation, parameters, tally)
        counter: Counter | None = None
        if plan is not None:
            counter = _kernels().fired_counter(activation, x.numel(), plan, shape, tally.counts)
        if counter is None:
            _read(x, shape, 1, (True, False), activation, parameters, tally)
        return counter


def _read(
    x: Tensor,
    shape: tuple[int, int, int],
    stride: int,
    figures: tuple[bool, bool],
    activation: Activation,
    parameters: list[float],
    tally: Tally,
) -> None:
    """Add the figures (what fired; |h| and what is saturated) of every stride-th run of a dense `x`."""
    outer, units, inner = shape
    run = min(inner, RUN)
    samples = _samples(outer, inner, run, stride)
    if x.is_cuda and x.dtype in DTYPES and _kernels() is not None:
        parameter = parameters[0] if parameters else 0.0
        count = _kernels().count_input
        if count(activation, parameter, x, shape, run, stride, samples, figures, *tally):
            return
    values, exist = _runs(x.as_strided(shape, (units * inner, inner, 1)), run, stride)
    with _lock:
        if figures[0]:
            tally.counts[0, 0] += samples
            tally.counts[0, 1:] += (values > 0).sum((0, 2))
        if figures[1]:
            tally.counts[1, 0] += samples
            if activation.saturation is not None:
                tally.counts[1, 1:] += ((values < activation.saturation) & exist).sum((0, 2))
            activity = torch.where(exist, activation.eager(values, *parameters).abs(), 0.0)
            tally.activity.add_(activity.sum((0, 2), dtype=torch.float64))


@functools.lru_cache(maxsize=4096)
def _samples(outer: int, inner: int, run: int, stride: int) -> int:
    """How many there are in every stride-th run."""
    if stride == 1:
        return outer * inner
    pieces = -(-inner // run)
    return sum(min(run, inner - number % pieces * run) for number in range(0, outer * pieces, stride))


def _runs(x: Tensor, run: int, stride: int) -> tuple[Tensor, Tensor]:
    """Every stride-th run of x [outer, units, inner] as [runs, units, positions]; which of those exist."""
    outer, _, inner = x.shape
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
    dim: int,
    activation: str,
    parameters: list[float],
    stride: int,
    number: str,
    counts: Tensor,
    activity: Tensor,
) -> None:
    """Add an activation's `input` to its tally; no synchronisation.

    In a backward pass it does nothing: what runs forward there is a checkpoint that computes again.

    Args:
        input: any shape.
        signs: what `ops.operated` stored of them, if it ran; for a tensor of the strides `signs_stride`.
        signs_stride: see `signs`.
        rng: see `signs`.
        dim: along which the units stand.
        activation: its row's name.
        parameters: the activation's.
        stride: see `ActivityMonitor`.
        number: of the layer among those of all monitors.
        counts: see `Tally`.
        activity: see `Tally`.
    """
    if input.numel() == 0:
        return
    row, plan = ROWS[activation], None
    if signs is not None and input.stride() == tuple(signs_stride):
        plan = graph_plan(rng, input.numel(), input.element_size())
    counter = add_up(input, dim, row, parameters, stride, Tally(counts, activity), plan)
    if counter is not None and signs is not None:
        counter(signs)


# What a compiler sees of it: one operator, which decides when it runs whether it is in a backward pass.
count_operator = torch.library.custom_op(
    "fusedact::count_activity", count, mutates_args=("counts", "activity")
)


@count_operator.register_fake
def _(
    input: Tensor,
    signs: Tensor | None,
    signs_stride: Sequence[int],
    rng: str,
    dim: int,
    activation: str,
    parameters: list[float],
    stride: int,
    number: str,
    counts: Tensor,
    activity: Tensor,
) -> None:
    pass
