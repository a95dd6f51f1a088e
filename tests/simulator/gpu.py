"""The simulated GPUs as tests see them: what happened, what was wrong, when work runs."""

import contextlib
import ctypes
import json
from collections.abc import Iterator
from typing import Any

import torch

# A CDLL releases the GIL, which another thread's callback from the driver may need.
library = ctypes.CDLL("libcuda.so.1")
library.sim_events.restype = library.sim_violations.restype = ctypes.c_char_p
library.sim_hash.restype = library.sim_dropout_increment.restype = ctypes.c_uint64


def events(op: str | None = None) -> list[dict[str, Any]]:
    """What the driver did since `clear`, in order: launch, operator, copy, fill, synchronize, allocate, load, ..."""
    found = [json.loads(line) for line in library.sim_events().decode().splitlines()]
    return [event for event in found if op in (None, event["op"])]


def violations() -> list[str]:
    return library.sim_violations().decode().splitlines()


def clear() -> None:
    library.sim_clear()


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Work on a stream runs only when somebody waits for it, as late as a GPU may run it."""
    library.sim_defer(1)
    try:
        yield
    finally:
        for device in range(torch.cuda.device_count()):
            torch.cuda.synchronize(device)
        library.sim_defer(0)
