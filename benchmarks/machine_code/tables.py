"""Markdown tables of counts."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from benchmarks.machine_code.roofline import GPUS
from benchmarks.machine_code.row import Row

# By the attribute, the column's head.
_COLUMNS = {
    "backend": "backend",
    "kernel": "kernel",
    "activation": "activation",
    "dtype": "dtype",
    "rng": "rng",
    "target": "target",
    "instructions_per_element": "instructions / element",
    "alu": "ALU",
    "fma": "FMA",
    "fma_heavy": "FMA-heavy",
    "xu": "XU",
    "memory": "memory",
    "shared_bytes": "shared, B",
    "barriers": "barriers",
    "spill_bytes": "spills, B",
    "registers": "registers",
    "narrow_accesses": "narrow accesses",
    "bytes_per_element": "moved, B / element",
    "saved_bytes_per_element": "kept, B / element",
}
_WORDS = 6  # columns of words, the others have figures
HEAD = "\n".join(
    [
        f"| {' | '.join(_COLUMNS.values())} | predicted |",
        f"|{'---|' * _WORDS}{'---:|' * (len(_COLUMNS) - _WORDS)}---|",
    ]
)


def line(row: Row) -> str:
    """Return a row's line, below `HEAD`."""
    predicted = ", ".join(
        f"{gpu}: {found['picoseconds']} ps by {found['bound_by']}" for gpu, found in row.predicted.items()
    )
    return f"| {' | '.join(_cell(getattr(row, name)) for name in _COLUMNS)} | {predicted} |"


def _cell(value: object) -> str:
    return "-" if value is None else str(value)


class Pair(NamedTuple):
    """Both kernels of one way to compute a pair."""

    forward: Row
    backward: Row

    def cell(self, figure: Callable[[Row], float]) -> str:
        """Return the figure of both."""
        return f"{figure(self.forward):.4g} + {figure(self.backward):.4g}"

    def picoseconds(self, gpu: str) -> float:
        """Return the predicted time of both, per element."""
        return sum(float(row.predicted[gpu]["picoseconds"]) for row in self)


# By the column's head, the backend and the mapping.
_WAYS = {
    "eager": ("fusedact", "eager"),
    "fast": ("fusedact", "fast"),
    "torch.compile": ("torch.compile", ""),
}


def pairs(rows: Sequence[Row], dtype: str, gpu: str) -> dict[str, dict[str, Pair]]:
    """Return by activation, and by the names of `_WAYS`, the pairs that are whole on a GPU's target."""
    target = next(each.target for each in GPUS if each.name == gpu)
    found = {
        (row.activation, row.backend, row.rng, row.kernel): row
        for row in rows
        if row.dtype == dtype and row.target == target
    }
    result: dict[str, dict[str, Pair]] = {}
    for activation in dict.fromkeys(row.activation for row in rows):
        ways = result.setdefault(activation, {})
        for name, way in _WAYS.items():
            both = [found.get((activation, *way, kernel)) for kernel in Pair._fields]
            whole = [row for row in both if row is not None]
            if len(whole) == len(both):
                ways[name] = Pair(*whole)
    return result


def comparison(rows: Sequence[Row], dtype: str, gpu: str) -> str:
    """Return a Markdown table of fusedact beside torch.compile, forward + backward, on one GPU."""
    head = ["activation", *(f"instructions, {name}" for name in _WAYS)]
    head += ["moved, B", "by torch.compile", "kept, B", "by torch.compile"]
    head += [f"predicted, ps, {name}" for name in _WAYS] + ["over torch.compile, eager", "fast"]
    lines = [f"| {' | '.join(head)} |", f"|---|{'---:|' * (len(head) - 1)}"]
    for activation, ways in pairs(rows, dtype, gpu).items():
        mine, other = ways.get("eager"), ways.get("torch.compile")
        cells = [activation]
        for pair in map(ways.get, _WAYS):
            cells.append(pair.cell(lambda row: row.instructions_per_element) if pair else "-")
        for pair in (mine, other):
            cells.append(pair.cell(lambda row: row.bytes_per_element) if pair else "-")
        for pair in (mine, other):
            cells.append(f"{pair.forward.saved_bytes_per_element:.4g}" if pair else "-")
        for pair in map(ways.get, _WAYS):
            cells.append(f"{pair.picoseconds(gpu):.2f}" if pair else "-")
        for pair in (mine, ways.get("fast")):
            cells.append(f"{other.picoseconds(gpu) / pair.picoseconds(gpu):.2f}" if pair and other else "-")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def summary(rows: Sequence[Row], dtype: str, gpu: str, names: Mapping[str, str]) -> str:
    """Return a Markdown table of sums over forward and backward, on one GPU: fusedact beside torch.compile.

    Args:
        rows: the counts of both.
        dtype: of the tensors.
        gpu: the GPU's name in `GPUS`.
        names: the activations shown, in order, each with its name in the table.
    """
    found = pairs(rows, dtype, gpu)
    figures: dict[str, Callable[[Pair], float]] = {
        "bytes moved": lambda pair: sum(row.bytes_per_element for row in pair),
        "bytes kept for backward": lambda pair: pair.forward.saved_bytes_per_element,
        "instructions": lambda pair: sum(row.instructions_per_element for row in pair),
    }
    head = ["activation"]
    for name in figures:
        head += [f"{name}, fusedact", "torch.compile"]
    head.append("predicted speed-up over torch.compile")
    lines = [f"| {' | '.join(head)} |", f"|---|{'---:|' * (len(head) - 1)}"]
    for activation, shown in names.items():
        mine, other = found[activation]["eager"], found[activation]["torch.compile"]
        cells = [shown]
        for figure in figures.values():
            cells += [f"{figure(pair):.4g}" for pair in (mine, other)]
        cells.append(f"{other.picoseconds(gpu) / mine.picoseconds(gpu):.2f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def forms(standing: Sequence[Row], tried: Sequence[Row], shown: Sequence[tuple[str, str]]) -> str:
    """Return a Markdown table of forward's instructions per element, in the form that stands and in others.

    Args:
        standing: the counts of the kernels as they are.
        tried: the counts of other forms, whose backend is the form.
        shown: the activation and the `rng` of each column.
    """
    dtype, target = tried[0].dtype, tried[0].target
    found = {
        (row.backend, row.activation, row.rng): f"{row.instructions_per_element:.2f}"
        for row in [*standing, *tried]
        if (row.kernel, row.dtype, row.target) == ("forward", dtype, target)
    }
    lines = [
        f"| form | {' | '.join(f'{activation}, {rng}' for activation, rng in shown)} |",
        f"|---|{'---:|' * len(shown)}",
    ]
    for backend in dict.fromkeys(["fusedact", *(row.backend for row in tried)]):
        name = "as it stands" if backend == "fusedact" else backend
        figures = [found[backend, activation, rng] for activation, rng in shown]
        lines.append(f"| {name} | {' | '.join(figures)} |")
    return "\n".join(lines)
