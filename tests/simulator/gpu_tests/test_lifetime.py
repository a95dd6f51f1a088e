"""What stays loaded, what its compiled type depends on, what saved-tensor hooks give back."""

import gc

import pytest
import torch
from cases import activations, function, parameters
from test_cuda import assert_same

from fusedact.functional import ACTIVATIONS
from tests.simulator import gpu

with_parameter = pytest.mark.parametrize(
    "activation", [a for a in ACTIVATIONS if parameters(a)], ids=lambda a: a.name
)


@activations
def test_triton_forgets_a_kernel_that_is_launched_again(activation):
    """Triton unloads a module when nobody holds the compiled kernel."""
    import fusedact.kernels.dropout as kernels

    assert_same(activation, torch.randn(5000, device="cuda"), 0.3)
    for value in vars(kernels).values():
        if hasattr(value, "device_caches"):
            value.device_caches.clear()
    gc.collect()
    assert_same(activation, torch.randn(5000, device="cuda"), 0.3)


@with_parameter
def test_a_scalars_compiled_type_doesnt_depend_on_its_value(activation, nothing_loaded):
    """0 and 1 are values that Triton makes constants of."""
    x = torch.full((64,), -1.0, device="cuda", dtype=torch.float64, requires_grad=True)
    for value in (0.0, 1.0, 0.3, 0.0, 2**-40):
        y = function(activation)(x, 0.5, value)
        (dx,) = torch.autograd.grad(y.sum(), x)
        truth = activation.module(value)(x)
        (slope,) = torch.autograd.grad(truth.sum(), x)
        kept = y != 0
        assert 0.1 < kept.double().mean() < 0.9 or value == 0
        torch.testing.assert_close(y[kept], 2 * truth[kept])
        torch.testing.assert_close(dx[kept], 2 * slope[kept])


@activations
@pytest.mark.parametrize("pin", [False, True])
def test_saved_on_the_cpu(activation, pin):
    """The hooks give back what was saved, pinned memory with other strides."""
    x, dy = torch.randn(2, 2, 3, 5, 7, device="cuda")
    x, dy = (t.to(memory_format=torch.channels_last) for t in (x, dy))
    x.requires_grad_()

    def call():
        torch.manual_seed(1)
        return function(activation)(x, 0.4, *parameters(activation))

    (expected,) = torch.autograd.grad(call(), x, dy)
    with torch.autograd.graph.save_on_cpu(pin_memory=pin):
        y = call()
    (dx,) = torch.autograd.grad(y, x, dy)
    assert torch.equal(dx, expected)


def test_a_kernel_stays_loaded_as_long_as_a_graph_may_run_it():
    call = function(ACTIVATIONS[0])
    x = torch.randn(4096, device="cuda", requires_grad=True)
    call(x, 0.5).sum().backward()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = call(x, 0.5)
    assert [event["capturing"] for event in gpu.events("launch")][-1]
    del y
    gc.collect()
    graph.replay()
