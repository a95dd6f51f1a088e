"""The contract between a call's path and `fusedact.monitor`, which counts the call's input."""

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor

from .activations import Activation
from .masks.plan import Plan

# Counts from a call's signs after the launch that writes them; see `kernels.launch.forward`.
Counter = Callable[[Tensor], None]


class Watcher(Protocol):
    """Counts the inputs of one watched layer."""

    def wants(self, training: bool) -> bool:
        """Return whether calls in that mode count."""

    def computes(self, row: Activation, values: tuple[float, ...]) -> None:
        """Note which activation a call in a fused model's code has, before the call is counted."""

    def __call__(self, input: Tensor, plan: Plan | None = None) -> Counter | None:
        """Count `input`, which the call may overwrite later.

        If signs of that plan will be stored, part of the work may be left to the counter returned.
        """

    def compiled(self, input: Tensor, signs: Tensor, stride: Sequence[int], rng: str) -> None:
        """Count in a compiler's graph, from the signs that the operator stored for that stride."""


Watchers = tuple[Watcher, ...]
