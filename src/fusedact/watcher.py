"""Who counts what goes into a call: the contract between a call's path and `fusedact.monitor`."""

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor

from .activations import Activation
from .masks.plan import Plan

# Counts from a call's signs, once they are there; see `kernels.launch.Kept`.
Counter = Callable[[Tensor], None]


class Watcher(Protocol):
    """One per watched layer."""

    def wants(self, training: bool) -> bool:
        """Whether it watches such a call."""

    def computes(self, row: Activation, values: tuple[float, ...]) -> None:
        """Note which activation a call in a fused model's code has, before the call is counted."""

    def __call__(self, input: Tensor, plan: Plan | None = None) -> Counter | None:
        """Count, before `input` may be overwritten; what signs of that plan tell may be left to a counter."""

    def compiled(self, input: Tensor, signs: Tensor, stride: Sequence[int], rng: str) -> None:
        """Count in a compiler's graph, from the signs that the operator stored of a tensor of that stride."""


Watchers = tuple[Watcher, ...]
