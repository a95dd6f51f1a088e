"""Where random numbers come from: PyTorch's generators, and two mappings from them to a mask.

- eager: on a CUDA device `torch.nn.Dropout` numbers its threads, gives each a Philox4x32-10 sequence
  and advances the device generator's offset. `eager_plan` and `keep_threshold` restate its rules
  (aten/src/ATen/native/cuda/Dropout.cu, torch 2.11 and later), so that a fused call drops the elements
  that `Dropout` would have dropped and leaves the generator where it would have left it.
- fast: 16 random bits per element from Philox4x32-7, half the numbers and less than half the
  arithmetic; docs/kernels.md says why 7 rounds are enough, and what is known against them. The mask
  is a function of seed, offset and the element's place in memory alone, and the probability is rounded
  to a multiple of 2**-16, the scale with it.
"""

import functools
import struct
import threading
from typing import Any, NamedTuple

import torch
from torch import Tensor

RNGS = ("eager", "fast")

_BLOCK = 256  # threads per block of PyTorch's dropout kernel
_UNROLL = 4  # numbers per Philox call
ITERATION = 2**30  # elements, of `graph_plan`

# The GPU that is current; None where PyTorch was built without CUDA, and kernels run in the interpreter.
current_device: Any = getattr(torch._C, "_cuda_getDevice", None)

_lock = threading.Lock()  # two of our calls on one GPU, in two threads, must not share numbers


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


class Draw(NamedTuple):
    """One call's numbers: the generator's seed, and its offset before the call.

    Attributes:
        seed: in [0, 2**64).
        offset: a multiple of 4.
        device: where a graph is to find them at every replay, a seed and an offset that are added to
            those: int64 tensors of one element on the GPU; else empty.
    """

    seed: int
    offset: int
    device: tuple[Tensor, ...] = ()


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


def plan(rng: str, n: int, itemsize: int, multiprocessors: int, threads_per_multiprocessor: int) -> Plan:
    """The plan of the mapping `rng` for a new, dense tensor."""
    if rng == "fast":
        return fast_plan(n, itemsize)
    return eager_plan(n, itemsize, multiprocessors, threads_per_multiprocessor)


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


def is_capturing(tensor: Tensor) -> bool:
    """Whether a CUDA graph is being captured on the current stream of `tensor`'s GPU, current or not."""
    with torch.cuda.device_of(tensor):
        return torch.cuda.is_current_stream_capturing()


def draw(input: Tensor, plan: Plan) -> Draw:
    """Reserve the numbers for one call from the generator of `input`'s CUDA device, which is current.

    Host integers only: no kernel, no synchronisation.
    """
    generator = torch.cuda.default_generators[input.get_device()]
    with _lock:
        offset = generator.get_offset()
        generator.set_offset(offset + plan.increment)
        seed = generator.initial_seed()
    # A plain tuple: to make the named one takes three times as long.
    return seed, offset, ()  # type: ignore[return-value]


def draw_for_graph(input: Tensor, plan: Plan) -> Draw:
    """Numbers for one call that is being captured in a CUDA graph, other ones at every replay.

    `input`'s GPU is the current one: its generator asks what the current stream captures.
    From torch 2.14 on they are those that `torch.nn.Dropout` would have had in its place.
    """
    generator = torch.cuda.default_generators[input.get_device()]
    if not hasattr(generator, "philox_state"):
        return draw_on_device(input)
    with _lock:
        seed, offset, within = generator.philox_state(plan.increment)
    return Draw(0, int(within), (seed, offset))


def draw_on_device(input: Tensor) -> Draw:
    """Numbers for one call that PyTorch draws where `input` is, for graphs of any kind."""
    seed, offset = torch.randint(2**63 - 1, (2,), device=input.device).split(1)
    return Draw(0, 0, (seed, offset))


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


@functools.lru_cache(maxsize=4096)
def scales(p: float, double: bool) -> tuple[float, float]:
    """What PyTorch multiplies kept elements by, forward and backward, for 0 < p < 1.

    Both are 1 / (1 - p) in the arithmetic type. Forward rounds 1 - p first, backward does not, so
    in float32 they can be one unit in the last place apart.
    """
    if double:
        return 1.0 / (1.0 - p), 1.0 / (1.0 - p)
    return to_float32(1.0 / to_float32(1.0 - p)), to_float32(1.0 / (1.0 - p))
