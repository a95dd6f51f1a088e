"""The masks of any GPU, computed on a CPU in plain PyTorch: the reference for the kernels' masks."""

from typing import NamedTuple

import torch
from torch import Tensor

from ..checks import check_integer, check_probability
from . import plan as plans
from .plan import DTYPES, Plan


def philox4x32(counter: tuple[Tensor, Tensor, Tensor, Tensor], seed: int, rounds: int = 10) -> list[Tensor]:
    """Compute Philox4x32 (Salmon et al., SC 2011): four words for each counter.

    Words are int64 tensors with values in [0, 2**32); `seed` is the 64-bit key.
    """
    c0, c1, c2, c3 = counter
    word = 0xFFFFFFFF
    for i in range(rounds):
        key0 = (seed + i * 0x9E3779B9) & word
        key1 = ((seed >> 32) + i * 0xBB67AE85) & word
        # int64 products wrap, which leaves all 64 bits right; the shift's sign bits are masked off.
        a, b = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1 = ((b >> 32) & word) ^ c1 ^ key0, b & word
        c2, c3 = ((a >> 32) & word) ^ c3 ^ key1, a & word
    return [c0, c1, c2, c3]


def eager_words(e: Tensor, plan: Plan, seed: int, offset: int) -> Tensor:
    """Return the random words that PyTorch's dropout kernel gives the elements at the positions `e`.

    Positions count in memory order, or at vec 1 in the tensor's logical (row-major) order. Positions and
    words are int64 tensors of one dimension. Words are in [0, 2**32).
    """
    threads = 256 * plan.blocks
    if plan.vec == 1:
        k, rest = e // (4 * threads), e % (4 * threads)
        lane, idx, call = rest // threads, rest % threads, k
    else:
        chunk, j = e // plan.vec, e % plan.vec
        k, idx = chunk // threads, chunk % threads
        call, lane = k * max(1, plan.vec // 4) + j // 4, j % 4
    call = call + offset // 4
    counter = (call & 0xFFFFFFFF, (call >> 32) & 0xFFFFFFFF, idx, torch.zeros_like(idx))
    return torch.stack(philox4x32(counter, seed)).gather(0, lane.unsqueeze(0)).squeeze(0)


def eager_mask(
    n: int,
    p: float,
    dtype: torch.dtype,
    seed: int,
    offset: int,
    multiprocessors: int,
    threads_per_multiprocessor: int,
    alignment: int = 16,
) -> Tensor:
    """Compute the elements that `torch.nn.Dropout(p)` keeps on a GPU.

    Args:
        n: number of elements of a dense tensor, at least 1.
        p: probability that an element is dropped, 0 < p < 1.
        dtype: the tensor's dtype.
        seed: the generator's `initial_seed()`.
        offset: the generator's `get_offset()` before the call, a multiple of 4.
        multiprocessors: the GPU's `multi_processor_count`.
        threads_per_multiprocessor: the GPU's `max_threads_per_multi_processor`.
        alignment: of the pointer that dropout reads, in bytes, a power of 2. An activation's new output is
            aligned to 16.

    Returns:
        bool [n], true where an element is kept, in memory order. If PyTorch's kernel doesn't vectorise (an
        odd n, say), in the tensor's logical (row-major) order.

    Raises:
        TypeError: `dtype` is not one of dropout's kernels, or `n` or another count is not an integer.
        ValueError: `n` is below 1, `p` not in (0, 1), `alignment` no power of 2, or another value isn't
            allowed.
    """
    n, p, seed, offset = _checked(n, p, seed, offset)
    if dtype not in DTYPES:
        raise TypeError(f"dtype={dtype!r}: it must be one of {', '.join(map(str, DTYPES))}")
    multiprocessors = check_integer("multiprocessors", multiprocessors, 1, 2**31)
    threads = check_integer("threads_per_multiprocessor", threads_per_multiprocessor, 256, 2**31)
    alignment = check_integer("alignment", alignment, 1, 2**31)
    if alignment & (alignment - 1):
        raise ValueError(f"alignment={alignment!r}: it must be a power of 2")
    plan = plans.eager_plan(n, dtype.itemsize, multiprocessors, threads, alignment)
    threshold = plans.keep_threshold(p, dtype is torch.float64)
    return eager_words(torch.arange(n, device="cpu"), plan, seed, offset) < threshold


class _Checked(NamedTuple):
    n: int
    p: float
    seed: int
    offset: int


def _checked(n: int, p: float, seed: int, offset: int) -> _Checked:
    n = check_integer("n", n, 1, 2**63)
    probability = check_probability(p)
    if not 0 < probability < 1:
        raise ValueError(f"p={p!r}: it must be above 0 and below 1, where a mask is drawn")
    offset = check_integer("offset", offset, 0, 2**63)
    if offset % 4:
        raise ValueError(f"offset={offset!r}: it must be a multiple of 4, as a generator's always is")
    return _Checked(n, probability, check_integer("seed", seed, 0, 2**64), offset)


def fast_numbers(e: Tensor, seed: int, offset: int) -> Tensor:
    """Return the 16 random bits that the fast mapping gives the elements at the positions `e` in memory.

    A tile of 4096 elements has 512 Philox4x32-7 counters. Each counter gives 4 words. Their high 16 bits go
    to 4 consecutive elements of the tile's first half, their low 16 bits to the elements 2048 further on.
    Positions and results are int64 tensors of one dimension. Results are in [0, 2**16).
    """
    tile, place = e // 4096, e % 4096
    quad = tile * 512 + place % 2048 // 4
    call = torch.full_like(e, offset // 4)
    counter = (call & 0xFFFFFFFF, (call >> 32) & 0xFFFFFFFF, quad & 0xFFFFFFFF, quad >> 32)
    words = torch.stack(philox4x32(counter, seed, rounds=7)).gather(0, (e % 4).unsqueeze(0)).squeeze(0)
    return torch.where(place < 2048, words >> 16, words & 0xFFFF)


def fast_mask(n: int, p: float, seed: int, offset: int) -> Tensor:
    """Compute the elements that rng="fast" keeps, the same on any GPU.

    Args:
        n: number of elements of a dense tensor, at least 1.
        p: probability that an element is dropped, 0 < p < 1. It is rounded to a multiple of 2**-16.
        seed: the generator's `initial_seed()`.
        offset: the generator's `get_offset()` before the call, a multiple of 4.

    Returns:
        bool [n], true where an element is kept, in memory order.

    Raises:
        TypeError: `n`, `seed` or `offset` is not an integer.
        ValueError: `n` is below 1, `p` not in (0, 1), or another value isn't allowed.
    """
    n, p, seed, offset = _checked(n, p, seed, offset)
    threshold = round((1.0 - plans.used_probability(p, "fast")) * 65536)
    return fast_numbers(torch.arange(n, device="cpu"), seed, offset) < threshold
