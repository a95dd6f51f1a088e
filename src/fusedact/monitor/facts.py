"""What the monitor asks of an activation's row: what it computes, and where a unit is dead or saturated."""

import functools
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..activations import ROWS, Activation

Ranges = tuple[tuple[float, float], ...]  # of inputs, both ends included

_NEGATIVE: Ranges = ((-torch.inf, 0.0),)


class Bound(NamedTuple):
    """A row, and the values of its parameters."""

    row: Activation
    values: tuple[float, ...]


def row_of(module: nn.Module) -> Activation | None:
    """Return the row that modules of exactly that class have, None if they are no activation's."""
    return next((row for row in ROWS.values() if type(module) is row.module), None)


def bound_to(row: Activation, module: nn.Module) -> Bound:
    """Return the row with the values that `module` has now."""
    return Bound(row, (float(getattr(module, row.parameter)),) if row.parameter else ())


def name_of(row: Activation) -> str:
    """Return the activation's name in PyTorch."""
    return row.module.__name__


@functools.lru_cache(maxsize=4096)
def dead(bound: Bound) -> Ranges:
    """Return the inputs at which output and gradient are constant: all that aren't positive, or none."""
    with torch.inference_mode():
        probe = torch.tensor([-0.5, -1.0], dtype=torch.float64, device="cpu")
        return () if compute(bound, probe).any() else _NEGATIVE


def dies_where_negative(bound: Bound) -> bool:
    """Whether a unit is dead that never had a positive input, so that the kernels' packed bits tell."""
    return dead(bound) in ((), _NEGATIVE)


def saturated(bound: Bound) -> Ranges:
    """Return the inputs at which hardly any gradient passes."""
    return () if bound.row.saturation is None else ((-torch.inf, bound.row.saturation),)


def compute(bound: Bound, x: Tensor) -> Tensor:
    """Return act(x) by PyTorch."""
    return bound.row.eager(x, *bound.values)


def within(x: Tensor, ranges: Ranges) -> Tensor:
    """Return which inputs are in one of the ranges."""
    found = torch.zeros_like(x, dtype=torch.bool)
    for low, high in ranges:
        found |= (x >= low) & (x <= high)
    return found
