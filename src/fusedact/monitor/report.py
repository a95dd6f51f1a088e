"""What the units did in a window: figures per layer, and their table."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .advice import advice


@dataclass(frozen=True, eq=False, kw_only=True)
class LayerActivity:
    """What one layer's units did in a window.

    A sample is one value of a unit: an element of the batch, in a convolutional layer also a position.
    h is the activation's output before dropout. Inputs that are NaN or infinite count apart: a unit that has
    any is neither dead nor revived, and they are left out of its activity.

    Attributes:
        layer: its name in the model. Repeated calls in one forward are layers of their own: `relu[1]`, ...
        activation: the name of the PyTorch activation.
        axis: the dimension along which the units stand. It counts from the end, below 0, where inputs had
            different numbers of dimensions.
        calls: how often it was called.
        samples: values seen of each unit.
        activity_samples: how many of them `activity`, `dormant` and `saturated` are of.
        finite_samples: how many of them were checked for NaN and infinities: all, or, where the fused
            kernels' packed bits tell which units fire, those that `activity` is of.
        fired: how many samples had a positive input; int64 [units].
        nan: how many of the `finite_samples` had a NaN for input; int64 [units].
        inf: how many of them had an infinite input; int64 [units].
        activity: the mean of |h| over the `activity_samples`; float64 [units], NaN for a unit without any
            that is finite.
        dead: units that were in the activation's dead range in every sample, where output and gradient are
            constant (ReLU: never had a positive input); bool [units]. None for an activation without such a
            range.
        dormant: units whose activity is at most `tau` times the mean activity of the layer's units; bool
            [units]. That is the tau-dormant neuron of Sokar et al., "The dormant neuron phenomenon in deep
            reinforcement learning" (ICML 2023), definition 3.1. In a layer of zeros, every unit.
        negative: the fraction of all values whose input isn't positive, NaN left out.
        saturated: the fraction of the `activity_samples`' values where hardly any gradient passes (ELU: an
            input of at most -3, where it is less than 5% of what it is just below 0); None for an
            activation that doesn't saturate.
        newly_dead: units dead now and not in the window before; bool [units], None if there is none.
        revived: units dead in the window before and not now; likewise.
        always_dead: units dead in every window so far, this one included; likewise.
        p: the dropout probability of a fused module, None for others.
    """

    layer: str
    activation: str
    axis: int
    calls: int
    samples: int
    activity_samples: int
    finite_samples: int
    fired: Tensor
    nan: Tensor
    inf: Tensor
    activity: Tensor
    dead: Tensor | None
    dormant: Tensor
    negative: float
    saturated: float | None
    newly_dead: Tensor | None
    revived: Tensor | None
    always_dead: Tensor | None
    p: float | None

    @property
    def units(self) -> int:
        """How many there are."""
        return len(self.fired)

    @property
    def mean_activity(self) -> float:
        """The mean of |h| over the `activity_samples` and units; NaN where no unit has any that is finite."""
        return self.activity[self.activity.isfinite()].mean().item()

    def as_dict(self) -> dict[str, Any]:
        """Return the figures as plain numbers, and units as lists of their indices."""
        return {
            "activation": self.activation,
            "units": self.units,
            "axis": self.axis,
            "calls": self.calls,
            "samples": self.samples,
            "activity_samples": self.activity_samples,
            "finite_samples": self.finite_samples,
            "dead": _count(self.dead),
            "dormant": _count(self.dormant),
            "negative": self.negative,
            "saturated": self.saturated,
            "mean_activity": self.mean_activity,
            "nan": int(self.nan.sum()),
            "inf": int(self.inf.sum()),
            "dead_units": _indices(self.dead),
            "dormant_units": _indices(self.dormant),
            "nan_units": _indices(self.nan),
            "inf_units": _indices(self.inf),
            "newly_dead_units": _indices(self.newly_dead),
            "revived_units": _indices(self.revived),
            "always_dead_units": _indices(self.always_dead),
        }


@dataclass(frozen=True, eq=False)
class ActivityReport:
    """What all layers' units did in a window. Prints as a table; `report["relu"]` is one layer.

    Attributes:
        window: its number, from 1.
        tau: the threshold of dormant units.
        layers: those that were called, in the model's order.
        silent: names of watched modules that weren't.
        varying: of modules that ran a varying number of times in a forward, the least and the most.
    """

    window: int
    tau: float
    layers: tuple[LayerActivity, ...]
    silent: tuple[str, ...]
    varying: dict[str, tuple[int, int]]

    def __getitem__(self, name: str) -> LayerActivity:
        for layer in self.layers:
            if layer.layer == name:
                return layer
        if name in self.silent:
            raise KeyError(f"layer {name!r} was not called in window {self.window}")
        known = ", ".join(repr(layer.layer) for layer in self.layers)
        raise KeyError(f"no layer is named {name!r}; this report has {known or 'none'}")

    def __iter__(self) -> Iterator[LayerActivity]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def as_dict(self) -> dict[str, dict[str, Any]]:
        """Return `LayerActivity.as_dict` per layer. None stands for what an activation doesn't have."""
        return {layer.layer: layer.as_dict() for layer in self.layers}

    def advice(self) -> list[str]:
        """Return remedies whose causes are in these figures; empty if there is no cause.

        Each names the section of the study that supports it. A unit that didn't fire in n samples fires,
        with 95% confidence, in less than 3 of n (the rule of three): below 100 samples none is called dead.
        """
        return [line for layer in self.layers for line in advice(layer)]

    def __str__(self) -> str:
        header = ("layer", "activation", "axis", "units", "samples", "dead", "negative", "trend")
        rows = [(*header, "read", "mean |h|", "dormant", "saturated"), *map(_cells, self.layers)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            f"Window {self.window}; |h|, dormant and saturated are of the samples read; "
            f"dormant: at most {self.tau:g} of the layer's mean |h|"
        ]
        for row in rows:
            cells = [
                text.ljust(w) if i < 2 else text.rjust(w)
                for i, (text, w) in enumerate(zip(row, widths, strict=True))
            ]
            lines.append("  ".join(cells).rstrip())
        lines += [line for layer in self.layers for line in _not_finite(layer)]
        for name, (least, most) in self.varying.items():
            lines.append(f"Varying: {name} ran {least} to {most} times in a forward of the model.")
        if self.silent:
            lines.append(
                f"Not called: {', '.join(self.silent)}. What torch.compile compiled before the monitor began "
                "isn't counted: call torch.compiler.reset() first."
            )
        return "\n".join(lines)


def _cells(layer: LayerActivity) -> tuple[str, ...]:
    trend = "-"
    if layer.newly_dead is not None:
        trend = f"{_count(layer.newly_dead)} died, {_count(layer.revived)} revived"
    return (
        layer.layer,
        layer.activation,
        str(layer.axis),
        str(layer.units),
        str(layer.samples),
        share(layer.dead),
        f"{layer.negative:.1%}",
        trend,
        str(layer.activity_samples),
        f"{layer.mean_activity:.3g}",
        share(layer.dormant),
        "-" if layer.saturated is None else f"{layer.saturated:.1%}",
    )


def _not_finite(layer: LayerActivity) -> Iterator[str]:
    """One line for a layer with inputs that aren't finite."""
    found = []
    for name, counts in (("NaN", layer.nan), ("infinite", layer.inf)):
        units = int((counts > 0).sum())
        if units:
            found.append(f"{int(counts.sum())} inputs of {units} unit{'s' * (units != 1)} are {name}")
    if found:
        yield f"Not finite: {layer.layer}: {', '.join(found)}, in {layer.finite_samples} samples."


def share(units: Tensor | None) -> str:
    """How many units, and their percentage of all; a dash for none that could be."""
    return "-" if units is None else f"{int(units.sum())} ({units.double().mean().item():.1%})"


def _count(units: Tensor | None) -> int | None:
    return None if units is None else int(units.sum())


def _indices(units: Tensor | None) -> list[int] | None:
    return None if units is None else units.nonzero().flatten().tolist()
