"""`ActivityMonitor`: starts and stops the watching of a model, and turns counts into reports."""

from collections.abc import Mapping
from types import TracebackType
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..checks import check_finite, check_module
from ..kernels.counted import Row
from .distributed import Place, reduced
from .facts import name_of
from .layers import Detach, Settings, WatchedLayer, choose, follow, watched_layers
from .order import Order
from .plot import Window, drawn, fractions
from .report import ActivityReport, LayerActivity
from .tally import Tally

MODES = ("all", "train", "eval")


class _Call(NamedTuple):
    """The identity of a report's line: layer, number of the call in a forward, number of units."""

    layer: str
    call: int
    units: int


class ActivityMonitor:
    """Count which units of a model fire, from construction until `close` or the end of the `with` block.

    The monitor watches fused modules, and PyTorch's modules of the activations that fusedact has. In a model
    that `fusedact.fuse` returned, it also watches functions that a dropout follows, such as `F.relu(x)`. They
    are named after their place in the code. Nothing waits for the GPU until a report is requested.

    - Firing units are counted in all samples. In a fused module's kernels they are counted from one bit per
      element that forward packs, elsewhere from the input, which is read once more.
    - NaN and infinite inputs are counted in all samples too, unless the packed bits tell which units fire.
      Then they are counted in the samples that are read for mean |h|.
    - Mean |h|, dormant units and saturation are computed from every `stride`-th sample. After a convolution
      they are computed from every `stride`-th run of 64 positions. Inputs of at most 65,536 elements are read
      whole.
    - The window is the time since the monitor was made or `end_window` was last called. After `close`,
      another `with` continues the same window.
    - If a module is called several times in one forward of `model`, each call is a layer: `name[1]`,
      `name[2]`. If its inputs have different numbers of units, each number is a layer too.
    - The monitor takes the number of units of the last convolution, linear or normalisation layer that ran.
      The units' axis is the dimension of that length. The report names the axis, and `units` sets another.
    - Copies of the model aren't watched. Threads may share the model.
    - Checkpoints: a forward that is recomputed in backward isn't counted again.
    - `torch.compile`: make the monitor before the first call of the compiled code, or call
      `torch.compiler.reset()`. If later calls aren't in inference mode, the first must not be either.
    - PyTorch's fast path of transformers in eval calls no activation, so it is not taken while a monitor
      watches.
    - Several processes (`torch.distributed` initialised): `report` and `end_window` add up the counts of all
      processes in `group`, so each of these has to call them.
    - CUDA graphs: call each layer once before the capture. Replays are counted.
    - Inside `torch.func` transforms, in `torch.export` and `torch.jit.trace`, for tensor subclasses (DTensor)
      and for sparse and quantised tensors, the watched call raises an error.

    Args:
        model: a module with at least one activation to watch.
        units: the dimension of the units, or a mapping from layers' names to it. By default the layers that
            ran before decide. If none did, it is dimension 1 for inputs of four or more dimensions, else the
            last.
        tau: the threshold of dormant units, at least 0; see `LayerActivity.dormant`.
        mode: the calls that count: "train", "eval" or "all".
        stride: every stride-th sample is read for mean |h| and saturation; 1 reads all. The default is prime,
            so that it doesn't meet the same position of every sequence.
        group: the processes whose counts are added up. Default: all.

    Raises:
        TypeError: `model` is not a module, `units` neither an int nor a mapping to ints, or `stride` not an
            int.
        ValueError: `model` has nothing to watch; `units` names a layer that isn't watched; `tau` is not a
            number of at least 0; `stride` is below 1; or `mode` is neither "train", "eval" nor "all".

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
        self.tau = check_finite("tau", tau)
        if self.tau < 0:
            raise ValueError(f"tau={tau!r}: it must be at least 0")
        if mode not in MODES:
            raise ValueError(f"mode={mode!r}: it must be one of {', '.join(map(repr, MODES))}")
        if isinstance(stride, bool) or not isinstance(stride, int):
            raise TypeError(f"stride={stride!r}: it must be an int")
        if stride < 1:
            raise ValueError(f"stride={stride!r}: it must be at least 1")
        self.group = group
        self._model, self._order = model, Order()
        self._layers = watched_layers(model, Settings(mode, stride), self._order)
        choose(self._layers, units)
        self._window = 1
        self._dead: dict[_Call, Tensor] = {}  # in the last window
        self._always: dict[_Call, Tensor] = {}  # in all windows
        self._history: list[Window] = []
        self._detach: list[Detach] = []
        self._open()

    def _open(self) -> None:
        if not self._detach:
            self._detach = [*follow(self._model, self._order), *(layer.attach() for layer in self._layers)]

    def __enter__(self) -> "ActivityMonitor":
        self._open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop counting. `report` still returns the counts so far."""
        detach, self._detach = self._detach, []
        for end in detach:
            end()
        for layer in self._layers:
            layer.close()

    def report(self) -> ActivityReport:
        """Return the figures of the window so far. This waits for the GPU; all processes have to call it."""
        return self._report(self._calls())

    def end_window(self) -> ActivityReport:
        """Return the figures of the window and end it; the next window starts with no counts.

        This waits for the GPU; all processes have to call it.
        """
        calls = self._calls()
        report = self._report(calls)
        for call, found in zip(_called(calls), report.layers, strict=True):
            if found.dead is not None:
                self._dead[call] = found.dead
                self._always[call] = found.dead & self._always.get(call, found.dead)
        self._history.append(fractions(report))
        for layer in self._layers:
            layer.clear()
        self._window += 1
        return report

    def plot(self) -> Any:
        """Draw dead and dormant units per window, in percent, and a histogram of the units' activity now.

        The histogram's axis is a unit's activity divided by its layer's mean. Dormant units are at most at
        `tau`. All processes have to call it.

        Returns:
            A `matplotlib.figure.Figure`.

        Raises:
            ImportError: matplotlib doesn't import.
        """
        return drawn(self._history, self.report())

    def _calls(self) -> dict[_Call, dict[Place, Tally]]:
        """Return the counts of all devices and processes, in the model's order."""
        tallies: dict[Place, Tally] = {}
        for layer in self._layers:
            for key, tally in layer.tallies().items():
                place = Place(layer.name, key.call, key.units, key.axis, key.dims)
                found = tally.cpu()
                tallies[place] = tallies[place] + found if place in tallies else found
        calls: dict[_Call, dict[Place, Tally]] = {}
        names = [layer.name for layer in self._layers]
        total = reduced(tallies, self.group)
        for place in sorted(total, key=lambda place: (names.index(place.layer), place)):
            calls.setdefault(_Call(*place[:3]), {})[place] = total[place]
        return calls

    def _report(self, calls: dict[_Call, dict[Place, Tally]]) -> ActivityReport:
        layers = {layer.name: layer for layer in self._layers}
        found = []
        for call in _called(calls):
            places = {place: tally for place, tally in calls[call].items() if tally.number(Row.FIRED)}
            found.append(self._figures(layers[call.layer], call, _name(call, calls), places))
        silent = tuple(name for name in layers if name not in {call.layer for call in _called(calls)})
        return ActivityReport(self._window, self.tau, tuple(found), silent, _varying(calls))

    def _figures(
        self, layer: WatchedLayer, call: _Call, name: str, places: dict[Place, Tally]
    ) -> LayerActivity:
        tally = sum(list(places.values())[1:], start=next(iter(places.values())))
        bound, units = layer.bound, call.units
        assert bound is not None  # it was called
        samples, read = tally.number(Row.FIRED), tally.number(Row.SATURATED)
        fired, nan, inf = (tally.units(which) for which in (Row.FIRED, Row.NAN, Row.INFINITE))
        alive = fired if bound.dies_where_negative else tally.units(Row.ALIVE)
        activity = tally.activity / (read - tally.units(Row.LEFT_OUT))
        finite = (nan == 0) & (inf == 0)
        mean = activity[activity.isfinite()].mean()
        gone = (alive == 0) & finite if bound.dead else None
        newly_dead = revived = always_dead = None
        if gone is not None and call in self._dead:
            before = self._dead[call]
            newly_dead, revived, always_dead = (
                gone & ~before,
                before & ~gone & finite,
                gone & self._always[call],
            )
        # The share of NaN among unchecked samples is assumed to be that among the checked ones.
        numbers = samples * units - int(nan.sum()) * samples / tally.number(Row.NAN)
        return LayerActivity(
            layer=name,
            activation=name_of(bound.row),
            axis=_axis(list(places)),
            calls=tally.number(Row.ALIVE),
            samples=samples,
            activity_samples=read,
            finite_samples=tally.number(Row.NAN),
            fired=fired,
            nan=nan,
            inf=inf,
            activity=activity,
            dead=gone,
            dormant=activity <= self.tau * mean,
            negative=max(0.0, 1 - int(fired.sum()) / numbers) if numbers else torch.nan,
            saturated=int(tally.units(Row.SATURATED).sum()) / (read * units) if bound.saturated else None,
            newly_dead=newly_dead,
            revived=revived,
            always_dead=always_dead,
            p=layer.p,
        )


def _called(calls: dict[_Call, dict[Place, Tally]]) -> list[_Call]:
    """Return the calls that were made in this window."""
    return [call for call, places in calls.items() if any(t.number(Row.FIRED) for t in places.values())]


def _name(call: _Call, calls: dict[_Call, dict[Place, Tally]]) -> str:
    """Return the layer's name, with a suffix if the layer has other calls."""
    mine = [other for other in calls if other.layer == call.layer]
    name = call.layer
    if any(other.call > 1 for other in mine):
        name += f"[{call.call}]"
    if sum(other.call == call.call for other in mine) > 1:
        name += f" ({call.units} units)"
    return name


def _varying(calls: dict[_Call, dict[Place, Tally]]) -> dict[str, tuple[int, int]]:
    """Return the least and the most calls in a forward, of layers whose number of calls varies."""
    ran: dict[str, dict[int, int]] = {}
    for call in _called(calls):
        mine = ran.setdefault(call.layer, {})
        mine[call.call] = mine.get(call.call, 0) + sum(t.number(Row.ALIVE) for t in calls[call].values())
    return {
        layer: (sum(number == max(mine.values()) for number in mine.values()), max(mine))
        for layer, mine in ran.items()
        if len(set(mine.values())) > 1
    }


def _axis(places: list[Place]) -> int:
    """Return the units' axis, from the front, or from the end if the inputs' numbers of dimensions differ."""
    axes = {place.axis for place in places}
    return axes.pop() if len(axes) == 1 else places[-1].axis - max(places[-1].dims, 1)
