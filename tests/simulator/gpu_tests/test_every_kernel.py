"""Every compiled kernel of every activation runs from its PTX: masks are the oracle's, values the truth's."""

import pytest
import torch
from cases import DTYPES, activations, function, parameters, rngs

from fusedact import reference
from tests.simulator import gpu

# An element beyond which only 8, 4, 2 or 1 consecutive elements are processed together.
SIZES = (8 * 1021, 4 * 1021, 2 * 1021, 1021)


def oracle(x, p, rng, seed, offset):
    if rng == "fast":
        return reference.fast_mask(x.numel(), p, seed, offset)
    properties = torch.cuda.get_device_properties(x.device)
    processors = properties.multi_processor_count, properties.max_threads_per_multi_processor
    return reference.eager_mask(x.numel(), p, x.dtype, seed, offset, *processors)


@activations
@rngs
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("inplace", [False, True])
def test_masks_and_values(activation, rng, dtype, inplace, cuda):
    p = 0.25  # its scale is exact for both mappings
    generator = torch.cuda.default_generators[0]
    for n in SIZES:
        for start in (0, 1):
            torch.manual_seed(2**40 + n)
            base, dy = torch.randn(2, n + start, device=cuda).mul_(2).to(dtype)
            x, dy = base[start:].requires_grad_(), dy[start:]
            given = x * 1.0 if inplace else x
            seed, offset = generator.initial_seed(), generator.get_offset()
            gpu.clear()
            y = function(activation)(given, p, *parameters(activation), inplace=inplace, rng=rng)
            (dx,) = torch.autograd.grad(y, x, dy)
            assert len([e for e in gpu.events("launch")]) == 2
            keep = oracle(x, p, rng, seed, offset).to(cuda)
            wide = x.detach().double().requires_grad_()
            value = activation.module(*parameters(activation))(wide)
            (slope,) = torch.autograd.grad(value, wide, dy.double())
            tolerance = {"rtol": 4 * torch.finfo(dtype).eps, "atol": 8 * torch.finfo(dtype).smallest_normal}
            if inplace:  # the gradient is computed of the rounded output
                tolerance["rtol"] *= 8
            torch.testing.assert_close(y.double(), value.detach() * keep / (1 - p), **tolerance)
            torch.testing.assert_close(dx.double(), slope * keep / (1 - p), **tolerance)
