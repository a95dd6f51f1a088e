"""Tables and plots of raw results, and the generated blocks of the README and the docs.

    python -m benchmarks.report RESULTS.json ... [--plots DIR]
    python -m benchmarks.report --readme README.md [--check]

The first prints tables of the suite's results (`pytest benchmarks/ --benchmark-json`). The second writes
the blocks of the README and of the pages in `docs/` beside it from the raw files in `benchmarks/results/`.
A block is the text between the markers `<!-- name -->` and `<!-- /name -->`. With `--check` nothing is
written. If a figure was not measured, the table says so.
"""

import argparse
import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.outputs import OutputError, new_figure
from benchmarks.suite import SMALL
from benchmarks.timings import (
    Figure,
    Row,
    Run,
    bandwidth,
    cell,
    figure,
    fraction,
    kept,
    load,
    microseconds,
    speed_up,
)

if TYPE_CHECKING:
    from benchmarks.machine_code.row import Row as Count

RESULTS = Path(__file__).parent / "results"
NOT_MEASURED = (
    "On a GPU: not measured yet. **No kernel has run on one.** The masks equal those of PyTorch's own GPU\n"
    "code, executed on a CPU ([the evidence](docs/randomness.md#evidence-for-the-masks))."
)

# The activations of the README's table, by row.
SHOWN = {"relu": "ReLU", "leaky_relu": "LeakyReLU", "elu": "ELU", "gelu": "GELU", "silu": "SiLU"}
# The kernels of the table of forms: those whose instructions bound them the most.
TRIED = (("relu", "fast"), ("leaky_relu", "fast"), ("gelu", "fast"), ("elu", "eager"), ("silu", "eager"))

# Tables ------------------------------------------------------------------------------------------------


def markdown(head: Sequence[str], left: int, rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table; the first `left` columns are words, and columns of dashes are left out."""
    rows = list(rows)
    columns = [i for i in range(len(head)) if i < left or any(row[i] != "-" for row in rows)]
    head, *rows = ([row[i] for i in columns] for row in (head, *rows))
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * left}{'---:|' * (len(head) - left)}"]
    return "\n".join(lines + [f"| {' | '.join(row)} |" for row in rows])


def layers(run: Run, n: int) -> str:
    """Return the table of fused layers' figures at one size."""
    others = [name for name in run.values("backend", kind="layer") if name not in ("fused", "fast")]
    head = ["activation", "dtype", "direction", "fused, us", "GB/s", "of the copy"]
    head += [f"over {name}" for name in others]
    head += ["fast, us", "fast, of the copy", "kept, B", "kept by eager, B"]
    rows = []
    for row in run.rows:
        if row.is_a(kind="layer", backend="fused", n=n):
            fast, eager = (run.beside(row, backend=name) for name in ("fast", "eager"))
            rows.append(
                [
                    *(row.info[name] for name in ("activation", "dtype", "direction")),
                    microseconds(row),
                    cell(figure([row], lambda mine: bandwidth(mine) / 1e9), "{:.1f}"),
                    cell(fraction(run, row), "{:.0%}"),
                    *(cell(speed_up(row, run.beside(row, backend=name)), "{:.2f}") for name in others),
                    microseconds(fast),
                    cell(fraction(run, fast), "{:.0%}"),
                    cell(kept(row), "{:.3f}"),
                    cell(kept(eager), "{:.3f}"),
                ]
            )
    return markdown(head, 3, rows)


def sizes(run: Run) -> str:
    """Return the speed-up of fused over eager at every size, forward and backward together."""
    found = sorted(run.values("n", kind="layer"))
    rows = []
    for dtype in run.values("dtype", kind="layer"):
        for activation in run.values("activation", kind="layer"):
            cells = []
            for n in found:
                case = {"activation": activation, "dtype": dtype, "n": n, "direction": "both"}
                fused, eager = (run.find(kind="layer", backend=name, **case) for name in ("fused", "eager"))
                cells.append(cell(speed_up(fused, eager), "{:.2f}"))
            rows.append([activation, dtype, *cells])
    return markdown(["activation", "dtype", *(f"{n:,}" for n in found)], 2, rows)


def graphs(run: Run) -> str:
    """Return the table of replays of one captured call."""
    rows = []
    for row in run.rows:
        if row.is_a(kind="graph", backend="fused"):
            fast, eager = (run.beside(row, backend=name) for name in ("fast", "eager"))
            names = [row.info[name] for name in ("activation", "dtype", "direction")]
            times = map(microseconds, (row, fast, eager))
            rows.append([*names, *times, cell(speed_up(row, eager), "{:.2f}")])
    head = ["activation", "dtype", "direction", "fused, us", "fast, us", "eager, us", "over eager"]
    return markdown(head, 3, rows)


def monitored(run: Run) -> str:
    """Return the table of fused layers with a monitor and without."""
    rows = []
    for row in run.rows:
        if row.is_a(kind="monitor", backend="monitored"):
            off = run.beside(row, backend="fused")
            names = [row.info[name] for name in ("activation", "dtype")]
            rows.append([*names, *map(microseconds, (off, row)), cell(speed_up(off, row), "{:.2f}")])
    return markdown(["activation", "dtype", "without, us", "with, us", "times as long"], 2, rows)


def steps(run: Run) -> str:
    """Return the table of training steps and of MNIST's epochs."""
    rows = []
    for row in run.rows:
        if row.info["kind"] in ("step", "mnist"):
            peak = row.info["peak_memory_bytes"]
            rows.append(
                [
                    row.info.get("model", "MNIST, an epoch"),
                    *(row.info[name] for name in ("activation", "dtype", "backend")),
                    cell(figure([row], lambda mine: mine.seconds * 1e3), "{:.2f}"),
                    cell(speed_up(row, run.beside(row, backend="eager")), "{:.2f}"),
                    cell("-" if peak is None else peak / 2**20, "{:.0f}"),
                ]
            )
    return markdown(["model", "activation", "dtype", "backend", "ms", "over eager", "peak, MiB"], 4, rows)


def text(run: Run) -> str:
    """Return the run's tables, each below a line that describes it."""
    parts = [run.title]
    found = sorted(run.values("n", kind="layer"))
    for n in dict.fromkeys(found[-1:] + found[:1]):
        parts += [f"Layers of {n:,} elements:", layers(run, n)]
    if found:
        parts += [
            "GB/s count the bytes that the fused kernels move. Kept: bytes per element for backward, beyond "
            "input and output.",
            "How many times as fast as eager, forward and backward together, by the number of elements:",
            sizes(run),
        ]
    if run.find(kind="graph"):
        parts += [f"A replayed CUDA graph of {SMALL:,} elements:", graphs(run)]
    if run.find(kind="monitor"):
        parts += ["Forward and backward with an `ActivityMonitor` and without:", monitored(run)]
    if run.find(kind="step") or run.find(kind="mnist"):
        parts += ["Training steps, the optimiser's included:", steps(run)]
    return "\n\n".join(parts)


# Plots -------------------------------------------------------------------------------------------------


def plot(run: Run, path: Path) -> None:
    """Plot figures over size, with a row of panels per dtype; rows with a wrong result are left out."""
    panels: dict[str, Callable[[Row], Figure]] = {
        "fraction of the copy's bandwidth": lambda row: fraction(run, row),
        "times as fast as eager": lambda row: speed_up(row, run.beside(row, backend="eager")),
        "times as fast as torch.compile": lambda row: speed_up(row, run.beside(row, backend="compiled")),
        "bytes per element kept for backward": kept,
    }
    dtypes = run.values("dtype", kind="layer")
    size = (5 * len(panels), 4 * len(dtypes))
    canvas = new_figure(figsize=size)
    grid = canvas.subplots(len(dtypes), len(panels), squeeze=False)
    for dtype, axes in zip(dtypes, grid, strict=True):
        for axis, (label, compute) in zip(axes, panels.items(), strict=True):
            for style, backend in (("o-", "fused"), ("s--", "fast"), ("x:", "eager")):
                for color, activation in enumerate(run.values("activation", kind="layer")):
                    case = {"kind": "layer", "direction": "both", "dtype": dtype, "activation": activation}
                    values = {
                        row.info["n"]: compute(row) for row in run.rows if row.is_a(backend=backend, **case)
                    }
                    points = sorted((n, value) for n, value in values.items() if isinstance(value, float))
                    if points:
                        name = f"{activation}, {backend}"
                        axis.plot(*zip(*points, strict=True), style, color=f"C{color}", label=name)
            axis.set(title=dtype, xlabel="elements", ylabel=label, xscale="log")
            axis.set_ylim(bottom=0)
            axis.grid(alpha=0.3)
            if axis.lines:
                axis.legend(fontsize="small")
    canvas.suptitle(run.title)
    canvas.savefig(path, dpi=100)


# Blocks of the README and the docs ----------------------------------------------------------------------


def _machine_code(results: Path) -> str:
    from benchmarks.machine_code import tables

    return tables.comparison(_counts(results), "bfloat16", "H100")


def _performance(results: Path) -> str:
    from benchmarks.machine_code import tables

    return tables.summary(_counts(results), "bfloat16", "H100", SHOWN)


def _forms(results: Path) -> str:
    from benchmarks.machine_code import row, tables

    folder = results / "machine-code"
    standing, tried = (row.load(folder / f"{name}.json") for name in ("fusedact", "forms"))
    return tables.forms(standing, tried, TRIED)


def _counts(results: Path) -> "list[Count]":
    from benchmarks.machine_code import row

    folder = results / "machine-code"
    return [each for name in ("fusedact", "peers") for each in row.load(folder / f"{name}.json")]


def _host_time(results: Path) -> str:
    from benchmarks import host_time

    return host_time.table(json.loads((results / "host-time.json").read_text())["rows"])


def _host_forms(results: Path) -> str:
    from benchmarks import host_forms

    return host_forms.table(json.loads((results / "host-forms.json").read_text())["rows"])


def _pair_time(results: Path) -> str:
    from benchmarks import pair_time

    return pair_time.table(json.loads((results / "pair-time.json").read_text())["rows"])


def _zoo(results: Path) -> str:
    from benchmarks.zoo.table import table

    content = json.loads((results / "zoo.json").read_text())
    return table(content["rows"], content["bits"])


def _mnist(results: Path) -> str:
    from benchmarks import mnist

    result = json.loads((results / "mnist-cpu" / "activation_comparison.json").read_text())
    return f"```text\n{mnist.table(mnist.summary(result['runs']), len(result['seeds']))}\n```"


def _study(results: Path) -> str:
    from benchmarks.dead_neurons import page

    return page.readme(page.load(results / "dead-neurons"))


def _gpu(results: Path) -> str:
    parts = []
    for path in sorted((results / "gpu").glob("*.json")):
        run = load(path)
        parts.append(text(run))
        if path.with_suffix(".png").exists():
            parts.append(f"![Layers on {run.device}, over size](benchmarks/results/gpu/{path.stem}.png)")
    return "\n\n".join(parts) or NOT_MEASURED


BLOCKS: dict[str, Callable[[Path], str]] = {
    "forms": _forms,
    "gpu": _gpu,
    "host forms": _host_forms,
    "host time": _host_time,
    "machine code": _machine_code,
    "mnist": _mnist,
    "study": _study,
    "pair time": _pair_time,
    "performance": _performance,
    "zoo": _zoo,
}
_BETWEEN_PAGES = "\f"  # which no page has


def rewritten(page: str, results: Path = RESULTS) -> str:
    """Return the page with every block rewritten.

    Raises:
        ValueError: a block is missing, stands twice, or has no such name.
    """
    found = re.findall(r"^<!-- (\w[^>]*) -->$", page, re.MULTILINE)
    if sorted(found) != sorted(BLOCKS):
        raise ValueError(f"blocks have to be {', '.join(sorted(BLOCKS))}, but got {', '.join(sorted(found))}")
    for name, make in BLOCKS.items():
        block = f"<!-- {name} -->\n{make(results)}\n<!-- /{name} -->"
        pattern = f"<!-- {name} -->\n.*?<!-- /{name} -->"
        if len(ends := re.findall(pattern, page, re.DOTALL)) != 1:
            raise ValueError(f"block {name} has no end: <!-- /{name} -->")
        page = page.replace(ends[0], block)
    return page


def update(readme: Path) -> dict[Path, str]:
    """Return the README and the docs beside it that differ from the results, as they have to be.

    Raises:
        ValueError: see `rewritten`; a block may stand in any page, but in one alone.
    """
    pages = {path: path.read_text() for path in [readme, *sorted(readme.parent.glob("docs/*.md"))]}
    new = rewritten(_BETWEEN_PAGES.join(pages.values())).split(_BETWEEN_PAGES)
    return {path: text for path, text in zip(pages, new, strict=True) if text != pages[path]}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__.split("\n")[0])
    parser.add_argument("results", nargs="*", type=Path, metavar="RESULTS.json", help="results of the suite")
    parser.add_argument(
        "--plots", type=Path, metavar="DIR", help="draw a plot of each results file that has layers into DIR"
    )
    parser.add_argument(
        "--readme", type=Path, metavar="FILE", help="rewrite the blocks of FILE and of docs/ beside it"
    )
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a block differs")
    options = parser.parse_args(arguments)
    if not options.results and not options.readme:
        parser.error("nothing to report: give RESULTS.json or --readme")
    try:
        for path in options.results:
            run = load(path)
            print(text(run))
            if options.plots and run.find(kind="layer"):
                options.plots.mkdir(parents=True, exist_ok=True)
                plot(run, options.plots / f"{path.stem}.png")
        if options.readme:
            changed = update(options.readme)
            if options.check and changed:
                names = ", ".join(map(str, changed))
                raise ValueError(f"differs from the results: {names}; run this without --check")
            for path, page in changed.items():
                path.write_text(page)
    except (OSError, OutputError, ValueError) as error:
        parser.exit(1, f"{parser.prog}: error: {error}\n")


if __name__ == "__main__":
    main()
