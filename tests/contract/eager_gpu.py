"""What PyTorch's eager kernels for CUDA compute, restated operation by operation for tensors on a CPU.

The formulas are those of aten/src/ATen/native/cuda (torch 2.11 to 2.14), with the fused multiplications that
nvcc makes of them; where the PyTorch function is a composition, of its operations. expf, expm1f, log1pf,
tanhf and erff are libdevice's, taken from the PTX that NVRTC 13 makes of them. The hardware's exp2 and
reciprocal are taken for correctly rounded; they err by up to 2 units, so that eager's true error is larger.

`values` rounds to the tensor's dtype where eager stores.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor


def _float(hexadecimal: int) -> float:
    return torch.tensor(hexadecimal, dtype=torch.int64).to(torch.int32).view(torch.float32).item()


def _fma(a: Tensor | float, b: Tensor | float, c: Tensor | float) -> Tensor:
    """a * b + c rounded once to float32, but for the few sums that float64 rounds to a tie."""
    a, b, c = (v.double() if isinstance(v, Tensor) else v for v in (a, b, c))
    return torch.as_tensor(a * b + c).float()


def _polynomial(x: Tensor, *coefficients: int) -> Tensor:
    q = torch.full_like(x, _float(coefficients[0]))
    for coefficient in coefficients[1:]:
        q = _fma(q, x, _float(coefficient))
    return q


def _exp2(x: Tensor) -> Tensor:
    return x.double().exp2().float()


def _exp_parts(x: Tensor) -> tuple[Tensor, Tensor]:
    saturated = _fma(x, _float(0x3BBB989D), 0.5).clamp(0, 1)
    j = (saturated.double() * 252 + 12582913).floor().float() - _float(0x4B40007F)
    return _exp2(_fma(x, _float(0x32A57060), _fma(x, _float(0x3FB8AA3B), -j))), torch.exp2(j)


def exp(x: Tensor) -> Tensor:
    part, power = _exp_parts(x)
    return part * power


def one_plus_exp(x: Tensor) -> Tensor:
    part, power = _exp_parts(x)
    return _fma(part, power, 1.0)


def expm1(x: Tensor) -> Tensor:
    """For x <= 0."""
    j = torch.where(x.abs() < 0.41, 0.0, (x * 1.4426950216293335).round())
    f = _fma(-j, float.fromhex("0x1.7f7d1cp-20"), _fma(-j, float.fromhex("0x1.62e400p-1"), x))
    q = _fma(f, float.fromhex("0x1.6bd7ccp-10"), float.fromhex("0x1.12accp-7"))
    for coefficient in ("0x1.5557cp-5", "0x1.5553ecp-3", "0x1.fffffcp-2"):
        q = _fma(q, f, float.fromhex(coefficient))
    rest, power = _fma(q * f, f, f), j.exp2()
    return torch.where(j < -25, -1.0, _fma(rest, power, power - 1))


def tanh(x: Tensor) -> Tensor:
    e = _exp2(x.abs() * _float(0x4038AA3B))
    far = _fma((1 / (e + 1).double()).float(), -2.0, 1.0)
    far = torch.where(x.abs() >= _float(0x41102CB4), 1.0, far).copysign(x)
    u = x * x
    near = _polynomial(u, 0x3C80F082, 0xBD563CAE, 0x3E085941, 0xBEAAA9ED, 0)
    return torch.where(x.abs() >= _float(0x3F19999A), far, _fma(near, x, x))


def erf(x: Tensor) -> Tensor:
    t = x.abs()
    far = _polynomial(t, 0x38EB4C3A, 0xBAAE005B, 0x3C09919F, 0xBD24D99A, 0x3E235519, 0x3F69B4F9, 0x3F210A14)
    far = (1 - _exp2(_fma(far, -t, -t))).copysign(x)
    near = _polynomial(
        x * x, 0x38B1E96A, 0xBA574D20, 0x3BAAD5EA, 0xBCDC1BE7, 0x3DE718AF, 0xBEC093AC, 0x3E0375D3
    )
    return torch.where(t >= _float(0x3F8060FE), far, _fma(near, x, x))


def log1p(x: Tensor) -> Tensor:
    """For x >= 0."""
    x = x.contiguous()
    cut = (x.double() + 1).float()
    cut = torch.where(cut.double() > x.double() + 1, torch.nextafter(cut, torch.zeros_like(cut)), cut)
    bits = (cut.view(torch.int32) - 1061158912) & -8388608
    fraction = (x.view(torch.int32) - bits).view(torch.float32)
    rest = (1082130432 - bits).view(torch.float32)
    f = _fma(rest, 0.25, -1.0) + fraction
    q = _polynomial(
        f,
        *(0xBD39BF78, 0x3DD80012, 0xBE0778E0, 0x3E146475, 0xBE2A68DD),
        *(0x3E4CAF9E, 0xBE800042, 0x3EAAAAE6, 0xBF000000),
    )
    result = _fma(f * q, f, f)
    result = _fma(bits.float() * _float(0x34000000), _float(0x3F317218), result)
    return torch.where(torch.isfinite(x), result, x)


Rounding = Callable[[Tensor], Tensor]  # to the tensor's dtype, and back to float32


def _composed_sigmoid(x: Tensor) -> Tensor:
    return 1 / one_plus_exp(-x)


def _sixth() -> float:
    return torch.tensor(1 / 6).item()


def _hardsigmoid(x, a, b, r):
    return (x + 3).clamp(0, 6) * _sixth()


def _elu(x, a, b, r, positive=1.0, inner=1.0):
    return torch.where(x > 0, x * positive, expm1(x.clamp(max=0) * inner) * a)


def _elu_derivative(x, a, b, r, positive=1.0, inner=1.0):
    return torch.where(x <= 0, inner * a * exp(x.clamp(max=0) * inner), positive)


def _f32(value: float) -> float:
    return torch.tensor(value).item()


_SELU_SCALE = _f32(1.0507009873554804934193349852946)
_SELU = _f32(_f32(1.6732632423543772848170429916717) * _SELU_SCALE)
_GELU_BETA = _f32(math.sqrt(2) * 2 / math.sqrt(math.pi) * 0.5)
_KAPPA = _f32(0.044715)


def _gelu(x, a, b, r):
    return x * 0.5 * (1 + erf(x * _f32(math.sqrt(0.5))))


def _gelu_derivative(x, a, b, r):
    pdf = exp(x * -0.5 * x) * _float(0x3ECC422A)
    return _fma(1 + erf(x * _f32(math.sqrt(0.5))), 0.5, x * pdf)


def _gelu_tanh(x, a, b, r):
    inner = _GELU_BETA * _fma(_KAPPA, x * x * x, x)
    return 0.5 * x * (1 + tanh(inner))


def _gelu_tanh_derivative(x, a, b, r):
    u = x * x
    t = tanh(_GELU_BETA * _fma(_KAPPA, u * x, x))
    right = 0.5 * x * _fma(-t, t, 1.0) * (_GELU_BETA * _fma(_f32(3 * _KAPPA), u, 1.0))
    return _fma(0.5, 1 + t, right)


def _silu_derivative(x, a, b, r):
    s = _composed_sigmoid(x)
    return s * _fma(x, 1 - s, 1.0)


def _mish_derivative(x, a, b, r):
    t = tanh(log1p(exp(x)))
    return _fma(x * _composed_sigmoid(x), _fma(-t, t, 1.0), t)


def _softplus(x, a, b, r):
    return torch.where(x * a > b, x, log1p(exp(x * a)) / a)


def _softplus_derivative(x, a, b, r):
    z = exp(x * a)
    return torch.where(x * a > b, 1.0, z / one_plus_exp(x * a))


def _logsigmoid_derivative(x, a, b, r):
    z = exp(-x.abs())
    quotient = z / one_plus_exp(-x.abs())
    return torch.where(x < 0, 1 - quotient, quotient)


def _sigmoid_derivative(x, a, b, r):
    s = r(_composed_sigmoid(x))
    return r(r(1 - s) * s)  # the kernel's arithmetic is the dtype's


def _tanh_derivative(x, a, b, r):
    return _one_minus_square(r(tanh(x)), r)


def _one_minus_square(t, r):
    return r(1 - r(t * t)) if r(torch.tensor(1.001)) != torch.tensor(1.001) else _fma(-t, t, 1.0)


def _tanhshrink_derivative(x, a, b, r):
    return 1 - _one_minus_square(r(tanh(x)), r)


def _softsign(x, a, b, r):
    return x / r(1 + x.abs())


def _softsign_derivative(x, a, b, r):
    d = r(1 + x.abs())
    return r(1 / d) - r(r(r(x / d) / d) * x.sign())


def _quick_gelu(x, a, b, r):
    return x * r(_composed_sigmoid(r(x * _f32(1.702))))


def _quick_gelu_derivative(x, a, b, r):
    s = r(_composed_sigmoid(r(x * _f32(1.702))))
    inner = r(r(x * r(1 - s)) * s)  # sigmoid_backward(x, s)
    return s + r(inner * _f32(1.702))


# (forward, derivative) of each row that isn't exact, as functions of (x, a, b, rounding) for float32 tensors.
EAGER = {
    "sigmoid": (lambda x, a, b, r: _composed_sigmoid(x), _sigmoid_derivative),
    "tanh": (lambda x, a, b, r: tanh(x), _tanh_derivative),
    "tanhshrink": (lambda x, a, b, r: x - r(tanh(x)), _tanhshrink_derivative),
    "softsign": (_softsign, _softsign_derivative),
    "elu": (_elu, _elu_derivative),
    "celu": (
        lambda x, a, b, r: _elu(x, a, b, r, 1.0, _f32(1 / a)),
        lambda x, a, b, r: _elu_derivative(x, a, b, r, 1.0, _f32(1 / a)),
    ),
    "selu": (
        lambda x, a, b, r: _elu(x, _SELU, b, r, _SELU_SCALE),
        lambda x, a, b, r: _elu_derivative(x, _SELU, b, r, _SELU_SCALE),
    ),
    "gelu": (_gelu, _gelu_derivative),
    "gelu_tanh": (_gelu_tanh, _gelu_tanh_derivative),
    "silu": (lambda x, a, b, r: x / one_plus_exp(-x), _silu_derivative),
    "quick_gelu": (_quick_gelu, _quick_gelu_derivative),
    "mish": (lambda x, a, b, r: x * tanh(log1p(exp(x))), _mish_derivative),
    "softplus": (_softplus, _softplus_derivative),
    "logsigmoid": (lambda x, a, b, r: x.clamp(max=0) - log1p(exp(-x.abs())), _logsigmoid_derivative),
}


def values(name: str, x: Tensor, a: float, b: float) -> tuple[Tensor, Tensor]:
    """Eager's activation of `x` on a GPU, and its derivative: the gradient for an upstream one of 1."""

    def rounding(value: Tensor) -> Tensor:
        return value.to(x.dtype).float()

    forward, derivative = EAGER[name]
    wide = x.float()
    return forward(wide, a, b, rounding).to(x.dtype), derivative(wide, a, b, rounding).to(x.dtype)


def _hardswish(x: Tensor) -> Tensor:
    return x * (x + 3).clamp(0, 6) * _sixth()


def _hardswish_derivative(x: Tensor) -> Tensor:
    return torch.where(x <= -3, 0.0, torch.where(x < 3, x / 3 + 0.5, 1.0))


def _no_derivative(x: Tensor) -> None:
    return None


# Where eager on a CPU has other operations than on a GPU: forward and derivative of a float32 or float64
# tensor. A derivative of None is the CPU's.
OTHERS = {
    "hardsigmoid": (lambda x: (x + 3).clamp(0, 6) * _sixth(), _no_derivative),
    "hardswish": (_hardswish, _hardswish_derivative),
}

F = torch.nn.functional

# The PyTorch function of each row, of (x, a, b).
PYTORCH: dict[str, Callable[[Tensor, float, float], Tensor]] = {
    "identity": lambda x, a, b: x * 1,
    "relu": lambda x, a, b: F.relu(x),
    "relu6": lambda x, a, b: F.relu6(x),
    "hardtanh": lambda x, a, b: F.hardtanh(x, a, b),
    "hardsigmoid": lambda x, a, b: F.hardsigmoid(x),
    "hardshrink": lambda x, a, b: F.hardshrink(x, a),
    "softshrink": lambda x, a, b: F.softshrink(x, a),
    "threshold": lambda x, a, b: F.threshold(x, a, b),
    "leaky_relu": lambda x, a, b: F.leaky_relu(x, a),
    "hardswish": lambda x, a, b: F.hardswish(x),
    "squared_relu": lambda x, a, b: F.relu(x).square(),
    "sigmoid": lambda x, a, b: torch.sigmoid(x),
    "tanh": lambda x, a, b: torch.tanh(x),
    "tanhshrink": lambda x, a, b: F.tanhshrink(x),
    "softsign": lambda x, a, b: F.softsign(x),
    "elu": lambda x, a, b: F.elu(x, a),
    "celu": lambda x, a, b: F.celu(x, a),
    "selu": lambda x, a, b: F.selu(x),
    "gelu": lambda x, a, b: F.gelu(x),
    "gelu_tanh": lambda x, a, b: F.gelu(x, approximate="tanh"),
    "silu": lambda x, a, b: F.silu(x),
    "quick_gelu": lambda x, a, b: x * torch.sigmoid(1.702 * x),
    "mish": lambda x, a, b: F.mish(x),
    "softplus": lambda x, a, b: F.softplus(x, a, b),
    "logsigmoid": lambda x, a, b: F.logsigmoid(x),
}


def pytorch(name: str, x: Tensor, a: float, b: float) -> tuple[Tensor, Tensor]:
    """PyTorch's activation of `x` on its own device, and the derivative."""
    x = x.detach().requires_grad_()
    y = PYTORCH[name](x, a, b)
    (derivative,) = torch.autograd.grad(y, x, torch.ones_like(y))
    return y.detach(), derivative
