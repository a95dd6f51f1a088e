"""Does dropout make ReLU units die? Many small nets on MNIST, and a test for each thing said about it.

    python benchmarks/dead_neurons.py

trains every combination of activation, p, learning rate, initialisation, optimiser, depth and seed of a
reduced grid (`--full` for the whole one), and writes `dead_neurons.json`, `dead-neurons.png` and
`dead-neurons.md`. An interrupted run goes on where it stopped: nets that are done are kept in `parts/`.

Nets that share activation, learning rate, optimiser and depth are a part and train at once: their units stand
beside each other, so that the first layer of all of them is one matrix product. They see the same batches.
Nets of one seed start from the same numbers, whatever else differs, so that comparisons are paired.

A unit is dead if it fires for none of the test images, counted by `fusedact.ActivityMonitor` in eval mode.
"""

import argparse
import importlib.util
import itertools
import json
import math
import os
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

import fusedact

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.machine import describe_device, versions
from benchmarks.mnist_data import DataError, Digits, load

# What the study compares, and its page speaks of: not every activation that there is.
MODULES: dict[str, Callable[[float], nn.Module]] = {
    cls.activation.module.__name__: cls
    for cls in (fusedact.FusedReLUDropout, fusedact.FusedLeakyDropout, fusedact.FusedELUDropout)
}
NEGATIVE_BIAS = -1.0


@dataclass(frozen=True)
class Grid:
    """What is varied, and what all nets have in common.

    Attributes:
        init: "default" (PyTorch's), "he" (normal of variance 2 / fan-in, biases 0), "negative" (PyTorch's,
            but all hidden biases -1).
        depth: hidden layers.
        hidden: units of each.
    """

    activation: tuple[str, ...] = tuple(MODULES)
    p: tuple[float, ...] = (0.0, 0.2, 0.5, 0.8)
    lr: tuple[float, ...] = (1e-3, 1e-2, 1e-1)
    init: tuple[str, ...] = ("default", "he", "negative")
    optimiser: tuple[str, ...] = ("Adam", "SGD")
    depth: tuple[int, ...] = (1, 4)
    seeds: int = 5
    hidden: int = 128
    epochs: int = 5
    batch_size: int = 256

    def parts(self) -> Iterator["Part"]:
        """In the order in which they train."""
        for combination in itertools.product(self.depth, self.optimiser, self.lr, self.activation):
            yield Part(*combination)

    def nets(self) -> list[tuple[float, str, int]]:
        """p, init and seed of each net in a part, in the order in which their units stand."""
        return list(itertools.product(self.p, self.init, range(self.seeds)))


REDUCED = Grid(p=(0.0, 0.5, 0.8), lr=(1e-3, 1e-1), hidden=32, epochs=1)


@dataclass(frozen=True)
class Part:
    """What the nets that train at once share."""

    depth: int
    optimiser: str
    lr: float
    activation: str

    @property
    def name(self) -> str:
        return f"{self.activation}-depth{self.depth}-{self.optimiser}-lr{self.lr:g}"


class Nets(nn.Module):
    """All nets of a part: 784 - hidden x depth - 10, their units beside each other.

    Shape: images [n, 784] to logits [n, nets, 10].
    """

    def __init__(self, grid: Grid, part: Part) -> None:
        super().__init__()
        self.nets, self.hidden = len(grid.nets()), grid.hidden
        sizes = [784] + [grid.hidden] * part.depth + [10]
        made = [_initial(sizes, init, seed) for _, init, seed in grid.nets()]
        self.weights = nn.ParameterList(
            torch.stack([net[i][0] for net in made]) for i in range(len(sizes) - 1)
        )
        self.biases = nn.ParameterList(
            torch.stack([net[i][1] for net in made]) for i in range(len(sizes) - 1)
        )
        # The first layer's weights as one matrix [784, nets * hidden].
        self.weights[0] = nn.Parameter(self.weights[0].data.permute(1, 0, 2).reshape(784, -1).contiguous())
        self.ps, self.depth = len(grid.p), part.depth
        # Layer by layer, one for each p.
        self.dropouts = nn.ModuleList(MODULES[part.activation](p) for _ in range(part.depth) for p in grid.p)

    def forward(self, images: Tensor) -> Tensor:
        x = torch.addmm(self.biases[0].flatten(), images, self.weights[0])  # [n, nets * hidden]
        for i in range(self.depth):
            if i:
                x = self._layer(x, i).flatten(1)
            chunks = x.chunk(self.ps, 1)  # nets of the same p stand beside each other
            x = torch.cat([self.dropouts[i * self.ps + k](chunk) for k, chunk in enumerate(chunks)], 1)
        return self._layer(x, self.depth)

    def _layer(self, x: Tensor, i: int) -> Tensor:
        x = x.view(len(x), self.nets, self.hidden).transpose(0, 1)
        return torch.baddbmm(self.biases[i].unsqueeze(1), x, self.weights[i]).transpose(0, 1)


def _initial(sizes: list[int], init: str, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Weights [in, out] and biases of each layer of one net."""
    generator = torch.Generator().manual_seed(seed)
    layers = []
    for i, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
        bound = fan_in**-0.5
        weight = torch.empty(fan_in, fan_out).uniform_(-bound, bound, generator=generator)
        bias = torch.empty(fan_out).uniform_(-bound, bound, generator=generator)
        last = i == len(sizes) - 2
        if init == "he":
            weight.normal_(0, (2 / fan_in) ** 0.5, generator=generator)
            bias.zero_()
        elif init == "negative" and not last:
            bias.fill_(NEGATIVE_BIAS)
        layers.append((weight, bias))
    return layers


@torch.no_grad()
def evaluate(nets: Nets, grid: Grid, digits: Digits) -> list[dict[str, Any]]:
    """Per net: accuracy on the test images, and per layer the fractions of dead and of dormant units."""
    nets.eval()
    right = torch.zeros(nets.nets, device=digits.test_labels.device)
    finite = torch.ones_like(right, dtype=torch.bool)
    with fusedact.ActivityMonitor(nets, stride=1) as monitor:
        for images, labels in zip(
            digits.test_images.split(1000), digits.test_labels.split(1000), strict=True
        ):
            logits = nets(images)
            right += (logits.argmax(2) == labels.unsqueeze(1)).sum(0)
            finite &= logits.isfinite().all(2).all(0)
    nets.train()
    layers = monitor.report().layers  # per hidden layer one for each p
    dead, dormant = [], []
    for i in range(0, len(layers), len(grid.p)):
        per_p = layers[i : i + len(grid.p)]
        fired = torch.cat([layer.fired for layer in per_p]).view(nets.nets, -1)
        activity = torch.cat([layer.activity for layer in per_p]).view(nets.nets, -1)
        dead.append((fired == 0).double().mean(1))
        dormant.append((activity <= monitor.tau * activity.mean(1, keepdim=True)).double().mean(1))
    return [
        {
            "accuracy": right[k].item() / len(digits.test_labels),
            "finite": bool(finite[k]),
            "dead": [layer[k].item() for layer in dead],
            "dormant": [layer[k].item() for layer in dormant],
        }
        for k in range(nets.nets)
    ]


def train(grid: Grid, part: Part, digits: Digits, progress: "tqdm[Any]") -> list[dict[str, Any]]:
    """One part's nets: a row for each."""
    device = digits.train_images.device
    torch.manual_seed(0)  # the masks'
    nets = Nets(grid, part).to(device)
    start = evaluate(nets, grid, digits)
    optimiser: torch.optim.Optimizer
    if part.optimiser == "Adam":
        optimiser = torch.optim.Adam(nets.parameters(), lr=part.lr, fused=True)
    else:
        optimiser = torch.optim.SGD(nets.parameters(), lr=part.lr)
    order = torch.Generator().manual_seed(0)
    for _ in range(grid.epochs):
        permutation = torch.randperm(len(digits.train_labels), generator=order).to(device)
        for batch in permutation.split(grid.batch_size):
            logits = nets(digits.train_images[batch])
            labels = digits.train_labels[batch].repeat_interleave(nets.nets)
            # The sum over nets of the mean over digits: each net has the gradient that it would have alone.
            loss = F.cross_entropy(logits.flatten(0, 1), labels, reduction="sum") / len(batch)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            progress.update()
    return [
        {**asdict(part), "p": p, "init": init, "seed": seed, "dead_at_start": before["dead"], **after}
        for (p, init, seed), before, after in zip(
            grid.nets(), start, evaluate(nets, grid, digits), strict=True
        )
    ]


# Parts that are done ----------------------------------------------------------------------------------


def load_part(path: Path, grid: Grid, part: Part, source: str) -> list[dict[str, Any]] | None:
    """The rows of a part that is done; None if there are none for this grid. Says so of a damaged file."""
    try:
        content = json.loads(path.read_text())
        settings, rows = content["settings"], content["rows"]
        found = [(row["p"], row["init"], row["seed"]) for row in rows]
        complete = all(math.isfinite(row["accuracy"]) and len(row["dead"]) == part.depth for row in rows)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        print(f"{path} is damaged ({type(error).__name__}: {error}): its nets train again")
        return None
    if settings != _settings(grid, source):
        return None
    if found != grid.nets() or not complete:
        print(f"{path} is damaged (not the nets that it should hold): its nets train again")
        return None
    return list(rows)


def store_part(path: Path, grid: Grid, rows: list[dict[str, Any]], source: str) -> None:
    """Whole or not at all, whenever it is interrupted."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    new.write_text(json.dumps({"settings": _settings(grid, source), "rows": rows}))
    os.replace(new, path)


def _settings(grid: Grid, source: str) -> dict[str, Any]:
    """What a part's figures depend on."""
    settings: dict[str, Any] = json.loads(json.dumps(asdict(grid)))
    varied = ("activation", "lr", "optimiser", "depth")  # between parts
    return {name: value for name, value in settings.items() if name not in varied} | {"data": source}


# What the figures say ---------------------------------------------------------------------------------

FACTORS = ("activation", "p", "lr", "init", "optimiser", "depth")


@dataclass(frozen=True)
class Comparison:
    """Two levels of a factor, everything else being equal.

    Attributes:
        claim: what is said, and tested by this.
        text: the comparison.
        where: the nets that are compared: the levels of other factors.
    """

    claim: str
    text: str
    factor: str
    low: Any
    high: Any
    where: dict[str, Any]


_RELU = {"activation": "ReLU"}
COMPARISONS = (
    Comparison(
        "ReLU + dropout just works",
        "ReLU, PyTorch's initialisation, Adam at 0.001: p = 0.5 for 0",
        *("p", 0.0, 0.5, {**_RELU, "init": "default", "optimiser": "Adam", "lr": 1e-3}),
    ),
    Comparison("Dropout kills units, or keeps them alive", "ReLU: p = 0.5 for 0", "p", 0.0, 0.5, _RELU),
    Comparison("", "ReLU: p = 0.8 for 0", "p", 0.0, 0.8, _RELU),
    Comparison(
        "",
        "ReLU, Adam at 0.1: p = 0.5 for 0",
        *("p", 0.0, 0.5, {**_RELU, "optimiser": "Adam", "lr": 0.1}),
    ),
    Comparison("LeakyReLU is a remedy", "LeakyReLU for ReLU", "activation", "ReLU", "LeakyReLU", {}),
    Comparison(
        "", "biases of -1: LeakyReLU for ReLU", "activation", "ReLU", "LeakyReLU", {"init": "negative"}
    ),
    Comparison("ELU is a remedy", "ELU for ReLU", "activation", "ReLU", "ELU", {}),
    Comparison("", "biases of -1: ELU for ReLU", "activation", "ReLU", "ELU", {"init": "negative"}),
    Comparison("A lower learning rate helps", "ReLU: 0.001 for 0.1", "lr", 0.1, 1e-3, _RELU),
    Comparison("", "ReLU, Adam: 0.001 for 0.1", "lr", 0.1, 1e-3, {**_RELU, "optimiser": "Adam"}),
    Comparison("He initialisation helps", "ReLU: He for PyTorch's", "init", "default", "he", _RELU),
    Comparison("", "ReLU, 4 hidden layers: He for PyTorch's", "init", "default", "he", {**_RELU, "depth": 4}),
    Comparison("A lower p helps", "ReLU: p = 0.5 for 0.8", "p", 0.8, 0.5, _RELU),
)


@dataclass(frozen=True)
class Difference:
    """A paired t-test of a figure, in percentage points; one value per seed, the mean over its pairs."""

    mean: float
    low: float
    high: float
    probability: float
    seeds: int
    pairs: int


def dead(row: dict[str, Any]) -> float:
    """The fraction of a net's hidden units that never fire."""
    return statistics.fmean(row["dead"])


def paired(
    rows: Iterable[dict[str, Any]], comparison: Comparison, figure: Callable[[dict[str, Any]], float]
) -> Difference | None:
    """The difference that a factor makes; None where fewer than two seeds have pairs.

    Nets that differ in nothing but the factor are a pair. Pairs of one seed share their start and their
    batches: only seeds count as independent. Pairs with a net that diverged to infinity or NaN are left out.
    """
    from scipy.stats import t, ttest_1samp

    levels: dict[Any, dict[tuple[Any, ...], dict[str, Any]]] = defaultdict(dict)
    for row in rows:
        if row["finite"] and all(row[name] == level for name, level in comparison.where.items()):
            key = tuple(row[name] for name in (*FACTORS, "seed") if name != comparison.factor)
            levels[row[comparison.factor]][key] = row
    low, high = levels[comparison.low], levels[comparison.high]
    by_seed: dict[int, list[float]] = defaultdict(list)
    for key in low.keys() & high.keys():
        by_seed[key[-1]].append(100 * (figure(high[key]) - figure(low[key])))
    values = [statistics.fmean(differences) for differences in by_seed.values()]
    if len(values) < 2:
        return None
    mean, deviation = statistics.fmean(values), statistics.stdev(values)
    half = deviation / len(values) ** 0.5 * float(t.ppf(0.975, len(values) - 1))
    same = 1.0 if mean == 0 else 0.0  # of values without any spread
    probability = float(ttest_1samp(values, 0).pvalue) if deviation > 0 else same
    return Difference(
        mean, mean - half, mean + half, probability, len(values), sum(map(len, by_seed.values()))
    )


def holm(probabilities: list[float]) -> list[float]:
    """Probabilities adjusted for the number of tests (Holm 1979)."""
    order = sorted(range(len(probabilities)), key=probabilities.__getitem__)
    adjusted, highest = [0.0] * len(order), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, probabilities[i] * (len(order) - rank)))
        adjusted[i] = highest
    return adjusted


def findings(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Per comparison, what it does to dead units and to accuracy, each with its adjusted probability."""
    found: list[dict[str, Any]] = []
    for comparison in COMPARISONS:
        differences = {
            "dead": paired(rows, comparison, dead),
            "accuracy": paired(rows, comparison, lambda row: row["accuracy"]),
        }
        for name, difference in differences.items():
            if difference is not None:
                found.append(
                    {"claim": comparison.claim, "text": comparison.text, "figure": name, **asdict(difference)}
                )
    for finding, adjusted in zip(found, holm([f["probability"] for f in found]), strict=True):
        finding["adjusted"] = adjusted
    return found


def verdict(finding: dict[str, Any]) -> str:
    """One finding in words with its numbers."""
    what = "dead units" if finding["figure"] == "dead" else "accuracy"
    interval = f"95% interval {finding['low']:+.1f} to {finding['high']:+.1f}"
    size = f"{finding['pairs']} pairs, {finding['seeds']} seeds"
    tested = f"{interval}, adjusted p {_probability(finding['adjusted'])}, {size}"
    if finding["adjusted"] >= 0.05:
        return f"{what}: no difference beyond noise ({finding['mean']:+.1f} points, {tested})"
    return f"{what} **{finding['mean']:+.1f} points** ({tested})"


def _probability(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"= {value:.3f}"


def table(rows: list[dict[str, Any]]) -> str:
    """Mean dead fraction and accuracy per activation, p, learning rate and optimiser, as Markdown."""
    cells: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        if row["finite"]:
            cells[row["optimiser"], row["lr"], row["activation"], row["p"]].append(row)
    ps = sorted({row["p"] for row in rows})
    lines = [
        f"| optimiser | lr | activation | {' | '.join(f'p = {p:g}' for p in ps)} |",
        f"|---|---:|---|{'---:|' * len(ps)}",
    ]
    for optimiser, lr, activation in dict.fromkeys(key[:3] for key in cells):
        texts = []
        for p in ps:
            nets = cells.get((optimiser, lr, activation, p), [])
            if nets:
                silent = 100 * statistics.fmean(map(dead, nets))
                accuracy = 100 * statistics.fmean(row["accuracy"] for row in nets)
                texts.append(f"{silent:.1f} / {accuracy:.1f}")
            else:
                texts.append("-")
        lines.append(f"| {optimiser} | {lr:g} | {activation} | {' | '.join(texts)} |")
    return "\n".join(lines)


def page(result: dict[str, Any]) -> str:
    """The report as Markdown."""
    grid, rows = result["grid"], result["rows"]
    epochs = f"{grid['epochs']} epoch{'s' * (grid['epochs'] != 1)}"
    diverged = sum(not row["finite"] for row in rows)
    lines = [
        "# Does dropout make ReLU units die?",
        "",
        f"{len(rows)} nets on {result['data']['source']}: 784 - {grid['hidden']} x depth - 10, "
        f"{epochs} of {result['data']['train']} digits, "
        f"batches of {grid['batch_size']}, {grid['seeds']} seeds; every combination of activation "
        f"({', '.join(grid['activation'])}), p ({_list(grid['p'])}), learning rate ({_list(grid['lr'])}), "
        "initialisation (PyTorch's; He; "
        f"PyTorch's with hidden biases of {NEGATIVE_BIAS:g}), optimiser ({', '.join(grid['optimiser'])}) and "
        f"hidden layers ({_list(grid['depth'])}). {diverged} nets diverged to infinity or NaN and are "
        "left out.",
        "",
        "A unit is dead if it fires (has a positive input) for none of the "
        f"{result['data']['test']} test digits. LeakyReLU and ELU units that never fire still learn; they "
        "count here all the same, so that the three can be compared.",
        "",
        f"Accuracy after {epochs} with {grid['hidden']} units says how fast nets learn, not where a "
        "long training ends: of what dropout is for, less overfitting, it shows nothing.",
        "",
        '"A for B" is what A changes where it takes the place of B, in percentage points. Nets are paired '
        "where they differ in nothing else; pairs of "
        "one seed are averaged, and a t-test over the seeds gives interval and p, adjusted for "
        f"{len(result['findings'])} tests after Holm. Seeds share the order of the digits.",
        "",
    ]
    claims: dict[str, dict[str, list[dict[str, Any]]]] = {}
    claim = ""
    for finding in result["findings"]:
        claim = finding["claim"] or claim
        claims.setdefault(claim, {}).setdefault(finding["text"], []).append(finding)
    for claim, texts in claims.items():
        lines += [f"## {claim}?", ""]
        lines += [f"- {text}: {'; '.join(map(verdict, found))}." for text, found in texts.items()]
        lines += [""]
    lines += [
        "## Figures",
        "",
        "![Dead units and accuracy by p, learning rate and initialisation](dead-neurons.png)",
        "",
        "Dead units / accuracy in percent, means over initialisations, depths and seeds:",
        "",
        table(rows),
        "",
        f"`{result['command']}` on {result['device']}, {result['seconds']:.0f} s "
        f"({result['cpu_seconds']:.0f} s of CPU time), "
        f"{', '.join(f'{name} {version}' for name, version in result['versions'].items())}, "
        f"{result['date'][:10]}. "
        "The raw results are `benchmarks/results/dead-neurons/dead_neurons.json`.",
        "",
    ]
    return "\n".join(lines)


def _list(values: Iterable[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Dead units above and accuracy below, over p, per learning rate and initialisation; 95% intervals."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt
    from scipy.stats import t

    rates, inits = (list(dict.fromkeys(row[name] for row in rows)) for name in ("lr", "init"))
    panels = [(lr, init) for lr in sorted(rates) for init in inits]
    figure, axes = plt.subplots(
        2, len(panels), figsize=(2.6 * len(panels), 6), sharey="row", layout="constrained"
    )
    figures: tuple[Callable[[dict[str, Any]], float], ...] = (dead, lambda row: row["accuracy"])
    for column, (lr, init) in enumerate(panels):
        for line, value in enumerate(figures):
            axis = axes[line, column]
            for activation in dict.fromkeys(row["activation"] for row in rows):
                by_p: dict[float, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
                for row in rows:
                    if row["finite"] and (row["lr"], row["init"], row["activation"]) == (
                        lr,
                        init,
                        activation,
                    ):
                        by_p[row["p"]][row["seed"]].append(100 * value(row))
                x, means, halves = sorted(by_p), [], []
                for p in x:
                    seeds = [statistics.fmean(values) for values in by_p[p].values()]
                    means.append(statistics.fmean(seeds))
                    enough = len(seeds) > 1
                    spread = statistics.stdev(seeds) / len(seeds) ** 0.5 if enough else 0.0
                    halves.append(spread * float(t.ppf(0.975, len(seeds) - 1)) if enough else 0.0)
                axis.plot(x, means, marker="o", label=activation)
                low = [m - h for m, h in zip(means, halves, strict=True)]
                high = [m + h for m, h in zip(means, halves, strict=True)]
                axis.fill_between(x, low, high, alpha=0.2)
            axis.grid(alpha=0.3)
        axes[0, column].set_title(f"lr {lr:g}, {init}")
        axes[1, column].set_xlabel("p")
    axes[0, 0].set_ylabel("units that never fire (%)")
    axes[1, 0].set_ylabel("test accuracy (%)")
    axes[0, 0].legend()
    figure.savefig(path, dpi=100)
    plt.close(figure)


# The command ------------------------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        prog="python benchmarks/dead_neurons.py", description=(__doc__ or "").split("\n")[0]
    )
    default_device = "cuda" if torch.cuda.is_available() else "cpu"
    result.add_argument("--threads", type=int, default=1, help="on a CPU; matrices are too small for more")
    result.add_argument("--full", action="store_true", help="the whole grid: meant for a GPU")
    result.add_argument("--device", type=torch.device, default=default_device, help="where to train")
    result.add_argument(
        "--data", type=Path, metavar="DIR", help="MNIST in torchvision's layout, DIR/MNIST/raw/"
    )
    result.add_argument(
        "--out", type=Path, metavar="DIR", default=Path("results/dead-neurons"), help="where results go"
    )
    return result


def main(arguments: list[str] | None = None, grid: Grid | None = None) -> None:
    command = parser()
    options = command.parse_args(arguments)
    grid = grid or (Grid() if options.full else REDUCED)
    torch.set_num_threads(options.threads)
    missing = [name for name in ("scipy", "matplotlib") if importlib.util.find_spec(name) is None]
    if missing:
        command.exit(2, f"{command.prog}: error: needs {' and '.join(missing)}: pip install -e '.[study]'\n")
    try:
        digits = load(options.data).to(options.device)
        options.out.mkdir(parents=True, exist_ok=True)
    except (DataError, OSError) as error:
        command.exit(2, f"{command.prog}: error: {error}\n")
    rows, seconds, busy = study(grid, digits, options.out / "parts")
    result = {
        "command": command.prog + (" --full" if options.full else ""),
        "grid": asdict(grid),
        "versions": versions(),
        "device": describe_device(options.device),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "seconds": seconds,
        "cpu_seconds": busy,
        "data": {"source": digits.source, "train": len(digits.train_labels), "test": len(digits.test_labels)},
        "findings": findings(rows),
        "rows": rows,
    }
    head = {name: value for name, value in result.items() if name != "rows"}
    lines = ",\n".join(json.dumps(row) for row in rows)  # a line for each net
    text = json.dumps(head, indent=1)[:-2] + f',\n "rows": [\n{lines}\n ]\n}}\n'
    (options.out / "dead_neurons.json").write_text(text)
    plot(rows, options.out / "dead-neurons.png")
    (options.out / "dead-neurons.md").write_text(page(json.loads(text)))
    print(f"Written to {options.out}: dead_neurons.json, dead-neurons.md, dead-neurons.png")


def study(grid: Grid, digits: Digits, parts: Path) -> tuple[list[dict[str, Any]], float, float]:
    """Every net's row, those of parts that are done read from their files.

    And the seconds that it took now, by the clock and of the CPUs; on a busy machine they differ.
    """
    start, busy = time.perf_counter(), time.process_time()
    steps = grid.epochs * -(-len(digits.train_labels) // grid.batch_size)
    rows: list[dict[str, Any]] = []
    with tqdm(total=steps * len(list(grid.parts())), unit="step", disable=None, leave=False) as progress:
        for part in grid.parts():
            path = parts / f"{part.name}.json"
            mine = load_part(path, grid, part, digits.source)
            if mine is None:
                progress.set_description(part.name)
                mine = train(grid, part, digits, progress)
                store_part(path, grid, mine, digits.source)
            else:
                progress.update(steps)
            rows += mine
    return rows, time.perf_counter() - start, time.process_time() - busy


if __name__ == "__main__":
    main()
