"""The rows of the activations that PyTorch and Hugging Face have. `Activation` documents each field."""

import functools
import math
from math import inf

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .activations import REQUIRED, Activation, Parameter, Ranges, Saves, add_row


def _outside(low: float, high: float = inf) -> Ranges:
    return ((-inf, low),) if high == inf else ((-inf, low), (high, inf))


def _elu_from_output(gradient: Tensor, output: Tensor, alpha: float) -> Tensor:
    result: Tensor = torch.ops.aten.elu_backward.default(gradient, alpha, 1.0, 1.0, True, output)
    return result


def _elu_saturated(alpha: float) -> Ranges:
    # Where alpha exp(x) is a twentieth of the largest slope, which is 1 or alpha.
    return _outside(min(0.0, math.log(max(1.0, alpha) / (20 * alpha)))) if alpha > 0 else ()


def _quick_gelu(input: Tensor) -> Tensor:
    return input * torch.sigmoid(1.702 * input)


def _squared_relu(input: Tensor) -> Tensor:
    return torch.square(F.relu(input))


def _identity(input: Tensor) -> Tensor:
    return input


RELU = add_row(
    Activation(
        name="relu",
        module=nn.ReLU,
        function=F.relu,
        formula="max(x, 0)",
        saves=Saves.ONE_BIT,
        vanishes=True,
        exact=True,
        representable=True,
        clamps=True,
        inplace=True,
        homogeneous=True,
        dead=lambda: _outside(0.0),
    )
)
RELU6 = add_row(
    Activation(
        name="relu6",
        module=nn.ReLU6,
        function=F.relu6,
        formula="min(max(x, 0), 6)",
        saves=Saves.ONE_BIT,
        exact=True,
        representable=True,
        clamps=True,
        inplace=True,
        dead=lambda: _outside(0.0, 6.0),
    )
)
HARDTANH = add_row(
    Activation(
        name="hardtanh",
        module=nn.Hardtanh,
        function=F.hardtanh,
        formula="min(max(x, min_val), max_val)",
        saves=Saves.ONE_BIT,
        parameters=(
            Parameter("min_val", -1.0, "the lowest output"),
            Parameter("max_val", 1.0, "the highest output, above `min_val`"),
        ),
        rule=lambda low, high: None if low < high else "max_val must be greater than min_val",
        exact=True,
        inplace=True,
        dead=_outside,
    )
)
HARDSIGMOID = add_row(
    Activation(
        name="hardsigmoid",
        module=nn.Hardsigmoid,
        function=F.hardsigmoid,
        formula="min(max(x + 3, 0), 6) / 6",
        saves=Saves.ONE_BIT,
        exact=True,
        slope=0.1666666716337204,  # 1/6 in float32, since PyTorch multiplies by it in float64 too
        inplace=True,
        dead=lambda: _outside(-3.0, 3.0),
    )
)
HARDSHRINK = add_row(
    Activation(
        name="hardshrink",
        module=nn.Hardshrink,
        function=F.hardshrink,
        formula="x if |x| > lambd, else 0",
        saves=Saves.ONE_BIT,
        vanishes=True,
        parameters=(Parameter("lambd", 0.5, "inputs with |x| <= lambd become 0"),),
        exact=True,
        rounds_parameters=True,
        representable=True,
        dead=lambda lambd: ((-lambd, lambd),) if lambd >= 0 else (),
    )
)
SOFTSHRINK = add_row(
    Activation(
        name="softshrink",
        module=nn.Softshrink,
        function=F.softshrink,
        formula="sign(x) max(|x| - lambd, 0)",
        saves=Saves.ONE_BIT,
        vanishes=True,
        parameters=(Parameter("lambd", 0.5, "the amount subtracted from |x|, at least 0"),),
        rule=lambda lambd: None if lambd >= 0 else "lambd must be at least 0",
        exact=True,
        rounds_parameters=True,
        dead=lambda lambd: ((-lambd, lambd),),
    )
)
THRESHOLD = add_row(
    Activation(
        name="threshold",
        module=nn.Threshold,
        function=F.threshold,
        formula="x if x > threshold, else value",
        saves=Saves.ONE_BIT,
        parameters=(
            Parameter("threshold", REQUIRED, "the highest input that is replaced"),
            Parameter("value", REQUIRED, "the output for the inputs that are replaced"),
        ),
        exact=True,
        rounds_parameters=True,
        inplace=True,
        dead=lambda threshold, value: _outside(threshold),
    )
)
LEAKY_RELU = add_row(
    Activation(
        name="leaky_relu",
        module=nn.LeakyReLU,
        function=F.leaky_relu,
        formula="x if x > 0, else negative_slope x",
        saves=Saves.TWO_BITS,
        parameters=(Parameter("negative_slope", 0.01, "the slope below 0, any finite number"),),
        exact=True,
        inplace=True,
        homogeneous=True,
        dead=lambda negative_slope: _outside(0.0) if negative_slope == 0 else (),
    )
)
ELU = add_row(
    Activation(
        name="elu",
        module=nn.ELU,
        function=F.elu,
        formula="x if x > 0, else alpha (exp(x) - 1)",
        saves=Saves.INPUT,
        parameters=(Parameter("alpha", 1.0, "the negated limit at -inf, any finite number"),),
        inplace=True,
        from_output=_elu_from_output,
        dead=lambda alpha: _outside(0.0) if alpha == 0 else (),
        saturated=_elu_saturated,
    )
)
CELU = add_row(
    Activation(
        name="celu",
        module=nn.CELU,
        function=F.celu,
        formula="x if x > 0, else alpha (exp(x / alpha) - 1)",
        saves=Saves.INPUT,
        parameters=(Parameter("alpha", 1.0, "the negated limit at -inf, any finite number but 0"),),
        rule=lambda alpha: None if alpha != 0 else "alpha must not be 0, since x is divided by it",
        inplace=True,
        saturated=lambda alpha: _outside(-2.996 * alpha) if alpha > 0 else (),
    )
)
SELU = add_row(
    Activation(
        name="selu",
        module=nn.SELU,
        function=F.selu,
        formula="1.0507 x if x > 0, else 1.7581 (exp(x) - 1)",
        saves=Saves.INPUT,
        inplace=True,
        saturated=lambda: _outside(-2.996),
    )
)
GELU_TANH = add_row(
    Activation(
        name="gelu_tanh",
        function=functools.partial(F.gelu, approximate="tanh"),
        formula="x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))",
        saves=Saves.INPUT,
        saturated=lambda: _outside(-2.29),
    )
)
GELU = add_row(
    Activation(
        name="gelu",
        module=nn.GELU,
        function=F.gelu,
        formula="x / 2 (1 + erf(x / sqrt(2)))",
        saves=Saves.INPUT,
        parameters=(
            Parameter(
                "approximate", "none", '"none" or "tanh", the formula', {"none": None, "tanh": GELU_TANH}
            ),
        ),
        saturated=lambda: _outside(-2.28),
    )
)
SILU = add_row(
    Activation(
        name="silu",
        module=nn.SiLU,
        function=F.silu,
        formula="x / (1 + exp(-x))",
        saves=Saves.INPUT,
        inplace=True,
        saturated=lambda: _outside(-3.93),
    )
)
MISH = add_row(
    Activation(
        name="mish",
        module=nn.Mish,
        function=F.mish,
        formula="x tanh(log(1 + exp(x)))",
        saves=Saves.INPUT,
        inplace=True,
        saturated=lambda: _outside(-3.98),
    )
)
SOFTPLUS = add_row(
    Activation(
        name="softplus",
        module=nn.Softplus,
        function=F.softplus,
        formula="log(1 + exp(beta x)) / beta if beta x <= threshold, else x",
        saves=Saves.INPUT,
        parameters=(
            Parameter("beta", 1.0, "the slope of the exponent, any finite number but 0"),
            Parameter("threshold", 20.0, "above this value of beta x, the result is x"),
        ),
        widens=True,
        rule=lambda beta, threshold: None if beta != 0 else "beta must not be 0, since it divides the result",
        saturated=lambda beta, threshold: _outside(-2.944 / beta) if beta > 0 else (),
    )
)
LOGSIGMOID = add_row(
    Activation(
        name="logsigmoid",
        module=nn.LogSigmoid,
        function=F.logsigmoid,
        formula="-log(1 + exp(-x))",
        saves=Saves.INPUT,
        saturated=lambda: ((2.944, inf),),
    )
)
TANHSHRINK = add_row(
    Activation(
        name="tanhshrink",
        module=nn.Tanhshrink,
        function=F.tanhshrink,
        formula="x - tanh(x)",
        saves=Saves.INPUT,
        saturated=lambda: ((-0.227, 0.227),),
    )
)
HARDSWISH = add_row(
    Activation(
        name="hardswish",
        module=nn.Hardswish,
        function=F.hardswish,
        formula="x min(max(x + 3, 0), 6) / 6",
        saves=Saves.INPUT,
        inplace=True,
        dead=lambda: _outside(-3.0),
    )
)
SIGMOID = add_row(
    Activation(
        name="sigmoid",
        module=nn.Sigmoid,
        function=torch.sigmoid,
        formula="1 / (1 + exp(-x))",
        saves=Saves.INPUT,
        saturated=lambda: _outside(-4.36, 4.36),
    )
)
TANH = add_row(
    Activation(
        name="tanh",
        module=nn.Tanh,
        function=torch.tanh,
        formula="tanh(x)",
        saves=Saves.INPUT,
        saturated=lambda: _outside(-2.18, 2.18),
    )
)
SOFTSIGN = add_row(
    Activation(
        name="softsign",
        module=nn.Softsign,
        function=F.softsign,
        formula="x / (1 + |x|)",
        saves=Saves.INPUT,
        saturated=lambda: _outside(-3.47, 3.47),
    )
)
QUICK_GELU = add_row(
    Activation(
        name="quick_gelu",
        function=_quick_gelu,
        formula="x / (1 + exp(-1.702 x))",
        saves=Saves.INPUT,
        saturated=lambda: _outside(-2.31),
    )
)
SQUARED_RELU = add_row(
    Activation(
        name="squared_relu",
        function=_squared_relu,
        formula="max(x, 0)^2",
        saves=Saves.INPUT,
        widens=True,
        dead=lambda: _outside(0.0),
    )
)
IDENTITY = add_row(
    Activation(
        name="identity",
        module=nn.Identity,
        function=_identity,
        formula="x",
        saves=Saves.MASK,
        exact=True,
        representable=True,
        clamps=True,
        homogeneous=True,
    )
)
