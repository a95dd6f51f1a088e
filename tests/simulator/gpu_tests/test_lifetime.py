"""What stays loaded as long as somebody may run it."""

import gc

import torch

from fusedact import functional
from fusedact.kernels import dropout
from tests.simulator import gpu


def test_a_kernel_stays_loaded_as_long_as_the_launcher_may_run_it(nothing_loaded):
    """Triton unloads a kernel when nobody holds it, and its own cache can be cleared."""
    x = torch.randn(4096, device="cuda", requires_grad=True)
    functional.relu_dropout(x, 0.5).sum().backward()
    for kernel in (dropout.forward_kernel, dropout.backward_kernel):
        kernel.device_caches.clear()
    gc.collect()
    functional.relu_dropout(x, 0.5).sum().backward()


def test_a_kernel_stays_loaded_as_long_as_a_graph_may_run_it():
    call = functional.relu_dropout
    x = torch.randn(4096, device="cuda", requires_grad=True)
    call(x, 0.5).sum().backward()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = call(x, 0.5)
    assert [event["capturing"] for event in gpu.events("launch")][-1]
    del y
    gc.collect()
    graph.replay()
