"""Fused pairs on a GPU: one kernel each way, with the masks that `nn.Dropout` draws."""

import copy

import pytest
import torch
from compare import assert_unchanged
from nets import PAIRS, Lone, Net
from torch import nn

from fusedact import fuse
from fusedact.fusion import recognise


@pytest.fixture
def calls(monkeypatch):
    """The rows of the calls that the kernels computed."""
    calls = []

    def counted(run):
        def call(row, *rest):
            result = run(row, *rest)
            if result is not None:
                calls.append(row.name)
            return result

        return call

    for name in ("by_kernels", "repeated"):
        monkeypatch.setattr(recognise, name, counted(getattr(recognise, name)))
    return calls


def step(model, x):
    torch.manual_seed(3)
    y = model(x)
    return [y.detach(), *torch.autograd.grad(y.square().sum(), model.parameters())]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_same_as_plain(cuda, calls, dtype):
    net = Net().to(cuda, dtype)
    new = fuse(net)
    assert_unchanged(net, new)
    x = torch.randn(64, 8, device=cuda, dtype=dtype)
    expected = step(net, x)
    assert not calls
    for model in (new, copy.deepcopy(new)):
        calls.clear()
        for value, truth in zip(step(model, x), expected, strict=True):
            assert torch.equal(value, truth)
        assert calls == ["relu", "leaky_relu", "relu"]
    calls.clear()
    assert torch.equal(new.eval()(x), net.eval()(x))
    assert not calls
    assert PAIRS == 3


@pytest.mark.parametrize("activation", [nn.Softplus, nn.SiLU])
def test_autocast(cuda, calls, activation):
    """On a GPU it has softplus return float32."""
    net = nn.Sequential(nn.Linear(8, 8), activation(), nn.Dropout(0.3)).to(cuda)
    x = torch.randn(64, 8, device=cuda)
    results = []
    for model in (net, fuse(net)):
        torch.manual_seed(3)
        with torch.autocast("cuda", dtype=torch.float16):
            results.append(model(x))
    assert len(calls) == 1
    torch.testing.assert_close(*reversed(results))


def test_original_calls_where_no_kernel_can_run(cuda, calls):
    net = Net().to(cuda)
    new = fuse(net)
    x = torch.randn(16, 8, device=cuda)
    traced = torch.jit.trace(new, x, check_trace=False)
    assert "dropout" in str(traced.inlined_graph)
    with torch.autograd.forward_ad.dual_level():
        new(torch.autograd.forward_ad.make_dual(x, x))
    torch.func.vmap(new, randomness="different")(x)
    assert not calls


def test_a_compiler_is_given_the_operators(cuda, calls):
    """In one graph, without PyTorch's dropouts."""
    torch.compiler.reset()
    graphs = []

    def backend(module, inputs):
        graphs.append([str(node.target) for node in module.graph.nodes if node.op == "call_function"])
        return module

    new = fuse(Net().to(cuda))
    torch.compile(new, backend=backend, fullgraph=True)(torch.randn(16, 8, device=cuda))
    (graph,) = graphs
    assert sum("fusedact.activation_dropout" in target for target in graph) == PAIRS
    assert not any("dropout" in target and "fusedact" not in target for target in graph)
    assert not calls


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lone_dropout(cuda, calls, dtype):
    """The mask of `nn.Dropout`, and one bit per element in place of its byte; nothing in eval."""
    net = Lone().to(cuda, dtype)
    new = fuse(net, lone_dropout=True)
    x = torch.randn(64, 8, device=cuda, dtype=dtype)
    expected = step(net, x)
    assert not calls
    for value, truth in zip(step(new, x), expected, strict=True):
        assert torch.equal(value, truth)
    assert calls == ["identity", "identity", "relu", "identity"]
    dtypes = []
    for model in (net, new):
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.dtype) or t, lambda t: t):  # noqa: B023
            model(x)
        dtypes.append((saved.count(torch.bool), saved.count(torch.int32)))
    assert dtypes == [(4, 0), (0, 4)]
    calls.clear()
    assert torch.equal(new.eval()(x), net.eval()(x))
    fuse(net.train())(x)
    assert calls == ["relu"]


def test_lone_dropout_in_place_is_left(cuda, calls):
    """It has to write where others may read."""

    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.drop = nn.Dropout(0.3, inplace=True)

        def forward(self, x):
            return self.drop(x)

    x = torch.ones(64, device=cuda)
    new = fuse(InPlace(), lone_dropout=True)
    assert new(x) is x
    assert 0 < x.count_nonzero() < 64
    assert not calls
