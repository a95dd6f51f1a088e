"""The layers that are compared: fusedact's, eager PyTorch's, and the latter compiled by PyTorch."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import fusedact
from fusedact.activations import REQUIRED, ROWS, Activation, own_rows
from fusedact.rows import ELU, GELU, IDENTITY, LEAKY_RELU, RELU, SILU

P = 0.5
# The activations that the suite times by default. Each of the others costs about as much as one of these.
USUAL = (RELU, LEAKY_RELU, ELU, GELU, SILU, IDENTITY)
EVERY = tuple(ROWS.values())
# For parameters without a default.
_GIVEN = {"threshold": 0.1, "value": 0.0}


class Call(NamedTuple):
    """How a row is called: the row that has a module, and that module's keyword arguments."""

    row: Activation
    arguments: dict[str, Any]


def call(activation: Activation) -> Call:
    """Return a row's call with default arguments. GELU's tanh formula is its `approximate="tanh"`."""
    for own in own_rows():
        required = {p.name: _GIVEN[p.name] for p in own.parameters if p.default is REQUIRED}
        if own is activation:
            return Call(own, required)
        for parameter in own.parameters:
            for choice, row in (parameter.choices or {}).items():
                if row is activation:
                    return Call(own, {**required, parameter.name: choice})
    raise ValueError(f"activation={activation.name!r}: it is no row of fusedact.activations.ROWS")


def values(activation: Activation) -> tuple[float, ...]:
    """Return the numbers of the row's formula in that call."""
    own, given = call(activation)
    return own.bind(*(given.get(p.name, p.default) for p in own.parameters)).values


class Function(nn.Module):
    """A row's PyTorch function as a module, for rows without a PyTorch module."""

    def __init__(self, activation: Activation) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, input: Tensor) -> Tensor:
        return self.activation.function(input)


def alone(activation: Activation) -> nn.Module:
    """Return PyTorch's module of the activation, without dropout."""
    own, arguments = call(activation)
    return Function(activation) if own.module is None else own.module(**arguments)


def fused(activation: Activation) -> nn.Module:
    return _module(activation)


def fast(activation: Activation) -> nn.Module:
    return _module(activation, rng="fast")


def eager(activation: Activation) -> nn.Module:
    if activation is IDENTITY:
        return nn.Dropout(P)
    return nn.Sequential(alone(activation), nn.Dropout(P))


def _module(activation: Activation, **options: Any) -> nn.Module:
    own, arguments = call(activation)
    # An alias is the same class under another name.
    (found,) = {cls for cls in vars(fusedact).values() if getattr(cls, "row", None) is own}
    module: nn.Module = found(P, **arguments, **options)
    return module


# By name, each a function from an activation's row to its layer. "compiled" is eager's layer, compiled by
# the caller: alone, or with the model around it.
LAYERS: dict[str, Callable[[Activation], nn.Module]] = {
    "fused": fused,
    "fast": fast,
    "eager": eager,
    "compiled": eager,
}


def build(backend: str, make: Callable[[Callable[[Activation], nn.Module]], nn.Module]) -> nn.Module:
    """Return the model that `make` builds from the backend's layers, compiled where that is the backend.

    It is compiled for one shape at a time, and anew: PyTorch gives up on a function compiled too often.
    """
    model = make(LAYERS[backend])
    if backend != "compiled":
        return model
    torch._dynamo.reset()
    torch._functorch.config.donated_buffer = False  # one forward serves many timed backwards
    return torch.compile(model, dynamic=False)  # type: ignore[return-value]
