"""The interface of the simulated GPUs for tests: events, violations, deferred streams."""

import contextlib
import ctypes
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import torch

# A CDLL releases the GIL, which another thread's callback from the driver may need.
library = ctypes.CDLL("libcuda.so.1")
library.sim_events.restype = library.sim_violations.restype = ctypes.c_char_p
library.sim_hash.restype = library.sim_dropout_increment.restype = ctypes.c_uint64


def events(op: str | None = None) -> list[dict[str, Any]]:
    """Return the driver's events since `clear`, in order: launch, operator, copy, load, synchronize, ..."""
    found = [json.loads(line) for line in library.sim_events().decode().splitlines()]
    return [event for event in found if op in (None, event["op"])]


def kernels_of(call: Callable[[], object]) -> list[str]:
    """Return the names of the kernels that a call runs, PyTorch's operators among them."""
    clear()
    call()
    return [e.get("kernel") or e["name"] for e in events() if e["op"] in ("launch", "operator")]


def clear() -> None:
    library.sim_clear_events()


def violations() -> list[str]:
    """Return this test's errors, those that a real GPU refuses and those that it doesn't notice."""
    return library.sim_violations().decode().splitlines()


def forget_violations() -> None:
    library.sim_clear_violations()


@contextlib.contextmanager
def provoked(pattern: str) -> Iterator[None]:
    """Require a violation in this context; it doesn't fail the test."""
    earlier = violations()
    try:
        yield
    finally:
        found = violations()[len(earlier) :]
        forget_violations()
        for sentence in earlier:
            library.sim_violation(sentence.encode())
    assert found, f"no violation: expected {pattern!r}"
    assert all(re.search(pattern, sentence) for sentence in found), found


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Delay each stream's work until a caller waits for it, as late as a GPU may run it."""
    library.sim_defer(1)
    try:
        yield
    finally:
        for device in range(torch.cuda.device_count()):
            torch.cuda.synchronize(device)
        library.sim_defer(0)
