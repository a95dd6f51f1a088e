"""Where random numbers come from: PyTorch's generators, used as PyTorch's own dropout uses them.

On a CUDA device `torch.nn.Dropout` numbers its threads, gives each a Philox4x32-10 sequence and
advances the device generator's offset. `eager_plan` and `keep_threshold` restate its rules
(aten/src/ATen/native/cuda/Dropout.cu, torch 2.7 and later), so that a fused call drops the elements
that `Dropout` would have dropped and leaves the generator where it would have left it.
"""

import functools
import struct
import threading
from typing import NamedTuple

import torch
from torch import Tensor

RNGS = ("eager",)

_BLOCK = 256  # threads per block of PyTorch's dropout kernel
_UNROLL = 4  # numbers per Philox call

_lock = threading.Lock()  # two threads' calls on one GPU must not share numbers


class Plan(NamedTuple):
    """How PyTorch's dropout kernel walks a tensor.

    Attributes:
        vec: consecutive elements that a thread takes at a time; at 1, elements a grid apart.
        blocks: blocks of 256 threads in its grid.
        increment: how far the call advances the generator's offset.
    """

    vec: int
    blocks: int
    increment: int


class Draw(NamedTuple):
    """One call's numbers: the generator's seed and offset when it was made, and its plan."""

    seed: int
    offset: int
    plan: Plan


@functools.lru_cache(maxsize=4096)
def eager_plan(
    n: int,
    itemsize: int,
    multiprocessors: int,
    threads_per_multiprocessor: int,
    alignment: int = 16,
) -> Plan:
    """The plan of `torch.nn.Dropout` for a dense CUDA tensor.

    Args:
        n: elements, at least 1.
        itemsize: bytes per element.
        multiprocessors: of the GPU.
        threads_per_multiprocessor: that can be resident on it.
        alignment: in bytes, of the pointer that dropout reads. After an activation that is a new
            allocation's, hence at least 16.
    """
    blocks = min(-(-n // _BLOCK), multiprocessors * (threads_per_multiprocessor // _BLOCK))
    vec = min(16, alignment) // itemsize or 1
    while n % vec:
        vec //= 2
    calls = (n - 1) // (_BLOCK * blocks * _UNROLL) + 1
    return Plan(vec, blocks, calls * _UNROLL)


@functools.cache
def _processors(device_index: int) -> tuple[int, int]:
    properties = torch.cuda.get_device_properties(device_index)
    return properties.multi_processor_count, properties.max_threads_per_multi_processor


def draw(input: Tensor) -> Draw:
    """Reserve the numbers for one call from the generator of `input`'s CUDA device.

    Host integers only: no kernel, no synchronisation.
    """
    index = input.get_device()
    plan = eager_plan(input.numel(), input.element_size(), *_processors(index))
    generator = torch.cuda.default_generators[index]
    with _lock:
        offset = generator.get_offset()
        generator.set_offset(offset + plan.increment)
    return Draw(generator.initial_seed(), offset, plan)


def to_float32(value: float) -> float:
    """`value` rounded to float32; OverflowError where that has no finite value."""
    rounded: float = struct.unpack("<f", struct.pack("<f", value))[0]
    return rounded


@functools.lru_cache(maxsize=4096)
def keep_threshold(p: float, double: bool) -> int:
    """How many of the 2**32 random words mean "keep": those below it.

    PyTorch makes a word r the uniform number float32(r) * 2**-32 + 2**-33, rounded to float32, and
    keeps where that is below 1 - p, a float32 (for float64 tensors, `double`, a float64). It never
    falls as r grows, so one unsigned comparison decides the same.
    """
    bound = 1.0 - p if double else to_float32(1.0 - p)
    low, high = 0, 2**32
    while low < high:
        middle = (low + high) // 2
        if to_float32(to_float32(middle) * 2.0**-32 + 2.0**-33) < bound:
            low = middle + 1
        else:
            high = middle
    return low


@functools.lru_cache(maxsize=4096)
def scales(p: float, double: bool) -> tuple[float, float]:
    """What PyTorch multiplies kept elements by, forward and backward, for 0 < p < 1.

    Both are 1 / (1 - p) in the arithmetic type. Forward rounds 1 - p first, backward does not, so
    in float32 they can be one unit in the last place apart.
    """
    if double:
        return 1.0 / (1.0 - p), 1.0 / (1.0 - p)
    return to_float32(1.0 / to_float32(1.0 - p)), to_float32(1.0 / (1.0 - p))
