"""The mathematics of each activation: a pair of Triton functions `<name>_forward`, `<name>_backward`.

Arithmetic is float32, or float64 for float64 tensors. `param` is the activation's one parameter;
those without any ignore it. `STORED` is the dtype in which eager PyTorch would store the value
between activation and dropout: an activation whose result should be eager's bits rounds to it.

- `forward(x, param, STORED)` returns act(x) and a flag, the bit that backward is given.
- `backward(gradient, flag, x, param, STORED)` returns gradient * act'(x). What it may read is what
  the activation's row says is saved: the flag (`Saved.ALIVE`, `Saved.FLAG`) or x (`Saved.INPUT`).
"""

import triton
import triton.language as tl


@triton.jit
def relu_forward(x, param, STORED: tl.constexpr):
    # The flag is not (x > 0): a NaN's gradient passes, as in aten's threshold_backward.
    return tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL), ~(x <= 0)


@triton.jit
def relu_backward(gradient, flag, x, param, STORED: tl.constexpr):
    return gradient


@triton.jit
def leaky_relu_forward(x, param, STORED: tl.constexpr):
    positive = x > 0
    return tl.where(positive, x, _rounded(x * param, STORED)), positive


@triton.jit
def leaky_relu_backward(gradient, flag, x, param, STORED: tl.constexpr):
    gradient = _rounded(gradient, STORED)
    return tl.where(flag, gradient, gradient * param)


@triton.jit
def elu_forward(x, param, STORED: tl.constexpr):
    # Zero takes the linear branch, which keeps its sign.
    return tl.where(x >= 0, x, param * _expm1(x)), x > 0


@triton.jit
def elu_backward(gradient, flag, x, param, STORED: tl.constexpr):
    return tl.where(x > 0, gradient, gradient * (param * _exp(x)))


@triton.jit
def _rounded(value, STORED: tl.constexpr):
    return value.to(STORED).to(value.dtype)


# ln 2 and log2 e in two parts each. The high part of ln 2 has so few bits that its product with any
# exponent is exact.
_LN2_HIGH_32: tl.constexpr = tl.constexpr(0.693145751953125)
_LN2_LOW_32: tl.constexpr = tl.constexpr(1.4286068203094173e-06)
_LN2_HIGH_64: tl.constexpr = tl.constexpr(0.6931471803691238)
_LN2_LOW_64: tl.constexpr = tl.constexpr(1.9082149292705877e-10)
_LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)
_LOG2E_HIGH_32: tl.constexpr = tl.constexpr(1.4426950216293335)
_LOG2E_LOW_32: tl.constexpr = tl.constexpr(1.925963033500935e-08)
_LN2: tl.constexpr = tl.constexpr(0.6931471805599453)


@triton.jit
def _expm1(x):
    """exp(x) - 1 for x <= 0 within one unit in the last place, near 0 too; NaN stays NaN.

    x = j ln 2 + f with |f| <= ln(2)/2 (Cody, Waite, 1980); exp(f) - 1 is a polynomial, and
    exp(x) - 1 = 2^j (exp(f) - 1) + (2^j - 1), whose last term is exact.
    """
    if x.dtype == tl.float64:
        # Below the clamp the result rounds to -1. Adding 1.5 * 2^52 rounds to an integer.
        x = tl.maximum(x, -50.0, propagate_nan=tl.PropagateNan.ALL)
        shifted = x * _LOG2E + 6755399441055744.0
        j = shifted - 6755399441055744.0
        power = ((shifted.to(tl.int64, bitcast=True) + 1023) << 52).to(tl.float64, bitcast=True)
        f = tl.fma(j, -_LN2_LOW_64, tl.fma(j, -_LN2_HIGH_64, x))
        # Taylor coefficients: the first one left out, f^14/14!, is below 2^-56 f.
        q = f * 1.6059043836821613e-10 + 2.08767569878681e-09
        q = q * f + 2.505210838544172e-08
        q = q * f + 2.755731922398589e-07
        q = q * f + 2.7557319223985893e-06
        q = q * f + 2.48015873015873e-05
        q = q * f + 1.984126984126984e-04
        q = q * f + 1.388888888888889e-03
        q = q * f + 8.333333333333333e-03
        q = q * f + 4.1666666666666664e-02
        q = q * f + 1.6666666666666666e-01
        q = q * f + 0.5
    else:
        x = tl.maximum(x, -25.0, propagate_nan=tl.PropagateNan.ALL)
        shifted = x * _LOG2E + 12582912.0
        j = shifted - 12582912.0
        power = ((shifted.to(tl.int32, bitcast=True) + 127) << 23).to(tl.float32, bitcast=True)
        f = tl.fma(j, -_LN2_LOW_32, tl.fma(j, -_LN2_HIGH_32, x))
        # The first one left out, f^8/8!, is below 2^-25 f.
        q = f * 1.984127e-04 + 1.3888889e-03
        q = q * f + 8.3333333e-03
        q = q * f + 4.1666667e-02
        q = q * f + 1.6666667e-01
        q = q * f + 0.5
    return tl.fma(power, tl.fma(q * f, f, f), power - 1.0)


@triton.jit
def _exp(x):
    """exp(x) within two units in the last place (`tl.exp` in float32 loses |x| log2(e) / 2 of them)."""
    if x.dtype == tl.float64:
        result = tl.exp(x)
    else:
        # exp2 of the rounded product, times 1 + ln 2 times what rounding took from it.
        product = x * _LOG2E_HIGH_32
        rest = tl.fma(x, _LOG2E_LOW_32, tl.fma(x, _LOG2E_HIGH_32, -product))
        power = tl.exp2(product)
        result = tl.fma(power, rest * _LN2, power)
    return result
