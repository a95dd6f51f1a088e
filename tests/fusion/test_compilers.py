"""Compilers, tracers, transforms, and tensors of other kinds."""

import pytest
import torch
import torch.nn.functional as F
from compare import X, assert_same
from nets import PAIRS, Net
from torch import nn
from torch._dynamo.testing import CompileCounter

from fusedact import fuse, unfuse


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("takes", [True, False], ids=["kernels", "no kernels"])
def test_compiles_without_a_break(kernels, takes, monkeypatch):
    if not takes:
        monkeypatch.undo()
    torch.compiler.reset()
    net = Net()
    new = fuse(net)
    compiled = torch.compile(new, backend="aot_eager", fullgraph=True)
    for training in (True, False):
        net.train(training), new.train(training)
        torch.manual_seed(1)
        expected = net(X)
        torch.manual_seed(1)
        assert torch.equal(compiled(X), expected)
    new.train()
    kernels.clear()
    torch.compiler.reset()
    torch.compile(new, backend="aot_eager", fullgraph=True)(X)
    assert len(kernels) == (PAIRS if takes else 0)


@pytest.mark.filterwarnings("ignore")
def test_compiled_code_tells_fused_from_plain():
    torch.compiler.reset()
    counter = CompileCounter()
    net = Net()
    other = fuse(net)
    frames = []
    for model in (net, other, net, other, lambda: unfuse(other)):
        model = model if isinstance(model, nn.Module) else model()
        torch.compile(model, backend=counter, fullgraph=True)(X)
        frames.append(counter.frame_count)
    assert frames == [1, 2, 2, 2, 2]


def test_symbolic_trace(kernels):
    net = Net()
    new = fuse(net)
    nodes = [[node.target for node in torch.fx.symbolic_trace(model).graph.nodes] for model in (net, new)]
    assert nodes[0] == nodes[1]
    traced = torch.fx.symbolic_trace(new)
    assert_same(net, traced, X)
    assert not kernels
    assert_same(traced, fuse(traced), X)


@pytest.mark.filterwarnings("ignore")
def test_jit():
    net = Net().eval()
    new = fuse(net)
    for make in (lambda model: torch.jit.trace(model, X), torch.jit.script):
        plain, fused = make(net), make(new)
        kinds = [[node.kind() for node in module.inlined_graph.nodes()] for module in (plain, fused)]
        assert kinds[0] == kinds[1]
        assert torch.equal(plain(X), fused(X))
    fuse(torch.jit.script(new), inplace=True)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("strict", [True, False])
def test_export(strict):
    net = Net()
    new = fuse(net)
    graphs = [torch.export.export(model, (X,), strict=strict).graph for model in (net, new)]
    calls = [[n.target for n in graph.nodes if n.op == "call_function"] for graph in graphs]
    assert calls[0] == calls[1]
    assert torch.ops.aten.dropout.default in calls[0]


def test_transforms():
    net = Net().eval()
    new = fuse(net)
    for model in (net, new):
        model.train()
    state = dict(net.named_parameters())
    for transform in (torch.func.vmap, lambda f, **_: torch.func.jacrev(f)):
        outputs = []
        for model in (net, new):
            torch.manual_seed(1)
            call = lambda x: torch.func.functional_call(model, state, (x,))  # noqa: B023, E731
            outputs.append(transform(call, randomness="different")(X))
        assert torch.equal(*outputs)


class Subclass(torch.Tensor):
    seen = ()

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        Subclass.seen += (function,)
        return super().__torch_function__(function, types, args, kwargs or {})


def test_tensor_subclasses_and_function_modes():
    net = Net()
    new = fuse(net)
    seen = []
    for model in (net, new):
        Subclass.seen = ()
        torch.manual_seed(1)
        model(X.as_subclass(Subclass))
        seen.append(Subclass.seen)
    assert seen[0] == seen[1]
    assert F.dropout in seen[0]

    class Mode(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            seen.append(function)
            return function(*args, **(kwargs or {}))

    for model in (net, new):
        seen.clear()
        with Mode():
            model(X)
        assert seen.count(F.dropout) == PAIRS


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(kernels, dtype):
    net = Net()
    new = fuse(net)
    outputs = []
    for model in (net, new):
        torch.manual_seed(1)
        with torch.autocast("cpu", dtype=dtype):
            outputs.append(model(X))
    assert outputs[0].dtype == outputs[1].dtype
    assert torch.equal(*outputs)


def test_checkpoint_and_inference(kernels):
    net = Net()
    new = fuse(net)
    x = X.clone().requires_grad_()
    outputs = []
    for model in (net, new):
        torch.manual_seed(1)
        y = torch.utils.checkpoint.checkpoint(model, x, use_reentrant=False)
        outputs += [y, *torch.autograd.grad(y.sum(), x)]
        with torch.inference_mode():
            torch.manual_seed(1)
            outputs.append(model(X))
    for one, other in zip(outputs[:3], outputs[3:], strict=True):
        assert torch.equal(one, other)
