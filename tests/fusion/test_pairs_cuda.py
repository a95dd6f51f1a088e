"""Fused pairs on a GPU: one kernel each way, with the masks that `nn.Dropout` draws."""

import copy

import pytest
import torch
from compare import assert_unchanged
from test_tools import PAIRS, Net

from fusedact import fuse
from fusedact.fusion import recognise


@pytest.fixture
def calls(monkeypatch):
    calls, run = [], recognise.run
    monkeypatch.setattr(recognise, "run", lambda row, *rest: calls.append(row.name) or run(row, *rest))
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
