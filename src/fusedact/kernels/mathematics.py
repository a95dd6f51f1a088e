"""The mathematics of each activation, pure: `<name>(x, a, b)` and `<name>_derivative(x, a, b)`.

x is float32, or float64 for float64 tensors. a and b are the activation's parameters, in its own order and in
x's type; activations without parameters ignore them. NaN, infinities and subnormals give the results of
PyTorch's CUDA kernels (aten/src/ATen/native/cuda/Activation*.cu), forward and backward.

Some activations pass a gradient on unchanged or not at all. Theirs is `<name>_passes(x, a, b)` instead of a
derivative. Where hardsigmoid passes, the derivative is the constant SIXTH.
"""

import triton
import triton.language as tl

from . import special

# In float32, which is what PyTorch's kernels multiply by in float64 too.
SIXTH: tl.constexpr = tl.constexpr(0.1666666716337204)
SELU_SCALE: tl.constexpr = tl.constexpr(1.0507009873554805)
SELU_BOTH: tl.constexpr = tl.constexpr(1.7580993408473766)  # alpha times scale
# gelu_tanh(x) = x / (1 + exp(-x (C1 + C3 x^2))), with C1 = 2 sqrt(2 / pi), C3 = 0.044715 C1.
GELU_C1: tl.constexpr = tl.constexpr(1.5957691216057308)
GELU_C3: tl.constexpr = tl.constexpr(0.07135481627260025)
QUICK: tl.constexpr = tl.constexpr(1.702)
_QUICK_REST: tl.constexpr = tl.constexpr(-2.1934509319976314e-08)  # that float32 lacks of it
_SHIFT: tl.constexpr = tl.constexpr(24)


@triton.jit
def _clamped(x, low, high):
    """Return x within [low, high]; NaN stays NaN."""
    x = tl.maximum(x, low, propagate_nan=tl.PropagateNan.ALL)
    return tl.minimum(x, high, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def identity(x, a, b):
    return x


@triton.jit
def relu(x, a, b):
    return tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def relu_passes(x, a, b):
    # Not (x > 0): a NaN's gradient passes, as in aten's threshold_backward.
    return ~(x <= 0)


@triton.jit
def relu6(x, a, b):
    return _clamped(x, 0.0, 6.0)


@triton.jit
def relu6_passes(x, a, b):
    return ~((x <= 0) | (x >= 6.0))


@triton.jit
def hardtanh(x, a, b):
    return _clamped(x, a, b)


@triton.jit
def hardtanh_passes(x, a, b):
    return ~((x <= a) | (x >= b))


@triton.jit
def hardsigmoid(x, a, b):
    return _clamped(x + 3.0, 0.0, 6.0) * SIXTH


@triton.jit
def hardsigmoid_passes(x, a, b):
    return tl.abs(x) < 3.0  # a NaN's gradient is 0


@triton.jit
def hardshrink(x, a, b):
    return tl.where(hardshrink_passes(x, a, b), x, 0.0)


@triton.jit
def hardshrink_passes(x, a, b):
    return ~(tl.abs(x) <= a)


@triton.jit
def softshrink(x, a, b):
    return x - _clamped(x, -a, a)


@triton.jit
def softshrink_passes(x, a, b):
    return hardshrink_passes(x, a, b)


@triton.jit
def threshold(x, a, b):
    return tl.where(x <= a, b, x)


@triton.jit
def threshold_passes(x, a, b):
    return ~(x <= a)


@triton.jit
def leaky_relu(x, a, b):
    return tl.where(x > 0, x, x * a)


@triton.jit
def leaky_relu_passes(x, a, b):
    return x > 0


@triton.jit
def hardswish(x, a, b):
    return x * _clamped(x + 3.0, 0.0, 6.0) * SIXTH


@triton.jit
def hardswish_derivative(x, a, b):
    if x.dtype == tl.float64:
        third = x / 3.0
    else:
        # Rounded as a division is: no third is near the middle of two neighbours.
        third = tl.fma(x, 0.3333333432674408, x * -9.934107758624577e-09)
    return tl.where(tl.abs(x) < 3.0, third + 0.5, tl.where(x <= -3.0, 0.0, 1.0))


@triton.jit
def squared_relu(x, a, b):
    value = tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)
    return value * value


@triton.jit
def squared_relu_derivative(x, a, b):
    return 2.0 * tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def sigmoid(x, a, b):
    return special.sigmoid(x)


@triton.jit
def sigmoid_derivative(x, a, b):
    e = special.exp(-tl.abs(x))
    q = special.divide(1.0, 1.0 + e)
    return e * q * q


@triton.jit
def tanh(x, a, b):
    return special.tanh(x)


@triton.jit
def tanh_derivative(x, a, b):
    # 1 - tanh(x)^2, which cancels where tanh(x) nears 1, is 4 e / (1 + e)^2 with e = exp(-2 |x|).
    e = special.exp(-2.0 * tl.abs(x))
    q = special.divide(1.0, 1.0 + e)
    return 4.0 * e * q * q


@triton.jit
def tanhshrink(x, a, b):
    far = x - special.tanh(x)
    return far if x.dtype == tl.float64 else tl.where(tl.abs(x) < 1.0, -x * special.tanh_rest(x), far)


@triton.jit
def tanhshrink_derivative(x, a, b):
    value = special.tanh(x)
    return value * value


@triton.jit
def softsign(x, a, b):
    return special.divide(x, 1.0 + tl.abs(x))


@triton.jit
def softsign_derivative(x, a, b):
    value = special.divide(1.0, 1.0 + tl.abs(x))
    return value * value + 0.0 * x  # as in eager mode, infinities give NaN


@triton.jit
def elu(x, a, b):
    return tl.where(x >= 0, x, a * special.expm1(x))  # zero too: it keeps its sign


@triton.jit
def elu_derivative(x, a, b):
    # Not (x < 0): a NaN's gradient passes unchanged.
    return tl.where(x <= 0, a * special.exp(x), 1.0)


@triton.jit
def elu_derivative_from_output(y, a, b):
    return tl.where(y <= 0, y + a, 1.0)


@triton.jit
def celu(x, a, b):
    return tl.where(x >= 0, x, a * special.expm1(x * (1.0 / a)))


@triton.jit
def celu_derivative(x, a, b):
    inverse = 1.0 / a
    z = x * inverse
    low = tl.where(tl.abs(z) < 1024.0, tl.fma(-z, a, x) * inverse, 0.0)
    return tl.where(x <= 0, special.exp(z, low), 1.0)


@triton.jit
def selu(x, a, b):
    return tl.where(x >= 0, x * SELU_SCALE, special.expm1(x) * SELU_BOTH)


@triton.jit
def selu_derivative(x, a, b):
    return tl.where(x <= 0, special.exp(x) * SELU_BOTH, SELU_SCALE)


@triton.jit
def gelu(x, a, b):
    # x Phi(x) for x < 0, x - x Phi(-x) for others, w = -|x|; as in eager mode -inf gives NaN and inf inf.
    w = tl.minimum(x, -tl.minimum(x, 40.0, propagate_nan=tl.PropagateNan.ALL))
    _, tail = special.normal(w)
    return tl.fma(w, tail, tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL))


@triton.jit
def gelu_derivative(x, a, b):
    w = -tl.abs(x)
    density, tail = special.normal(w)
    tail += w * (density * 0.3989422804014327)
    return tl.where(x > 0, 1.0 - tail, tail)


@triton.jit
def gelu_tanh(x, a, b):
    left, _, _ = special.logistic(x * (GELU_C1 + GELU_C3 * (x * x)))
    return x * left


@triton.jit
def gelu_tanh_derivative(x, a, b):
    u = x * x
    left, right, _ = special.logistic(x * (GELU_C1 + GELU_C3 * u))
    return left + x * (left * right) * (GELU_C1 + 3.0 * GELU_C3 * u)


@triton.jit
def silu(x, a, b):
    left, _, unit = special.logistic(x, None, _SHIFT)
    return x * left * unit


@triton.jit
def silu_derivative(x, a, b):
    left, right, unit = special.logistic(x, None, _SHIFT)
    return left * (1.0 + x * right) * unit


@triton.jit
def _quick_logistic(x):
    if x.dtype == tl.float64:
        result = special.logistic(x * QUICK)
    else:
        z, low = special.product(x, QUICK, _QUICK_REST)
        result = special.logistic(z, low, _SHIFT)
    return result


@triton.jit
def quick_gelu(x, a, b):
    left, _, unit = _quick_logistic(x)
    return x * left * unit


@triton.jit
def quick_gelu_derivative(x, a, b):
    left, right, unit = _quick_logistic(x)
    return (left + x * left * right * QUICK) * unit


@triton.jit
def mish(x, a, b):
    # With e = exp(x) and n = e (e + 2) / 2, tanh(log(1 + e)) is n / (1 + n). It is 1 from 20 on in float32,
    # and from 40 on in float64. The variables e and n are 2^24 times as large.
    low = tl.minimum(x, 40.0 if x.dtype == tl.float64 else 20.0, propagate_nan=tl.PropagateNan.ALL)
    e = special.exp(low, None, _SHIFT)
    n = e * tl.fma(e, 2.0**-25, 1.0)
    value = special.divide(low * n, tl.fma(n, 2.0**-24, 1.0)) * 2.0**-24
    return tl.where(x > low, x, value)


@triton.jit
def mish_derivative(x, a, b):
    low = tl.minimum(x, 40.0 if x.dtype == tl.float64 else 20.0, propagate_nan=tl.PropagateNan.ALL)
    e = special.exp(low, None, _SHIFT)
    n = e * tl.fma(e, 2.0**-25, 1.0)
    q = special.divide(1.0, tl.fma(n, 2.0**-24, 1.0))
    # As in eager mode inf gives NaN.
    return tl.fma(low, e * tl.fma(e, 2.0**-24, 1.0) * q * q, n * q) * 2.0**-24 + 0.0 * x


@triton.jit
def softplus(x, a, b):
    z, low = special.product(x, a)
    return tl.where(z > b, x, special.softplus(z, low) * (1.0 / a))


@triton.jit
def softplus_derivative(x, a, b):
    z, low = special.product(x, a)
    return tl.where(z > b, 1.0, special.sigmoid(z, low))


@triton.jit
def logsigmoid(x, a, b):
    return -special.softplus(-x)


@triton.jit
def logsigmoid_derivative(x, a, b):
    return special.sigmoid(-x)
