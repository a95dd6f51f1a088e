"""Special functions in float32 and float64, as accurate as CUDA's own or more so, for the activations' mathematics.

Triton's own are not enough. `tl.exp` in float32 rounds x log2(e), and so loses |x| units in the last place.
`tl.erf` costs 30 instructions, and 1 + erf(x) cancels where x < 0. expm1, log1p and tanh are in libdevice
alone, which the interpreter lacks. A float32 quotient takes 8 instructions for divisors of any size; ours,
from `tl.rsqrt`, takes 6 and is more accurate. In float64 nobody is in a hurry: `tl.exp`, `tl.log` and `tl.erf`
are accurate there, and the rest follows from them.

Of the hardware's approximations only exp2 and rsqrt are used, by names that every backend has. Constants
enter a float64 sum by * and +: Triton 3.6 rounds those in `tl.fma` to float32.
"""

import triton
import triton.language as tl

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
def exp(x, SHIFT: tl.constexpr = 0):
    """Return 2^SHIFT exp(x), subnormal results included.

    A SHIFT keeps small results from becoming subnormal, where they have fewer bits: to multiply by 2^-SHIFT
    is the caller's last step.
    """
    if x.dtype == tl.float64:
        result = tl.exp(x) * 2.0**SHIFT
    else:
        # 2^j 2^f, j an integer between -126 and 127; beyond, f leaves [-1/2, 1/2].
        shifted = tl.maximum(tl.fma(x, _LOG2E, _ROUND_32), _ROUND_32 - (126.0 + SHIFT))
        shifted = tl.minimum(shifted, _ROUND_32 + (127.0 - SHIFT))
        power = ((shifted.to(tl.int32, bitcast=True) << 23) + ((127 + SHIFT) << 23)).to(
            tl.float32, bitcast=True
        )
        f = tl.fma(x, _LOG2E, -(shifted - _ROUND_32))
        result = tl.exp2(tl.fma(x, _LOG2E_REST, f)) * power
    return result


@triton.jit
def expm1(x):
    """Return exp(x) - 1 with its relative accuracy, near 0 too.

    x = j ln 2 + f with |f| <= ln(2) / 2 (Cody and Waite, "Software manual for the elementary functions",
    1980), exp(f) - 1 from a polynomial.
    """
    if x.dtype == tl.float64:
        x = tl.maximum(x, -50.0, propagate_nan=tl.PropagateNan.ALL)
        x = tl.minimum(x, 710.0, propagate_nan=tl.PropagateNan.ALL)
        shifted = x * _LOG2E + _ROUND_64
        j = shifted - _ROUND_64
        power = ((shifted.to(tl.int64, bitcast=True) + 1023) << 52).to(tl.float64, bitcast=True)
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
        rest = tl.fma(q * f, f, f)
    else:
        x = tl.maximum(x, -18.0, propagate_nan=tl.PropagateNan.ALL)  # there the result is -1
        x = tl.minimum(x, 89.0, propagate_nan=tl.PropagateNan.ALL)  # and there inf
        shifted = tl.fma(x, _LOG2E, _ROUND_32)
        power = ((shifted.to(tl.int32, bitcast=True) << 23) + 0x3F800000).to(tl.float32, bitcast=True)
        # ln 2 in one part: for x < 0 its error times j and 2^j is below a tenth of a unit in the last place.
        f = tl.fma(shifted - _ROUND_32, -_LN2, x)
        # Fitted for the least relative error of the whole, 2^-26.2.
        q = tl.fma(f, 0.0013882522514628171, 0.00836651516961362)
        q = tl.fma(q, f, 0.04166719968576512)
        q = tl.fma(q, f, 0.16666543661051372)
        q = tl.fma(q, f, 0.49999998154948816)
        rest = tl.fma(q * f, f, f)
    return tl.fma(power, rest, power - 1.0)  # power - 1 is exact where it matters


@triton.jit
def log1p(x):
    """Return log(1 + x) for x in [0, 1]."""
    if x.dtype == tl.float64:
        u = 1.0 + x
        result = tl.log(u) + (x - (u - 1.0)) / u  # the second term is what 1 + x has lost
    else:
        # x + x^2 q, fitted for the least relative error, 2^-27.5.
        q = tl.fma(x, -0.003318453673273325, 0.02020450495183468)
        q = tl.fma(q, x, -0.057664304971694946)
        q = tl.fma(q, x, 0.10680542141199112)
        q = tl.fma(q, x, -0.15355388820171356)
        q = tl.fma(q, x, 0.19695398211479187)
        q = tl.fma(q, x, -0.24958586692810059)
        q = tl.fma(q, x, 0.33330512046813965)
        q = tl.fma(q, x, -0.4999993145465851)
        result = tl.fma(q * x, x, x)
    return result


@triton.jit
def inverse(d):
    """Return 1 / d for d >= 1, to 2 units in the last place; 0 for inf."""
    if d.dtype == tl.float64:
        result = 1.0 / d
    else:
        root = tl.rsqrt(d)
        result = root * root
    return result


@triton.jit
def divide(n, d):
    """Return n / d for d >= 1, rounded almost correctly; n finite, or the result is NaN."""
    if d.dtype == tl.float64:
        result = n / d
    else:
        q = inverse(d)
        result = n * q
        result = tl.fma(tl.fma(-result, d, n), q, result)
    return result


@triton.jit
def logistic(x, SHIFT: tl.constexpr = 0):
    """Return 2^s / (1 + exp(-x)), 1 / (1 + exp(x)) and 2^-s; s is SHIFT for x < 0 and 0 for others.

    From exp(-|x|), which never overflows, so that neither loses its relative accuracy.
    """
    negative = x < 0
    e = exp(-tl.abs(x))
    d = 1.0 + e
    q = divide(1.0, d)
    small = divide(e, d)
    unit = 1.0
    if SHIFT > 0:
        shifted = divide(exp(-tl.abs(x), SHIFT), d)
        unit = tl.where(negative, 2.0**-SHIFT, 1.0)
        left = tl.where(negative, shifted, q)
    else:
        left = tl.where(negative, small, q)
    return left, tl.where(negative, q, small), unit


@triton.jit
def tanh_rest(x):
    """Return (tanh(x) - x) / x for |x| < 0.6 in float32: a polynomial with 2^-33 of error."""
    u = x * x
    q = tl.fma(u, -0.000896572892088443, 0.0033418110106140375)
    q = tl.fma(q, u, -0.008804712444543839)
    q = tl.fma(q, u, 0.02186230942606926)
    q = tl.fma(q, u, -0.053967829793691635)
    q = tl.fma(q, u, 0.13333332538604736)
    q = tl.fma(q, u, -0.3333333432674408)
    return q * u


@triton.jit
def tanh(x):
    """Return tanh(x)."""
    if x.dtype == tl.float64:
        m = expm1(-2.0 * tl.abs(x))
        result = -m / (2.0 + m)
        result = tl.where(x < 0, -result, result)
        result = tl.where(x == 0, x, result)
    else:
        e = exp(-2.0 * tl.abs(x))
        far = divide(1.0 - e, 1.0 + e)
        far = tl.where(x < 0, -far, far)
        result = tl.where(tl.abs(x) < 0.6, tl.fma(tanh_rest(x), x, x), far)
    return result


@triton.jit
def normal_tail(w):
    """Return the normal distribution's cumulative probability of w <= 0.

    In float32 log2 of it is a polynomial. It is fitted to 2^-27 for w > -5.3, and less closely from there
    on, where its own size costs as many bits. It falls to -inf, so that the result ends at 0.
    """
    if w.dtype == tl.float64:
        result = 0.5 + 0.5 * tl.erf(w * 0.7071067811865476)
    else:
        q = tl.fma(w, -6.995505880332562e-16, -7.857053224182009e-14)
        q = tl.fma(q, w, -4.044571535327668e-12)
        q = tl.fma(q, w, -1.2659674697435008e-10)
        q = tl.fma(q, w, -2.695145440156921e-09)
        q = tl.fma(q, w, -4.134487952001109e-08)
        q = tl.fma(q, w, -4.7191315388772637e-07)
        q = tl.fma(q, w, -4.070162049174542e-06)
        q = tl.fma(q, w, -2.649159068823792e-05)
        q = tl.fma(q, w, -0.0001260442368220538)
        q = tl.fma(q, w, -0.00038257683627307415)
        q = tl.fma(q, w, -0.0001345024793408811)
        q = tl.fma(q, w, 0.00684190122410655)
        q = tl.fma(q, w, 0.052396468818187714)
        q = tl.fma(q, w, -0.4592297673225403)
        q = tl.fma(q, w, 1.1511036157608032)
        result = tl.exp2(tl.fma(q, w, -1.0))
    return result
