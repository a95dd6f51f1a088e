"""Checks of arguments, in code that a compiler can trace. Each returns the value that it accepts."""

import math
import numbers
from typing import Any

from torch import Tensor, nn


def _number(value: Any) -> Any:
    """Return the number in a 0-dim tensor that needs no gradient, as PyTorch does; else `value`."""
    if isinstance(value, Tensor) and value.ndim == 0 and not value.requires_grad and not value.is_complex():
        return value.item()
    return value


def _is_finite(number: Any) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # an integer beyond float
        return False


def check_probability(p: Any) -> float:
    """Return `p` as a float; raise ValueError unless it is a number in [0, 1]."""
    number = _number(p)
    if isinstance(number, numbers.Real) and _is_finite(number) and not isinstance(number, bool):
        number = float(number)
        if 0 <= number <= 1:
            return number
    raise ValueError(f"p={p!r}: the dropout probability must be a number between 0 and 1")


def check_finite(name: str, value: Any) -> float:
    """Return `value` as a float; raise ValueError unless it is a finite number. -0.0 becomes 0.0."""
    if type(value) is float and -math.inf < value < math.inf:
        return value + 0.0
    number = _number(value)
    if isinstance(number, numbers.Real) and not isinstance(number, bool) and _is_finite(number):
        return float(number) + 0.0
    raise ValueError(f"{name}={value!r}: it must be a finite number")


def check_integer(name: str, value: Any, low: int, high: int) -> int:
    """Return `value` as an int; raise TypeError unless it is one, ValueError unless it is in [low, high)."""
    if not isinstance(value, numbers.Integral) or isinstance(value, bool):
        raise TypeError(f"{name}={value!r}: it must be an integer")
    number = int(value)
    if not low <= number < high:
        most = f" and below 2**{high.bit_length() - 1}" if number >= high else ""
        raise ValueError(f"{name}={value!r}: it must be at least {low}{most}")
    return number


def check_flag(name: str, value: Any, hint: str = "") -> bool:
    """Return `value` as a bool; raise TypeError, which ends in `hint`, unless it is Python's or NumPy's."""
    if isinstance(value, bool):
        return value
    kind = type(value)
    if kind.__module__ == "numpy" and kind.__name__ in ("bool", "bool_"):  # the second before NumPy 2
        return bool(value)
    raise TypeError(f"{name}={value!r}: it must be True or False{hint}")


def check_module(name: str, value: nn.Module) -> nn.Module:
    """Return `value`; raise TypeError unless it is a module."""
    if isinstance(value, nn.Module):
        return value
    hint = "; pass an instance, not the class" if isinstance(value, type) else ""
    raise TypeError(f"{name} must be a torch.nn.Module, but got {type(value).__name__}{hint}")
