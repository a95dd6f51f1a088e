"""What the monitor asks of an activation's row: where a unit is dead or saturated, and what it is called."""

import functools
import math

import torch
from torch import Tensor, nn

from ..activations import Activation, Bound, Ranges

_NEGATIVE: Ranges = ((-math.inf, 0.0),)


def bound_to(row: Activation, module: nn.Module) -> Bound:
    """Return the row with the values that `module` has now."""
    return row.bind(*(getattr(module, name) for name in row.names))


def name_of(row: Activation) -> str:
    """Return the activation's name in PyTorch, or where it has none the row's."""
    return row.name if row.module is None else row.module.__name__


@functools.lru_cache(maxsize=4096)
def dead(bound: Bound) -> Ranges:
    """Return the inputs at which the derivative is exactly 0."""
    return bound.row.dead(*bound.values)


def dies_where_negative(bound: Bound) -> bool:
    """Whether a unit is dead that never had a positive input, so that the kernels' packed bits tell."""
    return dead(bound) in ((), _NEGATIVE)


def saturated(bound: Bound) -> Ranges:
    """Return the inputs at which hardly any gradient passes."""
    return bound.row.saturated(*bound.values)


def compute(bound: Bound, x: Tensor) -> Tensor:
    """Return act(x) by PyTorch."""
    return bound.row.function(x, *bound.values)


def within(x: Tensor, ranges: Ranges) -> Tensor:
    """Return which inputs are in one of the ranges."""
    found = torch.zeros_like(x, dtype=torch.bool)
    for low, high in ranges:
        found |= (x >= low) & (x <= high)
    return found
