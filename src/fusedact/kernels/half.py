"""Quicker forms of `mathematics`, by the same names, for results that are rounded to float16 or bfloat16.

They compute in float32 too, with relative errors of about 2^-16. A rounding to float16 errs by up to 2^-12,
and one to bfloat16 by 2^-9. A function that isn't here has no quicker form.

exp(x) is exp2(x log2(e)), with one rounding between the two, and 1 / d the square of `tl.rsqrt(d)`. Hardware
flushes subnormal results of exp2, but not those of a product. Where eager PyTorch keeps subnormal results,
exp is therefore computed 2^8, 2^12 or 2^24 times too large, and a product corrects it.
"""

import triton
import triton.language as tl

from .mathematics import GELU_C1, GELU_C3, QUICK, SELU_BOTH, SELU_SCALE
from .special import LOG2E, inverse

_SHIFT: tl.constexpr = tl.constexpr(24.0)
_UNSHIFT: tl.constexpr = tl.constexpr(2.0**-24)


@triton.jit
def _logistic(x, FACTOR: tl.constexpr = 1.0):
    """Return 1 / (1 + exp(-FACTOR x)), 0 where exp(-FACTOR x) overflows."""
    return inverse(1.0 + tl.exp2(x * (-FACTOR * LOG2E)))


@triton.jit
def _rising(x):
    """Return exp(x) / (1 + exp(x)), subnormal results included."""
    low = tl.minimum(x, 60.0, propagate_nan=tl.PropagateNan.ALL)
    e = tl.exp2(tl.fma(low, LOG2E, _SHIFT)) * _UNSHIFT
    return e * inverse(1.0 + e)


@triton.jit
def _softplus(x, least):
    """Return least + log(1 + exp(-|x|))."""
    e = tl.exp2(tl.fma(tl.abs(x), -LOG2E, 8.0))  # 2^8 times too large, as the coefficients are too small
    # log(1 + e) / e, fitted to 2^-16.9.
    q = tl.fma(e, -8.480036602467436e-17, 9.20612666503208e-14)
    q = tl.fma(q, e, -4.890582383509923e-11)
    q = tl.fma(q, e, 1.9383836757924655e-08)
    q = tl.fma(q, e, -7.619650205015205e-06)
    q = tl.fma(q, e, 0.003906217170879245)
    return tl.fma(q, e, least)


@triton.jit
def _expm1(x):
    """Return exp(x) - 1."""
    near = tl.fma(tl.fma(x, 0.1666666716337204, 0.5), x * x, x)
    return tl.where(tl.abs(x) < 0.03125, near, tl.exp2(x * LOG2E) - 1.0)


@triton.jit
def _exp(x, factor):
    """Return factor exp(x), subnormal results included."""
    return tl.exp2(tl.fma(x, LOG2E, 12.0)) * (factor * 2.0**-12)


@triton.jit
def far_tanh(x):
    """Return tanh(x) with an absolute error of 2^-23."""
    return tl.fma(inverse(1.0 + tl.exp2(x * (2.0 * LOG2E))), -2.0, 1.0)


@triton.jit
def sigmoid(x, a, b):
    return _logistic(x)


@triton.jit
def sigmoid_derivative(x, a, b):
    # e / (1 + e)^2 with e = exp(-|x|). Here e is 2^12 times as large, and r 2^-6 times.
    e = tl.exp2(tl.fma(tl.abs(x), -LOG2E, 12.0))
    r = inverse(tl.fma(e, 2.0**-6, 64.0))
    return e * r * r


@triton.jit
def tanh(x, a, b):
    near = tl.fma(x * x * x, -0.3333333432674408, x)
    return tl.where(tl.abs(x) < 0.03125, near, far_tanh(x))


@triton.jit
def tanh_derivative(x, a, b):
    # 4 e / (1 + e)^2 with e = exp(-2 |x|). Here e is 2^14 times as large, and r 2^-6 times.
    e = tl.exp2(tl.fma(tl.abs(x), -2.0 * LOG2E, 14.0))
    r = inverse(tl.fma(e, 2.0**-8, 64.0))
    return e * r * r


@triton.jit
def tanhshrink(x, a, b):
    u = x * x
    q = tl.fma(u, -0.05113278329372406, 0.13323874771595)
    q = tl.fma(q, u, -0.3333328664302826)
    return tl.where(tl.abs(x) < 0.3, -x * (q * u), x - far_tanh(x))


@triton.jit
def tanhshrink_derivative(x, a, b):
    value = tanh(x, a, b)
    return value * value


@triton.jit
def softsign(x, a, b):
    return x * inverse(1.0 + tl.abs(x))


@triton.jit
def softsign_derivative(x, a, b):
    r = inverse(1.0 + tl.abs(x))
    return tl.fma(r, r, 0.0 * x)  # as in eager mode, infinities give NaN


@triton.jit
def elu(x, a, b):
    return tl.where(x >= 0, x, a * _expm1(x))


@triton.jit
def elu_derivative(x, a, b):
    return tl.where(x <= 0, _exp(x, a), 1.0)


@triton.jit
def celu(x, a, b):
    return tl.where(x >= 0, x, a * _expm1(x * (1.0 / a)))


@triton.jit
def celu_derivative(x, a, b):
    return tl.where(x <= 0, _exp(x * (1.0 / a), 1.0), 1.0)


@triton.jit
def selu(x, a, b):
    return tl.where(x >= 0, x * SELU_SCALE, SELU_BOTH * _expm1(x))


@triton.jit
def selu_derivative(x, a, b):
    return tl.where(x <= 0, _exp(x, SELU_BOTH), SELU_SCALE)


@triton.jit
def _normal_tail(w):
    """Return the normal distribution's cumulative probability of w <= 0, from its log2.

    That is fitted to 2^-16.8 for w > -5.7, to 2^-11 below.
    """
    q = tl.fma(w, 2.0164663272481675e-09, 1.492174988015904e-07)
    q = tl.fma(q, w, 4.792582785739796e-06)
    q = tl.fma(q, w, 8.870800957083702e-05)
    q = tl.fma(q, w, 0.0010639893589541316)
    q = tl.fma(q, w, 0.008873782120645046)
    q = tl.fma(q, w, 0.054501015692949295)
    q = tl.fma(q, w, -0.4580778181552887)
    q = tl.fma(q, w, 1.1513537168502808)
    return tl.exp2(tl.fma(q, w, -0.9999909996986389))


@triton.jit
def gelu(x, a, b):
    # As in `mathematics`; w ends where the tail is 0.
    w = tl.minimum(x, -tl.minimum(x, 16.0, propagate_nan=tl.PropagateNan.ALL))
    return tl.fma(w, _normal_tail(w), tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL))


@triton.jit
def gelu_derivative(x, a, b):
    w = -tl.abs(x)
    density = tl.exp2(tl.fma(w * w, -0.5 * LOG2E, _SHIFT - 1.3257480647361592))  # - log2(sqrt(2 pi))
    tail = tl.fma(w * _UNSHIFT, density, _normal_tail(w))
    return tl.where(x > 0, 1.0 - tail, tail)


@triton.jit
def gelu_tanh(x, a, b):
    return x * _logistic(x * tl.fma(x * x, GELU_C3, GELU_C1))


@triton.jit
def gelu_tanh_derivative(x, a, b):
    u = x * x
    s = _logistic(x * tl.fma(u, GELU_C3, GELU_C1))
    return tl.fma(x * s * (1.0 - s), tl.fma(u, 3.0 * GELU_C3, GELU_C1), s)


@triton.jit
def silu(x, a, b):
    return x * _logistic(x)


@triton.jit
def silu_derivative(x, a, b):
    s = _logistic(x)
    return s * tl.fma(x, 1.0 - s, 1.0)


@triton.jit
def quick_gelu(x, a, b):
    return x * _logistic(x, QUICK)


@triton.jit
def quick_gelu_derivative(x, a, b):
    s = _logistic(x, QUICK)
    return tl.fma(x * s * (1.0 - s), QUICK, s)


@triton.jit
def mish(x, a, b):
    # tanh(log(1 + e)) is n / (1 + n) with n = e (e + 2) / 2; `e` is 2^24 exp(x). From 20 on that is 1.
    low = tl.minimum(x, 20.0, propagate_nan=tl.PropagateNan.ALL)
    e = tl.exp2(tl.fma(low, LOG2E, _SHIFT))
    n = e * tl.fma(e, 2.0**-49, _UNSHIFT)
    return x * (n * inverse(1.0 + n))


@triton.jit
def mish_derivative(x, a, b):
    low = tl.minimum(x, 20.0, propagate_nan=tl.PropagateNan.ALL)
    e = tl.exp2(tl.fma(low, LOG2E, _SHIFT))
    n = e * tl.fma(e, 2.0**-49, _UNSHIFT)
    r = inverse(1.0 + n)
    slope = e * tl.fma(e, 2.0**-48, _UNSHIFT) * (r * r)
    return tl.fma(low, slope, n * r) + 0.0 * x  # as in eager mode, inf gives NaN


@triton.jit
def softplus(x, a, b):
    z = x * a
    value = _softplus(z, tl.maximum(z, 0.0, propagate_nan=tl.PropagateNan.ALL))
    return tl.where(z > b, x, value * (1.0 / a))


@triton.jit
def softplus_derivative(x, a, b):
    z = x * a
    return tl.where(z > b, 1.0, _rising(z))


@triton.jit
def logsigmoid(x, a, b):
    return -_softplus(x, tl.maximum(-x, 0.0, propagate_nan=tl.PropagateNan.ALL))


@triton.jit
def logsigmoid_derivative(x, a, b):
    return _rising(-x)
