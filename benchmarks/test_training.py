"""Training steps: an MLP, a transformer's feed-forward block, and an epoch of the MNIST comparison.

Time and peak memory of forward, backward and optimiser together, on a GPU in bfloat16.
"""

import argparse
import functools
import gc
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks import correctness, mnist, mnist_data
from benchmarks.backends import build
from benchmarks.cases import BACKENDS, activations, dtype_name
from benchmarks.suite import CUDA, DEVICE, DTYPES, measure
from fusedact.activations import Activation

Layer = Callable[[Activation], nn.Module]
ROWS, WIDTH = (8192, 4096) if CUDA else (128, 256)


@pytest.fixture(autouse=True)
def _collected() -> Iterator[None]:
    """Collect garbage, since compiled models refer to themselves and would raise the next row's peak."""
    yield
    torch._dynamo.reset()
    gc.collect()


class FeedForward(nn.Module):
    """Of a transformer: x + W2 dropout(act(W1 norm(x))), four times as wide inside."""

    def __init__(self, layer: nn.Module, width: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), layer, nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x)  # type: ignore[no-any-return]


def mlp(layer: Layer, activation: Activation) -> nn.Module:
    """Three hidden layers."""
    hidden = [part for _ in range(3) for part in (nn.Linear(WIDTH, WIDTH), layer(activation))]
    return nn.Sequential(*hidden, nn.Linear(WIDTH, WIDTH))


def feed_forward(layer: Layer, activation: Activation) -> nn.Module:
    return FeedForward(layer(activation), WIDTH // 4)


def model(make: Callable[[Layer, Activation], nn.Module], backend: str, activation: Activation) -> nn.Module:
    """The same parameters for every backend."""
    torch.manual_seed(0)
    return build(backend, lambda layer: make(layer, activation).to(DEVICE, DTYPES[0]))


def seeded(net: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """The loss from a fixed seed, and the first parameter's gradient."""
    torch.manual_seed(correctness.SEED)
    loss = net(x).float().square().mean()
    return loss.detach(), torch.autograd.grad(loss, next(net.parameters()))[0]


def wrong_step(backend: str, net: nn.Module, eager: nn.Module, x: Tensor) -> str | None:
    """Against eager's: the same masks give the same figures, other masks nearly the same loss."""
    (loss, gradient), (its_loss, its_gradient) = seeded(net, x), seeded(eager, x)
    tight = max(4 * torch.finfo(x.dtype).eps, 1e-4)
    same = backend in ("fused", "eager")
    if not torch.allclose(loss, its_loss, rtol=tight if same else 0.05):
        return "the loss is not eager's"
    if same and (gradient - its_gradient).abs().max() > tight * its_gradient.abs().max():
        return "the gradient is not eager's of the same seed"
    return None


@activations
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("make", [mlp, feed_forward], ids=lambda make: make.__name__)
def test_step(
    benchmark: Any,
    before: int,
    make: Callable[[Layer, Activation], nn.Module],
    backend: str,
    activation: Activation,
) -> None:
    net = model(make, backend, activation)
    x = torch.randn(ROWS, WIDTH if make is mlp else WIDTH // 4, device=DEVICE, dtype=DTYPES[0])
    wrong = wrong_step(backend, net, model(make, "eager", activation), x)
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        optimiser.zero_grad()
        net(x).float().square().mean().backward()
        optimiser.step()

    measure(
        benchmark,
        [step],
        before,
        kind="step",
        model=make.__name__,
        activation=activation.name,
        backend=backend,
        dtype=dtype_name(DTYPES[0]),
        n=x.numel(),
        wrong=wrong,
    )
    assert wrong is None


@functools.cache
def digits() -> mnist_data.Digits:
    """The embedded sample's; on a CPU only 2,000 to train with."""
    found = mnist_data.sample().to(DEVICE)
    few = None if CUDA else 2000
    return replace(found, train_images=found.train_images[:few], train_labels=found.train_labels[:few])


def epoch(name: str, backend: str) -> dict[str, Any]:
    """Of the MNIST comparison: 784-128-10, batches of 64; the figures at its end."""
    options = argparse.Namespace(backend=backend, hidden=128, p=0.5, lr=1e-3, epochs=1, batch_size=64)
    with tqdm(disable=True) as silent:
        found: dict[str, Any] = mnist.train(name, 0, digits(), options, silent)["epochs"][-1]
    return found


expected = functools.cache(functools.partial(epoch, backend="eager"))


@pytest.mark.parametrize("backend", ["fused", "eager"])
@pytest.mark.parametrize("name", mnist.NETS)
def test_mnist_epoch(benchmark: Any, before: int, name: str, backend: str) -> None:
    """End to end."""
    mine, theirs = epoch(name, backend), expected(name)
    near = abs(mine["loss"] - theirs["loss"]) < 5e-3 and abs(mine["accuracy"] - theirs["accuracy"]) < 1
    wrong = None if near else "loss or accuracy is not eager's of the same seed"
    measure(
        benchmark,
        [functools.partial(epoch, name, backend)],
        before,
        kind="mnist",
        activation=name,
        backend=backend,
        dtype="float32",
        wrong=wrong,
    )
    assert wrong is None
