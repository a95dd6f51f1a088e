"""The fused operations as functions, each below its activation's row.

Every function computes `dropout(act(input), p)` elementwise. `input` has any shape and strides and
dtype float16, bfloat16, float32 or float64; the result has the same shape, dtype and layout. On a
CUDA device with Triton it is one kernel forward and one backward; elsewhere, the eager composition.
They follow the `__torch_function__` protocol, as PyTorch's own functions do.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function_unary

from .activations import ROWS, Activation, Saved, check_parameter
from .ops import activation_dropout

RELU = Activation("relu", nn.ReLU, F.relu, Saved.ALIVE, homogeneous=True)


def relu_dropout(
    input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False, *, rng: str = "eager"
) -> Tensor:
    """`dropout(relu(input), p)` in one kernel; keeps one bit per element for backward.

    Args:
        input: any shape and strides; float16, bfloat16, float32 or float64.
        p: probability of an element to be zeroed, in [0, 1]. The others are scaled by 1 / (1 - p).
        training: apply dropout; if False, the result is `relu(input)`.
        inplace: write the result into `input`'s buffer.
        rng: how the mask comes from the device's generator. "eager": as `torch.nn.Dropout` draws
            it after the same `torch.manual_seed`, element for element. "fast": from 16 random bits per
            element, `p` rounded to a multiple of 2**-16; on a CPU the same as "eager".

    Returns:
        A tensor of `input`'s shape, dtype and layout.

    Raises:
        TypeError: `input` is no dense floating-point tensor, or `training` or `inplace` no bool.
        ValueError: `p` is no number in [0, 1], or `rng` has another value.

    Where the upstream gradient is not finite, dead elements get gradient 0: their one bit can't tell
    a dropped element, for which eager mode multiplies by 0, from a negative one.
    """
    if has_torch_function_unary(input):
        result: Tensor = handle_torch_function(
            relu_dropout, (input,), input, p=p, training=training, inplace=inplace, rng=rng
        )
        return result
    return activation_dropout(RELU, input, (), p, training, inplace, rng)


LEAKY_RELU = Activation(
    "leaky_relu", nn.LeakyReLU, F.leaky_relu, Saved.FLAG, "negative_slope", homogeneous=True
)


def leaky_relu_dropout(
    input: Tensor,
    p: float = 0.5,
    negative_slope: float = 0.01,
    training: bool = True,
    inplace: bool = False,
    *,
    rng: str = "eager",
) -> Tensor:
    """`dropout(leaky_relu(input, negative_slope), p)` in one kernel; keeps two bits per element.

    Args:
        input: any shape and strides; float16, bfloat16, float32 or float64.
        p: probability of an element to be zeroed, in [0, 1]. The others are scaled by 1 / (1 - p).
        negative_slope: any finite number.
        training: apply dropout; if False, the result is `leaky_relu(input, negative_slope)`.
        inplace: write the result into `input`'s buffer.
        rng: how the mask comes from the device's generator. "eager": as `torch.nn.Dropout` draws
            it after the same `torch.manual_seed`, element for element. "fast": from 16 random bits per
            element, `p` rounded to a multiple of 2**-16; on a CPU the same as "eager".

    Returns:
        A tensor of `input`'s shape, dtype and layout.

    Raises:
        TypeError: `input` is no dense floating-point tensor, or `training` or `inplace` no bool.
        ValueError: `p` is no number in [0, 1], `negative_slope` no finite number, or `rng` has
            another value.
    """
    if has_torch_function_unary(input):
        result: Tensor = handle_torch_function(
            leaky_relu_dropout,
            (input,),
            input,
            p=p,
            negative_slope=negative_slope,
            training=training,
            inplace=inplace,
            rng=rng,
        )
        return result
    slope = check_parameter("negative_slope", negative_slope)
    return activation_dropout(LEAKY_RELU, input, (slope,), p, training, inplace, rng)


def _elu_from_output(gradient: Tensor, output: Tensor, alpha: float) -> Tensor:
    result: Tensor = torch.ops.aten.elu_backward.default(gradient, alpha, 1.0, 1.0, True, output)
    return result


ELU = Activation(
    "elu",
    nn.ELU,
    F.elu,
    Saved.INPUT,
    "alpha",
    from_output=_elu_from_output,
    saturation=-3.0,  # exp(-3) is 0.0498
)


def elu_dropout(
    input: Tensor,
    p: float = 0.5,
    alpha: float = 1.0,
    training: bool = True,
    inplace: bool = False,
    *,
    rng: str = "eager",
) -> Tensor:
    """`dropout(elu(input, alpha), p)` in one kernel; keeps one bit per element, and `input` or the output.

    Args:
        input: any shape and strides; float16, bfloat16, float32 or float64.
        p: probability of an element to be zeroed, in [0, 1]. The others are scaled by 1 / (1 - p).
        alpha: any finite number.
        training: apply dropout; if False, the result is `elu(input, alpha)`.
        inplace: write the result into `input`'s buffer. Backward then computes from the output, which
            the next layer keeps anyway, as `torch.nn.ELU(inplace=True)` does: alpha exp(x) is the output,
            unscaled, plus alpha, with fewer digits left the smaller it is. Where `alpha` is negative (eager
            PyTorch raises an error in backward) a copy of the input is kept instead.
        rng: how the mask comes from the device's generator. "eager": as `torch.nn.Dropout` draws
            it after the same `torch.manual_seed`, element for element. "fast": from 16 random bits per
            element, `p` rounded to a multiple of 2**-16; on a CPU the same as "eager".

    Returns:
        A tensor of `input`'s shape, dtype and layout.

    Raises:
        TypeError: `input` is no dense floating-point tensor, or `training` or `inplace` no bool.
        ValueError: `p` is no number in [0, 1], `alpha` no finite number, or `rng` has another value.
    """
    if has_torch_function_unary(input):
        result: Tensor = handle_torch_function(
            elu_dropout, (input,), input, p=p, alpha=alpha, training=training, inplace=inplace, rng=rng
        )
        return result
    alpha = check_parameter("alpha", alpha)
    return activation_dropout(ELU, input, (alpha,), p, training, inplace, rng)


ACTIVATIONS = tuple(ROWS.values())
