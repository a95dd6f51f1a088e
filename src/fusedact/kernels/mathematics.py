"""The mathematics of each activation, pure: `<name>(x, a, b)` and `<name>_derivative(x, a, b)`.

x is float32, or float64 for float64 tensors; a and b are the activation's parameters in its own order and in
x's type, ignored by activations that have none. NaN, infinities, zeros and subnormals give what they give in
PyTorch's kernels for CUDA (aten/src/ATen/native/cuda/Activation*.cu), backward too.

Where an activation passes a gradient on unchanged or not at all, `<name>_passes(x, a, b)` says which; of
hardsigmoid it passes on a sixth of it.
"""

import triton
import triton.language as tl

from . import special

# In float32, which is what PyTorch's kernels multiply by in float64 too.
SIXTH: tl.constexpr = tl.constexpr(0.1666666716337204)
_SELU_SCALE: tl.constexpr = tl.constexpr(1.0507009873554804934193349852946)
_SELU_ALPHA: tl.constexpr = tl.constexpr(1.6732632423543772848170429916717)
# gelu_tanh(x) = x / (1 + exp(-x (C1 + C3 x^2))), with C1 = 2 sqrt(2 / pi), C3 = 0.044715 C1.
_GELU_C1: tl.constexpr = tl.constexpr(1.5957691216057308)
_GELU_C3: tl.constexpr = tl.constexpr(0.07135481627260025)
_QUICK: tl.constexpr = tl.constexpr(1.702)
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
def identity_passes(x, a, b):
    return tl.full(x.shape, True, tl.int1)


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
    return (x > -3.0) & (x < 3.0)  # a NaN's gradient is 0


@triton.jit
def hardshrink(x, a, b):
    return tl.where(hardshrink_passes(x, a, b), x, 0.0)


@triton.jit
def hardshrink_passes(x, a, b):
    return ~((x >= -a) & (x <= a))


@triton.jit
def softshrink(x, a, b):
    # The sign of a zero aside, a NaN needs no case of its own: NaN - a.
    return tl.where(x < -a, x + a, tl.where(x <= a, 0.0, x - a))


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
def leaky_relu_derivative(x, a, b):
    return tl.where(x > 0, 1.0, a)


@triton.jit
def hardswish(x, a, b):
    return x * _clamped(x + 3.0, 0.0, 6.0) * SIXTH


@triton.jit
def hardswish_derivative(x, a, b):
    if x.dtype == tl.float64:
        third = x / 3.0
    else:
        # Rounded as a division is: where the derivative is neither 0 nor 1, |x| < 3.
        third = x * 0.3333333432674408
        third = tl.fma(tl.fma(third, -3.0, x), 0.3333333432674408, third)
    return tl.where(x <= -3.0, 0.0, tl.where(x < 3.0, third + 0.5, 1.0))


@triton.jit
def squared_relu(x, a, b):
    value = tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)
    return value * value


@triton.jit
def squared_relu_derivative(x, a, b):
    return 2.0 * tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def sigmoid(x, a, b):
    value, _, _ = special.logistic(x)
    return value


@triton.jit
def sigmoid_derivative(x, a, b):
    left, right, _ = special.logistic(x)
    return left * right


@triton.jit
def tanh(x, a, b):
    return special.tanh(x)


@triton.jit
def tanh_derivative(x, a, b):
    # 1 - tanh(x)^2, which cancels where tanh(x) nears 1, is 4 s (1 - s) with s = 1 / (1 + exp(-2 x)).
    left, right, _ = special.logistic(2.0 * x)
    return 4.0 * left * right


@triton.jit
def tanhshrink(x, a, b):
    far = x - special.tanh(x)
    return far if x.dtype == tl.float64 else tl.where(tl.abs(x) < 0.6, -x * special.tanh_rest(x), far)


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
    return value * value


@triton.jit
def elu(x, a, b):
    return tl.where(x >= 0, x, a * special.expm1(x))  # zero too: it keeps its sign


@triton.jit
def elu_derivative(x, a, b):
    # Not (x < 0): a NaN's gradient passes unchanged.
    return tl.where(x <= 0, a * special.exp(x), 1.0)


@triton.jit
def celu(x, a, b):
    return tl.where(x >= 0, x, a * special.expm1(x * (1.0 / a)))


@triton.jit
def celu_derivative(x, a, b):
    return tl.where(x <= 0, special.exp(x * (1.0 / a)), 1.0)


@triton.jit
def selu(x, a, b):
    return tl.where(x >= 0, x * _SELU_SCALE, special.expm1(x) * (_SELU_ALPHA * _SELU_SCALE))


@triton.jit
def selu_derivative(x, a, b):
    return tl.where(x <= 0, special.exp(x) * (_SELU_ALPHA * _SELU_SCALE), _SELU_SCALE)


@triton.jit
def gelu(x, a, b):
    # x Phi(x) for x < 0, x - x Phi(-x) for others, w = -|x|; as in eager mode -inf gives NaN and inf inf.
    w = tl.minimum(x, -tl.minimum(x, 40.0, propagate_nan=tl.PropagateNan.ALL))
    return tl.fma(w, special.normal_tail(w), tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL))


@triton.jit
def gelu_derivative(x, a, b):
    w = -tl.abs(x)
    density = special.exp(-0.5 * w * w) * 0.3989422804014327
    tail = special.normal_tail(w) + w * density
    return tl.where(x > 0, 1.0 - tail, tail)


@triton.jit
def gelu_tanh(x, a, b):
    left, _, _ = special.logistic(x * (_GELU_C1 + _GELU_C3 * (x * x)))
    return x * left


@triton.jit
def gelu_tanh_derivative(x, a, b):
    u = x * x
    left, right, _ = special.logistic(x * (_GELU_C1 + _GELU_C3 * u))
    return left + x * (left * right) * (_GELU_C1 + 3.0 * _GELU_C3 * u)


@triton.jit
def silu(x, a, b):
    left, _, unit = special.logistic(x, _SHIFT)
    return x * left * unit


@triton.jit
def silu_derivative(x, a, b):
    left, right, unit = special.logistic(x, _SHIFT)
    return left * (1.0 + x * right) * unit


@triton.jit
def quick_gelu(x, a, b):
    left, _, unit = special.logistic(x * _QUICK, _SHIFT)
    return x * left * unit


@triton.jit
def quick_gelu_derivative(x, a, b):
    z = x * _QUICK
    left, right, unit = special.logistic(z, _SHIFT)
    return left * (1.0 + z * right) * unit


@triton.jit
def mish(x, a, b):
    # With e = exp(x) and n = e (e + 2), tanh(log(1 + e)) = n / (n + 2). From 20 on that is 1 in float32, from
    # 40 on in float64.
    low = _clamped(x, x, 40.0 if x.dtype == tl.float64 else 20.0)
    e = special.exp(low, _SHIFT)
    n = e * (e + 2.0**25)
    value = special.divide(low * n, n + 2.0**49)
    return tl.where(x > low, x, value)


@triton.jit
def mish_derivative(x, a, b):
    low = _clamped(x, x, 40.0 if x.dtype == tl.float64 else 20.0)
    e = special.exp(low)
    n = e * (e + 2.0)
    q = special.divide(1.0, n + 2.0)
    # As in eager mode inf gives NaN.
    return n * q + 4.0 * low * (e * (1.0 + e) * q * q) + 0.0 * x


@triton.jit
def softplus(x, a, b):
    z = x * a
    value = tl.maximum(z, 0.0, propagate_nan=tl.PropagateNan.ALL) + special.log1p(special.exp(-tl.abs(z)))
    return tl.where(z > b, x, value * (1.0 / a))


@triton.jit
def softplus_derivative(x, a, b):
    z = x * a
    value, _, _ = special.logistic(z)
    return tl.where(z > b, 1.0, value)


@triton.jit
def logsigmoid(x, a, b):
    low = tl.minimum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)
    return low - special.log1p(special.exp(-tl.abs(x)))


@triton.jit
def logsigmoid_derivative(x, a, b):
    _, value, _ = special.logistic(x)
    return value
