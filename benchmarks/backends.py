"""Who computes activation + dropout here: fusedact, eager PyTorch, its compiler, and peers if installed."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

import fusedact.nn
from fusedact.activations import Activation

P = 0.5


def fused(activation: Activation) -> nn.Module:
    return _module(activation)(P)


def fast(activation: Activation) -> nn.Module:
    return _module(activation)(P, rng="fast")


def eager(activation: Activation) -> nn.Module:
    return nn.Sequential(activation.module(), nn.Dropout(P))


def _module(activation: Activation) -> Callable[..., nn.Module]:
    (found,) = (
        cls
        for cls in vars(fusedact.nn).values()
        if isinstance(cls, type) and getattr(cls, "activation", None) is activation
    )
    return found


class Xformers(nn.Module):
    """`xformers.triton.dropout`, which older releases have: ReLU and LeakyReLU(0.01), as rows of 1024."""

    def __init__(self, activation: Activation) -> None:
        from xformers.components import Activation as Theirs
        from xformers.triton import dropout

        super().__init__()
        self.dropout, self.activation = dropout, Theirs(activation.name)

    def forward(self, input: Tensor) -> Tensor:
        rows = input.view(-1, 1024)
        dropped: Tensor = self.dropout(rows, P, None, self.activation)
        return dropped.view_as(input)


# By name, each a function from an activation's row to its layer. "compiled" is eager's layer, compiled by
# whoever runs it: alone, or with the model around it.
LAYERS: dict[str, Callable[[Activation], nn.Module]] = {
    "fused": fused,
    "fast": fast,
    "eager": eager,
    "compiled": eager,
}
PEERS: dict[str, Callable[[Activation], nn.Module]] = {"xformers": Xformers}


def installed(activation: Activation) -> list[str]:
    """The peers that have this activation."""
    found = []
    for name, peer in PEERS.items():
        try:
            peer(activation)
        except (ImportError, RuntimeError, OSError, AttributeError, ValueError):
            continue  # not there, built for another torch, or without this activation
        found.append(name)
    return found


def build(backend: str, make: Callable[[Callable[[Activation], nn.Module]], nn.Module]) -> nn.Module:
    """The model that `make` builds from the backend's layers, compiled where that is the backend.

    Compiled for one shape at a time, and anew: PyTorch gives up on a function that it has compiled often.
    """
    model = make({**LAYERS, **PEERS}[backend])
    if backend != "compiled":
        return model
    torch._dynamo.reset()
    torch._functorch.config.donated_buffer = False  # one forward serves many timed backwards
    return torch.compile(model, dynamic=False)  # type: ignore[return-value]
