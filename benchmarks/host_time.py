"""The host's share of a call: the time from a module's call to the launch, against eager PyTorch.

    python -m benchmarks.host_time [--rounds N] [--activations NAME ...] [--json FILE]

It bounds the time of small tensors. A GPU is needed. Without one, the simulated GPU does, since the host's
code is the same, launches apart, which do nothing there:

    SIMULATOR_EXECUTE=0 python -m tests.simulator --module benchmarks.host_time

"module" is the fused module. "pair" is eager's pair of modules after `fusedact.fuse`. In each round all are
timed, in random order. A time is the median of the rounds. A ratio is the median of the rounds' ratios, since
a round's times suffer alike from a machine that is slow for a while. The fastest rounds count too, apart.
"""

import argparse
import json
import operator
import os
import platform
import random
import timeit
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

import fusedact
from benchmarks import backends
from benchmarks.machine import versions
from fusedact.activations import ROWS, Activation
from fusedact.rows import IDENTITY

WARM = 3  # calls before the rounds: they compile, and find out what calls like them can share
CALLS = 20  # per round
N = 1024  # elements


def needed_gpu() -> torch.device:
    """Return the GPU; exit if there is none."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    raise SystemExit("host time needs a GPU; to simulate one, see tests/simulator/README.md")


def on_one_core() -> None:
    """Keep this process on one core, since autograd's thread would start on another after some idle time."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def timed(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, Any]:
    """Return microseconds per call, by name, and their ratios to eager's, by "name / eager"."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        for _ in range(WARM):
            call()
    order, shuffle = list(calls), random.Random(0).shuffle
    for _ in range(rounds):
        shuffle(order)
        for name in order:
            times[name].append(timeit.timeit(calls[name], number=CALLS) / CALLS * 1e6)
    ratios = {
        f"{name} / eager": median(map(operator.truediv, times[name], times["eager"]))
        for name in calls
        if name != "eager"
    }
    fastest = {f"fastest {name}": min(each) for name, each in times.items()}
    return {**{name: median(each) for name, each in times.items()}, **ratios, **fastest}


def _step(layer: nn.Module, device: torch.device, backward: bool) -> Callable[[], object]:
    x, dy = torch.ones(N, device=device, requires_grad=True), torch.ones(N, device=device)

    def forward_and_backward() -> None:
        layer(x).backward(dy)
        x.grad = None

    return forward_and_backward if backward else lambda: layer(x)


def measure(activations: Sequence[Activation], rounds: int) -> list[dict[str, Any]]:
    """Return two rows per activation: forward alone, and forward with backward."""
    device = needed_gpu()
    rows = []
    for activation in activations:
        pair = backends.eager(activation)
        if activation is IDENTITY:  # `fuse` finds a dropout where a model calls it
            pair = nn.Sequential(pair)
        layers = {
            "eager": backends.eager(activation),
            "module": backends.fused(activation),
            "pair": fusedact.fuse(pair, lone_dropout=True),
        }
        for backward in (False, True):
            steps = {name: _step(layer, device, backward) for name, layer in layers.items()}
            direction = "forward and backward" if backward else "forward"
            rows.append({"activation": activation.name, "direction": direction, **timed(steps, rounds)})
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the rows as a Markdown table."""
    lines = [
        "| activation | direction | eager, us | module, us | pair, us | module / eager | pair / eager "
        "| module / eager, fastest | pair / eager, fastest |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        fastest = [row[f"fastest {name}"] / row["fastest eager"] for name in ("module", "pair")]
        ratios = [row["module / eager"], row["pair / eager"], *fastest]
        cells = [row["activation"], row["direction"]]
        cells += [f"{row[name]:.1f}" for name in ("eager", "module", "pair")]
        lines.append(f"| {' | '.join(cells + [f'{ratio:.2f}' for ratio in ratios])} |")
    return "\n".join(lines)


def command(
    parser: argparse.ArgumentParser,
    rounds: int,
    measured: Callable[[argparse.Namespace], list[dict[str, Any]]],
    table: Callable[[Sequence[dict[str, Any]]], str],
    arguments: Sequence[str] | None = None,
) -> None:
    """Measure by the command line's options, print the table, and write the raw results.

    Args:
        parser: has the options of this benchmark alone.
        rounds: the default of `--rounds`.
        measured: returns the rows.
        table: makes the table of them.
        arguments: the command line's; None for the process's own.
    """
    parser.add_argument(
        "--rounds",
        type=int,
        default=rounds,
        help=f"number of rounds, of {CALLS} calls each (default: {rounds})",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows and the versions to FILE")
    options = parser.parse_args(arguments)
    on_one_core()
    rows = measured(options)
    print(table(rows))
    if options.json:
        content = {"versions": {**versions(), "machine": platform.machine()}, "rows": rows}
        options.json.write_text(json.dumps(content, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.host_time", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "--activations", nargs="+", choices=list(ROWS), default=[row.name for row in backends.USUAL]
    )

    def measured(options: argparse.Namespace) -> list[dict[str, Any]]:
        return measure([ROWS[name] for name in options.activations], options.rounds)

    command(parser, 1000, measured, table)


if __name__ == "__main__":
    main()
