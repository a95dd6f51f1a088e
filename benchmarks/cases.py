"""The suite's cases: activations by dtypes, backends and sizes, and the layer of each, checked."""

import functools
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks import correctness
from benchmarks.backends import EVERY, LAYERS, build
from benchmarks.suite import CUDA, DEVICE, DTYPES
from fusedact.activations import Activation, Saves

BACKENDS = [name for name in LAYERS if CUDA or name != "fast"]  # on a CPU fast is the composition too


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


activations = pytest.mark.parametrize("activation", EVERY, ids=lambda activation: activation.name)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)


def needs_memory(nbytes: int) -> None:
    if CUDA and torch.cuda.mem_get_info()[0] < nbytes:
        pytest.skip(f"left out: needs {nbytes / 2**30:.0f} GiB of GPU memory")


def floor_bytes(activation: Activation, dtype: torch.dtype, n: int) -> dict[str, float]:
    """Return the bytes that the fused kernels move, per direction; every backend's GB/s count these bytes."""
    bits = 1 / 4 if activation.saves is Saves.TWO_BITS else 1 / 8
    forward = n * (2 * dtype.itemsize + bits)
    backward = forward + (n * dtype.itemsize if activation.saves is Saves.INPUT else 0)
    return {"forward": forward, "backward": backward, "both": forward + backward}


def case(activation: Activation, backend: str, direction: str, dtype: torch.dtype, n: int) -> dict[str, Any]:
    """Return the facts about its case that a layer's row records."""
    return {
        "activation": activation.name,
        "backend": backend,
        "direction": direction,
        "dtype": dtype_name(dtype),
        "n": n,
        "bytes": floor_bytes(activation, dtype, n)[direction],
    }


@functools.lru_cache(maxsize=1)  # the three directions follow each other
def checked(backend: str, activation: Activation, dtype: torch.dtype, n: int) -> tuple[nn.Module, str | None]:
    """Return the layer, and its error at this size or None."""
    x, dy = torch.randn(2, n, device=DEVICE, dtype=dtype).unbind()
    layer = build(backend, lambda make: make(activation))
    return layer, correctness.wrong(backend, activation, layer, x, dy)
