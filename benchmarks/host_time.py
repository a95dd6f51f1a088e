"""The host's share of a call: Python from a module's call to the launch, against eager PyTorch.

    python -m benchmarks.host_time [--rounds N] [--activations NAME ...] [--json FILE]

It bounds the time of small tensors. Any machine can measure it: an 8-element CPU tensor passes for a GPU's,
and stubs that do nothing stand for the compiled kernel, the generator and the stream. All else runs,
autograd included. Eager's activation and dropout do compute their 8 elements. The two alternate in one
process, and the figure is the ratio of their fastest rounds.
"""

import argparse
import collections
import contextlib
import itertools
import json
import platform
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor, nn

from benchmarks import backends
from benchmarks.machine import versions
from fusedact import _torch, dispatch
from fusedact.activations import ROWS, Activation
from fusedact.kernels import configuration
from fusedact.kernels.launcher import Kernel
from fusedact.masks import plan

CALLS = 500  # per round


class _Stub:
    """A generator that does nothing. A method that PyTorch has in C is a C function here too."""

    get_offset = staticmethod(itertools.repeat(0).__next__)
    set_offset = staticmethod(collections.deque[int](maxlen=0).append)
    initial_seed = staticmethod(itertools.repeat(42).__next__)

    def __getitem__(self, key: Any) -> "_Stub":
        return self


class _Launched(NamedTuple):
    """A stub of a compiled kernel. A launch takes any arguments and does nothing."""

    run: Any = "".format
    function: None = None
    metadata: None = None


class _Kernel(Kernel):
    """A kernel that is compiled already, for a CPU tensor's device number."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        launched: Any = _Launched()
        self._compiled[-1] = launched


def _no() -> bool:
    return False


def _forget() -> None:
    for cache in (dispatch.configured, configuration._forward_kernel, configuration._backward_kernel):
        cache.cache_clear()


@contextlib.contextmanager
def passing_for_a_gpu() -> Iterator[None]:
    """Have CPU tensors take the kernels' path, up to the launch."""
    allocators: Any = torch._C._dynamo.guards
    patches: tuple[Any, ...] = (
        mock.patch.object(configuration, "Kernel", _Kernel),
        mock.patch.object(dispatch, "_current_device", itertools.repeat(-1).__next__),
        mock.patch.object(dispatch, "_is_capturing", _no),
        mock.patch.object(_torch, "current_device", itertools.repeat(-1).__next__),
        mock.patch.object(_torch, "current_stream", {}.get),
        mock.patch.object(_torch, "_empty_on_gpu", allocators._empty_strided_cpu),
        mock.patch.object(plan, "processors", {torch.device("cpu"): (132, 2048)}.get),
        mock.patch.object(torch.cuda, "default_generators", _Stub()),
        mock.patch.object(Tensor, "is_cuda", True),
    )
    _forget()
    with contextlib.ExitStack() as stack:
        for patch in patches:
            stack.enter_context(patch)
        yield
    _forget()


def microseconds(module: nn.Module, backward: bool) -> float:
    """Return the process's CPU time per call over one round, on which other processes have little effect."""
    x, dy = torch.randn(8, requires_grad=True), torch.ones(8)
    start = time.process_time()
    for _ in range(CALLS):
        y = module(x)
        if backward:
            y.backward(dy)
            x.grad = None
    return (time.process_time() - start) / CALLS * 1e6


def measure(activations: Sequence[Activation], rounds: int) -> list[dict[str, Any]]:
    """Return two rows per activation: forward alone, and forward with backward."""
    rows = []
    for activation in activations:
        eager, fused = backends.eager(activation), backends.fused(activation)
        for backward in (False, True):
            times: dict[str, list[float]] = {"eager": [], "fused": []}
            for _ in range(rounds + 1):
                times["eager"].append(microseconds(eager, backward))
                with passing_for_a_gpu():
                    times["fused"].append(microseconds(fused, backward))
            fastest = {name: min(values[1:]) for name, values in times.items()}  # the first one warms up
            rows.append(
                {
                    "activation": activation.name,
                    "direction": "forward and backward" if backward else "forward",
                    "eager_us": fastest["eager"],
                    "fused_us": fastest["fused"],
                    "ratio": fastest["fused"] / fastest["eager"],
                }
            )
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the rows as a Markdown table."""
    lines = ["| activation | direction | eager, us | fused, us | ratio |", "|---|---|---:|---:|---:|"]
    for row in rows:
        times = f"{row['eager_us']:.1f} | {row['fused_us']:.1f} | {row['ratio']:.2f}"
        lines.append(f"| {row['activation']} | {row['direction']} | {times} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.host_time", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "--rounds", type=int, default=40, help="number of rounds, of 500 calls each (default: 40)"
    )
    parser.add_argument(
        "--activations", nargs="+", choices=list(ROWS), default=[row.name for row in backends.USUAL]
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows and the versions to FILE")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = measure([ROWS[name] for name in options.activations], options.rounds)
    print(table(rows))
    if options.json:
        content = {"versions": {**versions(), "machine": platform.machine()}, "rows": rows}
        options.json.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
