"""Which units fire: `ActivityMonitor` counts, per layer and unit, while a model runs.

Everything is counted on the activation's input, before dropout: a dropped element is no inactive one.
The counts stay on the device, as 64-bit integers, until a report is asked for.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .activations import Activation, check_module, check_parameter
from .counting import Tally, add_up, count_operator
from .functional import ACTIVATIONS
from .nn import _FusedDropout
from .ops import Counter
from .random import Plan

MODES = ("all", "train", "eval")


@dataclass(frozen=True, eq=False)
class LayerActivity:
    """What one layer's units did in a window.

    A sample is one value of a unit: an element of the batch, in a convolutional layer also a position.
    h is the activation's output before dropout. What fires is counted in all samples; mean |h|, and with it
    which units are dormant, and saturation are of `activity_samples` of them: see `ActivityMonitor`'s stride.

    Attributes:
        layer: its name in the model.
        activation: the name of the PyTorch activation.
        samples: values seen of each unit.
        activity_samples: how many of them `activity`, `dormant` and `saturated` are of.
        fired: how many samples had a positive input; int64 [units].
        activity: the mean of |h| over the `activity_samples`; float64 [units].
        dead: units that never fired; bool [units]. None for an activation whose units can't die, because
            negative inputs have an output and a gradient too.
        dormant: units whose activity is at most `tau` times the mean activity of the layer's units; bool
            [units]. That is the tau-dormant neuron of Sokar et al., "The dormant neuron phenomenon in deep
            reinforcement learning" (ICML 2023), definition 3.1. In a layer of zeros, every unit.
        negative: the fraction of all values whose input isn't positive.
        saturated: the fraction of the `activity_samples`' values so far below 0 that the derivative is less
            than 5% of what it is just below 0 (ELU: an input below -3); None for an activation that doesn't
            saturate.
        newly_dead: units dead now and not in the window before; bool [units], None if there is none.
        revived: units dead in the window before and not now; likewise.
        always_dead: units dead in every window so far, this one included; likewise.
        p: the dropout probability of a fused module, None for others.
    """

    layer: str
    activation: str
    samples: int
    activity_samples: int
    fired: Tensor
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
        """The mean of |h| over the `activity_samples` and units."""
        return self.activity.mean().item()

    def as_dict(self) -> dict[str, Any]:
        """The figures as plain numbers, and units as lists of their indices."""
        return {
            "activation": self.activation,
            "units": self.units,
            "samples": self.samples,
            "activity_samples": self.activity_samples,
            "dead": _count(self.dead),
            "dormant": _count(self.dormant),
            "negative": self.negative,
            "saturated": self.saturated,
            "mean_activity": self.mean_activity,
            "dead_units": _indices(self.dead),
            "dormant_units": _indices(self.dormant),
            "newly_dead_units": _indices(self.newly_dead),
            "revived_units": _indices(self.revived),
            "always_dead_units": _indices(self.always_dead),
        }


@dataclass(frozen=True, eq=False)
class ActivityReport:
    """What all layers' units did in a window. Prints as a table.

    Attributes:
        window: its number, from 1.
        tau: the threshold of dormant units.
        layers: those that were called, in the model's order.
        silent: names of watched modules that weren't.
    """

    window: int
    tau: float
    layers: tuple[LayerActivity, ...]
    silent: tuple[str, ...]

    def as_dict(self) -> dict[str, dict[str, Any]]:
        """Per layer: `LayerActivity.as_dict`. None stands for what an activation doesn't have."""
        return {layer.layer: layer.as_dict() for layer in self.layers}

    def __str__(self) -> str:
        header = ("layer", "activation", "units", "samples", "dead", "negative", "trend")
        rows = [(*header, "read", "mean |h|", "dormant", "saturated")]
        for layer in self.layers:
            rows.append(
                (
                    layer.layer,
                    layer.activation,
                    str(layer.units),
                    str(layer.samples),
                    _share(layer.dead),
                    f"{layer.negative:.1%}",
                    "-"
                    if layer.newly_dead is None
                    else f"{_count(layer.newly_dead)} died, {_count(layer.revived)} revived",
                    str(layer.activity_samples),
                    f"{layer.mean_activity:.3g}",
                    _share(layer.dormant),
                    "-" if layer.saturated is None else f"{layer.saturated:.1%}",
                )
            )
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
        if self.silent:
            lines.append(
                f"Not called: {', '.join(self.silent)}. What torch.compile compiled before the monitor began "
                "isn't counted: call torch.compiler.reset() first."
            )
        return "\n".join(lines)

    def advice(self) -> list[str]:
        """The remedies whose causes are in these figures, each with them; empty if there is no cause.

        A unit that didn't fire in n samples fires, with 95% confidence, in less than 3 of n (the rule of
        three). Below 100 samples no unit is called dead here, and below 100 that were read none dormant.
        """
        return [line for layer in self.layers for line in _advice(layer)]


def _advice(layer: LayerActivity) -> Iterator[str]:
    window = f"in {layer.samples} samples"
    dead, dormant = _count(layer.dead) or 0, _count(layer.dormant) or 0
    if layer.dead is not None and layer.samples < 100:
        if dead:
            yield f"{layer.layer}: {dead} units silent {window}, too few to tell. Take a longer window."
        return
    if dead:
        yield (
            f"{layer.layer}: {_share(layer.dead)} of {layer.units} units never fired {window}. LeakyReLU or "
            "ELU pass a gradient on to such units."
        )
    died, revived, always = (_count(v) or 0 for v in (layer.newly_dead, layer.revived, layer.always_dead))
    if died > revived:
        yield (
            f"{layer.layer}: {died} units died since the last window and {revived} revived, {window}. A "
            "lower learning rate makes the steps smaller that kill them."
        )
    if always:
        yield (
            f"{layer.layer}: {always} of {layer.units} units were dead in every window so far. If training "
            "began with the first, they were born so: He initialisation (nn.init.kaiming_normal_) helps."
        )
    window = f"in {layer.activity_samples} samples"
    enough = layer.activity_samples >= 100
    if enough and layer.p is not None and layer.p > 0.5 and 10 * dormant >= layer.units:
        yield (
            f"{layer.layer}: {dormant} of {layer.units} units are dormant {window}, at p = {layer.p:g}: a "
            "unit learns from few samples. Try a lower p."
        )
    if layer.saturated is not None and layer.saturated >= 0.5:
        yield (
            f"{layer.layer}: {layer.saturated:.1%} of the values are saturated {window}, where hardly any "
            "gradient passes. A lower learning rate, He initialisation or normalised inputs keep them near 0."
        )


def _count(units: Tensor | None) -> int | None:
    return None if units is None else int(units.sum())


def _indices(units: Tensor | None) -> list[int] | None:
    return None if units is None else units.nonzero().flatten().tolist()


def _share(units: Tensor | None) -> str:
    return "-" if units is None else f"{int(units.sum())} ({units.double().mean().item():.1%})"


# The monitor ------------------------------------------------------------------------------------------


@dataclass(eq=False)
class _Layer:
    """A watched module, and one tally per number of units and device.

    A fused module's call asks its watchers itself; of others a pre-hook does, since an activation in place
    leaves nothing of its input.
    """

    name: str
    module: nn.Module
    activation: Activation
    dim: int | None  # None: not chosen, and no module before it tells
    chosen: bool
    mode: str
    stride: int
    tallies: dict[tuple[int, torch.device], Tally] = field(default_factory=dict)
    # Two monitors' equal calls are one to a compiler, with one tally, unless this tells them apart.
    number: str = field(default_factory=map(str, itertools.count()).__next__)

    def attach(self) -> Callable[[], None]:
        """Begin to count; the function returned ends it."""
        module: Any = self.module
        if type(module).forward is not _FusedDropout.forward or "forward" in vars(module):
            handle = module.register_forward_pre_hook(self._before, with_kwargs=True)
            return lambda: handle.remove()
        module._watchers = (*module._watchers, self)
        return self._detach

    def _detach(self) -> None:
        module: Any = self.module
        module._watchers = tuple(watcher for watcher in module._watchers if watcher is not self)

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.wants(module.training):
            self(args[0] if args else kwargs.get("input"))

    def wants(self, training: bool) -> bool:
        """Whether calls in that mode count."""
        return self.mode == "all" or training == (self.mode == "train")

    @property
    def parameters(self) -> list[float]:
        name = self.activation.parameter
        return [float(getattr(self.module, name))] if name else []

    def unit_dim(self, ndim: int) -> int:
        """The dimension of the units in an input of `ndim` dimensions, counted from the end."""
        dim = self.dim if self.dim is not None else (1 if ndim > 3 else -1)
        if -max(ndim, 1) <= dim < max(ndim, 1):
            return dim if dim < 0 else dim - max(ndim, 1)
        if self.chosen:
            raise ValueError(
                f"units has to name a dimension, but layer {self.name!r} has {ndim}, and got {dim}"
            )
        return -1

    def __call__(self, x: Any, plan: Plan | None = None) -> Counter | None:
        """Count an input; see `ops.Watcher`."""
        if not isinstance(x, Tensor) or not x.is_floating_point() or x.numel() == 0:
            return None  # no units, or the module's own error is about to come
        if torch.compiler.is_compiling():
            self.compiled(x)
            return None
        self._check(x)
        dim = self.unit_dim(x.ndim)
        return add_up(x, dim, self.activation, self.parameters, self.stride, self._tally(x, dim), plan)

    def compiled(
        self, x: Tensor, signs: Tensor | None = None, signs_stride: Sequence[int] = (), rng: str = "eager"
    ) -> None:
        """Count an input in a compiler's graph; see `ops.Watcher`."""
        if torch.compiler._is_exporting_flag:  # is_exporting() says so in all that torch 2.11 compiles
            raise RuntimeError(
                f"ActivityMonitor can't count in an export (layer {self.name!r}): close it first"
            )
        dim = self.unit_dim(x.ndim)
        arguments = dim, self.activation.name, self.parameters, self.stride, self.number
        count_operator(x.detach(), signs, signs_stride, rng, *arguments, *self._tally(x, dim))

    def _tally(self, x: Tensor, dim: int) -> Tally:
        key = (x.shape[dim] if x.ndim else 1, x.device)
        if key not in self.tallies:
            if x.is_cuda and torch.cuda.is_current_stream_capturing():
                raise RuntimeError(
                    f"layer {self.name!r} has to be called once under ActivityMonitor before a CUDA graph is "
                    "captured: memory for its counts can't be made in one"
                )
            with torch.inference_mode(False):  # or they could be changed in no other mode
                self.tallies.setdefault(key, Tally.zeros(*key))  # another thread may have been first
        return self.tallies[key]

    def _check(self, x: Tensor) -> None:
        if torch._C._are_functorch_transforms_active():
            raise RuntimeError(
                f"ActivityMonitor can't count inside a torch.func transform (layer {self.name!r})"
            )
        if torch._C._get_tracing_state() is not None:
            raise RuntimeError(
                f"ActivityMonitor can't count in torch.jit.trace (layer {self.name!r}): close it first"
            )
        if type(x) not in (Tensor, nn.Parameter) or x.is_nested:
            kind = "nested tensor" if x.is_nested else type(x).__name__
            raise TypeError(f"ActivityMonitor counts plain tensors, but layer {self.name!r} got a {kind}")
        if x.layout is not torch.strided or x.is_meta:
            kind = "no values (device meta)" if x.is_meta else f"layout {x.layout}"
            raise TypeError(
                f"ActivityMonitor counts dense tensors, but layer {self.name!r} got one of {kind}"
            )


class ActivityMonitor:
    """Counts which units of a model fire, from now on until `close`; as a context manager, to its end.

    It watches fused modules and `nn.ReLU`, `nn.LeakyReLU` and `nn.ELU`. Calls of functions (`F.relu(x)`)
    aren't seen. Nothing waits for the GPU until a report is asked for.

    - Which units fire is counted in all samples: in the kernels of a fused module from a bit per element
      that forward packs, elsewhere from the input, which is read once more.
    - Mean |h|, and with it which units are dormant, and saturation are of every `stride`-th sample: after a
      convolution of every `stride`-th run of 64 positions. Inputs of at most 65,536 elements are read whole.
    - The window is what ran since the monitor began or `end_window` was last called.
    - A module that is called several times is one layer, and its calls add up; one that gets different
      numbers of units is one layer for each, as `name[units]`.
    - Checkpoints: a forward that is computed again in backward doesn't count again.
    - `torch.compile`: begin before the first call of what is compiled, or call `torch.compiler.reset()`;
      that first call must not be in inference mode if later ones are not.
    - Several processes (`torch.distributed` initialised): `report` and `end_window` add up the counts of
      all in `group`, so that each of them has to call it.
    - CUDA graphs: call each layer once before capture; replays count.
    - Inside `torch.func` transforms, in `torch.export` and `torch.jit.trace`, for tensor subclasses (DTensor)
      and for tensors that aren't dense it raises an error.

    Args:
        model: with at least one module to watch.
        units: the dimension along which units stand, or a mapping from layers' names to it. By default, as
            the last module with parameters that is registered before the layer has it: the channels' after
            a convolution, batch or group normalisation, else the last one. If there is none, dimension 1
            for inputs of four or more dimensions, else the last.
        tau: of dormant units, see `LayerActivity.dormant`; at least 0.
        mode: which calls count: those in "train" mode, in "eval" mode, or "all".
        stride: of the samples that are read for mean |h| and saturation; 1 reads all. That it is prime keeps
            it from meeting the same position of each sequence.
        group: the processes whose counts are added up. Default: all.

    Raises:
        TypeError: `model` is no module, `units` neither an int nor a mapping to ints, or `stride` no int.
        ValueError: there is nothing to watch; `units` names a layer that isn't watched, `tau` is no number
            of at least 0, `stride` below 1, or `mode` has another value.

    Examples:
        >>> net = nn.Sequential(nn.Linear(784, 128), FusedReLUDropout(0.5), nn.Linear(128, 10))
        >>> with ActivityMonitor(net) as monitor:
        ...     train(net)
        >>> print(monitor.report())
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        units: int | Mapping[str, int] | None = None,
        tau: float = 0.025,
        mode: str = "all",
        stride: int = 31,
        group: "dist.ProcessGroup | None" = None,
    ) -> None:
        check_module("model", model)
        self.tau = check_parameter("tau", tau)
        if self.tau < 0:
            raise ValueError(f"tau has to be at least 0, but got tau={tau!r}")
        if mode not in MODES:
            raise ValueError(f"mode has to be one of {', '.join(map(repr, MODES))}, but got mode={mode!r}")
        if isinstance(stride, bool) or not isinstance(stride, int):
            raise TypeError(f"stride has to be an int, but got stride={stride!r}")
        if stride < 1:
            raise ValueError(f"stride has to be an int of at least 1, but got stride={stride!r}")
        self.group = group
        self._layers = _watched(model, units, mode, stride)
        self._window = 1
        self._dead: dict[str, Tensor] = {}  # in the last window
        self._always: dict[str, Tensor] = {}  # in all windows
        self._history: list[dict[str, tuple[float, float]]] = []  # fractions dead and dormant
        self._detach = [layer.attach() for layer in self._layers]

    def __enter__(self) -> "ActivityMonitor":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop counting. The counts so far stay, for `report`."""
        for detach in self._detach:
            detach()
        for layer in self._layers:
            # A CUDA graph goes on with the tensors that it knows.
            layer.tallies = {key: Tally(*map(Tensor.clone, tally)) for key, tally in layer.tallies.items()}

    def report(self) -> ActivityReport:
        """The figures of the window so far. Waits for the GPU; among processes, all have to call it."""
        tallies = _reduced({layer.name: _merged(layer) for layer in self._layers}, self.group)
        found, called = [], set()
        for layer in self._layers:
            by_units = tallies.get(layer.name, {})
            for units, tally in sorted(by_units.items()):
                name = layer.name if len(by_units) == 1 else f"{layer.name}[{units}]"
                if tally.counts[0, 0] > 0:
                    found.append(self._figures(layer, name, tally))
                    called.add(layer.name)
        silent = tuple(layer.name for layer in self._layers if layer.name not in called)
        return ActivityReport(self._window, self.tau, tuple(found), silent)

    def end_window(self) -> ActivityReport:
        """The figures of the window, which ends here: the next starts with no counts."""
        report = self.report()
        for found in report.layers:
            if found.dead is not None:
                self._dead[found.layer] = found.dead
                self._always[found.layer] = found.dead & self._always.get(found.layer, found.dead)
        self._history.append(_fractions(report))
        for layer in self._layers:
            for tally in layer.tallies.values():
                for tensor in tally:
                    tensor.zero_()  # in place: compiled code and CUDA graphs know these tensors
        self._window += 1
        return report

    def plot(self) -> Any:
        """A `matplotlib.figure.Figure`: dead and dormant units per window, and how active units are now.

        The histogram's axis is a unit's activity by the mean of its layer: dormant units are below `tau`.
        Needs matplotlib. Among processes, all have to call it.
        """
        from matplotlib.figure import Figure

        report = self.report()
        history = [*self._history, *([_fractions(report)] if report.layers else [])]
        figure = Figure(figsize=(11, 4), layout="constrained")
        left, right = figure.subplots(1, 2)
        for i, name in enumerate(dict.fromkeys(name for window in history for name in window)):
            windows = [(k + 1, *window[name]) for k, window in enumerate(history) if name in window]
            numbers, dead, dormant = zip(*windows, strict=True)
            left.plot(numbers, [100 * v for v in dead], "o-", color=f"C{i}", label=f"{name}: dead")
            left.plot(numbers, [100 * v for v in dormant], "x--", color=f"C{i}", label=f"{name}: dormant")
        for i, layer in enumerate(report.layers):
            scores = layer.activity / (layer.mean_activity or 1.0)
            scores = scores[scores.isfinite()]
            label = f"{layer.layer}: {layer.activity_samples} samples"
            right.hist(scores.tolist(), bins=40, histtype="step", color=f"C{i}", label=label)
        left.set(xlabel="window", ylabel="units (%)", ylim=(0, None))
        left.xaxis.get_major_locator().set_params(integer=True)
        right.axvline(self.tau, color="grey", linestyle=":", label=f"tau = {self.tau:g}")
        right.set(xlabel="mean |h| of a unit / of its layer", ylabel="units")
        for axis in (left, right):
            if axis.get_legend_handles_labels()[0]:
                axis.legend()
        return figure

    def _figures(self, layer: _Layer, name: str, tally: Tally) -> LayerActivity:
        (samples, read), (fired, saturated) = tally.counts[:, 0].tolist(), tally.counts[:, 1:]
        activity = tally.activity / read
        dead = fired == 0 if _can_die(layer) else None
        newly_dead = revived = always_dead = None
        if dead is not None and name in self._dead:
            before = self._dead[name]
            newly_dead, revived, always_dead = dead & ~before, before & ~dead, dead & self._always[name]
        total = samples * len(fired)
        return LayerActivity(
            layer=name,
            activation=layer.activation.module.__name__,
            samples=samples,
            activity_samples=read,
            fired=fired,
            activity=activity,
            dead=dead,
            dormant=(activity <= self.tau * activity.mean()) & activity.isfinite(),
            negative=1 - int(fired.sum()) / total,
            saturated=None
            if layer.activation.saturation is None
            else int(saturated.sum()) / (read * len(fired)),
            newly_dead=newly_dead,
            revived=revived,
            always_dead=always_dead,
            p=float(layer.module.p) if isinstance(layer.module, _FusedDropout) else None,
        )


def _fractions(report: ActivityReport) -> dict[str, tuple[float, float]]:
    def fraction(units: Tensor | None) -> float:
        return math.nan if units is None else units.double().mean().item()

    return {layer.layer: (fraction(layer.dead), fraction(layer.dormant)) for layer in report.layers}


def _can_die(layer: _Layer) -> bool:
    """All negative inputs give 0: so do a LeakyReLU's of slope 0."""
    return not layer.activation.eager(torch.tensor([-0.5, -1.0]), *layer.parameters).any()


def _watched(model: nn.Module, units: int | Mapping[str, int] | None, mode: str, stride: int) -> list[_Layer]:
    layers = []
    before: int | None = None  # the units' dimension of the last module that tells
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.conv._ConvNd):
            before = -1 - len(module.kernel_size)
        elif isinstance(module, nn.modules.batchnorm._NormBase | nn.GroupNorm):
            before = 1
        elif module._parameters:
            before = -1
        activation = _row(module)
        if activation is not None:
            name = name or "(the model)"
            layers.append(_Layer(name, module, activation, before, False, mode, stride))
    if not layers:
        kinds = ", ".join(f"nn.{row.module.__name__}" for row in ACTIVATIONS)
        raise ValueError(
            f"model has to have a fused module or one of {kinds} to watch, but this {type(model).__name__} "
            "has none. Functions can't be watched"
        )
    _choose(layers, units)
    return layers


def _choose(layers: list[_Layer], units: int | Mapping[str, int] | None) -> None:
    if units is None:
        return
    by_name = units if isinstance(units, Mapping) else {layer.name: units for layer in layers}
    unknown = [name for name in by_name if name not in {layer.name for layer in layers}]
    if unknown:
        names = ", ".join(repr(layer.name) for layer in layers)
        raise ValueError(f"units has to name watched layers ({names}), but got {unknown[0]!r}")
    for layer in layers:
        if layer.name in by_name:
            dim = by_name[layer.name]
            if isinstance(dim, bool) or not isinstance(dim, int):
                raise TypeError(f"units has to be an int or a mapping to ints, but got {dim!r}")
            layer.dim, layer.chosen = dim, True


def _row(module: nn.Module) -> Activation | None:
    if isinstance(module, _FusedDropout):
        return module.activation
    return next((row for row in ACTIVATIONS if isinstance(module, row.module)), None)


_Tallies = dict[str, dict[int, Tally]]


def _merged(layer: _Layer) -> dict[int, Tally]:
    """Its tallies on the CPU, those of several devices added up."""
    merged: dict[int, Tally] = {}
    for (units, _), tally in layer.tallies.items():
        before = merged.get(units) or Tally.zeros(units, "cpu")
        merged[units] = Tally(*(a + b.cpu() for a, b in zip(before, tally, strict=True)))
    return merged


def _reduced(tallies: _Tallies, group: "dist.ProcessGroup | None") -> _Tallies:
    """The tallies of all processes, added up; a layer needn't have run in each."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size(group) < 2:
        return tallies
    here = [(name, units) for name, by_units in tallies.items() for units in by_units]
    everyones: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(everyones, here, group)
    keys = sorted({key for keys in everyones for key in keys})
    device = "cuda" if dist.get_backend(group) == "nccl" else "cpu"
    reduced: _Tallies = {name: {} for name in tallies}
    for name, units in keys:
        mine = tallies.get(name, {}).get(units) or Tally.zeros(units, "cpu")
        tensors = [tensor.to(device) for tensor in mine]
        for tensor in tensors:
            dist.all_reduce(tensor, group=group)
        reduced[name][units] = Tally(*(tensor.cpu() for tensor in tensors))
    return reduced
