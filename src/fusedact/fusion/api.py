"""`fuse`, `unfuse`, the report, and the places that a monitor can watch."""

import copy
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import nn

from ..activations import Activation
from ..checks import check_flag, check_module
from . import recognise, rewrite
from .pair import Calls, Key, calls_of, mark
from .report import FusionReport, Pair
from .source import LOCK
from .survey import Found, Survey

Model = TypeVar("Model", bound=nn.Module)


def fuse(model: Model, inplace: bool = False, *, lone_dropout: bool = False) -> Model:
    """Run every activation -> dropout pair of a model in one kernel each way, where that is safe.

    The modules stay what they are: classes, names, parameters, hooks and flags. Each pair of calls decides
    when it runs, by what is there then. Where a kernel can't do the same, the two calls run as written.

    Args:
        model: any module. One fused before is fused anew.
        inplace: change `model` itself, whose parameters stay the same objects, which an optimiser may have.
            Default: False, which leaves it alone and changes a deep copy.
        lone_dropout: run a dropout that follows no activation in a kernel too, which keeps one bit.

    Returns:
        The fused model. `fusedact.fusion_report` says what is fused, and what was left and why.

    Raises:
        TypeError: `model` is no module, or `inplace` or `lone_dropout` no bool.
        ValueError: `model` can't be copied.
    """
    check_module("model", model)
    check_flag("inplace", inplace)
    check_flag("lone_dropout", lone_dropout)
    if not inplace:
        try:
            model = copy.deepcopy(model)
        except Exception as error:
            raise ValueError(
                f"model must be one that copy.deepcopy can copy, but this {type(model).__name__} raised "
                f"{type(error).__name__}: {error}. Call fuse(model, inplace=True) to change the model itself"
            ) from error
    with LOCK:
        recognise.refresh()
        found = Survey(False, lone_dropout).of(model)
        for module in model.modules():
            mark(module, None)
        for module, methods in found.roles.items():
            changes = (rewrite.change(method, roles) for method, roles in methods.items())
            mark(module, Calls(tuple(filter(None, changes)), lone_dropout))
    if calls_of(model) is None:
        mark(model, Calls((), lone_dropout))
    return model


def unfuse(model: Model) -> Model:
    """Let a fused model's calls run as they are written again, in place.

    Args:
        model: what `fuse` returned, a copy of it, or a part of it that has pairs.

    Returns:
        `model`.

    Raises:
        TypeError: `model` is no module.
        ValueError: it isn't fused.
    """
    _check_fused(model)
    for module in model.modules():
        mark(module, None)
    return model


def fusion_report(model: nn.Module) -> FusionReport:
    """What is fused in a model, and what isn't and why, as the model is now.

    Args:
        model: what `fuse` returned, a copy of it, or a part of it that has pairs.

    Raises:
        TypeError: `model` is no module.
        ValueError: it isn't fused.
    """
    report = FusionReport()
    for found in _found(model):
        saves = "" if found.reason else recognise.saves(found.half.row)
        pair = Pair(found.at, found.text, found.reason, saves)
        (report.left if found.reason else report.fused).append(pair)
    return report


@dataclass(frozen=True, eq=False)
class Place:
    """Where one module's calls have a pair.

    Attributes:
        module: the module.
        path: its name in the model.
        name: of the place, as in "features.1-2" or "mlp.forward: F.relu -> self.drop".
        row: the activation's; None if that is known only while it runs.
        activation: the module that is called for it; None for a function.
    """

    module: nn.Module
    path: str
    name: str
    row: Activation | None
    activation: nn.Module | None
    key: Key

    def watch(self, watcher: Any) -> Callable[[], None]:
        """Give the inputs of the place's activation to `watcher`, fused or not; see `Watcher`.

        A copy of the model, and what is loaded of it, isn't watched.

        Returns:
            A function that ends it.
        """
        calls = calls_of(self.module)
        if calls is None:
            raise ValueError(f"the model must be fused while place {self.name!r} is watched, but it isn't")
        watchers = calls.watchers
        watchers[self.key] = (*watchers.get(self.key, ()), watcher)

        def detach() -> None:
            left = tuple(w for w in watchers.get(self.key, ()) if w is not watcher)
            if left:
                watchers[self.key] = left
            else:
                watchers.pop(self.key, None)

        return detach


def places(model: nn.Module) -> list[Place]:
    """The places of a fused model where pairs run fused, each with a name of its own."""
    fused = {(id(found.module), found.key): found for found in _found(model) if not found.reason}
    counts, numbers = Counter(found.name for found in fused.values()), Counter[str]()
    result = []
    for found in fused.values():
        numbers[found.name] += 1
        name = f"{found.name} [{numbers[found.name]}]" if counts[found.name] > 1 else found.name
        result.append(Place(found.module, found.path, name, found.half.row, found.half.module, found.key))
    return result


def _found(model: nn.Module) -> list[Found]:
    """The pairs of a fused model."""
    _check_fused(model)
    with LOCK:
        return list(Survey(True).of(model).pairs.values())


def _check_fused(model: nn.Module) -> None:
    check_module("model", model)
    if not any(calls_of(module) for module in model.modules()):
        raise ValueError(
            f"model must be one that fusedact.fuse returned, but this {type(model).__name__} isn't fused"
        )
