"""`fuse` on models that nobody here wrote: torchvision's, and one of every Hugging Face configuration.

    python -m benchmarks.zoo [--only torchvision|transformers] [--match TEXT] [--bits N] [--json FILE]

Every model is built on the meta device (Hugging Face's with few layers, no dropout at p = 0) and called
twice in training mode, as it is and fused, where the eager composition takes the kernels' place. Models that
need values run on the CPU, made small. Counted are the dropouts of the very tensor that an activation
returned, and how many of them ran fused. Models whose inputs nobody here knows count by their report alone.

Then N small models that have pairs run on the CPU: same seed, same bits in training and in eval, forward and
backward, with the composition in the kernels' place and without.

Each model has a process of its own. The file of `--json` is written after each model. Models that it has
aren't run again.
"""

import argparse
import json
import multiprocessing
import resource
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import versions
from benchmarks.zoo.models import Model, torchvision_models, transformers_models
from benchmarks.zoo.running import compare_bits, sweep
from benchmarks.zoo.table import table

SECONDS = 150  # per model
BYTES = 8 << 30  # per model

Row = dict[str, Any]


def apart(function: Callable[[Model, int], Row | None], model: Model) -> Row | None:
    """The function's row of a model, from a process of its own, which may fail."""
    here, there = multiprocessing.Pipe(duplex=False)

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_DATA, (BYTES, BYTES))
        there.send(function(model, SECONDS))

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    there.close()
    row: Row | None = {"library": model.library, "model": model.name, "not_run": ["its process ended"]}
    try:
        if here.poll(2 * SECONDS):
            row = here.recv()
    except EOFError:
        pass
    process.kill()
    process.join()
    return row


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
    """Run the sweeps; 1 if a model raised an error in `fuse` or when it was fused, or bits differed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=["torchvision", "transformers"])
    parser.add_argument("--match", default="", help="models whose name has it")
    parser.add_argument("--bits", type=int, default=25, help="so many small models on the CPU (default: 25)")
    parser.add_argument("--json", type=Path, help="write the raw results there")
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    found: Iterable[Model] = [*torchvision_models(), *transformers_models()]
    models = [m for m in found if options.match in m.name and options.only in (None, m.library)]
    results = Results(options.json)
    done = {(row["library"], row["model"]) for row in results.rows}
    for model in models:
        if (model.library, model.name) not in done:
            results.add(results.rows, apart(sweep, model) or {})
    done = {(row["library"], row["model"]) for row in results.bits}
    pairs = {(row["library"], row["model"]) for row in results.rows if row.get("fused")}
    for model in sorted(models, key=lambda each: not each.tiny):  # torchvision has no small ones
        if (model.library, model.name) in pairs - done and len(results.bits) < options.bits:
            row = apart(compare_bits, model)
            if row is not None and "same" in row:
                results.add(results.bits, row)
    print(table(results.rows, results.bits))
    failed = any("error" in row for row in results.rows)
    return int(failed or not all(all(row["same"].values()) for row in results.bits))


if __name__ == "__main__":
    raise SystemExit(main())
