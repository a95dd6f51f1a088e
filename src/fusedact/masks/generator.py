"""Philox states for calls, reserved from the generator of the tensor's CUDA device."""

import threading
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .plan import Plan

_lock = threading.Lock()  # so that fused calls in two threads don't get the same numbers


class PhiloxState(NamedTuple):
    """The start of one call's random numbers.

    Attributes:
        seed: in [0, 2**64).
        offset: the generator's offset before the call, a multiple of 4.
        on_device: a seed and an offset that the kernel adds, int64 tensors of one element in device memory.
            CUDA graphs need them, since a graph bakes scalars in. None outside of graphs.
    """

    seed: int
    offset: int
    on_device: tuple[Tensor, Tensor] | None = None


def reserve(device: int, plan: Plan) -> PhiloxState:
    """Reserve the numbers of one call on that GPU. Host integers only: no kernel, no synchronisation."""
    return PhiloxState(*reserver(device, plan)())


def reserver(device: int, plan: Plan) -> Callable[[], tuple[int, int]]:
    """Return a function that reserves as `reserve` does, in less time, and returns seed and offset."""
    generator = torch.cuda.default_generators[device]
    get, put, initial_seed = generator.get_offset, generator.set_offset, generator.initial_seed
    lock, increment = _lock, plan.increment

    def reserve() -> tuple[int, int]:
        with lock:
            offset = get()
            put(offset + increment)
            return initial_seed(), offset

    return reserve


def reserve_in_capture(device: int, plan: Plan) -> PhiloxState:
    """Reserve fresh numbers for every replay of the CUDA graph that is being captured.

    From torch 2.14 on they are the numbers that `torch.nn.Dropout` would get.
    """
    generator = torch.cuda.default_generators[device]
    if not hasattr(generator, "philox_state"):
        return drawn_on_device(torch.device("cuda", device))
    with _lock:
        seed, offset, within = generator.philox_state(plan.increment)
    return PhiloxState(0, int(within), (seed, offset))


def drawn_on_device(device: torch.device) -> PhiloxState:
    """Draw a state with PyTorch's own operators, for graphs of any kind."""
    seed, offset = torch.randint(2**63 - 1, (2,), device=device).split(1)
    return PhiloxState(0, 0, (seed, offset))
