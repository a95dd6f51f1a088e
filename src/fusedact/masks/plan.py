"""Plans, by which kernels walk a tensor; thresholds, which decide the kept elements; and scales."""

import functools
import struct
from typing import NamedTuple

import torch

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
RNGS = ("eager", "fast")
ITERATION = 2**30  # elements, of `graph_plan`

_BLOCK = 256  # threads per block of PyTorch's dropout kernel
_UNROLL = 4  # numbers per Philox call


class Plan(NamedTuple):
    """The way in which a kernel walks a tensor.

    Attributes:
        rng: the mapping, one of `RNGS`.
        vec: the vector width. n is a multiple of it, so one bounds check serves vec consecutive elements.
        lanes: the elements that a thread handles in one access.
        blocks: the grid of PyTorch's dropout kernel, in blocks of 256 threads; 0 for fast.
        increment: the amount by which the call advances the generator's offset.
    """

    rng: str
    vec: int
    lanes: int
    blocks: int
    increment: int

    @property
    def in_memory_order(self) -> bool:
        """Whether elements are numbered in memory order; eager at vec 1 takes the tensor's logical order."""
        return self.vec > 1 or self.rng == "fast"


@functools.lru_cache(maxsize=4096)
def eager_plan(
    n: int,
    itemsize: int,
    multiprocessors: int,
    threads_per_multiprocessor: int,
    alignment: int = 16,
) -> Plan:
    """Return the plan of `torch.nn.Dropout` for a dense CUDA tensor.

    Args:
        n: number of elements, at least 1.
        itemsize: bytes per element.
        multiprocessors: the GPU's number of multiprocessors.
        threads_per_multiprocessor: the threads that can be resident on one.
        alignment: of the pointer that dropout reads, in bytes. After an activation the pointer is a new
            allocation's, so it is aligned to 16 at least.
    """
    blocks = min(-(-n // _BLOCK), multiprocessors * (threads_per_multiprocessor // _BLOCK))
    vec = min(16, alignment) // itemsize or 1
    while n % vec:
        vec //= 2
    calls = (n - 1) // (_BLOCK * blocks * _UNROLL) + 1
    return Plan("eager", vec, _UNROLL if vec == 1 else vec, blocks, calls * _UNROLL)


@functools.lru_cache(maxsize=4096)
def fast_plan(n: int, itemsize: int) -> Plan:
    """Return the fast mapping's plan for a dense tensor of `n` elements of `itemsize` bytes.

    An element's Philox counter holds its position, so a call uses up one number of each sequence.
    """
    lanes = 16 // itemsize
    return Plan("fast", 1 if n % lanes else lanes, lanes, 0, _UNROLL)


def graph_plan(rng: str, n: int, itemsize: int) -> Plan:
    """Return the plan for a compiler's graph, which has one formula for the number of tiles at every size.

    The masks differ from `torch.nn.Dropout`'s, since the compiler draws the seed itself. So eager needn't
    follow the GPU's grid: it walks the tensor in one iteration, or in iterations of ITERATION elements.
    """
    if rng == "fast":
        return fast_plan(n, itemsize)
    lanes = eager_plan(n, itemsize, 1, _BLOCK).lanes
    blocks = min(-(-n // (_BLOCK * lanes)), ITERATION // (_BLOCK * lanes))
    return eager_plan(n, itemsize, blocks, _BLOCK)


def device_plan(rng: str, n: int, itemsize: int, device: int, alignment: int = 16) -> Plan:
    """Return the plan of the mapping `rng` for a dense tensor on that GPU; `alignment`: see `eager_plan`."""
    if rng == "fast":
        return fast_plan(n, itemsize)
    return eager_plan(n, itemsize, *processors(device), alignment)


@functools.cache
def processors(device: int) -> tuple[int, int]:
    """Return a GPU's number of multiprocessors, and the threads that can be resident on one."""
    properties = torch.cuda.get_device_properties(device)
    return properties.multi_processor_count, properties.max_threads_per_multi_processor


def used_probability(p: float, rng: str) -> float:
    """Return the probability that a mapping uses for `p`, 0 < p < 1.

    eager uses `p`. fast uses the nearest multiple of 2**-16, at most 2**-17 away, but never 1. At 1 no
    element would be kept, and the scale would be infinite.
    """
    return min(round(p * 65536), 65535) / 65536 if rng == "fast" else p


def to_float32(value: float) -> float:
    """Return `value` rounded to float32; raise OverflowError if the result isn't finite."""
    rounded: float = struct.unpack("<f", struct.pack("<f", value))[0]
    return rounded


@functools.lru_cache(maxsize=4096)
def keep_threshold(p: float, double: bool, rng: str = "eager") -> int:
    """Return the threshold: an element is kept if its random 32-bit word is below it.

    eager: PyTorch turns a word r into the uniform number float32(r) * 2**-32 + 2**-33, rounded to float32.
    It keeps the element if that number is below 1 - p, a float32 (a float64 if `double`, for float64
    tensors). The number never falls as r grows, so one unsigned comparison gives the same decision.
    fast: an element's 16 bits are the high bits of its word, and `p` comes from `used_probability`.
    """
    if rng == "fast":
        return round((1.0 - p) * 2**32)
    bound = 1.0 - p if double else to_float32(1.0 - p)
    low, high = 0, 2**32
    while low < high:
        middle = (low + high) // 2
        if to_float32(to_float32(middle) * 2.0**-32 + 2.0**-33) < bound:
            low = middle + 1
        else:
            high = middle
    return low


class Scales(NamedTuple):
    """The factors by which PyTorch multiplies kept elements, in the arithmetic type."""

    forward: float
    backward: float


@functools.lru_cache(maxsize=4096)
def scales(p: float, double: bool) -> Scales:
    """Return both scales for 0 < p < 1; `double` means float64 tensors.

    Both are 1 / (1 - p). Forward rounds 1 - p first and backward does not, so in float32 they can differ by
    one unit in the last place.
    """
    if double:
        return Scales(1.0 / (1.0 - p), 1.0 / (1.0 - p))
    return Scales(to_float32(1.0 / to_float32(1.0 - p)), to_float32(1.0 / (1.0 - p)))
