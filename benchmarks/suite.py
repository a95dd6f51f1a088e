"""Code shared by the suite's rows: the clock, the buffers, and the facts that a row records."""

import itertools
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.machine import describe_device, versions

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
SMALL = 64 * 128
SIZES = [SMALL, 2**16, 2**20, 2**24, 2**26, 2**28] if CUDA else [SMALL, 2**16, 2**20]
DTYPES = [torch.bfloat16, torch.float32, torch.float16] if CUDA else [torch.float32]

ROUND_SECONDS = 1e-3  # at least, so that waiting for the device at a round's end weighs little
ROW_SECONDS = 0.1  # about, unless the fewest rounds take longer
ROUNDS = (3, 50)


def synchronised_clock() -> float:
    """Seconds, once the device has done all its work.

    `conftest.py` makes it the timer of every row, so that none can be timed without synchronising, and
    `report.py` refuses rows of another timer.
    """
    if CUDA:
        torch.cuda.synchronize()
    return time.perf_counter()


def allocated() -> int:
    """Bytes of GPU memory in use; 0 without a GPU."""
    return torch.cuda.memory_allocated() if CUDA else 0


def buffers(n: int, dtype: torch.dtype) -> list[Tensor]:
    """As many inputs of n elements as are needed to exceed the L2 cache by half, one behind the other."""
    count = 1
    if CUDA:
        count += int(1.5 * torch.cuda.get_device_properties(DEVICE).L2_cache_size) // (n * dtype.itemsize)
    return list(torch.randn(count, n, device=DEVICE, dtype=dtype).unbind())


def measure(benchmark: Any, calls: Sequence[Callable[[], Any]], before: int = 0, **info: Any) -> None:
    """Time the calls in turn, some to a round; a row's length is bounded by time, not by rounds.

    Args:
        before: `allocated()` before the row allocated anything; the peak counts from there.
        info: the facts that the row records. `bytes`, moved by a call, also gives gigabytes per second.
    """
    for call in calls:  # compiles, loads, and makes every buffer resident
        start = synchronised_clock()
        call()
    seconds = synchronised_clock() - start  # the last one's
    iterations = math.ceil(ROUND_SECONDS / seconds)
    rounds = min(max(int(ROW_SECONDS / (iterations * seconds)), ROUNDS[0]), ROUNDS[1])
    if CUDA:
        torch.cuda.reset_peak_memory_stats()
    turn = itertools.cycle(calls)
    benchmark.pedantic(lambda: next(turn)(), rounds=rounds, iterations=iterations)
    benchmark.extra_info.update(
        info,
        device=describe_device(DEVICE),
        versions=versions(),
        peak_memory_bytes=torch.cuda.max_memory_allocated() - before if CUDA else None,
    )
    if benchmark.enabled and "bytes" in info:
        benchmark.extra_info["gigabytes_per_second"] = info["bytes"] / benchmark.stats.stats.median / 1e9
