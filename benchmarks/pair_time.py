"""The host time of a fused pair of calls, beside the fused module and eager PyTorch.

    python -m benchmarks.pair_time [--rounds N] [--json FILE]

A pair is written in three ways: `self.drop(self.act(x))`, the same in two statements, and in an
`nn.Sequential`. Each is called in three models: the plain one, the one that `fuse` returned, and one with the
fused module in the pair's place. Measured is a forward, as by `benchmarks.host_time`, on a GPU or a simulated
one. The table has the times of the fastest rounds.
"""

import argparse
import copy
import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

import fusedact
from benchmarks.host_time import N, command, needed_gpu, timed
from fusedact import rows


class _Nested(nn.Module):
    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.act, self.drop = act, nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.drop(self.act(x))
        return y


class _Statements(_Nested):
    def forward(self, x: Tensor) -> Tensor:
        x = self.act(x)
        x = self.drop(x)
        return x  # noqa: RET504


class _Module(nn.Module):
    def __init__(self, fused: nn.Module) -> None:
        super().__init__()
        self.fused = fused

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fused(x)
        return y


# A row of each kind of saving, with the module that fuse finds and the fused module that users would write.
_FOUND: dict[str, tuple[type[nn.Module], type[nn.Module]]] = {
    rows.RELU.name: (nn.ReLU, fusedact.FusedReLUDropout),
    rows.LEAKY_RELU.name: (nn.LeakyReLU, fusedact.FusedLeakyDropout),
    rows.ELU.name: (nn.ELU, fusedact.FusedELUDropout),
    rows.GELU.name: (nn.GELU, fusedact.FusedGELUDropout),
}


def _models(activation: type[nn.Module], fused: type[nn.Module]) -> dict[str, tuple[nn.Module, nn.Module]]:
    """Return by style of writing the pair, and the same code with the fused module in the pair's place."""
    return {
        "nested": (_Nested(activation()), _Module(fused())),
        "statements": (_Statements(activation()), _Module(fused())),
        "nn.Sequential": (nn.Sequential(activation(), nn.Dropout(0.5)), nn.Sequential(fused())),
    }


def measure(rounds: int) -> list[dict[str, Any]]:
    """One row per activation and way: microseconds per call of each of the three."""
    x = torch.ones(N, device=needed_gpu(), requires_grad=True)
    measured = []
    for name, (activation, fused) in _FOUND.items():
        for way, (written, module) in _models(activation, fused).items():
            models = {"eager": written, "pair": fusedact.fuse(copy.deepcopy(written)), "module": module}
            calls = {name: functools.partial(model, x) for name, model in models.items()}
            measured.append({"activation": name, "written": way, **timed(calls, rounds)})
    return measured


def table(measured: Sequence[dict[str, Any]]) -> str:
    """The rows in Markdown."""
    lines = [
        "| activation | written | eager, us | fused module, us | fused pair, us | pair over module, us |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for row in measured:
        times = [row[f"fastest {name}"] for name in ("eager", "module", "pair")]
        times.append(times[2] - times[1])
        cells = " | ".join(f"{time:.1f}" for time in times)
        lines.append(f"| {row['activation']} | {row['written']} | {cells} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table and write the raw results."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.pair_time", description=__doc__.splitlines()[0]
    )
    command(parser, 2000, lambda options: measure(options.rounds), table, arguments)


if __name__ == "__main__":
    main()
