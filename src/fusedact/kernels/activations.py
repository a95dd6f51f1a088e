"""The mathematics of each activation: a pair of Triton functions `<name>_forward`, `<name>_backward`.

Arithmetic is float32, or float64 for float64 tensors. `param` is the activation's one parameter and
`scaled` its product with scale, rounded once; those without any ignore both. `STORED` is the dtype in
which eager PyTorch would store the value between activation and dropout: an activation whose result
should be eager's bits rounds to it.

- `forward(x, keep, scale, param, scaled, STORED)` returns act(x) * (scale if keep else 0) and a flag, the
  bit of x that backward may be given. It multiplies and doesn't select, since a dropped inf or NaN
  is NaN in eager mode.
- `backward(dy, keep, flag, x, scale, param, scaled, STORED)` returns dy * (scale if keep else 0) * act'(x).
  What it may read is what the activation's row says is saved: `keep and flag` in the place of keep
  (`Saved.ALIVE`), keep and flag (`Saved.FLAG`), or keep and x (`Saved.INPUT`).
"""

import triton
import triton.language as tl


@triton.jit
def relu_forward(x, keep, scale, param, scaled, STORED: tl.constexpr):
    value = tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)
    # The flag is not (x > 0): a NaN's gradient passes, as in aten's threshold_backward.
    return value * tl.where(keep, scale, 0.0), ~(x <= 0)


@triton.jit
def relu_backward(dy, keep, flag, x, scale, param, scaled, STORED: tl.constexpr):
    # A dead element's gradient is 0 in eager mode, whatever dy is; a dropped one's is dy * 0. The
    # bit can't tell which this is, and a select decides for 0.
    return tl.where(keep, dy * scale, 0.0)


@triton.jit
def leaky_relu_forward(x, keep, scale, param, scaled, STORED: tl.constexpr):
    positive = x > 0
    value = tl.where(positive, x, _rounded(x * param, STORED))
    return value * tl.where(keep, scale, 0.0), positive


@triton.jit
def leaky_relu_backward(dy, keep, flag, x, scale, param, scaled, STORED: tl.constexpr):
    gradient = _rounded(dy * tl.where(keep, scale, 0.0), STORED)
    return tl.where(flag, gradient, gradient * param)


@triton.jit
def elu_forward(x, keep, scale, param, scaled, STORED: tl.constexpr):
    linear = x >= 0  # zero too: it keeps its sign
    factor = tl.where(linear, scale, scaled)
    return tl.where(linear, x, _expm1(x)) * tl.where(keep, factor, 0.0), linear


@triton.jit
def elu_backward(dy, keep, flag, x, scale, param, scaled, STORED: tl.constexpr):
    return dy * tl.where(keep, 1.0, 0.0) * tl.where(x > 0, scale, scaled * _exp(x))


@triton.jit
def _rounded(value, STORED: tl.constexpr):
    return value.to(STORED).to(value.dtype)


_LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)
# ln 2 in two parts; the high one has so few bits that its product with any exponent is exact.
_LN2_HIGH_32: tl.constexpr = tl.constexpr(0.693145751953125)
_LN2_LOW_32: tl.constexpr = tl.constexpr(1.4286068203094173e-06)
_LN2_HIGH_64: tl.constexpr = tl.constexpr(0.6931471803691238)
_LN2_LOW_64: tl.constexpr = tl.constexpr(1.9082149292705877e-10)


@triton.jit
def _exp_parts(x, LOWEST: tl.constexpr, SHIFT: tl.constexpr):
    """(2^(j + SHIFT), exp(f) - 1) for x = j ln 2 + f with |f| <= ln(2)/2, and x <= 0; NaN stays NaN.

    Below LOWEST x is taken for LOWEST. The reduction is Cody and Waite's ("Software manual for the
    elementary functions", 1980). `tl.exp` in float32 rounds x log2(e), and
    so loses |x| units in the last place; eager PyTorch doesn't.
    """
    x = tl.maximum(x, LOWEST, propagate_nan=tl.PropagateNan.ALL)
    # Adding 1.5 * 2^52 (2^23) rounds to an integer and leaves it in the lowest bits.
    if x.dtype == tl.float64:
        shifted = x * _LOG2E + 6755399441055744.0
        j = shifted - 6755399441055744.0
        power = ((shifted.to(tl.int64, bitcast=True) + (1023 + SHIFT)) << 52).to(tl.float64, bitcast=True)
        f = (x - j * _LN2_HIGH_64) - j * _LN2_LOW_64
        # Taylor's polynomial: the first term left out, f^14/14!, is below 2^-56 f.
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
        shifted = x * _LOG2E + 12582912.0
        j = shifted - 12582912.0
        power = ((shifted.to(tl.int32, bitcast=True) + (127 + SHIFT)) << 23).to(tl.float32, bitcast=True)
        f = (x - j * _LN2_HIGH_32) - j * _LN2_LOW_32
        # Fitted for the least relative error of the whole, 2^-28.7.
        q = f * 0.00019914229051209986 + 0.0013941050274297595
        q = q * f + 0.008333273231983185
        q = q * f + 0.04166635498404503
        q = q * f + 0.1666666716337204
        q = q * f + 0.5
    return power, tl.fma(q * f, f, f)


@triton.jit
def _expm1(x):
    """exp(x) - 1 for x <= 0, near 0 too; from -50 on the result is -1."""
    power, rest = _exp_parts(x, -50.0, 0)
    return tl.fma(power, rest, power - 1.0)  # power - 1 is exact where it matters


@triton.jit
def _exp(x):
    """exp(x) for x <= 0, subnormal results included."""
    if x.dtype == tl.float64:
        power, rest = _exp_parts(x, -746.0, 64)
        result = tl.fma(power, rest, power) * 5.421010862427522e-20
    else:
        power, rest = _exp_parts(x, -105.0, 32)
        result = tl.fma(power, rest, power) * 2.3283064365386963e-10
    return result
