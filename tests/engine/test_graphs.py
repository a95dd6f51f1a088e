"""Calls that become part of a graph: `torch.compile`, `torch.export` and CUDA graphs.

A graph lives longer than its numbers: each of its runs has to draw others, and none may be built in.
"""

import itertools
from typing import ClassVar

import pytest
import torch
from cases import (
    OFFSET,
    SEED,
    assert_equals_eager,
    eager_modules,
    fused_module,
    in_turn,
    public,
    representatives,
    rngs,
    train,
    values,
)
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters

from fusedact import composition, masks, operators, rows
from fusedact.activations import Saves
from fusedact.kernels.configuration import grid
from fusedact.masks import oracle
from fusedact.masks import plan as plans

dynamics = pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    counters.clear()


@pytest.fixture(params=["composition", "operators", "cuda"])
def path(request, monkeypatch) -> str:
    """The device of each path that a compiler can be given; operators run on a CPU in the interpreter."""
    if request.param == "cuda":
        return request.getfixturevalue("cuda")
    if request.param == "operators":
        if request.getfixturevalue("device") == "cuda":
            pytest.skip("with a GPU the kernels run there, not in the interpreter")
        monkeypatch.setattr(operators, "DEVICE", "cpu")
    return "cpu"


# torch.compile


@representatives
@dynamics
@pytest.mark.parametrize(("p", "training"), [(0.5, False), (0.0, True)], ids=["eval", "p=0"])
@pytest.mark.parametrize("path", ["composition", "cuda"], indirect=True)
def test_what_drops_nothing_is_eagers(activation, dynamic, p, training, path):
    module, eager = (make(activation, p).train(training) for make in (fused_module, eager_modules))
    compiled = torch.compile(module, fullgraph=True, dynamic=dynamic)
    x = torch.randn(7, 40, device=path)
    result, expected = train(compiled, x), train(eager, x)
    if activation.saves is Saves.INPUT:  # the compiler has an exp of its own
        torch.testing.assert_close(result, expected)
        expected = train(torch.compile(eager, fullgraph=True, dynamic=dynamic), x)
    assert all(map(torch.equal, result, expected))


@representatives
@dynamics
def test_a_seed_is_no_reason_to_compile_again(activation, dynamic, path):
    """One graph for all seeds, and with dynamic shapes for all sizes, whatever they are divisible by."""
    compiled = torch.compile(fused_module(activation, 0.3), fullgraph=True, dynamic=dynamic)
    for columns in (30, 9, 257) if dynamic else (30,):
        x = torch.rand(100, columns, device=path) + 0.1  # all pass the activation: zeros are dropped
        first, other, again = (train(compiled, x, seed) for seed in (1, 2, 1))
        for y, dx in (first, other):
            assert torch.equal(dx != 0, y != 0)
            assert abs((y != 0).double().mean() - 0.7) < 0.06
            torch.testing.assert_close(y[y != 0], x[y != 0] / 0.7)
        assert all(map(torch.equal, first, again))
        assert not torch.equal(first[0], other[0])
    assert counters["stats"]["unique_graphs"] == 1


@representatives
@pytest.mark.parametrize("path", ["operators", "cuda"], indirect=True)
def test_a_compiled_net_learns(activation, path):
    torch.manual_seed(2)
    net = nn.Sequential(nn.Linear(8, 32), fused_module(activation, 0.2), nn.Linear(32, 1)).to(path)
    compiled = torch.compile(net, fullgraph=True)
    x = torch.randn(32, 8, device=path)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.05)
    losses = []
    for _ in range(25):
        losses.append(nn.functional.mse_loss(compiled(x), x[:, :1] - x[:, 1:2]))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0] / 2


def ours(graphs):
    return [str(n.target) for g in graphs for n in g.graph.nodes if "fusedact" in str(n.target)]


def traced(function, x):
    """The operators of ours that a compiler is given."""
    counter = CompileCounterWithBackend("eager")
    torch.compile(function, fullgraph=True, backend=counter)(x)
    return ours(counter.graphs)


@representatives
@pytest.mark.parametrize("path", ["operators", "cuda"], indirect=True)
def test_who_is_given_the_operators(activation, path):
    """Not functorch's transforms, forward mode or subclasses, which see through the composition alone."""
    module, x = fused_module(activation), torch.randn(8, 30, device=path)
    assert traced(module, x) == ["fusedact.activation_dropout.default"]
    assert traced(fused_module(activation, inplace=True), x + 0) == ["fusedact.activation_dropout.default"]
    transforms = (
        lambda x: torch.func.jvp(module, (x,), (x,)),
        lambda x: torch.func.grad(lambda x: module(x).sum())(x),
        lambda x: torch.func.vmap(module, randomness="different")(x),
    )
    for function in (*transforms, fused_module(activation).eval(), fused_module(activation, 1.0)):
        assert traced(function, x) == []
    assert traced(module, x.as_subclass(type("Subclass", (torch.Tensor,), {}))) == []


def test_on_a_cpu_the_compiler_is_given_the_composition():
    assert traced(fused_module(rows.RELU), torch.ones(5)) == []


@representatives
def test_in_place(activation, path):
    x = torch.rand(1000, device=path) + 0.1
    buffer = x.clone()
    torch.manual_seed(1)
    y = torch.compile(fused_module(activation, inplace=True), fullgraph=True)(buffer)
    assert y.data_ptr() == buffer.data_ptr()
    torch.testing.assert_close(y[y != 0], 2 * x[y != 0])
    assert 0.3 < (y != 0).double().mean() < 0.7


@representatives
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_gradients_in_place(activation, backend, path):
    x = torch.randn(1000, device=path)

    def step(inplace):
        module = fused_module(activation, inplace=inplace)
        return train(torch.compile(lambda x: module(x * 1.0), fullgraph=True, backend=backend), x)

    assert all(map(torch.equal, step(True), step(False)))


@torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True)
def test_a_size_that_depends_on_data(path):
    compiled = torch.compile(lambda x: fused_module(rows.RELU)(x[x > 0]), fullgraph=True)
    for x in (torch.randn(100, device=path), torch.randn(1000, device=path), -torch.ones(9, device=path)):
        assert compiled(x).shape == ((x > 0).sum(),)


# The operators


def arguments(activation, x, rng, watched=False):
    numbers = (torch.tensor([SEED - 2**64], device=x.device), torch.tensor([OFFSET], device=x.device))
    return x, *numbers, activation.name, list(values(activation)), 0.3, rng, watched


@representatives
@pytest.mark.parametrize(("rng", "watched"), [("eager", False), ("eager", True), ("fast", True)])
def test_opcheck(activation, rng, watched, device):
    x = torch.randn(6, 40, device=device)
    for view in (x.t(), x[:0]) if rng == "eager" else (x[:, ::2],):
        inputs = arguments(activation, view.detach().requires_grad_(), rng, watched)
        torch.library.opcheck(torch.ops.fusedact.activation_dropout, inputs)
        y, bits, _ = torch.ops.fusedact.activation_dropout(*inputs)
        saved = view if activation.saves is Saves.INPUT else None
        inputs = (torch.randn(view.shape, device=device), saved, bits, y.stride(), *inputs[3:-1])
        backward = torch.ops.fusedact.activation_dropout_backward
        torch.library.opcheck(backward, inputs)
        # An input that the row doesn't need is left alone.
        dy, _, *rest = inputs
        assert torch.equal(backward(dy, view.detach(), *rest), backward(*inputs))


@in_turn
@rngs
def test_operators_are_exact(activation, rng, dtype, device):
    """Against the oracle, for every vec, and for gradients and inputs of any strides."""
    for shape in ((9, 8, 120), (7, 11, 13), (1, 1, 2), (6, 101, 7)):
        x = torch.randn(shape, device=device).to(dtype).transpose(0, 2).requires_grad_()
        dy = torch.randn(x.shape, device=device).to(dtype)
        n, plan = x.numel(), plans.graph_plan(rng, x.numel(), dtype.itemsize)
        if rng == "fast":
            keep = masks.fast_mask(n, 0.3, SEED, OFFSET)
        else:
            words = oracle.eager_words(torch.arange(n), plan, SEED, OFFSET)
            keep = words < plans.keep_threshold(0.3, dtype is torch.float64)
        keep = torch.as_strided(keep, x.shape, x.stride()).to(device)
        y, *_ = torch.ops.fusedact.activation_dropout(*arguments(activation, x, rng))
        (dx,) = torch.autograd.grad(y, x, dy)
        assert y.stride() == dx.stride() == x.stride()
        p, x = plans.used_probability(0.3, rng), x.detach()
        for value, function, wide in (
            (
                y,
                lambda x, dy, p=p, keep=keep, rng=rng: composition.forward(
                    activation, x, values(activation), p, keep, rng
                ),
                "eager",
            ),
            (
                dx,
                lambda x, dy, p=p, keep=keep, rng=rng: composition.backward(
                    activation, x, values(activation), p, keep, dy, rng
                ),
                "eager",
            ),
        ):
            expected, truth = function(x, dy), function(x.double(), dy.double(), rng=wide)
            assert_equals_eager(activation, value.detach(), expected, truth)


@rngs
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_one_formula_for_the_tiles(rng, dtype, device):
    """The operator's bits hold all that the kernel writes, and little more; its int32 don't overflow."""
    for base in (0, 4096, 2**20, 2**30, 2**31, 2**33, 2**36):
        for n in range(max(base - 9, 1), base + 9):
            plan = plans.graph_plan(rng, n, dtype.itemsize)
            assert 256 * plan.blocks * plan.lanes <= 2**30 + 256 * plan.lanes
            programs, iterations, rounds = grid(n, plan)
            x = torch.empty(n, dtype=dtype, device="meta")
            _, bits, signs = operators._forward_fake(x, x, x, "relu", [], 0.5, rng, True)
            assert signs.numel() == bits.numel()
            spare = bits.numel() // 128 - programs * iterations * rounds
            assert 0 <= spare <= (0 if n < 2**30 else 2**18 + 1)


# torch.fx


@representatives
def test_a_symbolic_trace_has_the_module_as_one_node(activation):
    """As one of PyTorch's own: p and the training flag stay the module's."""
    net = nn.Sequential(nn.Linear(8, 16), fused_module(activation), nn.Linear(16, 2))
    graph = torch.fx.symbolic_trace(net)
    assert [node.target for node in graph.graph.nodes if node.op == "call_module"] == ["0", "1", "2"]
    x = torch.randn(5, 8)
    assert all(map(torch.equal, train(graph, x), train(net, x)))
    assert torch.equal(graph.eval()(x), net.eval()(x))


@representatives
def test_a_symbolic_trace_has_a_function_as_one_node(activation):
    """As one of PyTorch's own: with its arguments, and the same when it runs."""
    found = public(activation)
    given = {"p": 0.3, "rng": "fast", **found.arguments}
    graph = torch.fx.symbolic_trace(lambda x: found.function(x, **given) + 1)
    (node,) = [node for node in graph.graph.nodes if node.target is found.function]
    assert node.op == "call_function"
    assert node.kwargs == {"rng": "fast", **found.arguments}
    assert node.args[1:] == (0.3, True, False)
    x = torch.randn(5, 8)
    assert all(map(torch.equal, train(graph, x), train(lambda x: found.function(x, **given) + 1, x)))


class Overriding(torch.Tensor):
    """A subclass that is told of every function."""

    told: ClassVar[list[object]] = []

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        cls.told.append(func)
        return super().__torch_function__(func, types, args, kwargs)


@representatives
def test_a_subclass_overrides_a_function(activation):
    found, x = public(activation), torch.randn(50)
    Overriding.told.clear()
    torch.manual_seed(1)
    y = found.function(x.clone().as_subclass(Overriding), 0.3, inplace=True, **found.arguments)
    assert type(y) is Overriding
    assert Overriding.told.count(found.function) == 1
    torch.manual_seed(1)
    assert torch.equal(y.as_subclass(torch.Tensor), found.function(x, 0.3, **found.arguments))


@representatives
def test_a_mode_sees_a_function(activation):
    class Mode(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            seen.append(func)
            return func(*args, **(kwargs or {}))

    seen, x = [], torch.randn(50)
    with Mode():
        public(activation).function(x, 0.3, **public(activation).arguments)
    assert seen[0] is public(activation).function


# torch.export


@representatives
@pytest.mark.parametrize("strict", [False, True])
def test_export_in_eval(activation, strict):
    """PyTorch's own operators alone: it runs where fusedact isn't installed."""
    net = nn.Sequential(nn.Linear(8, 16), fused_module(activation), nn.Linear(16, 2)).eval()
    x = torch.randn(5, 8)
    shapes = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(net, (x,), dynamic_shapes=shapes, strict=strict)
    assert ours([program.graph_module]) == []
    assert "dropout" not in program.graph_module.code
    for batch in (x, torch.randn(9, 8)):
        assert torch.equal(program.module()(batch), net(batch))


@representatives
@pytest.mark.usefixtures("cuda")
def test_the_compilers_own_cuda_graphs(activation):
    compiled = torch.compile(fused_module(activation), fullgraph=True, mode="reduce-overhead")
    x = torch.rand(10_000, device="cuda") + 0.1
    masks = [train(compiled, x, seed)[0].clone() != 0 for seed in (1, 2, 3, 4, 4)]
    assert all(0.45 < mask.double().mean() < 0.55 for mask in masks)
    assert torch.equal(masks[-1], masks[-2])
    assert not any(torch.equal(a, b) for a, b in itertools.pairwise(masks[:4]))
