"""Captured steps: which device captures, what may be loaded, which numbers a replay draws."""

import contextlib
import functools
import gc

import pytest
import torch
from cases import apply, assert_same, eager_modules, representatives
from torch import nn

import fusedact
from fusedact import functional as F
from fusedact.activations import Saves
from tests.simulator import gpu

devices = pytest.mark.parametrize("device", [0, 1])


def capture(call):
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=torch.cuda.Stream()):
        result = call()
    return graph, result


def replayed(graph, tensor):
    graph.replay()
    return tensor.detach().clone()


@representatives
@pytest.mark.parametrize("place", ["input", "gradient"])
@devices
def test_misaligned_pointers_load_nothing_new(activation, place, device):
    with torch.cuda.device(device):
        base, gradients = torch.randn(2, 4352, device="cuda").abs_().add_(0.1)
        call = functools.partial(apply, activation)
        aligned = base[:4096].detach().requires_grad_()
        torch.autograd.grad(call(aligned, 0.4), aligned, gradients[:4096])
        x = (base[1:4097] if place == "input" else base[:4096]).detach().requires_grad_()
        dy = gradients[1:4097] if place == "gradient" else gradients[:4096]

        def step():
            y = call(x, 0.4)
            return y, torch.autograd.grad(y, x, dy)[0]

        graph, (y, dx) = capture(step)
        first = replayed(graph, y) != 0
        assert not torch.equal(replayed(graph, y) != 0, first)
        assert torch.equal(dx != 0, y != 0)


@contextlib.contextmanager
def hook():
    """A launch hook of Triton's, as a profiler adds one."""
    from triton import knobs

    def see(metadata):
        pass

    knobs.runtime.launch_enter_hook.add(see)
    try:
        yield
    finally:
        knobs.runtime.launch_enter_hook.remove(see)


def test_compiled_code_is_captured_after_a_warm_up_under_a_hook(nothing_loaded):
    compiled = torch.compile(functools.partial(F.silu_dropout, p=0.4), backend="aot_eager")
    x, dy = torch.ones(3000, device="cuda", requires_grad=True), torch.ones(3000, device="cuda")

    def step():
        y = compiled(x)
        return y.detach(), torch.autograd.grad(y, x, dy)[0]

    with hook():
        step(), step()
    graph, (y, dx) = capture(step)
    y.fill_(7), dx.fill_(7)
    graph.replay()
    assert 0.3 < (y == 0).float().mean() < 0.5
    assert torch.equal(y == 0, dx == 0)
    with hook(), pytest.raises(RuntimeError, match="capture without launch hooks"):
        capture(step)


@representatives
def test_a_captured_backward_of_a_shared_call_under_a_hook(activation):
    """Under a hook no kernel launches in a capture, so PyTorch's operators compute the gradient."""
    x, dy = torch.randn(2, 4096, device="cuda")
    x, stream = x.requires_grad_(), torch.cuda.Stream()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.stream(stream):
        for _ in range(4):
            y = apply(activation, x, 0.4)
            (expected,) = torch.autograd.grad(y, x, dy, retain_graph=True)
    with hook(), torch.cuda.graph(graph, stream=stream):
        (dx,) = torch.autograd.grad(y, x, dy)
    torch.testing.assert_close(replayed(graph, dx), expected)


@representatives
@devices
def test_a_captured_step_equals_eagers(activation, device):
    if not hasattr(torch.cuda.default_generators[0], "philox_state"):
        pytest.skip("before torch 2.14 a captured call draws numbers of its own")
    with torch.cuda.device(device):
        x = torch.randn(9001, device="cuda", requires_grad=True)
        dy = torch.randn_like(x)
        found = []
        for call in (lambda x: apply(activation, x, 0.4), eager_modules(activation, 0.4)):

            def step(call=call):
                y = call(x)
                return y, torch.autograd.grad(y, x, dy)[0]

            step()
            torch.manual_seed(5)
            graph, (y, dx) = capture(step)
            values = [(replayed(graph, y), dx.clone()) for _ in range(3)]
            found.append((values, torch.cuda.default_generators[device].get_offset()))
        (fused, fused_offset), (eager, eager_offset) = found
        assert fused_offset == eager_offset
        assert not torch.equal(fused[0][0], fused[1][0])
        exact = {} if activation.saves is Saves.INPUT else {"rtol": 0, "atol": 0}
        torch.testing.assert_close(fused, eager, **exact)


@representatives
@pytest.mark.parametrize("warmed_up", ["nothing", "forward"])
def test_a_first_call_in_a_capture(activation, warmed_up, nothing_loaded):
    call = functools.partial(apply, activation)
    x = torch.randn(9001, device="cuda", requires_grad=True)
    dy = torch.randn_like(x)
    if warmed_up == "forward":
        with torch.no_grad():
            call(x, 0.4)

    def step():
        y = call(x, 0.4)
        return y, torch.autograd.grad(y, x, dy)[0]

    graph, (y, dx) = capture(step)
    assert not torch.equal(replayed(graph, y), replayed(graph, y))
    del graph, y, dx
    gc.collect()
    assert_same(activation, torch.randn(9001, device="cuda"), 0.3)


def test_captured_inference_runs_one_kernel(nothing_loaded):
    """Monte Carlo dropout: no backward was ever called."""
    x = torch.randn(9000, device="cuda")
    with torch.no_grad():
        fusedact.functional.relu_dropout(x, 0.5)
        gpu.clear()
        capture(lambda: fusedact.functional.relu_dropout(x, 0.5))
    assert len(gpu.events("launch")) == 1


@representatives
def test_a_call_on_one_device_while_the_other_captures(activation):
    call = functools.partial(apply, activation)
    tensors = [torch.randn(9000, device=f"cuda:{i}", requires_grad=True) for i in (0, 1)]
    for x in tensors:
        torch.autograd.grad(call(x, 0.5), x, torch.ones_like(x))
    _, (_, other) = capture(lambda: [call(x, 0.5) for x in tensors])
    assert 0.1 < (other == 0).float().mean() < 0.9


@representatives
def test_a_device_captures_that_isnt_current_at_the_call(activation):
    call = functools.partial(apply, activation)
    x = torch.randn(9000, device="cuda:1", requires_grad=True)
    torch.autograd.grad(call(x, 0.5), x, torch.ones_like(x))

    def from_device_0():
        with torch.cuda.device(0):
            return call(x, 0.5)

    with torch.cuda.device(1):
        graph, y = capture(from_device_0)
        assert not torch.equal(replayed(graph, y) == 0, replayed(graph, y) == 0)


@representatives
def test_a_capture_leaves_no_memory_behind(activation):
    call = functools.partial(apply, activation)

    def reserved_by(n):
        x = torch.randn(n, device="cuda")
        call(x[:4096].clone().requires_grad_(), 0.5).sum().backward()  # loads the kernels, by another size
        torch.cuda.synchronize()
        gc.collect()
        torch.cuda.empty_cache()
        before = torch.cuda.memory_reserved()
        graph, y = capture(lambda: call(x, 0.5))
        del graph, y
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        return torch.cuda.memory_reserved() - before

    assert [reserved_by(8192 + 4096 * i) for i in range(4)] == [0] * 4


def test_reduce_overhead():
    compiled = torch.compile(fusedact.FusedReLUDropout(0.5), mode="reduce-overhead")
    x = torch.rand(10_000, device="cuda") + 0.1
    masks = [compiled(x).clone() == 0 for _ in range(5)]
    assert not torch.equal(masks[3], masks[4])


@pytest.mark.parametrize("fullgraph", [False, True])
def test_a_monitor_in_a_compiled_model_that_never_ran(fullgraph):
    torch.compiler.reset()
    module = nn.Sequential(fusedact.FusedReLUDropout(0.5))
    x = torch.randn(157, 128, device="cuda")
    with fusedact.ActivityMonitor(module) as monitor:
        compiled = torch.compile(module, backend="aot_eager", fullgraph=fullgraph)
        compiled(x)
        compiled(x)
        assert monitor.report().layers[0].samples == 2 * 157
