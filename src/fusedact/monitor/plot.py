"""The monitor's plot."""

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .report import ActivityReport


@dataclass(frozen=True)
class Fractions:
    """Fractions of a layer's units in one window; `dead` is NaN if the activation's units can't die."""

    dead: float
    dormant: float


Window = dict[str, Fractions]  # by layer


def fractions(report: ActivityReport) -> Window:
    """Return the fractions that the plot shows for a window."""
    return {layer.layer: Fractions(_mean(layer.dead), _mean(layer.dormant)) for layer in report.layers}


def _mean(units: Tensor | None) -> float:
    return math.nan if units is None else units.double().mean().item()


def drawn(history: list[Window], report: ActivityReport) -> Any:
    """Return a `matplotlib.figure.Figure` of the past windows and of the reported one.

    Raises:
        ImportError: matplotlib doesn't import.
    """
    try:
        from matplotlib.figure import Figure
    except Exception as error:  # a broken installation may raise any error
        raise ImportError(
            f"plot() needs matplotlib, which doesn't import ({error}): pip install matplotlib"
        ) from error

    windows = [*history, *([fractions(report)] if report.layers else [])]
    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for i, name in enumerate(dict.fromkeys(name for window in windows for name in window)):
        mine = {k + 1: window[name] for k, window in enumerate(windows) if name in window}
        dead, dormant = ([100 * getattr(v, which) for v in mine.values()] for which in ("dead", "dormant"))
        left.plot(list(mine), dead, "o-", color=f"C{i}", label=f"{name}: dead")
        left.plot(list(mine), dormant, "x--", color=f"C{i}", label=f"{name}: dormant")
    for i, layer in enumerate(report.layers):
        scores = layer.activity / (layer.mean_activity or 1.0)
        scores = scores[scores.isfinite()]
        label = f"{layer.layer}: {layer.activity_samples} samples"
        right.hist(scores.tolist(), bins=40, histtype="step", color=f"C{i}", label=label)
    left.set(xlabel="window", ylabel="units (%)", ylim=(0, None))
    left.xaxis.get_major_locator().set_params(integer=True)
    right.axvline(report.tau, color="grey", linestyle=":", label=f"tau = {report.tau:g}")
    right.set(xlabel="mean |h| of a unit / of its layer", ylabel="units")
    for axis in (left, right):
        if axis.get_legend_handles_labels()[0]:
            axis.legend()
    return figure
