"""Reports of a window: figures per layer, and their table."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .advice import advice


@dataclass(frozen=True, eq=False, kw_only=True)
class LayerActivity:
    """Hold the figures of one layer's units in a window.

    A sample is one value of a unit: one element of the batch, after a convolution also one position. h is the
    activation's output before dropout. NaN and infinite inputs are counted separately. A unit with such an
    input is neither dead nor revived, and the input is left out of its activity. Tensors are on the CPU.

    Attributes:
        layer: the layer's name in the model. Repeated calls in one forward are separate layers: `relu[1]`,
            ...
        activation: the name of the PyTorch activation.
        axis: the units' dimension. It is negative and counts from the end if the inputs had different numbers
            of dimensions.
        calls: number of calls.
        samples: number of samples of each unit.
        activity_samples: number of samples from which `activity`, `dormant` and `saturated` are computed.
        finite_samples: number of samples that were checked for NaN and infinities: all, or
            `activity_samples` if the fused kernels' packed bits tell which units fire.
        fired: number of samples with a positive input; int64 [units].
        nan: number of `finite_samples` whose input was NaN; int64 [units].
        inf: number of `finite_samples` whose input was infinite; int64 [units].
        activity: mean |h| over the `activity_samples`; float64 [units]. It is NaN for a unit without a finite
            sample.
        dead: units that were in the activation's dead range in every sample, where the derivative is 0 (ReLU:
            no input was positive); bool [units]. None if the activation has no such range.
        dormant: units whose activity is at most `tau` times the mean activity of the layer's units; bool
            [units]. In a layer of zeros, every unit is dormant. This is the tau-dormant neuron of Sokar et
            al., "The dormant neuron phenomenon in deep reinforcement learning" (ICML 2023), definition 3.1.
        negative: fraction of all inputs, NaN left out, that aren't positive.
        saturated: fraction of the inputs in `activity_samples` at which the derivative is below 5 % of its
            largest value (ELU with alpha = 1: inputs below about -3). None if the activation doesn't
            saturate.
        newly_dead: units dead in this window and not in the last; bool [units]. None if there is no earlier
            window, or if `dead` is None.
        revived: units dead in the last window and not in this one; bool [units]. None as `newly_dead`.
        always_dead: units dead in every window up to this one; bool [units]. None as `newly_dead`.
        p: the dropout probability of a fused module; None for other layers.
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
        """The number of units."""
        return len(self.fired)

    @property
    def mean_activity(self) -> float:
        """The mean of `activity` over the units; NaN if no unit has a finite sample."""
        return self.activity[self.activity.isfinite()].mean().item()

    def as_dict(self) -> dict[str, Any]:
        """Return the figures as plain numbers, and the units as lists of their indices, in a new dict."""
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
    """Hold the figures of all layers in a window. It prints as a table; `report["relu"]` is one layer.

    Attributes:
        window: the window's number, from 1.
        tau: the threshold of dormant units.
        layers: the layers that were called, in the model's order.
        silent: the names of watched layers that weren't called.
        varying: the least and the most calls in a forward, by the name of each layer whose number varied.

    Raises:
        KeyError: `report[name]` names no layer of this report.
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
        """Return `LayerActivity.as_dict()` by layer. A figure that an activation doesn't have is None."""
        return {layer.layer: layer.as_dict() for layer in self.layers}

    def advice(self) -> list[str]:
        """Return the remedies that these figures call for; empty if there are none.

        Each sentence names the section of the study that supports it. By the rule of three, a unit that is
        silent in n samples fires in less than 3 of n, with 95 % confidence. So with fewer than 100 samples,
        the advice calls no unit dead.
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
                f"Not called in this window: {', '.join(self.silent)}. Run the model itself, not a copy, in "
                "a mode that counts. Calls that torch.compile compiled before the monitor began aren't "
                "counted: call torch.compiler.reset() first."
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
    """Yield one line for a layer with NaN or infinite inputs."""
    found = []
    for name, counts in (("NaN", layer.nan), ("infinite", layer.inf)):
        units = int((counts > 0).sum())
        if units:
            found.append(f"{int(counts.sum())} inputs of {units} unit{'s' * (units != 1)} are {name}")
    if found:
        yield f"Not finite: {layer.layer}: {', '.join(found)}, in {layer.finite_samples} samples."


def share(units: Tensor | None) -> str:
    """Return the number of units and their percentage; a dash if the activation has no such units."""
    return "-" if units is None else f"{int(units.sum())} ({units.double().mean().item():.1%})"


def _count(units: Tensor | None) -> int | None:
    return None if units is None else int(units.sum())


def _indices(units: Tensor | None) -> list[int] | None:
    return None if units is None else units.nonzero().flatten().tolist()
