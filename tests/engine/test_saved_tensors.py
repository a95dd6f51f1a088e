"""Saved-tensor hooks: what was saved may come back as another tensor, in another layout, or not at all."""

import pytest
import torch
from cases import eager_modules, fused, public, representatives, rngs
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks


def other_strides(saved):
    """The same values, with strides that nothing has by itself."""
    return torch.stack([saved, saved], -1)[..., 0].transpose(0, -1).contiguous().transpose(0, -1)


def misaligned(saved):
    memory = torch.cat([saved.new_zeros(1), saved.flatten()])[1:]
    return memory.view(saved.shape)


def negated(saved):
    return torch._neg_view(-saved)


LAYOUTS = {
    "contiguous": lambda saved: saved.clone(memory_format=torch.contiguous_format),
    "other_strides": other_strides,
    "every_second": lambda saved: torch.stack([saved, saved], -1)[..., 0],
    "misaligned": misaligned,
    "negated": negated,
}


@representatives
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("create_graph", [False, True])
def test_what_comes_back_in_another_layout(activation, inplace, create_graph, device):
    dy = torch.randn(2, 6, 5, 8, device=device).to(memory_format=torch.channels_last)
    x = torch.randn_like(dy).requires_grad_()
    unpack = [lambda saved: saved]
    with saved_tensors_hooks(lambda saved: saved, lambda saved: unpack[-1](saved)):
        y = fused(activation, x.mul(1.0) if inplace else x, 0.3, inplace)

    def gradient():
        return torch.autograd.grad(y, x, dy, create_graph=create_graph, retain_graph=True)[0]

    expected = gradient()
    for layout, change in LAYOUTS.items():
        unpack.append(change)
        assert torch.equal(gradient(), expected), layout


@representatives
@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize(
    ("unpack", "got"),
    [
        (lambda saved: saved.to(torch.float16), "torch.float16"),
        (lambda saved: saved.cpu(), "on cpu"),
        (lambda saved: saved[:1], r"of shape \(1,"),
        (lambda saved: torch.nested.as_nested_tensor([saved, saved]), "a nested tensor"),
    ],
    ids=["dtype", "device", "shape", "nested"],
)
def test_what_comes_back_as_another_tensor_is_refused(activation, create_graph, unpack, got, device):
    """A kernel would read its memory as if it were what was saved."""
    if got == "on cpu" and device == "cpu":
        pytest.skip("needs a CUDA GPU: a second device")
    x = torch.randn(9000, device=device, requires_grad=True)
    with saved_tensors_hooks(lambda saved: saved, unpack):
        y = fused(activation, x, 0.3)
    with pytest.raises(RuntimeError, match=f"saved_tensors_hooks must give back .* but gave .*{got}"):
        torch.autograd.grad(y, x, torch.ones_like(y), create_graph=create_graph)


@representatives
@rngs
@pytest.mark.parametrize("pin", [False, True])
@pytest.mark.usefixtures("cuda", "no_graphs")
def test_saved_on_the_cpu(activation, rng, pin):
    """With pinned memory, what was channels_last comes back contiguous."""
    x = torch.randn(2, 3, 5, 7, device="cuda").to(memory_format=torch.channels_last).requires_grad_()
    dy = torch.randn_like(x)

    def gradient(call, hooks=None):
        torch.manual_seed(1)
        y = call(x)
        if hooks is not None:
            torch.manual_seed(1)
            with hooks:
                y = call(x)
        return torch.autograd.grad(y, x, dy)[0]

    def call(x):
        found = public(activation)
        return found.function(x, 0.4, **found.arguments, rng=rng)

    result = gradient(call, save_on_cpu(pin_memory=pin))
    assert torch.equal(result, gradient(call))
    if rng == "eager":
        torch.testing.assert_close(result, gradient(eager_modules(activation, 0.4), save_on_cpu(pin)))
