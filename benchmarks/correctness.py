"""Checks of a case before it is timed: values and gradients against eager PyTorch, and the mask's rate.

Every check returns None, or the error in a few words.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.backends import P, alone, eager
from fusedact import masks
from fusedact.activations import Activation

SEED = 1234
ORACLE = 2**16  # elements of fast's mask that are compared with the oracle's, which takes a CPU's time


class Once(nn.Module):
    """An activation that rounds halves as its kernel does, and what follows it.

    The kernel of a row that isn't exact rounds once. PyTorch may have several operations, and each rounds.
    """

    def __init__(self, activation: Activation, *following: nn.Module) -> None:
        super().__init__()
        self.widens = not activation.exact
        self.activation, self.following = alone(activation), nn.Sequential(*following)

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float() if self.widens and x.dtype.itemsize == 2 else x
        result: Tensor = self.following(self.activation(wide).to(x.dtype))
        return result


def both(layer: nn.Module, x: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
    """Return result and gradient from the same seed."""
    torch.manual_seed(SEED)
    x = x.detach().requires_grad_()
    y = layer(x)
    (dx,) = torch.autograd.grad(y, x, dy)
    return y.detach(), dx


def wrong(backend: str, activation: Activation, layer: nn.Module, x: Tensor, dy: Tensor) -> str | None:
    """Return the error of one layer at one input, or None."""
    if backend == "eager":
        return None
    result = both(layer, x, dy)
    if backend == "fused":
        return _differs_from_eager(activation, layer, result, x, dy)
    return _not_a_dropout(backend, activation, layer, result, x, dy)


def _differs_from_eager(
    activation: Activation, layer: nn.Module, result: tuple[Tensor, Tensor], x: Tensor, dy: Tensor
) -> str | None:
    """Check for eager's bits if the row is exact or the composition runs, else for its mask and values."""
    same: Callable[[Tensor, Tensor], bool]
    if activation.exact or not x.is_cuda:
        same, expected = torch.equal, eager(activation)
    else:
        same, expected = close, Once(activation, nn.Dropout(P))
        # No activation of 1 is 0. Others may be 0 in eager mode alone.
        kept = (both(either, torch.ones_like(x), dy)[0] != 0 for either in (layer, expected))
        if not torch.equal(*kept):
            return "the mask is not eager's of the same seed"
    for name, mine, theirs in zip(("value", "gradient"), result, both(expected, x, dy), strict=True):
        if not same(mine, theirs):
            return f"{name} is not eager's of the same seed"
    return None


def _not_a_dropout(
    backend: str,
    activation: Activation,
    layer: nn.Module,
    result: tuple[Tensor, Tensor],
    x: Tensor,
    dy: Tensor,
) -> str | None:
    """Check a mask other than eager's. An input of ones shows the mask, since no activation is 0 there."""
    keep = both(layer, torch.ones_like(x), dy)[0] != 0
    rate, deviation = keep.sum().item() / x.numel(), math.sqrt(P * (1 - P) / x.numel())
    if abs(rate - (1 - P)) > 6 * deviation + 2**-16:
        return f"{rate:.4f} of the elements are kept"
    if backend == "fast":
        torch.manual_seed(SEED)
        generator = torch.cuda.default_generators[x.device.index or 0]
        n = min(x.numel(), ORACLE)
        expected = masks.fast_mask(n, P, generator.initial_seed(), generator.get_offset())
        if not torch.equal(keep.flatten()[:n].cpu(), expected):
            return "the mask is not the oracle's"
    x = x.detach().requires_grad_()
    y = Once(activation)(x)
    (dx,) = torch.autograd.grad(y, x, dy)
    factor = keep.to(x.dtype) / (1 - P)
    for name, mine, truth in (("value", result[0], y.detach()), ("gradient", result[1], dx)):
        if not close(mine, truth * factor):
            return f"{name} is not the activation's, times the mask"
    return None


def close(mine: Tensor, theirs: Tensor) -> bool:
    """Within four units of the dtype's last place, at 1 and above, and not asked for more than 4e-6.

    In float32 1 + erf(x), of which GELU is made elsewhere, has lost that much where it nears 0.
    """
    tolerance = max(4 * torch.finfo(mine.dtype).eps, 4e-6)
    return torch.allclose(mine, theirs, rtol=tolerance, atol=tolerance)


def wrong_replay(
    activation: Activation, x: Tensor, dy: Tensor, y: Tensor, dx: Tensor | None, earlier: Tensor
) -> str | None:
    """Return the error in a replay's `y` and `dx`, or None; `x` is at least 1, so no activation is 0."""
    keep = y != 0
    if torch.equal(keep, earlier != 0):
        return "two replays draw one mask"
    x = x.detach().requires_grad_()
    value = Once(activation)(x)
    (gradient,) = torch.autograd.grad(value, x, dy)
    factor = keep.to(x.dtype) / (1 - P)
    if not close(y, value.detach() * factor):
        return "value is not the activation's, times the mask"
    if dx is not None and not close(dx, gradient * factor):
        return "gradient is not the activation's, times the mask"
    return None
