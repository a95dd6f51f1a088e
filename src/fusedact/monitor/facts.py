"""What the monitor asks of an activation's row: what it computes, and where a unit is dead or saturated."""

import torch
from torch import Tensor, nn

from ..activations import ROWS, Activation

Ranges = tuple[tuple[float, float], ...]  # of inputs, both ends included

_NEGATIVE: Ranges = ((-torch.inf, 0.0),)


def row_of(module: nn.Module) -> Activation | None:
    """Return the row that modules of exactly that class have, None if they are no activation's."""
    return next((row for row in ROWS.values() if type(module) is row.module), None)


def values_of(row: Activation, module: nn.Module) -> tuple[float, ...]:
    """Return the values of the row's parameters that `module` has now."""
    return (float(getattr(module, row.parameter)),) if row.parameter else ()


def dead(row: Activation, values: tuple[float, ...]) -> Ranges:
    """Return the inputs at which output and gradient are constant: all negative ones, or none."""
    probe = torch.tensor([-0.5, -1.0], dtype=torch.float64)
    return () if row.eager(probe, *values).any() else _NEGATIVE


def dies_where_negative(row: Activation, values: tuple[float, ...]) -> bool:
    """Whether a unit is dead that never had a positive input, so that the kernels' packed bits tell."""
    return dead(row, values) in ((), _NEGATIVE)


def saturated(row: Activation, values: tuple[float, ...]) -> Ranges:
    """Return the inputs at which hardly any gradient passes."""
    return () if row.saturation is None else ((-torch.inf, row.saturation),)


def compute(row: Activation, values: tuple[float, ...], x: Tensor) -> Tensor:
    """Return act(x) by PyTorch."""
    return row.eager(x, *values)


def within(x: Tensor, ranges: Ranges) -> Tensor:
    """Return which inputs are in one of the ranges."""
    found = torch.zeros_like(x, dtype=torch.bool)
    for low, high in ranges:
        found |= (x >= low) & (x <= high)
    return found
