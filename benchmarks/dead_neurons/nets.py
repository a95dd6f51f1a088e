"""Many nets of one shape in one stack: each operation computes all of them."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from .regimes import HE, Arm, Optimiser

CLASSES = 10
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,
    "elu": F.elu,
}


class Stack(nn.Module):
    """One net per arm: linear layers, and after each but the last an activation and dropout.

    Nets of one seed begin with the same weights, apart from the initialisation's scale. In sum they have
    PyTorch's initialisation of `nn.Linear`, or He's (normal, gain of ReLU) with biases of 0.
    """

    p: Tensor

    def __init__(self, arms: Sequence[Arm], sizes: Sequence[int], seed: int) -> None:
        super().__init__()
        self.arms = tuple(arms)
        generator = torch.Generator().manual_seed(seed)
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for fan_in, fan_out in itertools.pairwise(sizes):
            bound = 1 / math.sqrt(fan_in)
            uniform = torch.empty(fan_in, fan_out).uniform_(-bound, bound, generator=generator)
            bias = torch.empty(1, fan_out).uniform_(-bound, bound, generator=generator)
            normal = torch.empty(fan_in, fan_out).normal_(0, math.sqrt(2 / fan_in), generator=generator)
            he = [arm.init == HE for arm in arms]
            self.weights.append(torch.stack([normal if own else uniform for own in he]))
            self.biases.append(torch.stack([bias * 0 if own else bias for own in he]))
        self.register_buffer("p", torch.tensor([arm.p for arm in arms]).view(-1, 1, 1), persistent=False)
        # Arms of one activation stand together.
        self._slices = [
            (function, slice(*span))
            for function, span in zip(_ACTIVATIONS.values(), self._spans(), strict=True)
        ]

    def _spans(self) -> Iterator[tuple[int, int]]:
        names = [arm.activation for arm in self.arms]
        for name in _ACTIVATIONS:
            first = names.index(name)
            count = names.count(name)
            assert names[first : first + count] == [name] * count, "arms of one activation stand together"
            yield first, first + count

    def forward(self, images: Tensor, masks: Generator | None = None) -> tuple[Tensor, list[Tensor]]:
        """Return logits [nets, n, 10] of images [n, 784], and each activation's input [nets, n, units].

        Dropout is on with a generator for its masks, and off without.
        """
        h = images.expand(len(self.arms), *images.shape)
        inputs = []
        last = len(self.weights) - 1
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            h = torch.baddbmm(bias, h, weight)
            if layer < last:
                inputs.append(h)
                h = torch.cat([function(h[span]) for function, span in self._slices])
                if masks is not None:
                    kept = torch.rand(h.shape, generator=masks) >= self.p
                    h = h * (kept / (1 - self.p))
        return h, inputs


def optimiser_of(stack: Stack, optimiser: Optimiser) -> torch.optim.Optimizer:
    """Return PyTorch's optimiser: of a stack it is every net's own, since no net's gradient has another's."""
    if optimiser.name == "SGD":
        return torch.optim.SGD(stack.parameters(), lr=optimiser.lr, fused=True)
    return torch.optim.Adam(stack.parameters(), lr=optimiser.lr, fused=True)


def loss_of(logits: Tensor, labels: Tensor) -> Tensor:
    """Return each net's mean cross-entropy [nets]."""
    nets, n, classes = logits.shape
    each = F.cross_entropy(
        logits.reshape(nets * n, classes), labels.expand(nets, n).reshape(-1), reduction="none"
    )
    return each.view(nets, n).mean(1)


class Measured(NamedTuple):
    """Of every net, with dropout off.

    Attributes:
        accuracy: float [nets].
        loss: float [nets].
        silent: per hidden layer bool [nets, units]: the activation's input is above 0 for no digit.
        finite: bool [nets]: no input is infinite or NaN.
    """

    accuracy: Tensor
    loss: Tensor
    silent: list[Tensor]
    finite: Tensor


@torch.no_grad()
def measure(stack: Stack, images: Tensor, labels: Tensor, chunk: int = 1000) -> Measured:
    """Measure all nets on images [n, 784] and labels [n]."""
    nets = len(stack.arms)
    right, loss, finite = torch.zeros(nets), torch.zeros(nets), torch.ones(nets, dtype=torch.bool)
    fired: list[Tensor] = []
    for some, own in zip(images.split(chunk), labels.split(chunk), strict=True):
        logits, inputs = stack(some)
        right = right + (logits.argmax(-1) == own).sum(1)
        loss = loss + loss_of(logits, own) * len(own)
        finite = finite & torch.isfinite(logits).all(-1).all(-1)
        firing = [(x > 0).any(1) for x in inputs]
        fired = [old | new for old, new in zip(fired, firing, strict=True)] if fired else firing
    n = len(labels)
    return Measured(right / n, loss / n, [~layer for layer in fired], finite)
