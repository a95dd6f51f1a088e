"""Compiled kernels run from their PTX: masks are the oracle's, values the truth's.

Compiling them all takes long, so a choice of them runs. ReLU has every dtype, mapping and width; the other
representatives have every dtype and mapping; the rest have a half and a wider dtype. With
SIMULATOR_EVERY_KERNEL=1 all of them run.
"""

import itertools
import os

import pytest
import torch
from cases import DTYPES, ENGINE, EVERY, activations, apply, representatives, rngs, values
from contract.truth import TRUTHS, Tensors

from benchmarks import backends, correctness
from fusedact import env, masks, rows
from fusedact.activations import Saves
from fusedact.masks.plan import RNGS
from tests.simulator import gpu

ALL = os.environ.get("SIMULATOR_EVERY_KERNEL") == "1"
# Of these sizes, 8, 4, 2 or 1 consecutive elements are processed together: for each a kernel of its own.
SIZES = (8 * 1021, 4 * 1021, 2 * 1021, 1021)
P = 0.25  # its scale is exact for both mappings


def combinations():
    """Activations with dtype, mapping and size: all, or two for each activation, a half and a wider dtype."""
    halves, wider = (torch.float16, torch.bfloat16), (torch.float32, torch.float64)
    for place, activation in enumerate(row for row in EVERY if row not in ENGINE):
        chosen = (
            (halves[place % 2], RNGS[place // 2 % 2], SIZES[place % 4]),
            (wider[place // 2 % 2], RNGS[place % 2], SIZES[(place + 1) % 4]),
        )
        for dtype, rng, n in itertools.product(DTYPES, RNGS, SIZES) if ALL else chosen:
            yield pytest.param(activation, dtype, rng, n, id=f"{activation.name}-{str(dtype)[6:]}-{rng}-{n}")


pytestmark = pytest.mark.usefixtures("no_graphs")
long = pytest.mark.skipif(not ALL, reason="compiles a hundred kernels: set SIMULATOR_EVERY_KERNEL=1")


def oracle(activation, x, rng, seed, offset):
    if rng == "fast":
        return masks.fast_mask(x.numel(), P, seed, offset)
    properties = torch.cuda.get_device_properties(x.device)
    processors = properties.multi_processor_count, properties.max_threads_per_multi_processor
    # Dropout alone reads what it is given, whose alignment its mask depends on.
    address = x.data_ptr() if activation.saves is Saves.MASK else 16
    return masks.eager_mask(x.numel(), P, x.dtype, seed, offset, *processors, min(16, address & -address))


@representatives
@rngs
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_masks_and_values(activation, rng, dtype, cuda):
    """Each width of an access, misaligned pointers and in place."""
    place = ENGINE.index(activation), DTYPES.index(dtype), RNGS.index(rng)
    for n in SIZES if ALL or activation is rows.RELU else (SIZES[sum(place) % 4],):
        check(activation, rng, *torch.randn(2, n, device=cuda).mul_(2).to(dtype))
    if not ALL and place[0] != place[1]:
        return
    x, dy = torch.randn(2, SIZES[0] + 1, device=cuda).mul_(2).to(dtype)
    check(activation, rng, x[1:], dy[:-1])
    check(activation, rng, x[:-1], dy[1:])
    check(activation, rng, x[:-1], dy[:-1], inplace=True)


@pytest.mark.parametrize(("activation", "dtype", "rng", "n"), list(combinations()))
def test_masks_and_values_of_every_activation(activation, dtype, rng, n, cuda):
    check(activation, rng, *torch.randn(2, n, device=cuda).mul_(2).to(dtype))


@long
def test_a_gpu_passes_its_self_test(cuda):
    assert env.self_test(torch.device(cuda)) == "passed"


@long
@activations
@pytest.mark.parametrize("backend", ["fused", "fast"])
@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
def test_benchmarks_find_nothing_wrong(activation, backend, dtype, cuda):
    layer = getattr(backends, backend)(activation)
    x, dy = torch.randn(2, 8192, device=cuda).to(dtype)
    assert correctness.wrong(backend, activation, layer, x, dy) is None


def check(activation, rng, x, dy, inplace=False):
    x = x.detach().requires_grad_()
    given = x * 1.0 if inplace else x
    generator = torch.cuda.default_generators[0]
    generator.manual_seed(2**40 + x.numel())
    gpu.clear()
    y = apply(activation, given, P, inplace=inplace, rng=rng)
    (dx,) = torch.autograd.grad(y, x, dy)
    assert len(gpu.events("launch")) == 2
    keep = oracle(activation, given, rng, generator.initial_seed(), 0).to(x.device)
    a, b, *_ = (*activation.values_in(values(activation), x.dtype), 0.0, 0.0)
    wide, truth = x.detach().double(), TRUTHS[activation.name]
    value, slope = (formula(Tensors, wide, a, b) for formula in (truth.forward, truth.derivative))
    info = torch.finfo(x.dtype)
    rtol, atol = 4 * info.eps, 8 * info.smallest_normal
    if inplace or activation not in ENGINE:
        # In place, the gradient comes from the rounded output. There digits cancel, as they do in some rows.
        rtol, atol = 8 * info.eps, 32 * info.eps
    if activation in (rows.HARDSIGMOID, rows.HARDSWISH):
        rtol = max(rtol, 2.0**-24)  # as in eager mode, of their sixth
    torch.testing.assert_close(y.double(), value * keep / (1 - P), rtol=rtol, atol=atol)
    slope = dy.double() * slope * activation.slope
    torch.testing.assert_close(dx.double(), slope * keep / (1 - P), rtol=rtol, atol=atol)
