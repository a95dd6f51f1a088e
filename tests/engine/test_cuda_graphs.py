"""CUDA graphs and devices: what only a GPU, real or simulated, can show of captures."""

import functools
import gc

import pytest
import torch
from cases import apply, assert_same, eager_modules, fused_module, representatives, rngs, values, watched

from fusedact import ActivityMonitor, autograd, dispatch
from fusedact.activations import Saves
from fusedact.kernels import dropout

pytestmark = pytest.mark.usefixtures("cuda")


@representatives
@pytest.mark.usefixtures("cold")
def test_a_capture_leaves_no_memory_behind(activation):
    """A tensor that is kept from the first call of a size would keep its graph's memory pool."""

    def reserved(n):
        x = torch.randn(n, device="cuda")
        call = functools.partial(apply, activation)
        call(x[:4096].clone().requires_grad_()).sum().backward()  # kernels are loaded by another size
        torch.cuda.synchronize()
        gc.collect()
        torch.cuda.empty_cache()
        before = torch.cuda.memory_reserved()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = call(x)
        del y, graph
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        return torch.cuda.memory_reserved() - before

    reserved(8192)  # PyTorch's own share of a first capture
    assert [reserved(8192 + 4096 * i) for i in (1, 2, 3)] == [0, 0, 0]


@representatives
def test_a_kernel_stays_loaded_when_triton_forgets_it(activation):
    x = torch.randn(5000, device="cuda")
    assert_same(activation, x, 0.3)
    for kernel in (dropout.forward_kernel, dropout.backward_kernel):
        kernel.device_caches.clear()
    gc.collect()
    assert_same(activation, x, 0.3)


def captured(call, device, current=None):
    """The graph of a call on `device`, while `current` is current."""
    graph = torch.cuda.CUDAGraph()
    capture = torch.cuda.graph(graph, stream=torch.cuda.Stream(device))
    with torch.cuda.device(device), capture, torch.cuda.device(device if current is None else current):
        result = call()
    return graph, result


@representatives
@rngs
@pytest.mark.usefixtures("two")
@pytest.mark.parametrize("device", [0, 1])
def test_a_capture_while_another_device_is_current(activation, rng, device):
    """Whose numbers are baked in unless the capture of the tensor's own device is seen."""
    x = torch.randn(9000, device=f"cuda:{device}", requires_grad=True)
    call = functools.partial(apply, activation, x, 0.5, rng=rng)
    call().sum().backward()
    graph, y = captured(call, device, current=1 - device)
    masks = []
    for _ in range(2):
        graph.replay()
        torch.cuda.synchronize(device)
        masks.append(y.detach().clone() != 0)
    assert not torch.equal(*masks)


@representatives
@rngs
@pytest.mark.usefixtures("two")
@pytest.mark.parametrize("device", [0, 1])
def test_a_call_on_a_device_while_another_one_captures(activation, rng, device):
    """It runs at once, with its own device's numbers."""
    f = functools.partial(apply, activation, rng=rng)
    here, there = (torch.randn(9000, device=f"cuda:{i}", requires_grad=True) for i in (device, 1 - device))
    for x in (here, there):
        f(x).sum().backward()
    torch.manual_seed(1)
    expected = f(there)
    torch.manual_seed(1)
    _, (_, y) = captured(lambda: (f(here), f(there)), device)
    assert torch.equal(y, expected)


@watched
@pytest.mark.usefixtures("two")
@pytest.mark.parametrize("make", [fused_module, eager_modules], ids=["fused", "plain"])
def test_the_monitor_counts_while_another_device_is_current(activation, make):
    """In a graph too, which counts at its replays."""
    x = torch.randn(64, 100, device="cuda:1")
    net = make(activation)
    with ActivityMonitor(net) as monitor:
        with pytest.raises(RuntimeError, match="must be called once"):  # or the counts stand in its memory
            captured(lambda: net(x), 1, current=0)
        net(x)
        graph, _ = captured(lambda: net(x), 1, current=0)
        for _ in range(2):
            graph.replay()
        torch.cuda.synchronize(1)
        (layer,) = monitor.report().layers
    assert layer.samples == 3 * 64
    assert torch.equal(layer.fired, 3 * (x > 0).sum(0).cpu())


@watched
@rngs
@pytest.mark.usefixtures("cold")
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("warm", [False, True], ids=["aligned", "misaligned"])
def test_a_capture_with_an_alignment_that_was_not_warmed_up(activation, rng, inplace, warm, monkeypatch):
    """It launches our kernels all the same, and gives what they give outside of a capture."""
    x, dy = torch.randn(2, 4097, device="cuda")

    def step(first, x, dy):
        """A call on a part of a tensor, whose gradient is a part of one."""
        leaf = x[first : first + 4096].detach().requires_grad_()
        y = apply(activation, leaf, 0.5, rng=rng)
        return y, torch.autograd.grad(y, leaf, dy[first : first + 4096])[0]

    def in_place(first, x, dy):
        leaf = x[first : first + 4096].detach().requires_grad_()
        buffer = torch.cat([x[:first], leaf])[first:]
        y = apply(activation, buffer, 0.5, inplace=True, rng=rng)
        return y, torch.autograd.grad(y, leaf, dy[first : first + 4096])[0]

    call = in_place if inplace else step
    call(int(warm), x, dy)
    monkeypatch.setattr(dispatch, "composition", None)
    monkeypatch.setattr(autograd, "_composed_backward", None)
    for first in (0, 1):
        graph, (y, dx) = captured(lambda first=first: call(first, x, dy), 0)
        graph.replay()
        torch.cuda.synchronize()
        inputs = x[first : first + 4096].detach().requires_grad_()
        keep = y.detach() != 0
        value = activation.function(inputs, *values(activation))
        assert 0.3 < keep.double().mean() < 0.7 or activation.saves is Saves.ONE_BIT
        torch.testing.assert_close(y, value * keep * 2)
        (expected,) = torch.autograd.grad(value, inputs, dy[first : first + 4096] * keep * 2)
        torch.testing.assert_close(dx, expected)


@representatives
@pytest.mark.usefixtures("cold")
def test_a_capture_of_backward_alone_that_was_not_warmed_up(activation, monkeypatch):
    """It is the composition's, of which other tests are; here it is one that can be told."""
    monkeypatch.setattr(autograd, "_composed_backward", lambda call, dy, *saved: dy * 3)
    x = torch.randn(4096, device="cuda", requires_grad=True)
    dy = torch.randn_like(x)
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        y = apply(activation, x, 0.5)
    with torch.cuda.graph(graph, stream=stream):
        (dx,) = torch.autograd.grad(y, x, dy, retain_graph=True)
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(dx, dy * 3)
    assert not torch.equal(torch.autograd.grad(y, x, dy)[0], dx)  # outside of a capture the kernel's


@representatives
@pytest.mark.usefixtures("cold")
def test_a_captured_inference_needs_no_backward(activation, monkeypatch):
    x = torch.randn(9000, device="cuda", requires_grad=True)
    monkeypatch.setattr(dispatch, "composition", None)
    with torch.no_grad():
        apply(activation, x, 0.5)
        captured(lambda: apply(activation, x, 0.5), 0)
    apply(activation, x.detach(), 0.5)
    captured(lambda: apply(activation, x.detach(), 0.5), 0)
