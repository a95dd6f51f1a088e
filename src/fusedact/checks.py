"""Checks of arguments, worded so that a compiler can trace them. Each returns the value that it accepts."""

import math
import numbers

from torch import nn


def check_probability(p: float) -> float:
    """Return `p` as a float; raise ValueError unless it is a number in [0, 1]."""
    if isinstance(p, numbers.Real) and not isinstance(p, bool) and 0 <= p <= 1:
        return float(p)
    raise ValueError(f"p={p!r}: the dropout probability must be a number between 0 and 1")


def check_finite(name: str, value: float) -> float:
    """Return `value` as a float; raise ValueError unless it is a finite number. -0.0 becomes 0.0."""
    if type(value) is float and -math.inf < value < math.inf:
        return value + 0.0
    if isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value):
        return float(value) + 0.0
    raise ValueError(f"{name}={value!r}: it must be a finite number")


def check_flag(name: str, value: bool) -> bool:
    """Return `value`; raise TypeError unless it is a bool."""
    if isinstance(value, bool):
        return value
    raise TypeError(f"{name}={value!r}: it must be True or False")


def check_module(name: str, value: nn.Module) -> nn.Module:
    """Return `value`; raise TypeError unless it is a module."""
    if isinstance(value, nn.Module):
        return value
    hint = "; pass an instance, not the class" if isinstance(value, type) else ""
    raise TypeError(f"{name} must be a torch.nn.Module, but got {type(value).__name__}{hint}")
