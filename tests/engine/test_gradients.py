"""Gradients of the kernels beyond the plain one: second derivatives, batches of gradients, none at all."""

import itertools

import pytest
import torch
from cases import (
    LAYOUTS,
    fused,
    make_plan,
    mask,
    representatives,
    rngs,
    values,
)

from fusedact import composition, rows
from fusedact.activations import Saves
from fusedact.kernels import configuration as shapes

pytestmark = pytest.mark.usefixtures("poisoned")


@representatives
@pytest.mark.parametrize("inplace", [False, True])
def test_gradcheck(activation, inplace, device):
    x = torch.randn(60, device=device, dtype=torch.float64)
    x = x[x.abs() > 1e-3].requires_grad_()  # away from the kink, where finite differences are wrong

    def function(x):
        return fused(activation, x * 1.0 if inplace else x, 0.3, inplace)

    # The Jacobian along random directions: its every column takes minutes in the interpreter.
    assert torch.autograd.gradcheck(function, x, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, x, fast_mode=True)


@representatives
def test_double_backward_equals_eager(activation, device):
    x = torch.randn(500, device=device, dtype=torch.float64, requires_grad=True)
    dy = torch.randn(500, device=device, dtype=torch.float64, requires_grad=True)
    keep = mask(x.detach(), 0.3)
    composed = activation.function(x, *values(activation)) * keep / (1 - 0.3)
    results = []
    for y in (fused(activation, x, 0.3), composed):
        (dx,) = torch.autograd.grad(y, x, dy, create_graph=True)
        results.append(torch.autograd.grad((dx**2).sum(), (x, dy), allow_unused=True, materialize_grads=True))
    torch.testing.assert_close(*results)


@representatives
@rngs
@pytest.mark.parametrize("create_graph", [False, True])
def test_batched_gradients(activation, rng, create_graph, device):
    """`is_grads_batched`, which `vectorize=True` and `torch.func.vmap` use: a mask to all of them."""
    x = torch.randn(300, device=device, requires_grad=True)
    y = fused(activation, x, 0.3, rng=rng)

    def gradient(dy, **options):
        return torch.autograd.grad(y, x, dy, retain_graph=True, **options)[0]

    dys = torch.randn(4, 300, device=device)
    expected = torch.stack([gradient(dy) for dy in dys])
    results = [
        gradient(dys, is_grads_batched=True, create_graph=create_graph),
        torch.func.vmap(gradient)(dys),
    ]
    for result in results:
        torch.testing.assert_close(result, expected)


@representatives
def test_a_second_derivative_that_is_0(activation, device):
    """As in eager mode, where the upstream gradient is a constant: no error, and ELU's alone isn't 0."""
    x = torch.randn(300, device=device, requires_grad=True)
    (dx,) = torch.autograd.grad(fused(activation, x, 0.3).sum(), x, create_graph=True)
    dx.sum().backward()
    assert (x.grad is not None and bool(x.grad.any())) == (activation.saves is Saves.INPUT)


@representatives
@rngs
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=["float16", "float32"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "transposed"])
@pytest.mark.parametrize("shape", [(3, 8, 10, 12), (3, 5, 7, 9)], ids=["even", "odd"])
def test_a_gradient_with_a_graph_is_the_gradient(activation, rng, dtype, layout, shape, device):
    """The composed backward has the kernel's mask, its rounding and, for large scales, its range."""
    x = LAYOUTS[layout](torch.randn(shape, device=device).to(dtype)).detach().requires_grad_()
    dy = torch.full_like(x, 100.0)
    for p, inplace in itertools.product((0.3, 0.999), (False, True)):
        y = fused(activation, x * 1.0 if inplace else x, p, inplace, rng=rng)
        (expected,) = torch.autograd.grad(y, x, dy, retain_graph=True)
        (composed,) = torch.autograd.grad(y, x, dy.requires_grad_(), create_graph=True)
        if activation.saves is Saves.INPUT:  # exp is PyTorch's there; in place, rounded values are subtracted
            rtol, scale = 2e-3 if dtype is torch.float16 else 1e-6, 100 / (1 - p)
            atol = scale * torch.finfo(dtype).eps if inplace else 0
            torch.testing.assert_close(composed, expected, rtol=rtol, atol=atol)
        else:
            torch.testing.assert_close(composed, expected, rtol=0, atol=0)


@representatives
def test_no_grad_and_no_input_gradient(activation, device):
    x = torch.randn(1000, device=device)
    keep = mask(x, 0.3)
    expected = composition.forward(activation, x, values(activation), 0.3, keep)
    for y in (fused(activation, x, 0.3), torch.no_grad()(fused)(activation, x.requires_grad_(), 0.3)):
        assert not y.requires_grad
        torch.testing.assert_close(y, expected)


def test_a_parameter_beyond_float32_is_not_configured(device):
    """Eager PyTorch decides about it: its composition runs."""
    x = torch.randn(10, device=device)
    for dtype, possible in ((torch.float32, False), (torch.float64, True)):
        made = shapes.configure(rows.ELU, dtype, 10, (1e300,), 0.3, make_plan(x))
        assert (made is not None) == possible
