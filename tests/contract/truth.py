"""Each activation and its derivative as formulas that lose nothing in float64.

`m` is where the functions come from: `Tensors` for float64 tensors, `Exact` for mpmath's numbers.
"""

from dataclasses import dataclass
from typing import Any

import mpmath
import torch


class Tensors:
    """Functions of float64 tensors."""

    exp, expm1, log1p, tanh, abs = torch.exp, torch.expm1, torch.log1p, torch.tanh, torch.abs
    erfc = torch.special.erfc
    sqrt2, pi = 2**0.5, torch.pi

    @staticmethod
    def where(condition: Any, yes: Any, no: Any) -> Any:
        wide = torch.float64
        return torch.where(condition, torch.as_tensor(yes, dtype=wide), torch.as_tensor(no, dtype=wide))

    @staticmethod
    def shrunk(x: Any) -> Any:
        """x - tanh(x), of small x from its series."""
        u = x * x
        series = x * u * (1 / 3 + u * (-2 / 15 + u * (17 / 315 + u * (-62 / 2835 + u * 1382 / 155925))))
        return torch.where(x.abs() < 0.05, series, x - torch.tanh(x))


class Exact:
    """Functions of mpmath's numbers, in 60 digits."""

    exp, expm1, log1p, tanh, erfc = mpmath.exp, mpmath.expm1, mpmath.log1p, mpmath.tanh, mpmath.erfc
    abs = staticmethod(abs)
    sqrt2, pi = mpmath.sqrt(2), mpmath.pi

    @staticmethod
    def where(condition: Any, yes: Any, no: Any) -> Any:
        return yes if condition else no

    @staticmethod
    def shrunk(x: Any) -> Any:
        return x - mpmath.tanh(x)


def _clamp(m, x, low, high):
    return m.where(x < low, low, m.where(x > high, high, x))


def _sigmoid(m, x):
    e = m.exp(-m.abs(x))
    return m.where(x < 0, e / (1 + e), 1 / (1 + e))


def _softplus(m, x):
    return m.where(x > 0, x, 0 * x) + m.log1p(m.exp(-m.abs(x)))


def _elu(m, x, alpha, scale=1.0, inner=1.0):
    return m.where(x > 0, x * scale, m.expm1(m.where(x > 0, 0 * x, x) * inner) * alpha * scale)


def _elu_derivative(m, x, alpha, scale=1.0, inner=1.0):
    return m.where(x > 0, scale + 0 * x, m.exp(m.where(x > 0, 0 * x, x) * inner) * alpha * scale * inner)


def _gelu_derivative(m, x):
    return m.erfc(-x / m.sqrt2) / 2 + x * m.exp(-x * x / 2) / (2 * m.pi) ** 0.5


def _inner(m, x):
    return (8 / m.pi) ** 0.5 * (x + 0.044715 * x**3)


def _gelu_tanh_derivative(m, x):
    z = _inner(m, x)
    s = _sigmoid(m, z)
    return s + x * s * _sigmoid(m, -z) * (8 / m.pi) ** 0.5 * (1 + 3 * 0.044715 * x * x)


def _silu_derivative(m, x, factor=1.0):
    z = factor * x
    return _sigmoid(m, z) * (1 + z * _sigmoid(m, -z))


def _mish(m, x):
    """tanh(log(1 + exp(x))), from exp of what is below 0."""
    e = m.exp(-m.abs(x))
    return m.where(x > 0, (1 + 2 * e) / (1 + 2 * e + 2 * e * e), e * (e + 2) / (e * (e + 2) + 2))


def _mish_derivative(m, x):
    # s (1 - tanh^2) = 4 E (1 + E) / (E^2 + 2 E + 2)^2, with E = e for x < 0 and 1 / e for others.
    e = m.exp(-m.abs(x))
    left = 4 * e * e * (1 + e) / (1 + 2 * e + 2 * e * e) ** 2
    right = 4 * e * (1 + e) / (e * e + 2 * e + 2) ** 2
    return _mish(m, x) + x * m.where(x > 0, left, right)


_SELU = (1.6732632423543772848170429916717, 1.0507009873554804934193349852946)


@dataclass(frozen=True)
class Truth:
    """One activation.

    Attributes:
        forward, derivative: of (m, x, a, b).
        parameters: a and b that are tested.
        joins: inputs in whose neighbourhood the formulas or our forms change.
        root: where the derivative crosses 0, as the difference of two terms.
    """

    forward: Any
    derivative: Any
    parameters: tuple[float, float] = (0.0, 0.0)
    joins: tuple[float, ...] = ()
    root: float | None = None


TRUTHS = {
    "identity": Truth(lambda m, x, a, b: x, lambda m, x, a, b: 1 + 0 * x),
    "relu": Truth(
        lambda m, x, a, b: m.where(x > 0, x, 0 * x), lambda m, x, a, b: m.where(x > 0, 1 + 0 * x, 0 * x)
    ),
    "relu6": Truth(
        lambda m, x, a, b: _clamp(m, x, 0.0, 6.0),
        lambda m, x, a, b: m.where((x > 0) & (x < 6), 1 + 0 * x, 0 * x),
        joins=(6.0,),
    ),
    "hardtanh": Truth(
        lambda m, x, a, b: _clamp(m, x, a, b),
        lambda m, x, a, b: m.where((x > a) & (x < b), 1 + 0 * x, 0 * x),
        (-1.5, 2.0),
        (-1.5, 2.0),
    ),
    "hardsigmoid": Truth(
        lambda m, x, a, b: _clamp(m, x + 3, 0.0, 6.0) / 6,
        lambda m, x, a, b: m.where((x > -3) & (x < 3), 1 + 0 * x, 0 * x),
        joins=(-3.0, 3.0),
    ),
    "hardshrink": Truth(
        lambda m, x, a, b: m.where((x >= -a) & (x <= a), 0 * x, x),
        lambda m, x, a, b: m.where((x >= -a) & (x <= a), 0 * x, 1 + 0 * x),
        (0.5, 0.0),
        (-0.5, 0.5),
    ),
    "softshrink": Truth(
        lambda m, x, a, b: m.where(x > a, x - a, m.where(x < -a, x + a, 0 * x)),
        lambda m, x, a, b: m.where((x >= -a) & (x <= a), 0 * x, 1 + 0 * x),
        (0.5, 0.0),
        (-0.5, 0.5),
    ),
    "threshold": Truth(
        lambda m, x, a, b: m.where(x > a, x, b + 0 * x),
        lambda m, x, a, b: m.where(x > a, 1 + 0 * x, 0 * x),
        (0.125, 0.75),
        (0.125,),
    ),
    "leaky_relu": Truth(
        lambda m, x, a, b: m.where(x > 0, x, x * a),
        lambda m, x, a, b: m.where(x > 0, 1 + 0 * x, a + 0 * x),
        (0.3, 0.0),
    ),
    "hardswish": Truth(
        lambda m, x, a, b: x * (_clamp(m, x + 3, 0.0, 6.0) / 6),
        lambda m, x, a, b: m.where(x <= -3, 0 * x, m.where(x < 3, x / 3 + 0.5, 1 + 0 * x)),
        joins=(-3.0, 3.0),
        root=-1.5,
    ),
    "squared_relu": Truth(
        lambda m, x, a, b: m.where(x > 0, x * x, 0 * x), lambda m, x, a, b: m.where(x > 0, 2 * x, 0 * x)
    ),
    "sigmoid": Truth(lambda m, x, a, b: _sigmoid(m, x), lambda m, x, a, b: _sigmoid(m, x) * _sigmoid(m, -x)),
    "tanh": Truth(
        lambda m, x, a, b: m.tanh(x),
        lambda m, x, a, b: 4 * _sigmoid(m, 2 * x) * _sigmoid(m, -2 * x),
        joins=(-1.0, -0.03125, 0.03125, 1.0),
    ),
    "tanhshrink": Truth(
        lambda m, x, a, b: m.shrunk(x),
        lambda m, x, a, b: m.tanh(x) ** 2,
        joins=(-1.0, -0.3, 0.3, 1.0),
    ),
    "softsign": Truth(lambda m, x, a, b: x / (1 + m.abs(x)), lambda m, x, a, b: (1 / (1 + m.abs(x))) ** 2),
    "elu": Truth(
        lambda m, x, a, b: _elu(m, x, a), lambda m, x, a, b: _elu_derivative(m, x, a), (0.3, 0.0), (-0.03125,)
    ),
    "celu": Truth(
        lambda m, x, a, b: _elu(m, x, a, 1.0, 1 / a),
        lambda m, x, a, b: _elu_derivative(m, x, a, 1.0, 1 / a),
        (0.75, 0.0),
        (-0.75 * 0.03125,),
    ),
    "selu": Truth(
        lambda m, x, a, b: _elu(m, x, *_SELU),
        lambda m, x, a, b: _elu_derivative(m, x, *_SELU),
        joins=(-0.03125,),
    ),
    "gelu": Truth(
        lambda m, x, a, b: x * (m.erfc(-x / m.sqrt2) / 2),
        lambda m, x, a, b: _gelu_derivative(m, x),
        root=-0.7517915,
    ),
    "gelu_tanh": Truth(
        lambda m, x, a, b: x * _sigmoid(m, _inner(m, x)),
        lambda m, x, a, b: _gelu_tanh_derivative(m, x),
        root=-0.7524614,
    ),
    "silu": Truth(
        lambda m, x, a, b: x * _sigmoid(m, x), lambda m, x, a, b: _silu_derivative(m, x), root=-1.2784645
    ),
    "quick_gelu": Truth(
        lambda m, x, a, b: x * _sigmoid(m, 1.702 * x),
        lambda m, x, a, b: _silu_derivative(m, x, 1.702),
        root=-0.7511543,
    ),
    "mish": Truth(
        lambda m, x, a, b: x * _mish(m, x),
        lambda m, x, a, b: _mish_derivative(m, x),
        joins=(20.0,),
        root=-1.1924312,
    ),
    "softplus": Truth(
        lambda m, x, a, b: m.where(x * a > b, x, _softplus(m, x * a) / a),
        lambda m, x, a, b: m.where(x * a > b, 1 + 0 * x, _sigmoid(m, x * a)),
        (1.5, 12.0),
        (8.0,),
    ),
    "logsigmoid": Truth(
        lambda m, x, a, b: -_softplus(m, -x), lambda m, x, a, b: _sigmoid(m, -x), joins=(-1.0, 1.0)
    ),
}
