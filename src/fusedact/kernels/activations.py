"""The mathematics of each activation: a pair of Triton functions `<name>_forward`, `<name>_backward`.

Arithmetic is float32, or float64 for float64 tensors. `param` is the activation's one parameter and
`scaled` its product with scale, rounded once; those without any ignore both. `STORED` is the dtype in
which the value between activation and dropout is stored: eager PyTorch's, so that an activation that
rounds to it has eager's bits, or with rng="fast" the arithmetic's own, which rounds nothing.

- `forward(x, keep, scale, param, scaled, STORED)` returns act(x) * (scale if keep else 0) and a flag, the
  bit of x that backward may be given. It multiplies and doesn't select, since a dropped inf or NaN
  is NaN in eager mode.
- `backward(dy, keep, flag, x, scale, param, scaled, STORED)` returns dy * (scale if keep else 0) * act'(x).
  What it may read is what the activation's row says is saved: `keep and flag` in the place of keep
  (`Saved.ALIVE`), keep and flag (`Saved.FLAG`), or keep and x (`Saved.INPUT`).
- `backward_from_output` is the same for an operation in place: x is what forward returned.
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
    # bit can't tell which this is, and a select decides for 0. A select after the product would be
    # moved behind the rounding to a half precision, where it costs more.
    return tl.where(keep, dy, 0.0) * scale


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
    # Eager asks x <= 0 here, so that a NaN's gradient passes unchanged.
    return dy * tl.where(keep, tl.where(x <= 0, scaled * _exp(x), scale), 0.0)


@triton.jit
def elu_backward_from_output(dy, keep, flag, y, scale, param, scaled, STORED: tl.constexpr):
    # y is scale * alpha * (exp(x) - 1) there, so that y + scale * alpha is scale times the derivative.
    return dy * tl.where(keep, tl.where(y <= 0, y + scaled, scale), 0.0)


@triton.jit
def _rounded(value, STORED: tl.constexpr):
    return value.to(STORED).to(value.dtype)


_LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)
_LN2: tl.constexpr = tl.constexpr(0.6931471805599453)
# Adding 1.5 * 2^23 (2^52) rounds to an integer and leaves it in the lowest bits.
_ROUND_32: tl.constexpr = tl.constexpr(12582912.0)
_ROUND_64: tl.constexpr = tl.constexpr(6755399441055744.0)
# What float32 lacks of log2(e); of ln 2 in float64, two parts, the high one with so few bits that its
# product with any exponent is exact.
_LOG2E_REST: tl.constexpr = tl.constexpr(1.925963033500609e-08)
_LN2_HIGH: tl.constexpr = tl.constexpr(0.6931471803691238)
_LN2_LOW: tl.constexpr = tl.constexpr(1.9082149292705877e-10)


@triton.jit
def _expm1(x):
    """exp(x) - 1 for x <= 0, near 0 too. NaN stays NaN.

    x = j ln 2 + f with |f| <= ln(2) / 2 (Cody and Waite, "Software manual for the elementary functions",
    1980), exp(f) - 1 from a polynomial.
    """
    if x.dtype == tl.float64:
        power, rest = _exp_parts_64(x, -50.0, 0)
    else:
        x = tl.maximum(x, -18.0, propagate_nan=tl.PropagateNan.ALL)  # there the result is -1
        shifted = tl.fma(x, _LOG2E, _ROUND_32)
        power = ((shifted.to(tl.int32, bitcast=True) << 23) + 0x3F800000).to(tl.float32, bitcast=True)
        # ln 2 in one part: its error times j and 2^j is below a tenth of a unit in the last place.
        f = tl.fma(shifted - _ROUND_32, -_LN2, x)
        # Fitted for the least relative error of the whole, 2^-26.2.
        q = tl.fma(f, 0.0013882522514628171, 0.00836651516961362)
        q = tl.fma(q, f, 0.04166719968576512)
        q = tl.fma(q, f, 0.16666543661051372)
        q = tl.fma(q, f, 0.49999998154948816)
        rest = tl.fma(q * f, f, f)
    return tl.fma(power, rest, power - 1.0)  # power - 1 is exact where it matters


@triton.jit
def _exp(x):
    """exp(x) for x <= 0, subnormal results included. NaN stays NaN.

    `tl.exp` in float32 rounds x log2(e), and so loses |x| units in the last place; eager PyTorch doesn't.
    """
    if x.dtype == tl.float64:
        power, rest = _exp_parts_64(x, -746.0, 64)
        result = tl.fma(power, rest, power) * 5.421010862427522e-20
    else:
        # 2^j 2^f, j an integer and no less than -126; from there on f falls.
        shifted = tl.maximum(tl.fma(x, _LOG2E, _ROUND_32), _ROUND_32 - 126.0)
        power = ((shifted.to(tl.int32, bitcast=True) << 23) + 0x3F800000).to(tl.float32, bitcast=True)
        f = tl.fma(x, _LOG2E, -(shifted - _ROUND_32))
        result = tl.exp2(tl.fma(x, _LOG2E_REST, f)) * power
    return result


@triton.jit
def _exp_parts_64(x, LOWEST: tl.constexpr, SHIFT: tl.constexpr):
    """(2^(j + SHIFT), exp(f) - 1) in float64; below LOWEST x is taken for LOWEST."""
    x = tl.maximum(x, LOWEST, propagate_nan=tl.PropagateNan.ALL)
    shifted = x * _LOG2E + _ROUND_64
    j = shifted - _ROUND_64
    power = ((shifted.to(tl.int64, bitcast=True) + (1023 + SHIFT)) << 52).to(tl.float64, bitcast=True)
    f = (x - j * _LN2_HIGH) - j * _LN2_LOW
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
    return power, tl.fma(q * f, f, f)
