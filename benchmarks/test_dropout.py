"""Fused against eager, `torch.compile` of eager, and a copy of the same bytes.

`pytest benchmarks/ --benchmark-only`. On a GPU every row is timed there, synchronised, over buffers
that together exceed the L2 cache; otherwise the same rows run on the CPU, where fused is the eager
composition. `--quick` takes the smallest and the largest size only.
"""

import functools
import platform
import shutil
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fusedact
from fusedact.activations import Activation, Saved
from fusedact.functional import ACTIVATIONS

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
SIZES = [2**e for e in (13, 16, 20, 24, 26, 28)] if CUDA else [2**13, 2**16, 2**20]
DTYPES = [torch.bfloat16, torch.float32] if CUDA else [torch.float32]
ROTATED_BYTES = 256 * 2**20  # more than any L2
P = 0.5


def fused(activation: Activation) -> Callable[[Tensor], Tensor]:
    function = getattr(fusedact.functional, f"{activation.name}_dropout")
    return lambda x: function(x, P)


def eager(activation: Activation) -> Callable[[Tensor], Tensor]:
    return nn.Sequential(activation.module(), nn.Dropout(P))


def compiled(activation: Activation) -> Callable[[Tensor], Tensor]:
    torch._dynamo.reset()
    return torch.compile(eager(activation))


def floor_bytes(activation: Activation, dtype: torch.dtype, n: int) -> dict[str, float]:
    """The bytes that the fused kernels move: the floor that the copy is given too."""
    bits = 1 / 4 if activation.saved is Saved.FLAG else 1 / 8
    forward = n * (2 * dtype.itemsize + bits)
    backward = forward + (n * dtype.itemsize if activation.saved is Saved.INPUT else 0)
    return {"forward": forward, "backward": backward, "both": forward + backward}


def run(benchmark: Any, calls: Sequence[Callable[[], Any]], moved: float, info: dict[str, Any]) -> None:
    """Time the calls in turn, each until its work is done."""
    turn = iter(range(10**12))

    def timed() -> None:
        calls[next(turn) % len(calls)]()
        if CUDA:
            torch.cuda.synchronize()

    for call in calls:  # compiles, and makes every buffer resident
        call()
    if CUDA:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    rounds = max(5, min(200, int(2**30 // moved)))
    benchmark.pedantic(timed, rounds=rounds, iterations=1, warmup_rounds=2)
    median = benchmark.stats.stats.median
    benchmark.extra_info.update(
        info,
        bytes=moved,
        gigabytes_per_second=moved / median / 1e9,
        peak_memory_bytes=torch.cuda.max_memory_allocated() if CUDA else None,
        device=torch.cuda.get_device_name() if CUDA else f"{platform.machine()} CPU",
        torch=torch.__version__,
        fusedact=fusedact.__version__,
    )


def buffers(n: int, dtype: torch.dtype) -> list[Tensor]:
    count = max(1, min(64, ROTATED_BYTES // (n * dtype.itemsize))) if CUDA else 1
    return [torch.randn(n, device=DEVICE, dtype=dtype) for _ in range(count)]


@pytest.fixture(autouse=True)
def release_memory() -> Any:
    yield
    if CUDA:
        torch.cuda.empty_cache()


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda a: a.name)
@pytest.mark.parametrize("direction", ["forward", "backward", "both"])
@pytest.mark.parametrize("backend", [fused, eager, compiled], ids=lambda b: b.__name__)
def test_activation_dropout(
    benchmark: Any,
    backend: Callable[[Activation], Callable[[Tensor], Tensor]],
    direction: str,
    activation: Activation,
    dtype: torch.dtype,
    n: int,
) -> None:
    if backend is compiled and not CUDA and n != SIZES[-1]:
        pytest.skip("torch.compile takes long to compile on a CPU: timed at the largest size only")
    if backend is compiled and not CUDA and not (shutil.which("g++") or shutil.which("clang++")):
        pytest.skip("torch.compile on a CPU needs a C++ compiler")
    function = backend(activation)
    inputs = [x.requires_grad_() for x in buffers(n, dtype)]
    gradient = torch.randn_like(inputs[0])

    def call(x: Tensor) -> Callable[[], Any]:
        if direction == "forward":
            return lambda: function(x)
        if direction == "both":
            return lambda: torch.autograd.grad(function(x), x, gradient)
        y = function(x)
        return lambda: torch.autograd.grad(y, x, gradient, retain_graph=True)

    moved = floor_bytes(activation, dtype, n)[direction]
    info = {"activation": activation.name, "dtype": str(dtype)[6:], "n": n, "direction": direction}
    run(benchmark, [call(x) for x in inputs], moved, {**info, "backend": backend.__name__})


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
def test_copy(benchmark: Any, dtype: torch.dtype, n: int) -> None:
    """The limit: a device copy, which reads and writes each element once."""
    sources = buffers(n, dtype)
    target = torch.empty_like(sources[0])
    info = {"backend": "copy", "dtype": str(dtype)[6:], "n": n}
    calls = [functools.partial(target.copy_, source) for source in sources]
    run(benchmark, calls, 2.0 * n * dtype.itemsize, info)
