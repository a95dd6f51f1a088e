"""The study's figures: lines over time or over p, with a band between the seeds' lowest and highest."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.outputs import new_figure, require

from .questions import ACCURACY, CONTINUAL, DEEP, OVERFITTING, PLAIN, SILENT, TUTORIAL, At, Results
from .regimes import ACTIVATIONS, ADAM, FAST_ADAM, HE, PROBABILITIES, PYTORCH, SGD

NAMES = {"relu": "ReLU", "leaky_relu": "LeakyReLU", "elu": "ELU"}
_LABELS = {ACCURACY: "test accuracy, %", SILENT: "silent units, %"}
_COLOURS = ("#0b6bcb", "#c8540a", "#2a8a3e", "#7a3fa8")


class Line(NamedTuple):
    """One arm's measure, [seeds, places], over the places."""

    label: str
    places: Sequence[float]
    values: np.ndarray


class Panel(NamedTuple):
    """One pair of axes."""

    title: str
    across: str
    up: str
    lines: list[Line]


def _over_time(results: Results, title: str, measure: str, arms: dict[str, At], every: int = 1) -> Panel:
    lines = []
    for label, at in arms.items():
        values = results.series(at, measure)
        start = 1 if at.regime == "continual" or measure == ACCURACY else 0  # untrained accuracy says nothing
        places = every * np.arange(start, values.shape[1])
        lines.append(Line(label, places.tolist(), values[:, start:]))
    across = "task" if next(iter(arms.values())).regime == "continual" else "epoch"
    return Panel(title, across, _LABELS[measure], lines)


def _over_p(results: Results, title: str, measure: str, arms: dict[str, At]) -> Panel:
    lines = [
        Line(
            label,
            PROBABILITIES,
            np.stack([results.at(replace(at, p=p), measure) for p in PROBABILITIES], axis=1),
        )
        for label, at in arms.items()
    ]
    return Panel(title, "p of dropout", _LABELS[measure], lines)


def _by_p(at: At) -> dict[str, At]:
    return {f"p = {p:g}": replace(at, p=p) for p in PROBABILITIES}


def _by_activation(at: At) -> dict[str, At]:
    return {NAMES[name]: replace(at, activation=name) for name in ACTIVATIONS}


def figures(results: Results) -> Iterator[tuple[str, list[Panel]]]:
    """Yield each section's figure, by name."""
    yield (
        "works",
        [
            _over_time(results, "60,000 digits, 5 epochs", ACCURACY, _by_p(PLAIN)),
            _over_time(results, "5,000 digits, 60 epochs", ACCURACY, _by_p(OVERFITTING), every=5),
        ],
    )
    yield (
        "kills",
        [
            _over_time(
                results,
                f"ReLU, {optimiser.name}, lr {optimiser.lr:g}",
                SILENT,
                _by_p(replace(PLAIN, optimiser=optimiser)),
            )
            for optimiser in (ADAM, FAST_ADAM, SGD)
        ],
    )
    yield (
        "remedies",
        [
            _over_p(
                results,
                f"Adam, lr {optimiser.lr:g}",
                measure,
                _by_activation(replace(TUTORIAL, optimiser=optimiser)),
            )
            for measure in (SILENT, ACCURACY)
            for optimiser in (ADAM, FAST_ADAM)
        ],
    )
    rates = {f"{o.name}, lr {o.lr:g}": replace(TUTORIAL, optimiser=o) for o in (ADAM, FAST_ADAM, SGD)}
    yield "rate", [_over_p(results, "ReLU", measure, rates) for measure in (SILENT, ACCURACY)]
    inits = {"PyTorch's": PYTORCH, "He's": HE}
    yield (
        "init",
        [
            _over_time(
                results,
                f"ReLU, p = 0.5, {title}",
                SILENT,
                {name: replace(at, init=init) for name, init in inits.items()},
            )
            for title, at in (("1 hidden layer", TUTORIAL), ("4 hidden layers", DEEP))
        ],
    )
    regimes = {"1 hidden layer": TUTORIAL, "4 hidden layers": DEEP, "overfitting": OVERFITTING}
    yield "p", [_over_p(results, "ReLU, Adam, lr 0.001", measure, regimes) for measure in (ACCURACY, SILENT)]
    arms = {
        f"{NAMES[name]}, p = {p:g}": replace(CONTINUAL, activation=name, p=p)
        for name in ("relu", "leaky_relu")
        for p in (0.0, 0.5)
    }
    yield (
        "continual",
        [
            _over_time(
                results,
                f"{o.name}, lr {o.lr:g}",
                measure,
                {label: replace(at, optimiser=o) for label, at in arms.items()},
            )
            for measure in (SILENT, ACCURACY)
            for o in (ADAM, SGD)
        ],
    )


def draw(panels: Sequence[Panel], path: Path) -> None:
    """Write one figure, the same bytes each time."""
    rows, columns = (2, 2) if len(panels) == 4 else (1, len(panels))
    matplotlib = require("matplotlib", "study")
    with matplotlib.rc_context({"svg.hashsalt": "fusedact", "font.size": 10}):
        figure = new_figure(figsize=(9, 3.4 * rows))
        for axes, panel in zip(figure.subplots(rows, columns, squeeze=False).flat, panels, strict=True):
            for line, colour in zip(panel.lines, _COLOURS, strict=False):
                low, high = line.values.min(0), line.values.max(0)
                axes.plot(line.places, line.values.mean(0), color=colour, label=line.label)
                axes.fill_between(line.places, low, high, color=colour, alpha=0.15, linewidth=0)
            axes.set(title=panel.title, xlabel=panel.across, ylabel=panel.up)
            axes.grid(alpha=0.3)
            if panel.across in ("epoch", "task"):
                axes.xaxis.get_major_locator().set_params(integer=True)
            if panel.up == _LABELS[SILENT]:
                axes.set_ylim(0, max(1.0, axes.get_ylim()[1]))
        axes.legend(fontsize=9)
        figure.savefig(path, metadata={"Date": None})
