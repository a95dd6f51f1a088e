"""The modules inside PyTorch's training machinery: autocast, GradScaler, checkpoints, states, torch.func.

Masks come from the device's generator, so whoever saves and restores its state gets the same masks.
"""

import pytest
import torch
from cases import OFFSET, PROCESSORS, eager_modules, fused_module, in_turn, representatives
from torch import nn
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from fusedact import _torch, dispatch, rows
from fusedact.dispatch import runs_kernels
from fusedact.masks import generator
from fusedact.masks import plan as plans
from fusedact.masks.generator import PhiloxState


@pytest.fixture(params=["composition", "interpreter", "cuda"])
def path(request, monkeypatch) -> str:
    """The device of each path that a call can take.

    In the interpreter CPU tensors pass for a GPU's, so that `dispatch` decides as it would on one, and the
    CPU's generator for the GPU's: it is what is saved, restored and forked.
    """
    if request.param == "cuda":
        return request.getfixturevalue("cuda")
    if request.param == "interpreter":
        if request.getfixturevalue("device") == "cuda":
            pytest.skip("with a GPU the kernels run there, not in the interpreter")
        monkeypatch.setattr(torch.Tensor, "is_cuda", True)
        monkeypatch.setattr(_torch, "_empty_on_gpu", None)
        monkeypatch.setattr(dispatch, "_is_capturing", lambda: False)
        monkeypatch.setattr(dispatch, "_current_device", lambda: -1)
        monkeypatch.setattr(plans, "processors", lambda device: PROCESSORS)
        monkeypatch.setattr(
            generator, "reserve", lambda device, plan: PhiloxState(int(torch.randint(2**62, ())), OFFSET)
        )
        assert dispatch.runs_kernels(torch.ones(1))
    return "cpu"


def get_state(device):
    return torch.cuda.get_rng_state() if device == "cuda" else torch.get_rng_state()


def set_state(device, state):
    (torch.cuda.set_rng_state if device == "cuda" else torch.set_rng_state)(state)


def call(module, x, seed=1):
    """Value and gradient for a seed."""
    torch.manual_seed(seed)
    x = x.detach().requires_grad_()
    y = module(x)
    return y.detach(), *torch.autograd.grad(y, x, torch.ones_like(y))


# Mixed precision


@pytest.mark.usefixtures("no_graphs")
@in_turn
@pytest.mark.parametrize("autocast", [torch.float16, torch.bfloat16], ids=str)
def test_autocast_changes_nothing_and_keeps_eagers_dtype(activation, autocast, dtype, path):
    x = torch.randn(300, device=path, dtype=dtype)
    module = fused_module(activation)
    plain = call(module, x)
    with torch.autocast(path, dtype=autocast):
        result = call(module, x)
        expected = call(eager_modules(activation), x)
    assert [t.dtype for t in result] == [t.dtype for t in expected]
    assert all(map(torch.equal, result, plain))


@pytest.mark.parametrize("activation", [rows.SOFTPLUS, rows.SQUARED_RELU], ids=lambda row: row.name)
def test_what_autocast_widens_is_float32(activation, path, monkeypatch):
    """A CPU's autocast widens neither, so that there eager is given float32."""
    x = torch.randn(300, device=path, dtype=torch.bfloat16)
    eager, module, kernels = eager_modules(activation, 0.3), fused_module(activation, 0.3), runs_kernels(x)
    interpreted = kernels and path == "cpu"
    with torch.autocast(path, dtype=torch.bfloat16):
        y, dx = call(module, x)
        expected = call((lambda x: module(x.float())) if interpreted else eager, x)
        assert fused_module(activation, 0.3, inplace=True)(x.clone()).dtype is x.dtype
    assert y.dtype is (torch.float32 if kernels else x.dtype)
    torch.testing.assert_close((y, dx), expected)


@representatives
def test_grad_scaler_scales_and_skips(activation, path):
    """A power of two changes no bit of a step; a step whose gradients overflow is left out."""

    def step(scale, factor=1.0):
        torch.manual_seed(2)
        net = nn.Sequential(nn.Linear(8, 64), fused_module(activation)).to(path)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler(path, init_scale=scale, enabled=scale is not None)
        scaler.scale(net(torch.randn(4, 8, device=path)).sum() * factor).backward()
        scaler.step(optimizer)
        scaler.update()
        return net[0].weight.detach(), scaler.get_scale()

    unscaled, _ = step(1.0)
    scaled, scale = step(1024.0)
    skipped, halved = step(1024.0, float("inf"))
    start, _ = step(1.0, 0.0)
    assert torch.equal(scaled, unscaled)
    assert not torch.equal(scaled, start)
    assert torch.equal(skipped, start)
    assert (scale, halved) == (1024, 512)


@representatives
@pytest.mark.parametrize("autocast", [torch.float16, torch.bfloat16], ids=str)
def test_a_net_learns_in_mixed_precision(activation, autocast, path):
    net = nn.Sequential(nn.Linear(8, 32), fused_module(activation, 0.2), nn.Linear(32, 1)).to(path)
    x = torch.randn(32, 8, device=path)
    target = x[:, :1] - x[:, 1:2]
    optimizer = torch.optim.Adam(net.parameters(), lr=0.05)
    scaler = torch.amp.GradScaler(path, init_scale=2.0**22)
    losses = []
    for _ in range(25):
        with torch.autocast(path, dtype=autocast):
            y = net(x)
        assert y.dtype is autocast
        losses.append(nn.functional.mse_loss(y.float(), target))
        optimizer.zero_grad()
        scaler.scale(losses[-1]).backward()
        scaler.step(optimizer)
        scaler.update()
    assert losses[-1] < losses[0] / 2
    # float16 overflows until the scale has come down; bfloat16 has float32's range.
    assert (scaler.get_scale() < 2.0**22) == (autocast is torch.float16)


# Checkpoints


def train_step(block, tensors, device):
    """Output and gradients of a block, and whether backward moved the generator.

    Between forward and backward somebody else draws numbers.
    """
    tensors = [tensor.detach().requires_grad_() for tensor in tensors]
    torch.manual_seed(3)
    output = block(*tensors)
    torch.rand(5, device=device)
    before = get_state(device)
    output.sum().backward()
    moved = not torch.equal(get_state(device), before)
    return output.detach(), [tensor.grad for tensor in tensors], moved


def disagreement(a, b):
    return (a != b).double().mean().item()


@representatives
@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("preserve", [True, False])
def test_a_checkpoint_recomputes_the_mask(activation, use_reentrant, preserve, path):
    """Without `preserve_rng_state` it doesn't, which shows that this test would notice."""
    module = fused_module(activation)

    def block(x, middle, last):
        return module(module(x) * middle) * last

    def recomputed(*tensors):
        return checkpoint(block, *tensors, use_reentrant=use_reentrant, preserve_rng_state=preserve)

    x = torch.randn(20, 30, device=path)
    ones = torch.ones_like(x)
    output, gradients, moved = train_step(recomputed, (x, ones, ones), path)
    expected_output, expected, _ = train_step(block, (x, ones, ones), path)
    assert torch.equal(output, expected_output)
    # The gradient of a weight after the layer is what the layer gave when it was recomputed.
    fractions = [disagreement(gradients[2], output), *map(disagreement, gradients, expected)]
    if preserve:
        assert fractions == [0, 0, 0, 0]
    else:
        assert min(fractions) > 0.1
    assert moved is not preserve


@representatives
def test_backward_draws_nothing(activation, path):
    """The mask that backward applies is the one that forward kept."""
    x = torch.rand(1000, device=path) + 0.1  # all pass the activation: zeros are dropped elements
    x.requires_grad_()
    y = fused_module(activation)(x)
    torch.manual_seed(99)
    state = get_state(path)
    y.sum().backward()
    assert torch.equal(get_state(path), state)
    assert disagreement(x.grad != 0, y != 0) == 0
    assert 0.3 < (y != 0).double().mean() < 0.7


# States of the generator


@representatives
def test_states_of_the_generator_reproduce_masks(activation, path):
    module, x = fused_module(activation), torch.rand(1000, device=path) + 0.1
    state = get_state(path)
    first, second = module(x), module(x)
    assert not torch.equal(first, second)
    set_state(path, state)
    assert torch.equal(module(x), first)
    with torch.random.fork_rng(devices=[0] if path == "cuda" else []):
        torch.manual_seed(5)
        forked = module(x)
    assert torch.equal(module(x), second)
    torch.manual_seed(5)
    assert torch.equal(module(x), forked)


@representatives
@pytest.mark.parametrize(("p", "training"), [(0.5, False), (0.0, True)])
def test_what_drops_nothing_draws_nothing(activation, p, training, path):
    x = torch.randn(100, device=path)
    state = get_state(path)
    fused_module(activation, p).train(training)(x)
    assert torch.equal(get_state(path), state)


# torch.func, whose transforms see through the composition


@representatives
@pytest.mark.parametrize("inplace", [False, True])
def test_func_grad_is_eagers(activation, inplace, path):
    x, weight = torch.randn(2, 300, device=path)

    def gradient(module):
        torch.manual_seed(1)
        return torch.func.grad(lambda x: (module(x * 1.0) * weight).sum())(x)

    result = gradient(fused_module(activation, inplace=inplace))
    assert torch.equal(result, gradient(eager_modules(activation)))
    assert 0.2 < (result == 0).double().mean() < 0.9


@representatives
def test_forward_mode_is_the_gradient(activation, path):
    """Elementwise, so the derivative along ones is the gradient of the sum."""
    module = fused_module(activation)
    x = torch.randn(300, device=path)
    expected = call(eager_modules(activation), x)
    torch.manual_seed(1)
    results = [torch.func.jvp(module, (x,), (torch.ones_like(x),))]
    torch.manual_seed(1)
    with forward_ad.dual_level():
        results.append(tuple(forward_ad.unpack_dual(module(forward_ad.make_dual(x, torch.ones_like(x))))))
    for result in results:
        torch.testing.assert_close(result, expected)


@representatives
def test_vmap_draws_as_its_randomness_says(activation, path):
    module = fused_module(activation)
    x = (torch.rand(1000, device=path) + 0.1).expand(4, 1000)
    different = torch.func.vmap(module, randomness="different")(x)
    assert disagreement(different != 0, different == 2 * activation.function(x)) == 0
    assert all(disagreement(different[i], different[j]) > 0.3 for i in range(4) for j in range(i))
    same = torch.func.vmap(module, randomness="same")(x)
    assert torch.equal(same, same[:1].expand(4, 1000))
    assert 0.3 < (same != 0).double().mean() < 0.7
    with pytest.raises(RuntimeError, match=r"vmap: called random operation while in randomness error mode"):
        torch.func.vmap(module)(x)
    # Where nothing is random, vmap has nothing to ask.
    assert torch.equal(torch.func.vmap(module.eval())(x), activation.function(x))


@representatives
@pytest.mark.parametrize("randomness", ["different", "same"])
def test_gradients_per_sample(activation, randomness, path):
    """vmap over grad: each sample's gradient has the mask that its value had."""
    module = fused_module(activation)

    def value_and_gradient(x):
        gradient, value = torch.func.grad(lambda x: (module(x).sum(),) * 2, has_aux=True)(x)
        return value, gradient

    x = torch.ones(6, 500, device=path)
    values, gradients = torch.func.vmap(value_and_gradient, randomness=randomness)(x)
    kept = gradients != 0
    torch.testing.assert_close(values, 2 * activation.function(x[:, 0]) * kept.sum(1))
    assert (disagreement(kept[0], kept[1]) > 0.3) == (randomness == "different")
