"""One layer: fused against eager, `torch.compile` of eager, and a copy of the same bytes.

    pytest benchmarks/ --benchmark-only [--quick] [--activations all] [-k EXPRESSION] [--benchmark-json FILE]

On a GPU, inputs rotate over more than the L2 cache; otherwise the rows of a CPU run, where fused is the
eager composition. Every layer is checked before it is timed (`correctness.py`).
"""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks import correctness
from benchmarks.cases import BACKENDS, activations, case, checked, dtype_name, dtypes, needs_memory
from benchmarks.suite import CUDA, DEVICE, SIZES, SMALL, allocated, buffers, measure
from fusedact.activations import Activation

DIRECTIONS = ("forward", "backward", "both")


def kept_bytes(layer: nn.Module, x: Tensor) -> int | None:
    """Return the bytes that forward keeps for backward, beyond its input and its output."""
    if not CUDA:
        return None
    before = allocated()
    y: Tensor = layer(x)
    return allocated() - before - y.nbytes


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("backend", BACKENDS)
@activations
@pytest.mark.parametrize("n", SIZES)
@dtypes
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
@dtypes
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


@pytest.mark.skipif(not CUDA, reason="left out: needs a GPU for CUDA graphs")
@pytest.mark.parametrize("direction", ["forward", "both"])
@pytest.mark.parametrize("backend", ["fused", "fast", "eager"])
@activations
@dtypes
def test_graph(
    benchmark: Any, before: int, dtype: torch.dtype, activation: Activation, backend: str, direction: str
) -> None:
    """Time a replay of a captured call at 64 x 128, where launches dominate."""
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
    wrong = wrong or correctness.wrong_replay(activation, x.detach(), dy, y.detach(), dx, earlier)
    measure(
        benchmark,
        [graph.replay],
        before,
        kind="graph",
        **case(activation, backend, direction, dtype, SMALL),
        wrong=wrong,
    )
    assert wrong is None
