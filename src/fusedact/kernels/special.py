"""Special functions in float32 and float64, at least as accurate as CUDA's own.

Triton's own aren't accurate enough in float32:

- `tl.exp` rounds x log2(e), and so loses up to |x| units in the last place.
- `tl.erf` gives a normal distribution's tail as 1 + erf(x), which cancels.
- expm1, log1p and tanh exist only in libdevice, which the interpreter lacks.
- A division takes 8 instructions, for divisors of any size. `divide` takes 6, and is more accurate.

In float64 speed doesn't matter. `tl.exp`, `tl.log` and `tl.erf` are accurate, and the other functions use
them.

Of the hardware's approximations only exp2 and rsqrt are used, by names that every backend has. In float64 a
constant is multiplied and added by * and +, since Triton 3.6 rounds constants in `tl.fma` to float32.
"""

import triton
import triton.language as tl

LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)
_LN2: tl.constexpr = tl.constexpr(0.6931471805599453)
# Adding 1.5 * 2^23 (2^52) rounds to an integer and leaves it in the lowest bits.
_ROUND_32: tl.constexpr = tl.constexpr(12582912.0)
_ROUND_64: tl.constexpr = tl.constexpr(6755399441055744.0)
# The rounding errors of log2(e) and ln 2 in float32. In float64 ln 2 is split in two: the high part has so
# few bits that its product with any exponent is exact.
_LOG2E_REST: tl.constexpr = tl.constexpr(1.925963033500609e-08)
_LN2_REST: tl.constexpr = tl.constexpr(-1.904654323148236e-09)
_LN2_HIGH: tl.constexpr = tl.constexpr(0.6931471803691238)
_LN2_LOW: tl.constexpr = tl.constexpr(1.9082149292705877e-10)


@triton.jit
def product(x, a, REST: tl.constexpr = 0.0):
    """Return x * (a + REST) in two parts: x * a rounded, and the rounding error (0 for large products)."""
    z = x * a
    low = tl.fma(x, a, -z) if REST == 0.0 else tl.fma(x, a, -z) + x * REST
    return z, tl.where(tl.abs(z) < 1024.0, low, 0.0)


@triton.jit
def exp(x, low=None, SHIFT: tl.constexpr = 0):
    """Return the exponential of x + low, times 2^SHIFT, subnormal results included.

    low is the rounding error of x. A SHIFT keeps small results from becoming subnormal, where they have fewer
    bits. The caller multiplies by 2^-SHIFT as its last step.
    """
    if x.dtype == tl.float64:
        result = tl.exp(x) * 2.0**SHIFT
        if low is not None:
            result += result * low
    else:
        # 2^j 2^f, j an integer that a float32 has as its exponent; beyond, f leaves [-1/2, 1/2].
        shifted = tl.maximum(tl.fma(x, LOG2E, _ROUND_32), _ROUND_32 - (126.0 + SHIFT))
        shifted = tl.minimum(shifted, _ROUND_32 + (127.0 - SHIFT))
        power = ((shifted.to(tl.int32, bitcast=True) << 23) + ((127 + SHIFT) << 23)).to(
            tl.float32, bitcast=True
        )
        f = tl.fma(x, LOG2E, -(shifted - _ROUND_32))
        f = tl.fma(x, _LOG2E_REST, f)
        if low is not None:
            f = tl.fma(low, LOG2E, f)
        result = tl.exp2(f) * power
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
        shifted = x * LOG2E + _ROUND_64
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
        shifted = tl.fma(x, LOG2E, _ROUND_32)
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
def softplus(x, low=None):
    """Return log(1 + exp(x)); low is the rounding error of x.

    For x > 0 it equals x + log(1 + exp(-x)), in which nothing cancels. For small |x| both terms matter and
    have errors. There log(2) + x / 2 + log(cosh(x / 2)) is more accurate, since its last term is small.
    """
    positive = tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)
    if low is None:
        e = exp(-tl.abs(x))
    else:
        e = exp(-tl.abs(x), tl.where(x < 0, low, -low))
    if x.dtype == tl.float64:
        u = 1.0 + e
        result = positive + (tl.log(u) + (e - (u - 1.0)) / u)  # the last term is the rounding error of 1 + e
    else:
        # log(1 + e) = e + e^2 q for e < exp(-1), fitted for the least relative error, 2^-27.5.
        q = tl.fma(e, 0.05332949757575989, -0.13104568421840668)
        q = tl.fma(q, e, 0.19221261143684387)
        q = tl.fma(q, e, -0.2490982860326767)
        q = tl.fma(q, e, 0.3332841992378235)
        q = tl.fma(q, e, -0.49999910593032837)
        far = positive + tl.fma(q * e, e, e)
        # log(cosh(x / 2)) / x^2, fitted to 2^-31 for |x| < 1.
        u = x * x
        q = tl.fma(u, -2.1793788619106635e-05, 0.00034357295953668654)
        q = tl.fma(q, u, -0.005207157228142023)
        q = tl.fma(q, u, 0.12499988079071045)
        near = tl.fma(x, 0.5, _LN2) + tl.fma(q, u, _LN2_REST)
        result = tl.where(tl.abs(x) < 1.0, near, far)
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
def sigmoid(x, low=None):
    """Return 1 / (1 + exp(-x)); low is the rounding error of x."""
    if low is not None:
        low = tl.where(x < 0, low, -low)
    e = exp(-tl.abs(x), low)
    return divide(tl.where(x < 0, e, 1.0), 1.0 + e)


@triton.jit
def logistic(x, low=None, SHIFT: tl.constexpr = 0):
    """Return 2^s / (1 + exp(-x)), 1 / (1 + exp(x)) and 2^-s; s is SHIFT for x < 0 and 0 for others.

    They are computed from exp(-|x|), which never overflows, so both keep their relative accuracy. low is the
    rounding error of x.
    """
    negative = x < 0
    if low is not None:
        low = tl.where(negative, low, -low)
    e = exp(-tl.abs(x), low, SHIFT)
    shifted = divide(e, tl.fma(e, 2.0**-SHIFT, 1.0))
    far = shifted * 2.0**-SHIFT
    near = 1.0 - far
    left = tl.where(negative, shifted, near)
    return left, tl.where(negative, near, far), tl.where(negative, 2.0**-SHIFT, 1.0)


@triton.jit
def tanh_rest(x):
    """Return (tanh(x) - x) / x for |x| < 1 in float32: a polynomial with a relative error of 2^-31."""
    u = x * x
    q = tl.fma(u, -4.847756281378679e-05, 0.0003377319371793419)
    q = tl.fma(q, u, -0.0012422265717759728)
    q = tl.fma(q, u, 0.003478445578366518)
    q = tl.fma(q, u, -0.008826278150081635)
    q = tl.fma(q, u, 0.021862583234906197)
    q = tl.fma(q, u, -0.05396759882569313)
    q = tl.fma(q, u, 0.13333331048488617)
    q = tl.fma(q, u, -0.3333333432674408)
    return tl.fma(q, u, 0.0)  # a sum, so that a zero keeps its sign


@triton.jit
def tanh(x):
    """Return the hyperbolic tangent."""
    if x.dtype == tl.float64:
        m = expm1(-2.0 * tl.abs(x))
        result = -m / (2.0 + m)
        result = tl.where(x < 0, -result, result)
    else:
        e = exp(-2.0 * tl.abs(x))
        far = divide(1.0 - e, 1.0 + e)
        far = tl.where(x < 0, -far, far)
        result = tl.where(tl.abs(x) < 1.0, tl.fma(tanh_rest(x), x, x), far)
    return result


@triton.jit
def normal(w):
    """Return the normal distribution's density at w <= 0, times sqrt(2 pi), and its cumulative probability.

    In float32 their quotient is a polynomial in 1 / (1 - 0.3 w), fitted to 2^-28.
    """
    v = tl.maximum(w, -40.0, propagate_nan=tl.PropagateNan.ALL)  # there both are 0
    square, low = product(v, v)
    density = exp(-0.5 * square, -0.5 * low)
    if w.dtype == tl.float64:
        probability = 0.5 + 0.5 * tl.erf(v * 0.7071067811865476)
    else:
        u = divide(1.0, tl.fma(v, -0.3, 1.0))
        q = tl.fma(u, -0.02058461867272854, 0.11221693456172943)
        q = tl.fma(q, u, -0.22767916321754456)
        q = tl.fma(q, u, 0.19104160368442535)
        q = tl.fma(q, u, -0.07877741008996964)
        q = tl.fma(q, u, 0.09579310566186905)
        q = tl.fma(q, u, 0.07852191478013992)
        q = tl.fma(q, u, 0.11020553112030029)
        q = tl.fma(q, u, 0.1195756122469902)
        q = tl.fma(q, u, 0.11968648433685303)
        probability = density * (q * u)
    return density, probability
