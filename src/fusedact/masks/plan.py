"""How a kernel walks a tensor, and the numbers that decide which elements it keeps and how it scales them."""

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
    """How a kernel walks a tensor.

    Attributes:
        rng: the mapping, one of `RNGS`.
        vec: consecutive elements that exist or don't together; at 1, elements stand alone.
        lanes: elements of a thread at a time.
        blocks: eager's blocks of 256 threads; 0 for fast.
        increment: how far the call advances the generator's offset.
    """

    rng: str
    vec: int
    lanes: int
    blocks: int
    increment: int

    @property
    def in_memory_order(self) -> bool:
        """Elements are numbered as they lie in memory; eager at vec 1 takes the tensor's logical order."""
        return self.vec > 1 or self.rng == "fast"


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
    return Plan("eager", vec, _UNROLL if vec == 1 else vec, blocks, calls * _UNROLL)


@functools.lru_cache(maxsize=4096)
def fast_plan(n: int, itemsize: int) -> Plan:
    """The fast mapping's plan for a dense tensor of `n` elements of `itemsize` bytes.

    Every element's counter holds its place, so that a call uses up one number of each sequence.
    """
    lanes = 16 // itemsize
    return Plan("fast", 1 if n % lanes else lanes, lanes, 0, _UNROLL)


def graph_plan(rng: str, n: int, itemsize: int) -> Plan:
    """The plan of a compiler's graph, which serves every size with one formula for the number of tiles.

    Its masks can't be `torch.nn.Dropout`'s, whose numbers the compiler takes from elsewhere: eager
    walks the tensor in a single iteration (of ITERATION elements where there are more), on any GPU.
    """
    if rng == "fast":
        return fast_plan(n, itemsize)
    lanes = eager_plan(n, itemsize, 1, _BLOCK).lanes
    blocks = min(-(-n // (_BLOCK * lanes)), ITERATION // (_BLOCK * lanes))
    return eager_plan(n, itemsize, blocks, _BLOCK)


def device_plan(rng: str, n: int, itemsize: int, device: torch.device, alignment: int = 16) -> Plan:
    """Return the plan of the mapping `rng` for a dense tensor on that GPU; `alignment`: see `eager_plan`."""
    if rng == "fast":
        return fast_plan(n, itemsize)
    return eager_plan(n, itemsize, *processors(device), alignment)


@functools.cache
def processors(device: torch.device) -> tuple[int, int]:
    """A GPU's multiprocessors, and the threads that can be resident on one."""
    properties = torch.cuda.get_device_properties(device)
    return properties.multi_processor_count, properties.max_threads_per_multi_processor


def used_probability(p: float, rng: str) -> float:
    """The probability that a mapping uses for `p`, 0 < p < 1.

    eager's is `p`. fast's is the nearest multiple of 2**-16, at most 2**-17 away, but never 1: one of
    65,536 elements is kept even at a `p` where the nearest would leave nothing to scale up.
    """
    return min(round(p * 65536), 65535) / 65536 if rng == "fast" else p


def to_float32(value: float) -> float:
    """`value` rounded to float32; OverflowError where that has no finite value."""
    rounded: float = struct.unpack("<f", struct.pack("<f", value))[0]
    return rounded


@functools.lru_cache(maxsize=4096)
def keep_threshold(p: float, double: bool, rng: str = "eager") -> int:
    """How many of the 2**32 random words mean "keep": those below it.

    eager: PyTorch makes a word r the uniform number float32(r) * 2**-32 + 2**-33, rounded to float32,
    and keeps where that is below 1 - p, a float32 (for float64 tensors, `double`, a float64). It never
    falls as r grows, so one unsigned comparison decides the same. fast: an element's 16 bits are its
    word's high ones, and `p` is `used_probability`'s.
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
    """What PyTorch multiplies kept elements by, in the arithmetic type."""

    forward: float
    backward: float


@functools.lru_cache(maxsize=4096)
def scales(p: float, double: bool) -> Scales:
    """Return both scales for 0 < p < 1; `double`: of float64 tensors.

    Both are 1 / (1 - p). Forward rounds 1 - p first, backward does not, so in float32 they can be one
    unit in the last place apart.
    """
    if double:
        return Scales(1.0 / (1.0 - p), 1.0 / (1.0 - p))
    return Scales(to_float32(1.0 / to_float32(1.0 - p)), to_float32(1.0 / (1.0 - p)))
