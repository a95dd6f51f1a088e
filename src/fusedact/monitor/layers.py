"""Watched layers: one `WatchedLayer` per activation gets its inputs from fused calls or hooks."""

import itertools
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import _torch
from .._torch import in_backward
from ..activations import Activation, Bound, Saves, own_rows, row_of
from ..fusion import Place, places
from ..fusion.pair import calls_of
from ..masks.plan import Plan
from ..nn import FusedActivationDropout
from ..observer import Observer
from ..watcher import Counter
from .counting import add_up, count_operator
from .facts import bound_to
from .order import Order, is_layer, unit_axis, units_of
from .tally import Tally

Detach = Callable[[], None]

_lock = threading.Lock()  # of new tallies
_numbers = itertools.count()
_watched: "weakref.WeakValueDictionary[int, WatchedLayer]" = weakref.WeakValueDictionary()


class Key(NamedTuple):
    """The identity of one tally.

    Attributes:
        number: the layer's.
        call: the number of the call in one forward, from 1.
        units: the number of the input's units.
        axis: their dimension, from the front.
        dims: the number of the input's dimensions.
        device: the tally's device.
    """

    number: int
    call: int
    units: int
    axis: int
    dims: int
    device: str


class _Store:
    """A layer's tallies as attributes, so that a compiler finds the tallies that its trace has added."""


@dataclass(frozen=True)
class Settings:
    """The arguments of `ActivityMonitor` that its layers need."""

    mode: str
    stride: int


class WatchedLayer:
    """Counts one activation's inputs; a `Watcher` of fused calls.

    Attributes:
        name: the layer's name in the model.
        source: the module whose calls are watched, or the place in a fused model's code.
        row: the activation's row; None for a place that hasn't run yet.
        units: the units' dimension if the user chose it; None if the order of calls decides.
        number: an identifier, unique in the process.
    """

    def __init__(
        self, name: str, source: nn.Module | Place, row: Activation | None, settings: Settings, order: Order
    ) -> None:
        self.name, self.source, self.row = name, source, row
        self._values: tuple[float, ...] = ()  # of a place
        self.units: int | None = None
        self.number = next(_numbers)
        self._settings, self._order = settings, order
        self._store = _Store()
        self._keys: dict[str, Key] = {}
        self._closed: dict[Key, Tally] | None = None  # the tallies as they were when the monitor closed
        _watched[self.number] = self

    @property
    def bound(self) -> Bound | None:
        """The activation with its current parameters; None until it is known."""
        if self.row is None:
            return None
        return (
            Bound(self.row, self._values)
            if isinstance(self.source, Place)
            else bound_to(self.row, self.source)
        )

    def computes(self, row: Activation, values: tuple[float, ...]) -> None:
        """Note a place's activation, before its call is counted."""
        self.row, self._values = row, values

    @property
    def p(self) -> float | None:
        """The dropout probability of a fused module."""
        return float(self.source.p) if isinstance(self.source, FusedActivationDropout) else None

    # Its calls ----------------------------------------------------------------------------------------

    def attach(self) -> Detach:
        """Begin to count; return a function that stops it."""
        self._reopen()
        if isinstance(self.source, Place):
            return self.source.watch(self)
        module: Any = self.source
        if not isinstance(module, FusedActivationDropout) or _runs_code_of_its_own(module):
            # Before the call, since an in-place activation overwrites its input.
            hook = Observer(self._before, self)
            handle = module.register_forward_pre_hook(hook, with_kwargs=True)
            return lambda: handle.remove()
        module._watchers = (*module._watchers, self)

        def detach() -> None:
            module._watchers = tuple(watcher for watcher in module._watchers if watcher is not self)

        return detach

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if is_same(module, self.source) and self.wants(module.training):
            self(args[0] if args else kwargs.get("input"))

    def wants(self, training: bool) -> bool:
        """Return whether calls in that mode count."""
        mode = self._settings.mode
        return mode == "all" or training == (mode == "train")

    def __call__(self, input: Any, plan: Plan | None = None) -> Counter | None:
        """Count an input; see `Watcher`."""
        if torch.compiler.is_compiling():
            if isinstance(input, Tensor):
                self.compiled(input)
            return None
        if in_backward():
            return None
        call, bound = self._order.now().call(self.number), self.bound
        if bound is None or not _has_units(input):
            return None  # no activation is known, or the module itself is about to raise an error
        self._check(input)
        axis = self._axis(input)
        tally = self._tally(input, call, axis)
        return add_up(input, axis, bound, self._settings.stride, tally, plan)

    def compiled(
        self, input: Tensor, signs: Tensor | None = None, stride: Sequence[int] = (), rng: str = "eager"
    ) -> None:
        """Count an input in a compiler's graph; see `Watcher`."""
        if _torch.is_exporting():
            raise RuntimeError(
                f"ActivityMonitor can't count in an export (layer {self.name!r}): close it first"
            )
        call, bound = self._order.now().call(self.number), self.bound
        if bound is None or not input.is_floating_point():
            return
        axis = self._axis(input)
        arguments = axis, bound.row.name, list(bound.values), self._settings.stride
        count_operator(input.detach(), signs, stride, rng, *arguments, *self._tally(input, call, axis))

    def _axis(self, x: Tensor) -> int:
        if self.units is None:
            return unit_axis(x, self._order.now().before)
        dims = max(x.ndim, 1)
        if -dims <= self.units < dims:
            return self.units % dims
        raise ValueError(
            f"units={self.units!r}: it must name a dimension of the input of layer {self.name!r}, which "
            f"has {x.ndim}. Give the layers' own with units={{name: dimension}}"
        )

    def _check(self, x: Tensor) -> None:
        if _torch.in_transforms():
            raise RuntimeError(
                f"ActivityMonitor can't count inside a torch.func transform (layer {self.name!r}): "
                "close it first"
            )
        if _torch.tracing_state() is not None:
            raise RuntimeError(
                f"ActivityMonitor can't count in torch.jit.trace (layer {self.name!r}): close it first"
            )
        if type(x) not in (Tensor, nn.Parameter) or x.is_nested:
            kind = "nested tensor" if x.is_nested else type(x).__name__
            raise TypeError(
                f"ActivityMonitor counts plain tensors, but layer {self.name!r} got a {kind}: close it first"
            )
        if x.layout is not torch.strided or x.is_meta:
            kind = "no values (device meta)" if x.is_meta else f"layout {x.layout}"
            raise TypeError(
                f"ActivityMonitor counts strided tensors with values, but layer {self.name!r} got one of "
                f"{kind}: close it first"
            )

    # Its tallies --------------------------------------------------------------------------------------

    def _tally(self, x: Tensor, call: int, axis: int) -> Tally:
        units, device = (int(x.shape[axis]) if x.ndim else 1), x.device
        kind = device.type if device.index is None else f"{device.type}:{device.index}"
        name = f"call {call}, axis {axis} of {x.ndim}, {units} units, {kind}"
        if not hasattr(self._store, name):
            _add_tally(self.number, name, call, units, axis, x.ndim, kind)
        tally: Tally = getattr(self._store, name)
        return tally

    def add_tally(self, name: str, key: Key) -> None:
        """Make an empty tally."""
        with _lock, torch.inference_mode(False):  # an inference tensor couldn't be changed in other modes
            if not hasattr(self._store, name):  # another thread may have added it meanwhile
                setattr(self._store, name, Tally.zeros(key.units, key.device))
                self._keys[name] = key

    def tallies(self) -> dict[Key, Tally]:
        """Return the current tallies, or the tallies at the time the monitor closed."""
        if self._closed is not None:
            return self._closed
        return {key: getattr(self._store, name) for name, key in list(self._keys.items())}

    def clear(self) -> None:
        """Set all counts to 0, in place, since compiled code and CUDA graphs refer to these tensors."""
        for tally in self.tallies().values():
            for tensor in tally:
                tensor.zero_()

    def close(self) -> None:
        """Copy the counts, since a CUDA graph goes on changing the tensors that it refers to."""
        if self._closed is None:
            self._closed = {key: tally.clone() for key, tally in self.tallies().items()}

    def _reopen(self) -> None:
        closed, self._closed = self._closed, None
        if closed is not None:
            for key, tally in self.tallies().items():
                for tensor, kept in zip(
                    tally, closed.get(key, Tally.zeros(key.units, key.device)), strict=True
                ):
                    tensor.copy_(kept)


@_torch.constant_to_compilers
def _add_tally(number: int, name: str, call: int, units: int, axis: int, dims: int, device: str) -> str:
    """Have a layer make a tally while a compiler traces, outside of its graph."""
    layer = _watched[number]
    if device.startswith("cuda"):
        with torch.cuda.device(device):  # the capture state is that of the current GPU
            if torch.cuda.is_current_stream_capturing():
                raise RuntimeError(
                    f"layer {layer.name!r} must be called once under ActivityMonitor before a CUDA graph "
                    "is captured: memory for its counts can't be allocated in a capture"
                )
    layer.add_tally(name, Key(number, call, units, axis, dims, device))
    return name


def _has_units(input: Any) -> bool:
    return isinstance(input, Tensor) and input.is_floating_point() and input.numel() > 0


def is_same(module: nn.Module, watched: Any) -> bool:
    """Return whether a hook's module is the watched one or its DataParallel replica, not a shallow copy."""
    return torch.compiler.is_compiling() or module is watched or _torch.is_replica(module)


def _runs_code_of_its_own(module: nn.Module) -> bool:
    return type(module).forward is not FusedActivationDropout.forward or "forward" in vars(module)


# Finding and following a model's modules ---------------------------------------------------------------


def watched_layers(model: nn.Module, settings: Settings, order: Order) -> list[WatchedLayer]:
    """Return a layer for each activation of a model that can be watched.

    Raises:
        ValueError: there is none.
    """
    layers = []
    in_code = _calls_in_code(model)
    for name, module in model.named_modules():
        row = module.row if isinstance(module, FusedActivationDropout) else row_of(module)
        if row is not None and row.saves is not Saves.MASK:  # dropout alone has no units that die
            layers.append(WatchedLayer(name or "(the model)", module, row, settings, order))
        for place in in_code:
            if place.module is module:
                layers.append(WatchedLayer(place.name, place, place.row, settings, order))
    if not layers:
        kinds = ", ".join(
            f"nn.{row.module.__name__}" for row in own_rows() if row.module not in (None, nn.Identity)
        )
        raise ValueError(
            f"model must have an activation to watch, but this {type(model).__name__} has none. Watched are "
            "fused modules and, in a model that fusedact.fuse returned, the functions and modules of Hugging "
            f"Face that run fused with a dropout. So are the modules of PyTorch's activations: {kinds}"
        )
    return layers


def _calls_in_code(model: nn.Module) -> list[Place]:
    """Return a fused model's places that call a function, or a module that isn't watched by its class."""
    if not any(calls_of(module) for module in model.modules()):
        return []
    return [place for place in places(model) if place.activation is None or row_of(place.activation) is None]


def choose(layers: list[WatchedLayer], units: int | Mapping[str, int] | None) -> None:
    """Set the layers' unit dimensions that the user chose.

    Raises:
        TypeError: `units` is neither an int nor a mapping to ints.
        ValueError: it names a layer that isn't watched.
    """
    if units is None:
        return
    by_name = units if isinstance(units, Mapping) else {layer.name: units for layer in layers}
    known = {layer.name: layer for layer in layers}
    for name, dim in by_name.items():
        if name not in known:
            names = ", ".join(map(repr, known))
            raise ValueError(f"units={name!r}: it must name watched layers ({names})")
        if isinstance(dim, bool) or not isinstance(dim, int):
            raise TypeError(f"units={dim!r}: it must be an int or a mapping to ints")
        known[name].units = dim


def follow(model: nn.Module, order: Order) -> Iterator[Detach]:
    """Note every forward of the model and of its layers in order; yield the functions that stop it."""

    def begin(module: nn.Module, args: Any) -> None:
        if is_same(module, model) and (torch.compiler.is_compiling() or not in_backward()):
            order.now().begin()

    def end(module: nn.Module, args: Any, output: Any) -> None:
        if is_same(module, model):
            order.now().end()

    def ran(module: nn.Module, args: Any, output: Any) -> None:
        if torch.compiler.is_compiling() or not in_backward():
            order.now().before = units_of(module, output) or order.now().before

    yield model.register_forward_pre_hook(Observer(begin), prepend=True).remove
    yield model.register_forward_hook(Observer(end), always_call=True).remove
    for module in model.modules():
        if is_layer(module):
            yield module.register_forward_hook(Observer(ran)).remove
        if isinstance(module, nn.TransformerEncoder):
            yield from _slowly(module)


def _slowly(encoder: nn.TransformerEncoder) -> Iterator[Detach]:
    """Keep an encoder from passing nested tensors to its layers.

    Only PyTorch's fast path supports them. It calls no activation, and PyTorch doesn't take it if there are
    hooks.
    """
    mine = threading.local()

    def begin(module: Any, args: Any) -> None:
        if not torch.compiler.is_compiling():  # a compiled encoder passes plain tensors
            mine.changed = getattr(module, "use_nested_tensor", False)
            module.use_nested_tensor = False

    def end(module: Any, args: Any, output: Any) -> None:
        if not torch.compiler.is_compiling() and mine.changed:
            module.use_nested_tensor = True

    yield encoder.register_forward_pre_hook(Observer(begin)).remove
    yield encoder.register_forward_hook(Observer(end), always_call=True).remove
