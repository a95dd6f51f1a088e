"""Does dropout make ReLU units die? Many small nets on MNIST, and tests for each thing said about it.

    python benchmarks/dead_neurons.py

trains every combination of activation, p, learning rate, initialisation, optimiser, depth and seed of a
reduced grid (`--full` for the whole one), and writes `dead_neurons.json`, `dead-neurons.md` and a plot for
each depth. An interrupted run goes on where it stopped: nets that are done are kept in `parts/`.

Nets that share activation, learning rate, optimiser and depth are a part and train at once: their units stand
beside each other. On a CPU a process for each core takes part after part; results don't depend on how many.
Nets of one seed start from the same numbers and see the same batches, whatever else differs, so that
comparisons are paired; nets of two seeds share neither.

A unit is dead if it fires for none of the test images, counted by `fusedact.ActivityMonitor` in eval mode.
"""

import argparse
import hashlib
import itertools
import json
import math
import multiprocessing
import os
import platform
import signal
import statistics
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

import fusedact
from fusedact.monitor import facts

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.arguments import at_least, torch_device
from benchmarks.machine import describe_device, versions
from benchmarks.mnist_data import DataError, Digits, load
from benchmarks.outputs import OutputError, new_figure, prepare, require

# What the study compares, and its page speaks of: not every activation that there is.
MODULES: dict[str, Callable[[float], nn.Module]] = {
    facts.name_of(cls.row): cls
    for cls in (fusedact.FusedReLUDropout, fusedact.FusedLeakyDropout, fusedact.FusedELUDropout)
}
NEGATIVE_BIAS = -1.0
RESULTS, PAGE = "dead_neurons.json", "dead-neurons.md"


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
    seeds: int = 10
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


REDUCED = Grid(seeds=8, hidden=32, epochs=1)


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

    Shape: images [n, 784], or [seeds, n, 784] for each seed's own, to logits [n, nets, 10].
    """

    def __init__(self, grid: Grid, part: Part) -> None:
        super().__init__()
        self.nets, self.hidden, self.seeds = len(grid.nets()), grid.hidden, grid.seeds
        sizes = [784] + [grid.hidden] * part.depth + [10]
        made = [_initial(sizes, init, seed) for _, init, seed in grid.nets()]
        weights, biases = (
            [torch.stack([net[i][k] for net in made]) for i in range(len(sizes) - 1)] for k in (0, 1)
        )
        # The first layer's as one matrix [784, units] for each seed; seeds are the innermost of the nets.
        weights[0] = weights[0].view(-1, grid.seeds, 784, grid.hidden).permute(1, 2, 0, 3).flatten(2)
        biases[0] = biases[0].view(-1, grid.seeds, 1, grid.hidden).permute(1, 2, 0, 3).flatten(2)
        self.weights = nn.ParameterList(tensor.contiguous() for tensor in weights)
        self.biases = nn.ParameterList(tensor.contiguous() for tensor in biases)
        self.ps, self.depth = len(grid.p), part.depth
        # Layer by layer, one for each p.
        self.dropouts = nn.ModuleList(MODULES[part.activation](p) for _ in range(part.depth) for p in grid.p)

    def forward(self, images: Tensor) -> Tensor:
        x = torch.baddbmm(self.biases[0], images.expand(self.seeds, -1, -1), self.weights[0])
        x = x.unflatten(2, (-1, self.hidden)).permute(1, 2, 0, 3).flatten(1)  # [n, nets * hidden]
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
def evaluate(nets: Nets, digits: Digits) -> list[dict[str, Any]]:
    """Per net on the test images: accuracy, whether all logits are finite, each layer's dead fraction."""
    nets.eval()
    right = torch.zeros(nets.nets, device=digits.test_labels.device)
    finite = torch.ones_like(right, dtype=torch.bool)
    with fusedact.ActivityMonitor(nets) as monitor:
        for images, labels in zip(digits.test_images.split(500), digits.test_labels.split(500), strict=True):
            logits = nets(images)
            right += (logits.argmax(2) == labels.unsqueeze(1)).sum(0)
            finite &= logits.isfinite().all(2).all(0)
    nets.train()
    layers = monitor.report().layers  # per hidden layer one for each p
    fired = [torch.cat([x.fired for x in layers[i : i + nets.ps]]) for i in range(0, len(layers), nets.ps)]
    dead = [(counts.view(nets.nets, -1) == 0).double().mean(1).tolist() for counts in fired]
    accuracy = (right / len(digits.test_labels)).tolist()
    return [
        {"accuracy": accuracy[k], "finite": bool(finite[k]), "dead": [layer[k] for layer in dead]}
        for k in range(nets.nets)
    ]


class Progress(Protocol):
    """What `train` tells of its steps: a bar, or a count that another process reads."""

    def update(self) -> Any: ...


def train(grid: Grid, part: Part, digits: Digits, progress: Progress) -> list[dict[str, Any]]:
    """One part's nets: a row for each."""
    device = digits.train_images.device
    # Dropout is off while units are counted: the start is the same for every p.
    start = evaluate(Nets(replace(grid, p=(0.0,)), part).to(device), digits)
    nets = Nets(grid, part).to(device)
    optimiser: torch.optim.Optimizer
    if part.optimiser == "Adam":
        optimiser = torch.optim.Adam(nets.parameters(), lr=part.lr, fused=True)
    else:
        optimiser = torch.optim.SGD(nets.parameters(), lr=part.lr)
    torch.manual_seed(0)  # the masks': no two nets of a part share theirs
    orders = [torch.Generator().manual_seed(seed) for seed in range(grid.seeds)]
    images = len(digits.train_labels)
    for _ in range(grid.epochs):
        permutations = torch.stack([torch.randperm(images, generator=order) for order in orders]).to(device)
        for batch in permutations.split(grid.batch_size, 1):  # [seeds, n]
            logits = nets(digits.train_images[batch])
            labels = digits.train_labels[batch].T.repeat(1, nets.nets // grid.seeds)
            # The sum over nets of the mean over digits: each net has the gradient that it would have alone.
            loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum") / batch.shape[1]
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            progress.update()
    rows = []
    for k, ((p, init, seed), after) in enumerate(zip(grid.nets(), evaluate(nets, digits), strict=True)):
        before = start[k % len(start)]
        varied = {**asdict(part), "p": p, "init": init, "seed": seed}
        rows.append({**varied, "start": {"accuracy": before["accuracy"], "dead": before["dead"]}, **after})
    return rows


# Parts, on one or several processes, and those that are done --------------------------------------------


def load_part(path: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """What `store_part` wrote; None if there is nothing. Says so of a file that is no use."""
    try:
        digest, _, text = path.read_bytes().partition(b"\n")
    except FileNotFoundError:
        return None
    if digest.decode(errors="replace") != hashlib.sha256(text).hexdigest():
        print(f"{path} is damaged: its nets train again")
        return None
    content: dict[str, Any] = json.loads(text)
    if content["settings"] != settings:
        print(f"{path} is of another grid, other data, versions or device: its nets train again")
        return None
    return content


def store_part(path: Path, content: dict[str, Any]) -> None:
    """Whole or not at all, whenever it is interrupted; below a digest, so that any damage shows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content).encode()
    new = path.with_suffix(f".{os.getpid()}.new")
    new.write_bytes(hashlib.sha256(text).hexdigest().encode() + b"\n" + text)
    os.replace(new, path)


def part_settings(grid: Grid, part: Part, digits: Digits) -> dict[str, Any]:
    """What a part's figures depend on."""
    varied = ("activation", "lr", "optimiser", "depth")  # between parts
    common = {name: value for name, value in asdict(grid).items() if name not in varied}
    machine = {"device": describe_device(digits.train_images.device), "versions": versions()}
    size = [len(digits.train_labels), len(digits.test_labels)]
    settings = {**common, **asdict(part), **machine, "data": digits.source, "digits": size}
    plain: dict[str, Any] = json.loads(json.dumps(settings))
    return plain


def study(grid: Grid, digits: Digits, folder: Path, processes: int = 1) -> tuple[list[dict[str, Any]], Any]:
    """Every net's row, those of parts that are done read from their files; and what it took.

    That is seconds by the clock, now; seconds of CPU time of all parts, whenever they trained; how many parts
    there are, and how many were done before.
    """
    clock = time.perf_counter()
    settings = {part: part_settings(grid, part, digits) for part in grid.parts()}
    paths = {part: folder / f"{part.name}.json" for part in settings}
    done = {part: load_part(paths[part], settings[part]) for part in settings}
    todo = [part for part, content in done.items() if content is None]
    todo.sort(key=lambda part: -part.depth)  # the longest first: no process ends long after the others

    def perform(part: Part, progress: Progress) -> None:
        busy = time.process_time()
        torch.set_flush_denormal(True)  # ELU's nets have so many that they would take four times as long
        try:
            rows = train(grid, part, digits, progress)
        finally:
            torch.set_flush_denormal(False)
        took = time.process_time() - busy
        store_part(paths[part], {"settings": settings[part], "cpu_seconds": took, "rows": rows})

    steps = grid.epochs * -(-len(digits.train_labels) // grid.batch_size)
    progress = tqdm(total=steps * len(todo), unit="step", disable=None, leave=False)
    with progress:
        if processes > 1:
            _share(todo, perform, processes, progress)
        else:
            for part in todo:
                perform(part, progress)
    took = {"seconds": time.perf_counter() - clock, "parts": len(done), "kept": len(done) - len(todo)}
    done.update({part: load_part(paths[part], settings[part]) for part in todo})
    contents = [content for content in done.values() if content is not None]
    rows = [row for content in contents for row in content["rows"]]
    return rows, {**took, "cpu_seconds": sum(content["cpu_seconds"] for content in contents)}


def _share(todo: list[Part], perform: Callable[[Part, Progress], None], count: int, bar: "tqdm[Any]") -> None:
    """Have processes perform the parts, each the next that none has begun."""
    fork = multiprocessing.get_context("fork")  # the digits stay where they are
    begun, steps, parent = fork.Value("q", 0), fork.Value("q", 0), os.getpid()

    class Steps:
        def update(self) -> None:
            with steps.get_lock():
                steps.value += 1

    def work() -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its processes
        torch.set_num_threads(1)  # the parent's others, if it has any, aren't here
        while os.getppid() == parent:  # nobody waits for more if it was killed
            with begun.get_lock():
                mine, begun.value = begun.value, begun.value + 1
            if mine >= len(todo):
                return
            perform(todo[mine], Steps())

    workers = [fork.Process(target=work, daemon=True) for _ in range(min(count, len(todo)))]
    try:
        for worker in workers:
            worker.start()
        while (codes := {worker.exitcode for worker in workers}) != {0}:
            if failed := codes - {0, None}:
                raise ChildProcessError(
                    f"a process ended with {failed.pop()}; run the command again to go on"
                )
            time.sleep(0.1)
            bar.update(steps.value - bar.n)
    finally:
        for worker in workers:
            worker.kill()


# What the figures say ---------------------------------------------------------------------------------

# Levels that make a net; "trained" is False for the net before its training.
FACTORS = ("activation", "p", "lr", "init", "optimiser", "depth", "seed", "trained")


@dataclass(frozen=True)
class Comparison:
    """Two levels of a factor, everything else being equal.

    Attributes:
        question: what the comparison is to answer.
        text: the comparison.
        where: the nets that are compared: the levels of other factors, and whether they are blocked.
        arms: factors for whose levels the comparison is also made apart.
    """

    question: str
    text: str
    factor: str
    low: Any
    high: Any
    where: dict[str, Any]
    arms: tuple[str, ...] = ("optimiser", "lr", "depth")


_RELU = {"activation": "ReLU", "blocked": False, "trained": True}
_PLAIN = {**_RELU, "init": "default", "optimiser": "Adam", "lr": 1e-3}
COMPARISONS = (
    Comparison(
        "Do ReLU units die at all?",
        *("after training for before", "trained", False, True),
        {"activation": "ReLU", "blocked": False},
    ),
    Comparison(
        "Does ReLU + dropout just work?",
        *("p = 0.5 for 0, PyTorch's initialisation, Adam at 0.001", "p", 0.0, 0.5),
        *(_PLAIN, ("depth",)),
    ),
    *(
        Comparison("Does dropout kill ReLU units, or keep them alive?", f"p = {p} for 0", "p", 0.0, p, _RELU)
        for p in (0.2, 0.5, 0.8)
    ),
    *(
        Comparison(
            f"Is {remedy} a remedy?",
            text,
            "activation",
            "ReLU",
            remedy,
            {"blocked": blocked, "trained": True},
        )
        for remedy in ("LeakyReLU", "ELU")
        for blocked, text in ((False, f"{remedy} for ReLU"), (True, f"{remedy} for ReLU in blocked nets"))
    ),
    *(
        Comparison(
            "Does a lower learning rate help ReLU?",
            *(f"{low} for 0.1", "lr", 0.1, low),
            *(_RELU, ("optimiser", "depth")),
        )
        for low in (0.01, 0.001)
    ),
    Comparison("Does He initialisation help ReLU?", "He's for PyTorch's", "init", "default", "he", _RELU),
    *(
        Comparison("Does a lower p help ReLU?", f"p = {low} for {high}", "p", high, low, _RELU)
        for low, high in ((0.5, 0.8), (0.2, 0.5))
    ),
)


@dataclass(frozen=True)
class Difference:
    """A paired t-test of a figure, in percent and points; one value per seed, the mean over its pairs."""

    before: float
    after: float
    mean: float
    low: float
    high: float
    probability: float
    seeds: int
    pairs: int


def dead(row: dict[str, Any]) -> float:
    """The fraction of a net's hidden units that never fire; NaN where it has diverged."""
    return statistics.fmean(row["dead"]) if row["finite"] else math.nan


def accuracy(row: dict[str, Any]) -> float:
    """Of a net that has diverged too: it is as bad as it is."""
    return float(row["accuracy"])


FIGURES: dict[str, Callable[[dict[str, Any]], float]] = {"dead": dead, "accuracy": accuracy}


def states(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Two rows for each net, before and after its training, and whether it is blocked.

    That is: started with a layer of which no unit fires for any test image. ReLU passes nothing then.
    """
    found = []
    for row in rows:
        common = {**row, "blocked": max(row["start"]["dead"]) == 1}
        found.append({**common, **row["start"], "finite": True, "trained": False})
        found.append({**common, "trained": True})
    return found


def paired(
    found: list[dict[str, Any]],
    comparison: Comparison,
    figure: Callable[[dict[str, Any]], float],
    arm: dict[str, Any],
) -> Difference | None:
    """The difference that a factor makes in an arm; None where fewer than two seeds have pairs.

    States that differ in nothing but the factor are a pair. Those of one seed share start and batches: only
    seeds count as independent. A pair without a figure is left out.
    """
    from scipy.stats import t, ttest_1samp

    where = {**comparison.where, **arm}
    levels: dict[Any, dict[tuple[Any, ...], float]] = defaultdict(dict)
    for state in found:
        if all(state[name] == level for name, level in where.items()):
            key = tuple(state[name] for name in FACTORS if name != comparison.factor)
            levels[state[comparison.factor]][key] = 100 * figure(state)
    low, high = levels[comparison.low], levels[comparison.high]
    both = [key for key in low if key in high and math.isfinite(high[key] - low[key])]
    seed = [name for name in FACTORS if name != comparison.factor].index("seed")
    by_seed: dict[int, list[float]] = defaultdict(list)
    for key in both:
        by_seed[key[seed]].append(high[key] - low[key])
    values = [
        round(statistics.fmean(found), 9) for found in by_seed.values()
    ]  # 0 where it is but for rounding
    if len(values) < 2:
        return None
    mean, deviation = statistics.fmean(values), statistics.stdev(values)
    half = deviation / len(values) ** 0.5 * float(t.ppf(0.975, len(values) - 1))
    same = 1.0 if mean == 0 else 0.0  # of values without any spread
    probability = float(ttest_1samp(values, 0).pvalue) if deviation > 0 else same
    before, after = (statistics.fmean(level[key] for key in both) for level in (low, high))
    return Difference(before, after, mean, mean - half, mean + half, probability, len(values), len(both))


def holm(probabilities: list[float]) -> list[float]:
    """Probabilities adjusted for the number of tests (Holm 1979)."""
    order = sorted(range(len(probabilities)), key=probabilities.__getitem__)
    adjusted, highest = [0.0] * len(order), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, probabilities[i] * (len(order) - rank)))
        adjusted[i] = highest
    return adjusted


def findings(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Per comparison and arm, what it does to dead units and to accuracy, with adjusted probabilities."""
    found: list[dict[str, Any]] = []
    everything = states(rows)
    for comparison in COMPARISONS:
        mine = [s for s in everything if all(s[name] == v for name, v in comparison.where.items())]
        arms = list(dict.fromkeys(tuple(s[name] for name in comparison.arms) for s in mine))
        apart = [dict(zip(comparison.arms, arm, strict=True)) for arm in arms]
        for arm in [{}, *apart]:
            for name, figure in FIGURES.items():
                difference = paired(mine, comparison, figure, arm)
                if difference is not None:
                    about = {"question": comparison.question, "text": comparison.text}
                    found.append({**about, "arm": arm, "figure": name, **asdict(difference)})
    for finding, adjusted in zip(found, holm([f["probability"] for f in found]), strict=True):
        finding["adjusted"] = adjusted
    return found


def direction(finding: dict[str, Any]) -> str:
    if finding["adjusted"] >= 0.05:
        return "no difference beyond noise"
    more, fewer = ("more", "fewer") if finding["figure"] == "dead" else ("higher", "lower")
    return more if finding["mean"] > 0 else fewer


def verdict(finding: dict[str, Any], arms: list[dict[str, Any]]) -> str:
    """What was found on average and in how many arms, in a sentence with its numbers."""
    what = "Dead units" if finding["figure"] == "dead" else "Accuracy"
    interval = f"95% interval {finding['low']:+.1f} to {finding['high']:+.1f}"
    size = f"{finding['pairs']} pairs, {finding['seeds']} seeds"
    sentence = (
        f"{what}, {finding['text']}: {finding['before']:.1f} → {finding['after']:.1f}%, "
        f"**{direction(finding)}** ({finding['mean']:+.1f} points, {interval}, "
        f"P {_probability(finding['adjusted'])}, {size})"
    )
    if len(arms) > 1:
        counts = Counter(map(direction, arms))
        words = sorted(counts, key=lambda word: (word.startswith("no"), word))
        sentence += f"; of {len(arms)} arms " + ", ".join(f"{word} in {counts[word]}" for word in words)
    return sentence + "."


def _probability(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"= {value:.3f}"


def table(arms: list[dict[str, Any]]) -> list[str]:
    """A line for each arm, as Markdown; differences beyond noise are bold."""
    lines = [
        "| nets | dead units, % | difference | P | accuracy, % | difference | P |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    by_arm: dict[str, list[str]] = {}
    for finding in arms:
        number = f"{finding['mean']:+.1f}"
        if finding["adjusted"] < 0.05:
            number = f"**{number}**"
        by_arm.setdefault(_nets(finding["arm"]), []).extend(
            (
                f"{finding['before']:.1f} → {finding['after']:.1f}",
                f"{number} ({finding['low']:+.1f} to {finding['high']:+.1f})",
                _probability(finding["adjusted"]).removeprefix("= "),
            )
        )
    return lines + [f"| {' | '.join([name, *cells])} |" for name, cells in by_arm.items()]


def _nets(arm: dict[str, Any]) -> str:
    """An arm in words."""
    words = {"lr": "lr {:g}", "depth": "depth {}"}
    return ", ".join(words.get(name, "{}").format(level) for name, level in arm.items())


def summary(result: dict[str, Any]) -> str:
    """The answers in short, as Markdown: what each comparison found on average over all its nets."""
    grid = result["grid"]
    lines = [
        f"{len(result['rows'])} nets of {grid['hidden']} units a layer, {_epochs(grid)}, {grid['seeds']} "
        "seeds; on average over all optimisers, learning rates, initialisations and depths that aren't "
        "named. Blocked nets, which start with a whole layer dead, stand apart.",
        "",
        "| question | dead units, % | accuracy, % |",
        "|---|---|---|",
    ]
    by_question: dict[str, list[str]] = {}
    for finding in result["findings"]:
        if not finding["arm"]:
            answer = f"{finding['before']:.1f} → {finding['after']:.1f}: {direction(finding)}"
            by_question.setdefault(f"{finding['question']} ({finding['text']})", []).append(answer)
    return "\n".join(lines + [f"| {' | '.join([name, *cells])} |" for name, cells in by_question.items()])


def page(result: dict[str, Any]) -> str:
    """The report as Markdown."""
    grid, rows = result["grid"], result["rows"]
    epochs = _epochs(grid)
    starts = [state for state in states(rows) if not state["trained"]]
    blocked = [state for state in starts if state["blocked"]]
    lines = [
        "# Does dropout make ReLU units die?",
        "",
        summary(result),
        "",
        "## How it was measured",
        "",
        f"{len(rows)} nets on {result['data']['source']}: 784 - {grid['hidden']} x depth - 10, "
        f"{epochs} of {result['data']['train']} digits, "
        f"batches of {grid['batch_size']}, {grid['seeds']} seeds; every combination of activation "
        f"({_list(grid['activation'])}), p ({_list(grid['p'])}), learning rate ({_list(grid['lr'])}), "
        "initialisation (default: PyTorch's; he: He's, with biases of 0; negative: PyTorch's with hidden "
        f"biases of {NEGATIVE_BIAS:g}), optimiser ({_list(grid['optimiser'])}) and "
        f"depth ({_list(grid['depth'])} hidden layers).",
        "",
        *_left_out(grid),
        "A unit is dead if, with dropout off, it fires (has a positive input) for none of the "
        f"{result['data']['test']} test digits, after {epochs}: what dies later isn't seen. "
        "A LeakyReLU unit that never fires still learns, an ELU unit less the more negative its inputs are; "
        "they count here all the same, so that the three can be compared.",
        "",
        f"Accuracy after {epochs} with {grid['hidden']} units says how fast nets learn, not where a "
        "long training ends: of what dropout is for, less overfitting, it shows nothing.",
        "",
        f"{len(blocked)} nets ({_levels(blocked)}) are blocked: they start with a whole layer dead. In ReLU "
        "nets nothing passes such a layer, so that no choice of p or learning rate can matter: they are left "
        "out but where they are named.",
        "",
        _diverged(rows),
        "",
        '"A for B" is what A changes where it takes the place of B. Nets are paired where they differ in '
        "nothing else; the pairs of one seed are averaged, which gives one difference for each seed. "
        "Seeds have their own initial weights, order of digits and masks. From a paired t-test over the "
        "seeds come the 95% intervals, each of its difference alone, and P, adjusted after Holm for all "
        f"{len(result['findings'])} tests on this page. A verdict goes by the adjusted P, below 0.05 or not; "
        "no difference beyond noise doesn't say that there is none, its interval says how large it may be. "
        "An arm is the nets of one optimiser, learning rate and depth, as far as the comparison doesn't name "
        "them.",
        "",
    ]
    for question, texts in _grouped(result["findings"], "question").items():
        lines += [f"## {question}", ""]
        for found in _grouped(texts, "text").values():
            apart = [finding for finding in found if finding["arm"]]
            for finding in found:
                if not finding["arm"]:
                    same = [arm for arm in apart if arm["figure"] == finding["figure"]]
                    lines += [f"- {verdict(finding, same)}"]
            lines += ["", *table(apart), ""]
    command, took = result["command"], result["took"]
    clock = f"{took['seconds']:.0f} s by the clock"
    if took["kept"]:
        clock += f" for {took['parts'] - took['kept']} of {took['parts']} parts (others were done before)"
    lines += [
        "## Every combination",
        "",
        "Means over the seeds and their 95% intervals (t).",
        "",
        *(f"![{_title(depth)}]({_plot(depth)})\n" for depth in grid["depth"]),
        f"`{command}` on {result['device']}: {clock}, {took['cpu_seconds']:.0f} s of CPU time, "
        f"{', '.join(f'{name} {version}' for name, version in result['versions'].items())}, "
        f"{result['date'][:10]}. "
        "The raw results are `benchmarks/results/dead-neurons/dead_neurons.json`.",
        "",
    ]
    return "\n".join(lines)


def _grouped(found: list[dict[str, Any]], name: str) -> dict[str, list[dict[str, Any]]]:
    groups: dict[str, list[dict[str, Any]]] = {}
    for finding in found:
        groups.setdefault(finding[name], []).append(finding)
    return groups


def _epochs(grid: dict[str, Any]) -> str:
    return f"{grid['epochs']} epoch{'s' * (grid['epochs'] != 1)}"


def _left_out(grid: dict[str, Any]) -> list[str]:
    """What of the whole grid isn't in this one."""
    whole = json.loads(json.dumps(asdict(Grid())))
    if grid == whole:
        return []
    names = {"lr": "learning rate", "init": "initialisation"}
    lacking = {
        name: [level for level in levels if level not in grid[name]]
        for name, levels in whole.items()
        if isinstance(levels, list)
    }
    more = ", ".join(f"{names.get(name, name)} {_list(some)}" for name, some in lacking.items() if some)
    return [
        f"Not measured: the whole grid (`--full`, meant for a GPU), with {whole['hidden']} units and "
        f"{_epochs(whole)}{f' and also {more}' * bool(more)}.",
        "",
    ]


def _levels(found: list[dict[str, Any]]) -> str:
    """Which initialisations and depths there are among nets."""
    return "; ".join(
        dict.fromkeys(f"initialisation {state['init']!r}, depth {state['depth']}" for state in found)
    )


def _diverged(rows: list[dict[str, Any]]) -> str:
    counts = Counter(row["activation"] for row in rows if not row["finite"])
    if not counts:
        return "No net diverged to infinity or NaN."
    which = ", ".join(f"{name} {count}" for name, count in counts.items())
    return f"Of nets that diverged to infinity or NaN ({which}) the accuracy counts, the dead units don't."


def _list(values: Iterable[Any]) -> str:
    return ", ".join(value if isinstance(value, str) else f"{value:g}" for value in values)


def _title(depth: int) -> str:
    return f"{depth} hidden layer{'s' * (depth != 1)}"


def _plot(depth: int) -> str:
    return f"dead-neurons-depth{depth}.png"


def digest(rows: list[dict[str, Any]]) -> str:
    """Stands in each plot: it was drawn from these rows."""
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def plot(rows: list[dict[str, Any]], depth: int, path: Path) -> None:
    """Dead units and accuracy over p for each optimiser, rate and initialisation: means, 95% intervals."""
    from scipy.stats import t

    cells: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        if row["depth"] == depth:
            cells[tuple(row[name] for name in ("optimiser", "lr", "init", "activation", "p"))].append(row)
    optimisers, rates, inits, activations, ps = (
        list(dict.fromkeys(level)) for level in zip(*cells, strict=True)
    )
    columns, lines = list(itertools.product(rates, inits)), list(itertools.product(optimisers, FIGURES))
    figure = new_figure(figsize=(2.3 * len(columns) + 0.5, 2.3 * len(lines) + 0.5))
    axes = figure.subplots(len(lines), len(columns), sharex=True, sharey="row", squeeze=False)
    for (i, (optimiser, name)), (j, (lr, init)) in itertools.product(enumerate(lines), enumerate(columns)):
        axis = axes[i, j]
        for activation, marker in zip(activations, "osv", strict=False):
            x, means, halves = [], [], []
            for p in ps:
                values = [100 * FIGURES[name](row) for row in cells[optimiser, lr, init, activation, p]]
                values = [value for value in values if math.isfinite(value)]
                if len(values) > 1:
                    spread = statistics.stdev(values) / len(values) ** 0.5
                    x.append(p)
                    means.append(statistics.fmean(values))
                    halves.append(spread * float(t.ppf(0.975, len(values) - 1)))
            axis.errorbar(x, means, halves, marker=marker, markersize=4, capsize=3, label=activation)
        axis.grid(alpha=0.3)
        axis.set_ylim(-4, 104)
        if i == 0:
            axis.set_title(f"lr {lr:g}, {init}", fontsize="medium")
        if i == len(lines) - 1:
            axis.set_xlabel("p")
        if j == 0:
            axis.set_ylabel(f"{optimiser}: {'dead units' if name == 'dead' else 'accuracy'}, %")
    axes[0, 0].legend(fontsize="small")
    figure.suptitle(_title(depth))
    figure.savefig(path, dpi=90, metadata={"Description": digest(rows)})


# The command ------------------------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        prog="python benchmarks/dead_neurons.py", description=(__doc__ or "").split("\n")[0]
    )
    default_device = "cuda" if torch.cuda.is_available() else "cpu"
    result.add_argument(
        "--full", action="store_true", help="the whole grid, 128 units, 5 epochs: meant for a GPU"
    )
    result.add_argument("--hidden", type=at_least(int, 1), help="units of each hidden layer")
    result.add_argument("--epochs", type=at_least(int, 1), help="passes over the digits")
    result.add_argument("--device", type=torch_device, default=default_device, help="where to train")
    result.add_argument(
        "--processes",
        type=at_least(int, 1),
        metavar="N",
        help="parts that train at a time on a CPU, one thread each (default: one for each core)",
    )
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
    grid = replace(grid, hidden=options.hidden or grid.hidden, epochs=options.epochs or grid.epochs)
    cores, on_cpu = os.cpu_count() or 1, options.device.type == "cpu"
    processes = options.processes or (cores if on_cpu and sys.platform == "linux" else 1)
    if processes > 1 and not (on_cpu and sys.platform == "linux"):
        command.error("argument --processes: more than 1 only on a CPU and under Linux")
    torch.set_num_threads(1)  # matrices are too small for more
    try:
        for module in ("scipy.stats", "matplotlib.figure"):
            require(module, "study")
        prepare(options.out, RESULTS, PAGE, *map(_plot, grid.depth))
        prepare(options.out / "parts", *(f"{part.name}.json" for part in grid.parts()))
        digits = load(options.data).to(options.device)
    except (DataError, OutputError) as error:
        command.exit(2, f"{command.prog}: error: {error}\n")
    try:
        rows, took = study(grid, digits, options.out / "parts", processes)
    except ChildProcessError as error:
        command.exit(1, f"{command.prog}: error: {error}\n")
    device = describe_device(options.device)
    if on_cpu:
        device = f"{cores} cores of an {platform.machine()} CPU, {processes} at work"
    result = {
        "command": " ".join([command.prog, *_chosen(options)]),
        "grid": asdict(grid),
        "versions": versions(),
        "device": device,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "took": took,
        "data": {"source": digits.source, "train": len(digits.train_labels), "test": len(digits.test_labels)},
        "findings": findings(rows),
        "rows": rows,
    }
    head = {name: value for name, value in result.items() if name != "rows"}
    lines = ",\n".join(json.dumps(row) for row in rows)  # a line for each net
    text = json.dumps(head, indent=1)[:-2] + f',\n "rows": [\n{lines}\n ]\n}}\n'
    (options.out / RESULTS).write_text(text)
    for depth in grid.depth:
        plot(rows, depth, options.out / _plot(depth))
    (options.out / PAGE).write_text(page(json.loads(text)))
    print(f"Written to {options.out}: {RESULTS}, {PAGE}, {', '.join(map(_plot, grid.depth))}")


def _chosen(options: argparse.Namespace) -> list[str]:
    """The options that make the grid another."""
    numbers = {"--hidden": options.hidden, "--epochs": options.epochs}
    words = ["--full"] * options.full
    return words + [f"{name} {value}" for name, value in numbers.items() if value is not None]


if __name__ == "__main__":
    main()
