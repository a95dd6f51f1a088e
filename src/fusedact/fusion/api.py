"""`fuse`, `unfuse`, the report, and the places that a monitor can watch."""

import copy
from collections import Counter
from dataclasses import replace
from typing import TypeVar

from torch import nn

from ..checks import check_flag, check_module
from . import recognise, rewrite
from .pair import Calls, calls_of, mark
from .report import FusionReport, Pair
from .source import LOCK
from .survey import Place, Survey

Model = TypeVar("Model", bound=nn.Module)


def fuse(model: Model, inplace: bool = False, *, lone_dropout: bool = False) -> Model:
    """Run every activation -> dropout pair of a model in one kernel each way, where that is safe.

    The modules stay what they are: classes, names, parameters, hooks and flags. Each pair of calls decides
    at call time. If a kernel can't do the same, the two calls run as written.

    Args:
        model: any module. One fused before is fused anew.
        inplace: change `model` itself. Its parameters stay the same objects, so an optimiser that has them
            stays valid. Default: False, which leaves `model` alone and changes a deep copy.
        lone_dropout: run a dropout that follows no activation in a kernel too, which keeps one bit.

    Returns:
        The fused model. `fusedact.fusion_report` says what is fused, and what was left and why.

    Raises:
        TypeError: `model` is not a module, or `inplace` or `lone_dropout` is not a bool.
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
        TypeError: `model` is not a module.
        ValueError: it isn't fused.
    """
    _check_fused(model)
    for module in model.modules():
        mark(module, None)
    return model


def fusion_report(model: nn.Module) -> FusionReport:
    """Report which pairs of a model are fused, and why others aren't, as the model is now.

    Args:
        model: what `fuse` returned, a copy of it, or a part of it that has pairs.

    Returns:
        A `FusionReport`: `fused` and `left`, each a list of `Pair`.

    Raises:
        TypeError: `model` is not a module.
        ValueError: it isn't fused.
    """
    report = FusionReport()
    for place in _found(model):
        saves = "" if place.reason else recognise.saves(place.row)
        pair = Pair(place.reported, place.pair, place.reason, saves)
        (report.left if place.reason else report.fused).append(pair)
    return report


def places(model: nn.Module) -> list[Place]:
    """Return the places of a fused model where pairs run fused, each with a name of its own."""
    fused = {(id(place.module), place.key): place for place in _found(model) if not place.reason}
    counts, numbers = Counter(place.name for place in fused.values()), Counter[str]()
    result = []
    for place in fused.values():
        numbers[place.name] += 1
        number = f" [{numbers[place.name]}]" if counts[place.name] > 1 else ""
        result.append(replace(place, name=place.name + number))
    return result


def _found(model: nn.Module) -> list[Place]:
    """All places of a fused model."""
    _check_fused(model)
    with LOCK:
        return list(Survey(True).of(model).places.values())


def _check_fused(model: nn.Module) -> None:
    check_module("model", model)
    if not any(calls_of(module) for module in model.modules()):
        raise ValueError(
            f"model must be one that fusedact.fuse returned, but this {type(model).__name__} isn't fused: "
            "call model = fusedact.fuse(model) first"
        )
