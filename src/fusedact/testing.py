"""A check for an activation of your own: its Triton functions against its PyTorch function."""

import os
from collections.abc import Sequence

import torch
from torch import Tensor

from . import composition
from .activations import Activation, check_kind
from .masks import eager_mask, fast_mask
from .masks.generator import PhiloxState
from .masks.plan import RNGS, eager_plan, fast_plan, used_probability

_P, _SEED, _OFFSET = 0.3, 1234, 8
_PROCESSORS = (3, 512)  # of a small GPU, so that a thread's loop has several iterations
_SPECIAL = (0.0, -0.0, 1.0, -1.0, 20.0, -20.0, 100.0, -100.0)


def check_activation(
    row: Activation,
    *parameters: float | str,
    dtypes: Sequence[torch.dtype] = (torch.float16, torch.bfloat16, torch.float32, torch.float64),
) -> None:
    """Compare the kernels of a row with its PyTorch function, forward and backward.

    Values, gradients and masks are compared for both values of `rng`, on finite inputs. The check runs on the
    current CUDA device. Without one it runs in Triton's interpreter, for which TRITON_INTERPRET=1 must be set
    before Triton is imported.

    Args:
        row: the activation, registered by `fusedact.register_activation`.
        parameters: values of its parameters, in their order.
        dtypes: the dtypes of the tensors to compare. Default: float16, bfloat16, float32 and float64.

    Raises:
        TypeError: `row` is no `Activation`, or it takes another number of parameters.
        AssertionError: a result differs. The message names the row, dtype, `rng` and direction.
        RuntimeError: there is no CUDA device, and TRITON_INTERPRET is not 1.
        ValueError: a parameter breaks its rule.
    """
    if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
        raise RuntimeError("no CUDA device: set TRITON_INTERPRET=1 before Python starts, for the interpreter")
    check_kind(row)
    if len(parameters) != len(row.parameters):
        takes = ", ".join(row.names) or "no parameters"
        raise TypeError(f"the row {row.name!r} takes {takes}, but {len(parameters)} values were given")
    bound = row.bind(*parameters)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        with torch.autocast("cuda"):
            dtype = bound.row.function(torch.ones(1, dtype=torch.float16, device=device), *bound.values).dtype
        assert row.widens == (dtype is torch.float32), f"{row.name}: widens={row.widens}, but gives {dtype}"
    for dtype in dtypes:
        x = torch.cat([torch.tensor(_SPECIAL), torch.randn(5000) * 3]).to(device, dtype)
        dy = torch.randn(len(x)).to(device, dtype)
        for rng in RNGS:
            _check(bound.row, bound.values, x, dy, rng)


def _check(row: Activation, values: tuple[float, ...], x: Tensor, dy: Tensor, rng: str) -> None:
    from . import autograd
    from .kernels.configuration import configure

    n, dtype, p = len(x), x.dtype, used_probability(_P, rng)
    if rng == "fast":
        plan, keep = fast_plan(n, dtype.itemsize), fast_mask(n, p, _SEED, _OFFSET)
    else:
        plan = eager_plan(n, dtype.itemsize, *_PROCESSORS)
        keep = eager_mask(n, p, dtype, _SEED, _OFFSET, *_PROCESSORS)
    keep = keep.to(x.device)
    configuration = configure(row, dtype, n, values, p, plan)
    assert configuration is not None, f"{row.name}: the parameters {values} are beyond float32"
    leaf = x.clone().requires_grad_()
    y = autograd.fused(leaf, configuration, lambda: PhiloxState(_SEED, _OFFSET), False)
    (dx,) = torch.autograd.grad(y, leaf, dy)
    expected = composition.forward(row, x, values, p, keep, "fast")
    gradient = composition.backward(row, x, values, p, keep, dy, "fast")
    # The arithmetic's own error, then eager's two roundings to the dtype.
    arithmetic = torch.finfo(torch.float64 if dtype is torch.float64 else torch.float32).eps
    tolerance = 64 * arithmetic + (3 * torch.finfo(dtype).eps if dtype.itemsize == 2 else 0)
    for direction, result, right in (("forward", y.detach(), expected), ("backward", dx, gradient)):
        wrong = ~torch.isclose(result, right, rtol=tolerance, atol=tolerance, equal_nan=True)
        if wrong.any():
            i = int(wrong.nonzero()[0])
            raise AssertionError(
                f"{row.name}, {dtype}, rng={rng!r}, {direction}: {int(wrong.sum())} of {n} elements differ; "
                f"the first is x={x[i].item()!r}, keep={bool(keep[i])}: {result[i].item()!r} "
                f"instead of {right[i].item()!r}"
            )
