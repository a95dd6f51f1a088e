"""What a fused pair of calls costs beside the fused module and beside eager PyTorch, in Python.

    python -m benchmarks.pair_time [--rounds N] [--json FILE]

Three methods of a module are called in turn: `self.drop(self.act(x))` as it is written, the same in a model
that `fuse` returned, and `self.fused(x)` with the fused module. The stubs of `benchmarks.host_time` stand for
the GPU, so the host's share is measured, with 8 elements, forward alone. Rounds are short, so that some are
undisturbed; the fastest counts.
"""

import argparse
import json
import timeit
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fusedact
from benchmarks.host_time import passing_for_a_gpu
from benchmarks.machine import versions
from fusedact import rows

LIMIT = 1.5  # us, of a pair over the fused module
CALLS = 20  # per round


class _Written(nn.Module):
    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.act, self.drop = act, nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.drop(self.act(x))
        return y


class _Module(nn.Module):
    def __init__(self, fused: nn.Module) -> None:
        super().__init__()
        self.fused = fused

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fused(x)
        return y


# A row of each kind of saving, with what fuse finds and the module that users would write.
_FOUND: dict[str, tuple[type[nn.Module], type[nn.Module]]] = {
    rows.RELU.name: (nn.ReLU, fusedact.FusedReLUDropout),
    rows.LEAKY_RELU.name: (nn.LeakyReLU, fusedact.FusedLeakyDropout),
    rows.ELU.name: (nn.ELU, fusedact.FusedELUDropout),
    rows.GELU.name: (nn.GELU, fusedact.FusedGELUDropout),
}


def microseconds(model: nn.Module, rounds: int) -> float:
    """Per call, in the fastest round."""
    x = torch.randn(8, requires_grad=True)
    return min(timeit.repeat(lambda: model(x), number=CALLS, repeat=rounds)) / CALLS * 1e6


def measure(rounds: int) -> list[dict[str, Any]]:
    """One row per activation: microseconds per call of each of the three."""
    measured = []
    for name, (activation, fused) in _FOUND.items():
        written = _Written(activation())
        models = {"pair": fusedact.fuse(written), "module": _Module(fused())}
        times = {"eager": microseconds(written, rounds)}
        with passing_for_a_gpu():
            for _ in range(3):
                for way in ("pair", "module"):
                    now = microseconds(models[way], rounds)
                    times[way] = min(now, times.get(way, now))
        measured.append({"activation": name, **times})
    return measured


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table and write the raw results; 1 if a pair costs more than it may."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=1000, help=f"of {CALLS} calls each (default: 1000)")
    parser.add_argument("--json", type=Path, help="write the raw results there")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    measured = measure(options.rounds)
    print("| activation | eager, us | fused module, us | fused pair, us | pair over module, us |")
    print("|---|---:|---:|---:|---:|")
    for row in measured:
        times = row["eager"], row["module"], row["pair"], row["pair"] - row["module"]
        print(f"| {row['activation']} | " + " | ".join(f"{time:.2f}" for time in times) + " |")
    if options.json:
        options.json.write_text(json.dumps({"versions": versions(), "rows": measured}, indent=1) + "\n")
    return int(any(row["pair"] - row["module"] > LIMIT for row in measured))


if __name__ == "__main__":
    raise SystemExit(main())
