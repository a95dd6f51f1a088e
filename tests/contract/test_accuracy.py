"""The activations' mathematics alone: every row, every half-precision value, the truth and eager on a GPU.

The unit of an error is the last place that the dtype has at the truth. It is no less than the spacing of the
dtype's subnormal numbers. Where a derivative crosses 0 it is the difference of two terms: within 1/4 of that
input the unit is no less than that at 1/64.
"""

import dataclasses
import math
import struct

import mpmath
import pytest
import torch
from cases import EVERY
from torch import Tensor

from . import eager_gpu
from .truth import TRUTHS, Exact, Tensors

triton = pytest.importorskip("triton", reason="the mathematics are Triton functions")

import triton.language as tl  # noqa: E402

from fusedact.activations import Saves  # noqa: E402
from fusedact.kernels import mathematics  # noqa: E402
from fusedact.kernels.configuration import named  # noqa: E402

# Select, add and multiply, in eager's order: the bits are eager's.
EXACT = (
    *("identity", "relu", "relu6", "hardtanh", "hardsigmoid", "hardshrink", "softshrink", "threshold"),
    *("leaky_relu", "hardswish", "squared_relu"),
)
# Bounds of the errors in float32 where the truth is normal: of the activation and of its derivative.
BOUNDS = {
    "sigmoid": (2.1, 3.9),
    "tanh": (1.6, 4.2),
    "tanhshrink": (6.0, 3.4),
    "softsign": (1.5, 3.5),
    "elu": (1.5, 1.5),
    "celu": (2.3, 1.0),
    "selu": (1.9, 2.0),
    "gelu": (8.0, 45.0),
    "gelu_tanh": (160.0, 170.0),
    "silu": (2.7, 18.0),
    "quick_gelu": (2.8, 24.0),
    "mish": (3.7, 40.0),
    "softplus": (2.4, 2.2),
    "logsigmoid": (1.5, 2.2),
}
# A rounding to half precision errs by up to 1/2 in any case. The float32 before it may add 1/32.
ROUNDING = 0.5 + 1 / 32
# Where eager errs by no more than that, ours do by no more than this: nowhere is a result lost.
NOWHERE = 0.6
# On a GPU exp2 and rsqrt are approximations that err by up to 2 units each, eager's too.
HARDWARE = 4.0

HALVES = (torch.float16, torch.bfloat16)
dtypes = pytest.mark.parametrize(
    "dtype", [torch.float32, *HALVES, torch.float64], ids=lambda dtype: str(dtype)[6:]
)


@triton.jit
def _kernel(x_ptr, y_ptr, a, b, FUNCTION: tl.constexpr, ARITHMETIC: tl.constexpr, COUNT: tl.constexpr):
    at = tl.program_id(0) * COUNT + tl.arange(0, COUNT)
    if tl.float64 == ARITHMETIC:  # a float argument is float32, so these travel as their bits
        a = a.to(tl.int64).to(tl.float64, bitcast=True)
        b = b.to(tl.int64).to(tl.float64, bitcast=True)
    y = FUNCTION(tl.load(x_ptr + at).to(ARITHMETIC), a, b)
    tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty))


def computed(name: str, x: Tensor, device: str) -> Tensor:
    """One of the mathematics' functions of `x`, rounded to its dtype; of those that pass or don't, 1 or 0."""
    parameters = rounded_parameters(name.removesuffix("_derivative").removesuffix("_passes"), x.dtype)
    double = x.dtype is torch.float64
    if double:
        parameters = struct.unpack("<2q", struct.pack("<2d", *parameters))
    block = 2**16 if device == "cpu" else 2**10
    padded = torch.zeros(triton.cdiv(x.numel(), block) * block, dtype=x.dtype, device=device)
    padded[: x.numel()] = x
    y = torch.empty_like(padded, dtype=torch.int8 if name.endswith("_passes") else x.dtype)
    grid = (padded.numel() // block,)
    _kernel[grid](padded, y, *parameters, named(name, x.dtype), tl.float64 if double else tl.float32, block)
    return y[: x.numel()].cpu()


def rounded_parameters(name: str, dtype: torch.dtype) -> tuple[float, float]:
    parameters = TRUTHS[name].parameters
    return parameters if dtype is torch.float64 else tuple(torch.tensor(p).item() for p in parameters)


def inputs(name: str, dtype: torch.dtype) -> Tensor:
    """Finite numbers: all of a half precision; of float32 some of each exponent, and all around a join."""
    joins = TRUTHS[name].joins
    if dtype in HALVES:
        x = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    elif dtype is torch.float32:
        exponent = torch.arange(255).repeat_interleave(64)
        mantissa = torch.randint(0, 2**23, exponent.shape)
        mantissa[::64], mantissa[1::64] = 0, 2**23 - 1
        each = ((exponent << 23) | mantissa).to(torch.int32).view(torch.float32)
        line = torch.linspace(-110, 110, 2**15) + torch.rand(2**15) * 0.006
        around = [torch.tensor(join).view(torch.int32) + torch.arange(-64, 65) for join in joins]
        around = [bits.to(torch.int32).view(torch.float32) for bits in around]
        x = torch.cat([each, -each, line, torch.randn(2**14) * 2, *around])
    else:
        scale = torch.logspace(-300, 2.5, 100, dtype=dtype)
        around = [torch.tensor([join * (1 + i * 2e-16) for i in range(-2, 3)], dtype=dtype) for join in joins]
        x = torch.cat([scale, -scale, torch.randn(200, dtype=dtype) * 3, *around])
    return x[torch.isfinite(x)]


def truths(name: str, x: Tensor) -> tuple[Tensor, Tensor]:
    """The activation and its derivative in float64; of float64 tensors rounded from 60 digits."""
    row = TRUTHS[name]
    parameters = rounded_parameters(name, x.dtype)
    if x.dtype is not torch.float64:
        wide = x.double()
        return row.forward(Tensors, wide, *parameters), row.derivative(Tensors, wide, *parameters)
    with mpmath.workdps(60):
        a, b = map(mpmath.mpf, parameters)
        numbers = [mpmath.mpf(number) for number in x.tolist()]
        return tuple(
            torch.tensor([float(exact(Exact, number, a, b)) for number in numbers], dtype=x.dtype)
            for exact in (row.forward, row.derivative)
        )


def units(value: Tensor, truth: Tensor, least: Tensor) -> Tensor:
    """The error of `value`, in units of its last place at the truth, or at `least` if that is more."""
    info = torch.finfo(value.dtype)
    exponent = torch.frexp(torch.maximum(truth.abs(), least).clamp_min(info.tiny)).exponent
    unit = torch.ldexp(torch.ones_like(truth), exponent - 1) * info.eps
    overflows = torch.isinf(truth.to(value.dtype)) & (truth.to(value.dtype) == value)
    return torch.where(overflows, 0.0, (value.double() - truth).abs() / unit)


def eager(name: str, x: Tensor) -> tuple[Tensor, Tensor]:
    """Eager on a GPU as restated, or for float64 on a CPU."""
    of = eager_gpu.pytorch if x.dtype is torch.float64 else eager_gpu.values
    return of(name, x, *rounded_parameters(name, x.dtype))


@dtypes
@pytest.mark.parametrize("name", BOUNDS)
def test_the_largest_error_is_at_most_eagers(name, dtype, device):
    x = inputs(name, dtype)
    root = TRUTHS[name].root
    near_root = torch.zeros(len(x), dtype=torch.float64)
    if root is not None:
        near_root[(x.double() - root).abs() < 0.25] = 1 / 64
    results = zip(
        (name, f"{name}_derivative"),
        truths(name, x),
        eager(name, x),
        (torch.zeros_like(near_root), near_root),
        BOUNDS[name],
        strict=True,
    )
    for what, truth, theirs, least, bound in results:
        ours = computed(what, x, device)
        # Where only eager's steps overflow, any result will do.
        ordinary = torch.isfinite(theirs) | ~torch.isfinite(truth.to(dtype))
        errors = units(ours, truth, least)[ordinary]
        assert not errors.isnan().any(), what
        eagers = units(theirs, truth, least)[ordinary]
        allowed = eagers.max().item()
        hardware = HARDWARE if device == "cuda" and dtype is torch.float32 else 0.0
        if dtype in HALVES:
            allowed = max(allowed, ROUNDING)
            assert errors[eagers <= ROUNDING].max().item() <= NOWHERE, what
        elif dtype is torch.float64:
            allowed = max(2 * allowed, 4.0)  # a CPU's functions are more accurate than a GPU's
            assert errors[eagers <= 4.0].max().item() <= 1024, what  # x - tanh(x) cancels, by luck or not
        assert errors.max().item() <= allowed + hardware, what
        if dtype is torch.float32:
            normal = truth[ordinary].abs() >= torch.finfo(dtype).tiny
            assert errors[normal].max().item() <= bound + hardware, what


def exact_eager(name: str, x: Tensor) -> tuple[Tensor, Tensor]:
    """Eager's bits on a GPU, from a CPU: of its own kernels where these have the same operations."""
    y, derivative = eager_gpu.pytorch(name, x, *rounded_parameters(name, x.dtype))
    if name in eager_gpu.OTHERS:
        wide = x if x.dtype is torch.float64 else x.float()
        forward, backward = eager_gpu.OTHERS[name]
        y = forward(wide).to(x.dtype)
        if backward(wide) is not None:
            derivative = backward(wide).to(x.dtype)
    return y, derivative


@pytest.mark.parametrize(
    "row", [row for row in EVERY if row.saves is Saves.ONE_BIT], ids=lambda row: row.name
)
def test_a_row_vanishes_where_its_gradient_does_not_pass_or_does_not_say_so(row, device):
    x = inputs(row.name, torch.float16)
    blocked = ~computed(f"{row.name}_passes", x, device).bool()
    assert blocked.any()
    assert (computed(row.name, x, device)[blocked] == 0).all().item() == row.vanishes


SPECIAL = (math.nan, math.inf, -math.inf, 0.0, -0.0)


@dtypes
@pytest.mark.parametrize("name", EXACT)
def test_exact_rows_have_eagers_bits(name, dtype, device):
    # One by one: for a NaN, eager's vectorised code on a CPU has another gradient than its scalar code.
    parts = [inputs(name, dtype), *torch.tensor(SPECIAL, dtype=dtype).split(1)]
    x = torch.cat(parts)
    y, derivative = map(torch.cat, zip(*(exact_eager(name, part) for part in parts), strict=True))
    torch.testing.assert_close(computed(name, x, device), y, rtol=0, atol=0, equal_nan=True)
    if name == "leaky_relu":
        assert torch.equal(computed("leaky_relu_passes", x, device).bool(), derivative == 1)
    elif hasattr(mathematics, f"{name}_passes"):
        assert torch.equal(computed(f"{name}_passes", x, device).bool(), derivative != 0)
    elif name != "identity":  # whose derivative nobody computes
        theirs = derivative.nan_to_num() if name == "squared_relu" else derivative
        ours = computed(f"{name}_derivative", x, device)
        ours = ours.nan_to_num() if name == "squared_relu" else ours
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)


@dtypes
@pytest.mark.parametrize("name", BOUNDS)
def test_special_values(name, dtype, device):
    """Where eager gives NaN or an infinity, and where it doesn't, so do ours."""
    info = torch.finfo(dtype)
    special = [*SPECIAL, info.max, info.smallest_normal, info.smallest_normal * info.eps]
    x = torch.tensor([*special, *(-v for v in special)], dtype=dtype)
    if dtype is torch.float64:
        x = x.where(x.abs() != info.max, 1.0)  # only float32 is restated
        theirs = eager(name, x.float())
    else:
        theirs = eager(name, x)
    for what, expected in zip((name, f"{name}_derivative"), theirs, strict=True):
        ours = computed(what, x, device)
        for same in (torch.isnan, torch.isposinf, torch.isneginf):
            assert torch.equal(same(ours), same(expected)), what


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=lambda dtype: str(dtype)[6:])
def test_celu_with_a_negative_alpha(dtype, device, monkeypatch):
    """Exponentials of positive numbers, as in eager mode."""
    monkeypatch.setitem(TRUTHS, "celu", dataclasses.replace(TRUTHS["celu"], parameters=(-0.75, 0.0)))
    x = -torch.logspace(-6, 0.8, 5000).to(dtype)
    allowed = ROUNDING if dtype in HALVES else 12.0  # x / alpha is below 9, and its rounding costs as much
    for what, truth in zip(("celu", "celu_derivative"), truths("celu", x), strict=True):
        errors = units(computed(what, x, device), truth, torch.zeros_like(truth))
        assert errors.max().item() <= allowed, what
