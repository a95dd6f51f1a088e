"""Whatever changes before a later call or its backward, the call is as a first one."""

import contextlib
from decimal import Decimal
from unittest import mock

import pytest
import torch
from cases import LAYOUTS, fused_module, representatives
from shared import SHAPE, assert_same, cold, data, outcome, set_attribute, warm, within
from torch import nn
from torch.autograd import forward_ad
from torch.autograd.graph import saved_tensors_hooks
from torch.fx.experimental.proxy_tensor import make_fx
from triton import knobs

from fusedact import rows
from fusedact.functional import fused_function

pytestmark = pytest.mark.usefixtures("cuda", "no_graphs", "nothing_shared")


def forward_mode(layer, x):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(layer(forward_ad.make_dual(x, torch.ones_like(x))))


def hooked(layer, x):
    seen = []
    hook = knobs.runtime.launch_enter_hook
    look = lambda metadata: seen.append(1.0)  # noqa: E731
    x = x.clone().requires_grad_()
    hook.add(look)
    try:
        (dx,) = torch.autograd.grad(layer(x), x, torch.ones_like(x))
    finally:
        hook.remove(look)
    return dx, torch.tensor(seen)


def function_in_place(layer, x):
    x = x.clone()
    return fused_function(layer.row)(x, layer.p, inplace=True), x


class Subclass(torch.Tensor):
    pass


# Equal to what the layer has, but no argument that is allowed.
OTHER_TYPES = [("p", Decimal("0.5")), ("training", 1), ("inplace", 0), ("rng", ["eager"])]
FORWARD = {
    **{name: lambda layer, x, change=change: layer(change(x)) for name, change in LAYOUTS.items()},
    **{
        f"odd, {name}": lambda layer, x, change=change: layer(change(x[:1, :3, :5, :7].contiguous()))
        for name, change in LAYOUTS.items()
    },
    "shape": lambda layer, x: layer(x.view(4, -1)),
    "dtype": lambda layer, x: layer(x.half()),
    "requires_grad": lambda layer, x: layer(x.clone().requires_grad_()),
    "parameter": lambda layer, x: layer(nn.Parameter(x)),
    "subclass": lambda layer, x: layer(x.as_subclass(Subclass)),
    "p": lambda layer, x: set_attribute(layer, "p", 0.2)(x),
    "rng": lambda layer, x: set_attribute(layer, "rng", "fast")(x),
    "inplace": lambda layer, x: set_attribute(layer, "inplace", True)(x.clone()),
    "eval": lambda layer, x: layer.eval()(x),
    "function": lambda layer, x: fused_function(layer.row)(x, layer.p),
    "function in place": function_in_place,
    "function in eval": lambda layer, x: fused_function(layer.row)(x, layer.p, training=False),
    "another GPU": lambda layer, x: layer(x.to("cuda:1")),
    "another GPU is current": within(lambda: torch.cuda.device(1)),
    "no_grad": within(torch.no_grad),
    "inference mode": within(torch.inference_mode),
    "autocast": within(lambda: torch.autocast("cuda", torch.bfloat16)),
    "vmap": lambda layer, x: torch.func.vmap(layer, randomness="different")(x),
    "jvp": lambda layer, x: torch.func.jvp(layer, (x,), (x,)),
    "forward mode": forward_mode,
    "trace": lambda layer, x: torch.jit.trace(layer, (x,), check_trace=False)(x),
    "export": within(lambda: mock.patch.object(torch.compiler, "_is_compiling_flag", True)),
    "compile": lambda layer, x: torch.compile(layer, backend="eager")(x),
    "nested": lambda layer, x: layer(torch.nested.as_nested_tensor([*x.view(4, -1)])).unbind(),
    "nested on the CPU": lambda layer, x: layer(
        torch.nested.as_nested_tensor([*x.cpu().view(4, -1)])
    ).unbind(),
    "sparse": lambda layer, x: layer(
        torch.sparse_coo_tensor(torch.zeros(4, 1, dtype=torch.int64), x.flatten()[:1], SHAPE, device="cuda")
    ),
    "symbolic": lambda layer, x: make_fx(torch.func.grad(lambda x: layer(x).sum()), tracing_mode="symbolic")(
        x
    ),
    "Triton's hooks": hooked,
    "functional": lambda layer, x: torch._from_functional_tensor(layer(torch._to_functional_tensor(x))),
    "no tensor": lambda layer, x: layer(1.0),
    "CPU": lambda layer, x: layer(x.cpu()),
    **{
        f"{name}={value!r}": lambda layer, x, name=name, value=value: set_attribute(layer, name, value)(x)
        for name, value in OTHER_TYPES
    },
}


@pytest.mark.parametrize("activation", [rows.LEAKY_RELU, rows.IDENTITY], ids=lambda row: row.name)
@pytest.mark.parametrize("change", FORWARD)
@pytest.mark.filterwarnings("ignore")
def test_whatever_changes_before_forward(activation, change):
    if "another" in change and torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA GPUs")
    x, _ = data()
    expected = cold(lambda: FORWARD[change](fused_module(activation), x))
    layer = fused_module(activation)
    with torch.no_grad():
        for _ in range(2):
            layer(x)
    for _ in range(3):
        assert_same(outcome(lambda: FORWARD[change](layer, x)), expected)


def backward_in_forward_mode(y, x, dy):
    with forward_ad.dual_level():
        (dx,) = torch.autograd.grad(y, x, forward_ad.make_dual(dy, dy * 2))
        return forward_ad.unpack_dual(dx)


BACKWARD = {
    **{
        name: lambda y, x, dy, change=change: torch.autograd.grad(y, x, change(dy))[0]
        for name, change in LAYOUTS.items()
        if name != "0-d"
    },
    "zero": lambda y, x, dy: torch.autograd.grad(y, x, torch._efficientzerotensor(SHAPE, device="cuda"))[0],
    "with a graph": lambda y, x, dy: torch.autograd.grad(y, x, dy, create_graph=True)[0],
    "batched": lambda y, x, dy: torch.autograd.grad(y, x, torch.stack([dy, -dy]), is_grads_batched=True)[0],
    "forward mode": backward_in_forward_mode,
}


# Hooks that give back the saved values in another layout.
UNPACKED = [name for name in LAYOUTS if name not in ("0-d", "expanded")]


@representatives
@pytest.mark.parametrize(
    ("change", "unpack"),
    [*((change, None) for change in BACKWARD), *(("with a graph", name) for name in UNPACKED)]
    + [("contiguous", name) for name in (*UNPACKED, "nested bits", "nested input")],
)
def test_whatever_changes_before_backward(activation, change, unpack):
    layer, (x, dy) = fused_module(activation, 0.4), data()
    x.requires_grad_()

    bits_back = LAYOUTS["negated" if unpack == "negated" else "contiguous"]

    def back(saved):
        if "nested" in unpack:
            nested = (saved.dtype is torch.int32) == (unpack == "nested bits")
            return torch.nested.as_nested_tensor([*saved.flatten(1)]) if nested else saved
        return LAYOUTS[unpack](saved) if saved.dim() == 4 else bits_back(saved)

    def call():
        with saved_tensors_hooks(lambda saved: saved, back) if unpack else contextlib.nullcontext():
            y = layer(x)
        return BACKWARD[change](y, x, dy)

    expected = cold(call)
    warm(layer, x, dy)
    for _ in range(3):
        assert_same(outcome(call), expected)


@representatives
def test_forward_mode_through_backward(activation):
    """The gradient is linear in the upstream gradient, whose tangent is twice itself."""
    layer, (x, dy) = fused_module(activation, 0.4), data()
    x.requires_grad_()
    for _ in range(4):
        y = layer(x)
        (expected,) = torch.autograd.grad(y, x, dy, retain_graph=True)
        gradient, tangent = backward_in_forward_mode(y, x, dy)
        torch.testing.assert_close(gradient, expected)
        torch.testing.assert_close(tangent, 2 * expected)
