"""Calls that a CUDA graph captures: fresh numbers at each replay, and what it may launch."""

import contextlib

import pytest
import torch
from cases import (
    OFFSET,
    PROCESSORS,
    SEED,
    configured,
    eager_modules,
    forward_bits,
    fused_module,
    representatives,
    rngs,
    train,
)

from fusedact import _torch, dispatch, masks, rows
from fusedact.kernels import launch
from fusedact.masks import generator as generators
from fusedact.masks import plan as plans
from fusedact.masks.generator import PhiloxState

# CUDA graphs


class Generator:
    """As much of a capturing GPU's generator as a graph asks for: each replay fills the two tensors."""

    def __init__(self, device):
        self.seed, self.offset = torch.zeros(2, 1, dtype=torch.int64, device=device)
        self.within = 0

    def philox_state(self, increment):
        within, self.within = self.within, self.within + increment
        return self.seed, self.offset, torch.tensor([within])

    def replay(self, seed, offset):
        self.seed.fill_(seed if seed < 2**63 else seed - 2**64)
        self.offset.fill_(offset)


@pytest.fixture
def capturing(device, monkeypatch):
    """A CPU on which a graph is being captured, with the faked generator."""
    if device == "cuda":
        pytest.skip("with a GPU its own generator is tested")
    generator = Generator(device)
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    monkeypatch.setattr(_torch, "_empty_on_gpu", None)
    monkeypatch.setattr(torch.Tensor, "get_device", lambda self: 0)
    monkeypatch.setattr(torch.cuda, "default_generators", [generator])
    monkeypatch.setattr(torch.cuda, "device_of", contextlib.nullcontext)
    monkeypatch.setattr(plans, "processors", lambda device: PROCESSORS)
    monkeypatch.setattr(dispatch, "_is_capturing", lambda: True)
    monkeypatch.setattr(dispatch, "_current_device", lambda: 0)
    monkeypatch.setattr(launch, "ready_to_capture", lambda configuration, device, differentiable: True)
    return generator


@representatives
@rngs
@pytest.mark.parametrize("seed", [7, SEED])
def test_numbers_from_the_device_are_those_from_the_host(activation, rng, seed, device):
    for offset, within in ((0, 0), (OFFSET - 12, 12), (2**64 - 8, 4)):
        x = torch.randn(5000, device=device)
        configuration = configured(activation, x, 0.3, rng)
        generator = Generator(device)
        generator.replay(seed, offset if offset < 2**63 else offset - 2**64)
        draws = PhiloxState(seed, offset + within), PhiloxState(0, within, (generator.seed, generator.offset))
        results = []
        for draw in draws:
            y = torch.empty_like(x)
            results.append((forward_bits(configuration, x, y, draw), y))
        assert all(map(torch.equal, *results))


@representatives
def test_a_captured_call_reads_what_each_replay_writes(activation, capturing, monkeypatch):
    """One launch whose arguments never change, run again."""
    launches = []
    forward = launch.forward
    monkeypatch.setattr(launch, "forward", lambda *a: launches.append(a) or forward(*a))
    x = torch.rand(5000) + 0.1
    module = fused_module(activation, 0.3)
    module(x), module(x)
    plan = plans.eager_plan(5000, 4, *PROCESSORS)
    for seed, offset in ((SEED, OFFSET), (SEED, OFFSET + 2 * plan.increment), (3, 0)):
        capturing.replay(seed, offset)
        for call, arguments in enumerate(launches):
            forward(*arguments)
            keep = masks.eager_mask(5000, 0.3, x.dtype, seed, offset + call * plan.increment, *PROCESSORS)
            assert torch.equal(arguments[2] != 0, keep)
    assert len(launches) == 2


@representatives
def test_a_captured_call_before_torch_2_14_draws_its_seed(activation, capturing, monkeypatch):
    monkeypatch.delattr(Generator, "philox_state")
    drawn = []
    draw = generators.drawn_on_device
    cpu = torch.device("cpu")
    monkeypatch.setattr(generators, "drawn_on_device", lambda device: drawn.append(draw(cpu)) or drawn[-1])
    x = torch.rand(1000) + 0.1
    results = [train(fused_module(activation), x, seed) for seed in (1, 1, 2)]
    assert all(map(torch.equal, results[0], results[1]))
    assert not torch.equal(results[0][0], results[2][0])
    for (y, dx), (seed, offset, device) in zip(results, drawn, strict=True):
        assert torch.equal(y != 0, dx != 0)
        assert 0.4 < (y != 0).double().mean() < 0.6
        assert (seed, offset) == (0, 0)
        assert [(t.dtype, t.shape) for t in device] == [(torch.int64, (1,))] * 2


def test_a_captured_call_whose_kernels_are_not_loaded_is_the_composition(capturing, monkeypatch):
    """Nothing can be loaded while a graph is captured."""
    monkeypatch.setattr(launch, "ready_to_capture", lambda configuration, device, differentiable: False)
    monkeypatch.setattr(launch, "forward", None)
    x = torch.randn(1000)
    results = [train(make(rows.RELU), x) for make in (fused_module, eager_modules)]
    assert all(map(torch.equal, *results))


@representatives
@pytest.mark.usefixtures("cuda")
def test_replays_of_a_captured_step(activation):
    """Fresh masks at each replay, the same ones from the same seed, gradients that go with them.

    From torch 2.14 on they are the masks that `nn.Dropout` has in a graph of its own.
    """
    x = (torch.rand(10_000, device="cuda") + 0.1).requires_grad_()

    def replays(module):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            torch.autograd.grad(module(x).sum(), x)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = module(x)
            (dx,) = torch.autograd.grad(y.sum(), x)
        results = []
        for seed in (1, None, None, 1):
            if seed is not None:
                torch.manual_seed(seed)
            graph.replay()
            results.append((y.detach().clone(), dx.clone()))
        return results

    results = replays(fused_module(activation))
    for y, dx in results:
        assert torch.equal(y != 0, dx != 0)
        assert 0.45 < (y != 0).double().mean() < 0.55
    first, second, third, again = (y for y, _ in results)
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    assert not torch.equal(second, third)
    if hasattr(torch.Generator, "philox_state"):
        for (y, _), (expected, _) in zip(results, replays(eager_modules(activation)), strict=True):
            assert torch.equal(y != 0, expected != 0)


@representatives
@pytest.mark.usefixtures("cuda")
def test_a_captured_step_runs_the_kernels(activation, monkeypatch):
    x = torch.randn(10_000, device="cuda", requires_grad=True)
    module = fused_module(activation)
    module(x).sum().backward()
    monkeypatch.setattr(dispatch, "composition", None)
    with torch.cuda.graph(torch.cuda.CUDAGraph()):
        module(x).sum().backward()
