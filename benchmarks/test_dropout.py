"""One layer: fused against eager, `torch.compile` of eager, peers, and a copy of the same bytes.

    pytest benchmarks/ --benchmark-only [--quick] [-k EXPRESSION] [--benchmark-json FILE]

On a GPU, inputs rotate over more than the L2 cache; otherwise the rows of a CPU run, where fused is the
eager composition. Every layer is checked before it is timed (`correctness.py`).
"""

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks import correctness
from benchmarks.backends import LAYERS, PEERS, build, installed
from benchmarks.suite import CUDA, DEVICE, DTYPES, SIZES, SMALL, allocated, buffers, measure
from fusedact import ActivityMonitor
from fusedact.activations import Activation, Saved
from fusedact.functional import ACTIVATIONS

DIRECTIONS = ("forward", "backward", "both")


def floor_bytes(activation: Activation, dtype: torch.dtype, n: int) -> dict[str, float]:
    """The bytes that the fused kernels move, per direction. Every backend's gigabytes are counted so."""
    bits = 1 / 4 if activation.saved is Saved.FLAG else 1 / 8
    forward = n * (2 * dtype.itemsize + bits)
    backward = forward + (n * dtype.itemsize if activation.saved is Saved.INPUT else 0)
    return {"forward": forward, "backward": backward, "both": forward + backward}


def cases() -> list[Any]:
    """Backends by activation, the CPU's without what is the same there."""
    backends = [name for name in LAYERS if CUDA or name != "fast"]
    return [
        pytest.param(activation, name, id=f"{activation.name}-{name}")
        for activation in ACTIVATIONS
        for name in backends + (installed(activation) if CUDA else [])
    ]


@functools.lru_cache(maxsize=1)  # the three directions follow each other
def checked(backend: str, activation: Activation, dtype: torch.dtype, n: int) -> tuple[nn.Module, str | None]:
    """The layer, and what is wrong with it at this size. A peer may fail to run with this PyTorch."""
    x, dy = torch.randn(2, n, device=DEVICE, dtype=dtype).unbind()
    try:
        layer = build(backend, lambda make: make(activation))
        return layer, correctness.wrong(backend, activation, layer, x, dy)
    except Exception as error:
        if backend in PEERS:
            pytest.skip(f"left out: {backend} fails: {type(error).__name__}: {error}")
        raise


def kept_bytes(layer: nn.Module, x: Tensor) -> int | None:
    """What forward leaves allocated for backward, beyond its input and its output."""
    if not CUDA:
        return None
    before = allocated()
    y: Tensor = layer(x)
    return allocated() - before - y.nbytes


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def case(activation: Activation, backend: str, direction: str, dtype: torch.dtype, n: int) -> dict[str, Any]:
    """What a layer's row says of its case."""
    return {
        "activation": activation.name,
        "backend": backend,
        "direction": direction,
        "dtype": dtype_name(dtype),
        "n": n,
        "bytes": floor_bytes(activation, dtype, n)[direction],
    }


def needs_memory(nbytes: int) -> None:
    if CUDA and torch.cuda.mem_get_info()[0] < nbytes:
        pytest.skip(f"left out: needs {nbytes / 2**30:.0f} GiB of GPU memory")


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(("activation", "backend"), cases())
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_layer(
    benchmark: Any,
    before: int,
    backend: str,
    direction: str,
    activation: Activation,
    dtype: torch.dtype,
    n: int,
) -> None:
    if backend == "compiled" and not CUDA and n != SIZES[-1]:
        pytest.skip("left out: on a CPU, torch.compile is timed at the largest size only")
    needs_memory(16 * n * dtype.itemsize)
    layer, wrong = checked(backend, activation, dtype, n)
    inputs = [x.requires_grad_() for x in buffers(n, dtype)]
    gradient = torch.randn_like(inputs[0])
    kept = kept_bytes(layer, inputs[0])

    def call(x: Tensor) -> Callable[[], Any]:
        if direction == "forward":
            return lambda: layer(x)
        if direction == "both":
            return lambda: torch.autograd.grad(layer(x), x, gradient)
        y = layer(x)
        return lambda: torch.autograd.grad(y, x, gradient, retain_graph=True)

    measure(
        benchmark,
        [call(x) for x in inputs],
        before,
        kind="layer",
        **case(activation, backend, direction, dtype, n),
        kept_bytes=kept,
        wrong=wrong,
    )
    assert wrong is None


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_copy(benchmark: Any, before: int, dtype: torch.dtype, n: int) -> None:
    """The limit: a device copy, which reads and writes each element once."""
    needs_memory(4 * n * dtype.itemsize)
    sources = buffers(n, dtype)
    target = torch.empty_like(sources[0])
    measure(
        benchmark,
        [functools.partial(target.copy_, source) for source in sources],
        before,
        kind="copy",
        backend="copy",
        dtype=dtype_name(dtype),
        n=n,
        bytes=2 * n * dtype.itemsize,
        wrong=None,
    )


@pytest.mark.parametrize("backend", ["fused", "monitored"])
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda activation: activation.name)
@pytest.mark.parametrize("n", SIZES[-1:])
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_monitor(
    benchmark: Any, before: int, dtype: torch.dtype, n: int, activation: Activation, backend: str
) -> None:
    """Forward and backward of a fused layer of 4096 units, watched by `ActivityMonitor` or not."""
    needs_memory(16 * n * dtype.itemsize)
    layer, wrong = checked("fused", activation, dtype, n)
    inputs = [x.view(-1, 4096).requires_grad_() for x in buffers(n, dtype)]
    gradient = torch.randn_like(inputs[0])
    with ActivityMonitor(layer) if backend == "monitored" else contextlib.nullcontext() as monitor:
        if monitor:
            layer(inputs[0])
            (figures,) = monitor.end_window().layers
            right = torch.equal(figures.fired, (inputs[0] > 0).sum(0).cpu())
            wrong = wrong or (None if right else "the monitor's counts")
        measure(
            benchmark,
            [lambda x=x: torch.autograd.grad(layer(x), x, gradient) for x in inputs],  # type: ignore[misc]
            before,
            kind="monitor",
            **case(activation, backend, "both", dtype, n),
            wrong=wrong,
        )
    assert wrong is None


@pytest.mark.skipif(not CUDA, reason="left out: needs a GPU for CUDA graphs")
@pytest.mark.parametrize("direction", ["forward", "both"])
@pytest.mark.parametrize("backend", ["fused", "fast", "eager"])
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda activation: activation.name)
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_graph(
    benchmark: Any, before: int, dtype: torch.dtype, activation: Activation, backend: str, direction: str
) -> None:
    """A replay of a captured call at 64 x 128, where launches are what costs."""
    layer, wrong = checked(backend, activation, dtype, SMALL)
    x = (torch.randn(SMALL, device=DEVICE, dtype=dtype).abs_() + 1).requires_grad_()
    dy = torch.randn_like(x)

    def step() -> tuple[Tensor, Tensor | None]:
        y = layer(x)
        return y, torch.autograd.grad(y, x, dy)[0] if direction == "both" else None

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y, dx = step()
    graph.replay()
    earlier = y.detach().clone()
    graph.replay()
    wrong = wrong or correctness.wrong_replay(x.detach(), dy, y.detach(), dx, earlier)
    measure(
        benchmark,
        [graph.replay],
        before,
        kind="graph",
        **case(activation, backend, direction, dtype, SMALL),
        wrong=wrong,
    )
    assert wrong is None
