"""The contract in plain PyTorch: the eager composition, and its values for a given mask.

`composition` is the reference for every other path, and the path of calls that can't run a kernel. `forward`
and `backward` compute on a CPU the values that a GPU computes for a mask of `fusedact.masks`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .activations import Activation
from .masks.plan import scales


def composition(
    row: Activation,
    input: Tensor,
    values: tuple[float, ...],
    p: float,
    training: bool,
    inplace: bool,
) -> Tensor:
    """Return `dropout(act(input), p)`; `inplace` writes it into the input's buffer."""
    if not inplace:
        value = row.function(input, *values)
        return _dropout(value, p) if training and p > 0 else value
    if row.inplace and type(input) is Tensor and not (input.requires_grad and torch.is_grad_enabled()):
        value = row.function(input, *values, inplace=True)
        # On a GPU, PyTorch's in-place dropout draws another mask, so dropout runs out of place.
        return input.copy_(_dropout(value, p)) if training and p > 0 else value
    # Autograd refuses to overwrite a tensor that an activation saved, so the activation runs on a copy. Under
    # torch.compile, DTensor lacks some in-place activations (torch 2.11).
    return input.copy_(composition(row, input.clone(), values, p, training, False))


def _dropout(value: Tensor, p: float) -> Tensor:
    """Return `F.dropout(value, p)`, with different masks for the shards of a DTensor on a CPU too.

    DTensor gives each shard its part of the generator's numbers by moving the generator's offset. A CPU's
    generator has no offset. So every rank draws the whole tensor's mask and keeps its own part.
    """
    if type(value) is not Tensor and value.device.type == "cpu" and torch.distributed.is_available():
        from torch.distributed.tensor import DTensor

        if isinstance(value, DTensor):
            whole = F.dropout(torch.ones(value.shape, dtype=value.dtype), p)
            mask = DTensor.from_local(whole, value.device_mesh, run_check=False)
            return value * mask.redistribute(placements=value.placements)
    return F.dropout(value, p)


def forward(
    row: Activation,
    input: Tensor,
    values: tuple[float, ...],
    p: float,
    keep: Tensor,
    rng: str = "eager",
) -> Tensor:
    """Return `dropout(act(input), p)` for the mask `keep` (bool, the input's shape), as a GPU computes it.

    eager rounds the activation to the dtype, then scales it, in float32 (float64 for float64); fast
    rounds once, at the end.
    """
    double = input.dtype is torch.float64
    wide = torch.float64 if double else torch.float32
    values = row.values_in(values, input.dtype)
    value = row.function(input if rng == "eager" else input.to(wide), *values).to(wide)
    return (value * keep * scales(p, double).forward).to(input.dtype)


def backward(
    row: Activation,
    input: Tensor,
    values: tuple[float, ...],
    p: float,
    keep: Tensor,
    dy: Tensor,
    rng: str = "eager",
) -> Tensor:
    """Return the gradient of `forward` with respect to `input`, for the upstream gradient `dy`."""
    double = input.dtype is torch.float64
    wide = torch.float64 if double else torch.float32
    stored = input.dtype if rng == "eager" else wide
    values = row.values_in(values, input.dtype)
    dy = (dy.to(wide) * keep * scales(p, double).backward).to(stored)
    with torch.enable_grad():
        x = input.detach().to(stored).requires_grad_()
        # An identity's result is x itself, which has no graph.
        (dx,) = torch.autograd.grad(row.function(x * 1.0, *values), x, dy)
    return dx.to(input.dtype)
