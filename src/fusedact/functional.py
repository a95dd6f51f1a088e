"""The fused operations as functions: `<name>_dropout` for each row.

Every function computes `dropout(act(input), p)` elementwise. `input` has any shape and strides, and dtype
float16, bfloat16, float32 or float64. The result has the same shape, dtype and layout. On a CUDA device with
Triton, one kernel runs forward and one backward. Elsewhere PyTorch's own functions run.
"""

from typing import Any, Protocol

from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

from . import rows, text
from .activations import REQUIRED, Activation, check_row
from .dispatch import activation_dropout, repeated


class FusedFunction(Protocol):
    """Type a function of this module; `parameters` are the activation's own, by keyword."""

    def __call__(
        self,
        input: Tensor,
        p: float = 0.5,
        training: bool = True,
        inplace: bool = False,
        *,
        rng: str = "eager",
        **parameters: Any,
    ) -> Tensor:
        """Return `dropout(act(input), p)`."""
        ...


def fused_function(row: Activation) -> FusedFunction:
    """Make the fused function of a row.

    Args:
        row: the activation, built in or returned by `register_activation`.

    Returns:
        A function `(input, p=0.5, training=True, inplace=False, *, <parameters>, rng="eager")`. It returns a
        tensor of `input`'s shape, dtype and layout; its docstring lists its errors.

    Raises:
        TypeError: `row` is not an `Activation`.
        ValueError: `row` isn't registered.
    """
    check_row(row)
    name = f"{'' if row is rows.IDENTITY else row.name + '_'}dropout"

    def function(
        input: Tensor,
        p: float = 0.5,
        training: bool = True,
        inplace: bool = False,
        *,
        rng: str = "eager",
        **parameters: Any,
    ) -> Tensor:
        if has_torch_function_unary(input):
            return handle_torch_function(
                function, (input,), input, p, training, inplace, rng=rng, **parameters
            )
        bound = row.bind(*arguments(row, name, parameters, ("input", "p", "training", "inplace")))
        result = None
        if training is True and inplace is False:
            result = repeated(bound.row, input, bound.values, p, rng)
        if result is None:
            result = activation_dropout(bound.row, input, bound.values, p, training, inplace, rng)
        return result

    function.__name__ = function.__qualname__ = name
    function.__doc__ = text.of_function(row)
    function.__signature__ = text.signature(row, text.FUNCTION, Tensor)  # type: ignore[attr-defined]
    function.__annotations__ = {}
    return function


def arguments(row: Activation, name: str, given: dict[str, Any], others: tuple[str, ...]) -> list[Any]:
    """Return the values of a row's parameters, given or default, in their order.

    `name` is of what was called, and `others` the names of the arguments that it takes before them.

    Raises:
        TypeError: `given` has an unknown parameter, or lacks one without a default.
    """
    values = [given.get(parameter.name, parameter.default) for parameter in row.parameters]
    unknown = given.keys() - set(row.names)
    if unknown:
        takes = ", ".join([*others, *row.names, "rng"])
        raise TypeError(f"{name} got an unexpected argument {min(unknown)!r}; it takes {takes}")
    for parameter, value in zip(row.parameters, values, strict=True):
        if value is REQUIRED:
            raise TypeError(f"{name} needs the argument {parameter.name}, {parameter.text}")
    return values


dropout = fused_function(rows.IDENTITY)
relu_dropout = fused_function(rows.RELU)
relu6_dropout = fused_function(rows.RELU6)
hardtanh_dropout = fused_function(rows.HARDTANH)
hardsigmoid_dropout = fused_function(rows.HARDSIGMOID)
hardshrink_dropout = fused_function(rows.HARDSHRINK)
softshrink_dropout = fused_function(rows.SOFTSHRINK)
threshold_dropout = fused_function(rows.THRESHOLD)
leaky_relu_dropout = fused_function(rows.LEAKY_RELU)
elu_dropout = fused_function(rows.ELU)
celu_dropout = fused_function(rows.CELU)
selu_dropout = fused_function(rows.SELU)
gelu_dropout = fused_function(rows.GELU)
silu_dropout = fused_function(rows.SILU)
mish_dropout = fused_function(rows.MISH)
softplus_dropout = fused_function(rows.SOFTPLUS)
logsigmoid_dropout = fused_function(rows.LOGSIGMOID)
tanhshrink_dropout = fused_function(rows.TANHSHRINK)
hardswish_dropout = fused_function(rows.HARDSWISH)
sigmoid_dropout = fused_function(rows.SIGMOID)
tanh_dropout = fused_function(rows.TANH)
softsign_dropout = fused_function(rows.SOFTSIGN)
quick_gelu_dropout = fused_function(rows.QUICK_GELU)
squared_relu_dropout = fused_function(rows.SQUARED_RELU)
