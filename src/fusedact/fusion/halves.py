"""What a module or function is in a pair, in words: for the report, which says what a call would do."""

import re
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .. import _torch
from ..activations import Activation
from . import recognise
from .recognise import CALLABLES, DROPOUTS, commutes, is_identity, is_untouched, known_module

_OTHER_DROPOUTS = {
    getattr(F, name)
    for name in ("dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout")
}
# Elementwise activations without a row. Softmax is followed by dropout everywhere, but is none.
_OTHERS = {nn.RReLU, nn.PReLU}
_OTHER_FUNCTIONS = {F.rrelu, F.prelu, torch.rrelu, torch.prelu}


@dataclass(frozen=True)
class Half:
    """What a call may be in a pair, for a report.

    Attributes:
        text: in words.
        dropout: a dropout; else an activation, or an identity.
        row: of the activation; None without one.
        inplace: works in place.
        identity: changes nothing.
        problem: why no kernel can stand for it.
        module: that is called; None if it isn't one.
        elsewhere: another method calls it.
    """

    text: str
    dropout: bool = False
    row: Activation | None = None
    inplace: bool = False
    identity: bool = False
    problem: str = ""
    module: nn.Module | None = None
    elsewhere: bool = False


def half_of(callee: Any) -> Half | None:
    """What a module or function is in a pair, as it is now; None if it is no part of one.

    A string is the name of something that isn't known.
    """
    if isinstance(callee, str):
        return _named_half(callee)
    if not isinstance(callee, nn.Module):
        return _function_half(callee) if isinstance(callee, CALLABLES) else None
    cls, own = type(callee), vars(callee)
    name, known, inplace = cls.__name__, known_module(cls), bool(own.get("inplace"))
    if isinstance(callee, nn.Identity):
        return Half(name, identity=True) if is_identity(callee) else None
    if isinstance(callee, _torch.DROPOUT):
        problem = "" if cls is nn.Dropout else _no_kernel(cls, nn.Dropout)
        return Half(
            f"{name}(p={own.get('p')})", True, None, inplace, False, problem or touched(callee), callee
        )
    if known is None:
        base = next((base for base in cls.__mro__ if known_module(base) or base in _OTHERS), None)
        if base is None:
            return None
        return Half(name, False, None, inplace, False, _no_kernel(cls, base), callee)
    arguments = ", ".join(f"{each}={own[each]}" for each in known.row.names if each in own)
    text = f"{name}({arguments})" if arguments else name
    return Half(text, False, known.row, inplace, False, touched(callee), callee)


def _function_half(function: Any) -> Half | None:
    name = function.name if isinstance(function, recognise.Method) else function.__name__
    if function in DROPOUTS:
        return Half(name, True)
    if function in _OTHER_DROPOUTS:
        return Half(name, True, problem=f"no fused kernel for {name}")
    if function in _OTHER_FUNCTIONS:
        return Half(name, problem=f"no fused kernel for {name}")
    known = recognise.FUNCTIONS.get(function)
    if known is None:
        return None
    return Half(name, False, known.row, known.inplace)


def _named_half(name: str) -> Half | None:
    last = name.rpartition(".")[2].lower()
    if "drop" in last:
        return Half(name, True)
    return Half(name) if re.search(r"act(_?fn|ivation\w*)?$|nonlin", last) else None


def make_pair(first: Half, second: Half) -> bool:
    """Two calls, one on the other's result, are an activation and its dropout, or the same function."""
    if first.dropout:
        return second.row is not None and commutes(second.row)
    return second.dropout and not first.identity


def _no_kernel(cls: type, base: type) -> str:
    if cls is base or cls.__module__.startswith("torch.nn.modules."):
        return f"no fused kernel for {cls.__name__}"
    return f"{cls.__name__} is a subclass of {base.__name__} and may do something else"


def touched(module: nn.Module) -> str:
    """Why a module does more than its class's forward; empty if it doesn't."""
    if is_untouched(module, type(module).forward):
        return ""
    replaced = "forward" in vars(module)
    name = type(module).__name__
    return f"forward of this {name} was replaced" if replaced else f"hooks on {name}"
