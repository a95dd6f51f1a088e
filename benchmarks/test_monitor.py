"""The cost of an `ActivityMonitor` on a fused layer."""

import contextlib
from typing import Any

import pytest
import torch

from benchmarks.cases import activations, case, checked, dtypes, needs_memory
from benchmarks.suite import SIZES, buffers, measure
from fusedact import ActivityMonitor
from fusedact.activations import Activation, Saves


@pytest.mark.parametrize("backend", ["fused", "monitored"])
@activations
@pytest.mark.parametrize("n", SIZES[-1:])
@dtypes
def test_monitor(
    benchmark: Any, before: int, dtype: torch.dtype, n: int, activation: Activation, backend: str
) -> None:
    """Forward and backward of a fused layer of 4096 units, watched by `ActivityMonitor` or not."""
    if activation.saves is Saves.MASK:
        pytest.skip("left out: dropout alone has no units that a monitor counts")
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
