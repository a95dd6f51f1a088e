"""`fuse` on models by others: torchvision's, and one of every Hugging Face configuration.

    python -m benchmarks.zoo [--only LIBRARY] [--match TEXT] [--jobs N] [--bits N] [--json FILE]

Every model is built on the meta device, Hugging Face's with few layers and no dropout at p = 0. It is called
twice in training mode, as it is and fused, with the eager composition in the kernels' place. Models that need
values run on the CPU, made small. The command counts the dropouts of a tensor that an activation returned,
and how many of them ran fused. If a model's inputs can't be guessed, only its fusion report counts.

Then N small models that have pairs run on the CPU, with the composition in the kernels' place and without.
With the same seed they have to give the same bits in training and in eval, forward and backward.

Each model runs in a process of its own. The file of `--json` is written after each model, and models that it
already has aren't run again.
"""

import argparse
import contextlib
import json
import multiprocessing
import resource
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import versions
from benchmarks.zoo.models import Model, torchvision_models, transformers_models
from benchmarks.zoo.running import compare_bits, sweep
from benchmarks.zoo.table import table

SECONDS = 60  # of the processor's time, per model
PATIENCE = 30  # times as long on the clock
CLOSE = 1e-5  # of the largest value: some activations of Hugging Face round after each of their operations
BYTES = 8 << 30  # per model

Row = dict[str, Any]


def apart(
    function: Callable[[Model, int], Row | None], models: Iterable[Model], jobs: int
) -> Iterator[Row | None]:
    """The function's rows of models, each from a process of its own, which may fail; `jobs` run at a time."""
    context = multiprocessing.get_context("fork")
    waiting = list(models)[::-1]
    running: dict[Connection, tuple[Model, float, Any]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                model = waiting.pop()
                here, there = context.Pipe(duplex=False)
                process = context.Process(target=_work, args=(function, model, there))
                process.start()
                there.close()
                running[here] = model, time.monotonic() + PATIENCE * SECONDS, process
            ready = wait(list(running), timeout=1)
            for here, (model, end, process) in list(running.items()):
                if here in ready or time.monotonic() > end:
                    ended = {"not_run": ["its process ended"]}
                    row: Row | None = {"library": model.library, "model": model.name, **ended}
                    with contextlib.suppress(EOFError):
                        row = here.recv() if here in ready else row
                    process.kill()
                    process.join()
                    del running[here]
                    yield row
    finally:
        for _, _, process in running.values():
            process.kill()


def _work(function: Callable[[Model, int], Row | None], model: Model, there: Connection) -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (BYTES, BYTES))
    there.send(function(model, SECONDS))


class Results:
    """The rows of a file, written whenever there is another one."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        kept = json.loads(path.read_text()) if path is not None and path.exists() else {}
        self.rows: list[Row] = kept.get("rows", [])
        self.bits: list[Row] = kept.get("bits", [])

    def add(self, rows: list[Row], row: Row) -> None:
        rows.append(row)
        print(json.dumps(row), flush=True)
        if self.path is not None:
            content = {"versions": versions(), "rows": self.rows, "bits": self.bits}
            self.path.write_text(json.dumps(content, indent=1) + "\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the sweeps; 1 if a model raised an error in `fuse` or when it was fused, or results differed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.zoo",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", choices=["torchvision", "transformers"])
    parser.add_argument("--match", default="", help="run only models whose name contains this")
    parser.add_argument(
        "--bits", type=int, default=25, help="number of small models on the CPU (default: 25)"
    )
    parser.add_argument("--jobs", type=int, default=1, help="number of models at a time (default: 1)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the raw results to FILE")
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    found: Iterable[Model] = [*torchvision_models(), *transformers_models()]
    models = [m for m in found if options.match in m.name and options.only in (None, m.library)]
    results = Results(options.json)
    done = {(row["library"], row["model"]) for row in results.rows}
    for row in apart(sweep, [m for m in models if m.key not in done], options.jobs):
        results.add(results.rows, row or {})
    done = {(row["library"], row["model"]) for row in results.bits}
    pairs = {(row["library"], row["model"]) for row in results.rows if row.get("fused")}
    found = sorted(models, key=lambda each: not each.tiny)  # torchvision has no small ones
    for row in apart(compare_bits, [m for m in found if m.key in pairs - done], options.jobs):
        if row is not None and "same" in row:
            results.add(results.bits, row)
        if len(results.bits) >= options.bits:
            break
    print(table(results.rows, results.bits))
    failed = any("error" in row for row in results.rows)
    return int(failed or any(row["difference"] > CLOSE for row in results.bits))


if __name__ == "__main__":
    raise SystemExit(main())
