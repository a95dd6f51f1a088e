"""What the rest of the package needs to know of an activation, one row each, and the checks of arguments.

The rows themselves stand beside their functions in `fusedact.functional`.
"""

import enum
import math
import numbers
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn


class Saved(enum.Enum):
    """What forward keeps for backward, per element."""

    ALIVE = "one bit: kept by dropout, and the activation passes the gradient on unchanged"
    FLAG = "two bits: kept by dropout, and the activation's Triton forward's flag, which is x > 0"
    INPUT = "one bit: kept by dropout; and the input itself"


@dataclass(frozen=True, eq=False)
class Activation:
    """One activation; equal to itself alone. It is found by its name in `ROWS`.

    Attributes:
        name: of its functions: `<name>_dropout`, and `<name>_forward` and `<name>_backward` in
            `fusedact.kernels.activations`.
        module: the PyTorch module that it fuses.
        eager: the PyTorch function, called as `eager(input, *parameters, inplace=...)`.
        saved: what backward needs.
        parameter: the name of its parameter, None for those without any.
        homogeneous: act(c * x) is c * act(x) for every c >= 0, so that dropout may as well come first.
        from_output: the gradient computed from the output, for an operation in place, which leaves nothing
            of its input: `from_output(gradient, output, *parameters)`. None where no kernel
            `<name>_backward_from_output` exists.
        saturation: the input below which the derivative is less than 5% of what it is just below 0; None
            where it doesn't fade.
    """

    name: str
    module: type[nn.Module]
    eager: Callable[..., Tensor]
    saved: Saved
    parameter: str | None = None
    homogeneous: bool = False
    from_output: Callable[..., Tensor] | None = None
    saturation: float | None = None

    def __post_init__(self) -> None:
        if ROWS.setdefault(self.name, self) is not self:
            raise ValueError(f"name has to be no other activation's, but got name={self.name!r}")


ROWS: dict[str, Activation] = {}  # by name, which is what a registered operator can be given


def check_probability(p: float) -> float:
    """`p` as a float; ValueError unless it is a number in [0, 1]."""
    if isinstance(p, numbers.Real) and not isinstance(p, bool) and 0 <= p <= 1:
        return float(p)
    raise ValueError(f"dropout probability has to be a number between 0 and 1, but got p={p!r}")


def check_parameter(name: str, value: float) -> float:
    """`value` as a float; ValueError unless it is a finite number."""
    if type(value) is float and -math.inf < value < math.inf:  # in words that a compiler can trace
        return value
    if isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    raise ValueError(f"{name} has to be a finite number, but got {name}={value!r}")


def check_module(name: str, value: nn.Module) -> nn.Module:
    """`value`; TypeError unless it is a module."""
    if isinstance(value, nn.Module):
        return value
    hint = " (pass an instance, not the class)" if isinstance(value, type) else ""
    raise TypeError(f"{name} has to be a torch.nn.Module, but got {type(value).__name__}{hint}")


def check_flag(name: str, value: bool) -> bool:
    """`value`; TypeError unless it is a bool."""
    if isinstance(value, bool):
        return value
    raise TypeError(f"{name} has to be True or False, but got {name}={value!r}")
