"""The facts that the monitor needs about an activation: its name, its numbers, its values."""

import torch
from torch import Tensor, nn

from ..activations import Activation, Bound, Ranges


def bound_to(row: Activation, module: nn.Module) -> Bound:
    """Return the row with the values that `module` has now."""
    return row.bind(*(getattr(module, name) for name in row.names))


def name_of(row: Activation) -> str:
    """Return the activation's name in PyTorch, or the row's name if PyTorch has none."""
    return row.name if row.module is None else row.module.__name__


def compute(bound: Bound, x: Tensor) -> Tensor:
    """Return act(x) by PyTorch."""
    return bound.row.function(x, *bound.values)


def within(x: Tensor, ranges: Ranges) -> Tensor:
    """Return which inputs are in one of the ranges."""
    found = torch.zeros_like(x, dtype=torch.bool)
    for low, high in ranges:
        found |= (x >= low) & (x <= high)
    return found
