"""Which calls are activations or dropouts, and by which row a kernel computes them.

Everything that `fusedact.fusion` knows of the rest of the package stands here: the rows, the operation that
runs them, and which inputs its kernels take.
"""

import re
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.module import (
    _global_backward_hooks,
    _global_backward_pre_hooks,
    _global_forward_hooks,
    _global_forward_pre_hooks,
)

from .. import dispatch, kernels, operators, rows
from ..activations import ROWS, Activation, Saves, own_rows
from ..observer import only_look

run = dispatch.activation_dropout

# Activations of Hugging Face, by what they compute. Those of `_WIDENING` return float32 under autocast.
_HUGGING_FACE = {
    "GELUActivation": "gelu",
    "GELUTanh": "gelu_tanh",
    "PytorchGELUTanh": "gelu_tanh",
    "NewGELUActivation": "gelu_tanh",
    "FastGELUActivation": "gelu_tanh",
    "AccurateGELUActivation": "gelu_tanh",
    "QuickGELUActivation": "quick_gelu",
    "SiLUActivation": "silu",
    "MishActivation": "mish",
    "ReLUSquaredActivation": "squared_relu",
}
_WIDENING = {"softplus", "GELUTanh", "NewGELUActivation", "AccurateGELUActivation", "ReLUSquaredActivation"}
_CALLABLES = types.FunctionType | types.BuiltinFunctionType | types.MethodDescriptorType
_FRESH = (
    nn.modules.linear.Linear,
    nn.Bilinear,
    nn.modules.conv._ConvNd,
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
)
_DROPOUTS = {F.dropout: ("p", "training", "inplace"), torch.dropout: ("p", "train")}
_OTHER_DROPOUTS = {
    getattr(F, name)
    for name in ("dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout")
}
# Elementwise activations without a row. Softmax is followed by dropout everywhere, but is none.
_OTHERS = {nn.RReLU, nn.PReLU}
_OTHER_FUNCTIONS = {F.rrelu, F.prelu, torch.rrelu, torch.prelu}
# Looked up once: they are asked at every call.
_Dropout, _dropout_forward, _f_dropout = nn.Dropout, nn.Dropout.forward, F.dropout
_identity_forward, _sequential_forward = nn.Identity.forward, nn.Sequential.forward
_runs_kernels, _TRITON = dispatch.runs_kernels, kernels.INSTALLED
_function_modes: Callable[[], int] = torch._C._len_torch_function_stack


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
    """

    text: str
    dropout: bool = False
    row: Activation | None = None
    inplace: bool = False
    identity: bool = False
    problem: str = ""
    module: nn.Module | None = None


class Known(NamedTuple):
    """An activation that can be recognised.

    Attributes:
        row: its row; a parameter may choose another one.
        widens: under autocast it returns float32.
        forward: of the module's class, to see whether it was replaced; None for a function.
        inplace: the function works in place whatever its arguments say.
        alone: what a module without parameters computes, not in place; None where that depends on the module.
    """

    row: Activation
    widens: bool
    forward: Callable[..., Any] | None = None
    inplace: bool = False
    alone: "Activated | None" = None


class Activated(NamedTuple):
    """A call of an activation: its row and numbers, whether in place, whether autocast widens it."""

    row: Activation
    values: tuple[float, ...]
    inplace: bool
    widens: bool


MODULES: dict[type, Known] = {}
FUNCTIONS: dict[Callable[..., Any], Known] = {}
METHODS: dict[str, Known] = {}  # of tensors, without arguments


def refresh() -> None:
    """Read the rows again: activations may have been registered since."""
    for row in own_rows():
        if row is rows.IDENTITY:
            continue
        widens = row.name in _WIDENING
        if row.module is not None:
            alone = None if row.names else Activated(row, (), False, widens)
            MODULES[row.module] = Known(row, widens, row.module.forward, alone=alone)
        FUNCTIONS[row.function] = Known(row, widens)
        if not row.function.__module__.startswith("fusedact."):
            for space in (F, torch, torch.Tensor):
                for suffix in ("", "_"):
                    function = getattr(space, row.name + suffix, None)
                    if function is not None and row.module is not None:
                        FUNCTIONS[function] = Known(row, widens, None, bool(suffix))
    METHODS.update(
        (function.__name__, known)
        for function, known in FUNCTIONS.items()
        if getattr(function, "__objclass__", None) is not None and not known.row.names
    )


refresh()


def known_module(cls: type) -> Known | None:
    """What modules of exactly that class compute; None if it is no activation that is known."""
    known = MODULES.get(cls)
    if known is None and cls.__module__ == "transformers.activations":
        name = cls.__name__
        if name in _HUGGING_FACE:
            row, forward = ROWS[_HUGGING_FACE[name]], cls.forward  # type: ignore[attr-defined]
            known = MODULES[cls] = Known(row, name in _WIDENING, forward)
    return known


def is_untouched(module: nn.Module, forward: Callable[..., Any] | None) -> bool:
    """Calling `module` runs `forward` and nothing else: no hook, no replaced forward."""
    return _has_no_own(module, forward) and not _have_global_hooks()


def _has_no_own(module: nn.Module, forward: Callable[..., Any] | None) -> bool:
    """The same, hooks on all modules aside, and hooks that only look."""
    own = module.__dict__
    return type(module).forward is forward and not (
        (own["_forward_hooks"] and not only_look(own["_forward_hooks"]))
        or (own["_forward_pre_hooks"] and not only_look(own["_forward_pre_hooks"]))
        or own["_backward_hooks"]
        or own["_backward_pre_hooks"]
        or "forward" in own
        or "_compiled_call_impl" in own
    )


def _have_global_hooks() -> bool:
    return bool(
        _global_forward_hooks
        or _global_forward_pre_hooks
        or _global_backward_hooks
        or _global_backward_pre_hooks
    )


def activation(callee: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Activated | None:
    """What a call computes; None unless a kernel computes the same."""
    known = MODULES.get(type(callee))
    if known is not None or isinstance(callee, nn.Module):
        known = known or known_module(type(callee))
        if known is None or len(args) + len(kwargs) != 1 or not _has_no_own(callee, known.forward):
            return None
        own = callee.__dict__
        if known.alone is not None and own.get("inplace", False) is False:
            return known.alone
        if "act" in own and not _is_own(own["act"], callee, known.row):
            return None
        values = [own.get(name, default) for name, default in known.row.defaults]
        inplace = own.get("inplace", False)
    else:
        known = METHODS.get(callee) if isinstance(callee, str) else _function(callee)
        if known is None:
            return None
        names = [*known.row.names, "inplace"]
        given = {**dict(known.row.defaults), "inplace": known.inplace}
        given.update(zip(names, args[1:]))  # noqa: B905
        given.update(kwargs)
        given.pop("input", None)
        if len(given) != len(names) or len(args) > len(names) + 1:
            return None
        values = [given[name] for name in known.row.names]
        inplace = given["inplace"] or known.inplace
    try:
        row, numbers = known.row.bind(*values)
    except ValueError:  # the call's own error is about to come, or its values are no numbers
        return None
    return Activated(row, numbers, inplace is not False, known.widens)


def commutes(row: Activation) -> bool:
    """Dropout may as well come first: the same elements are 0, the others have the same bits."""
    return row is rows.RELU


IDENTITY = Activated(rows.IDENTITY, (), False, False)  # the activation that dropout alone is the dropout of


def _function(callee: Any) -> Known | None:
    return FUNCTIONS.get(callee) if isinstance(callee, _CALLABLES) else None


def _is_own(function: Any, module: nn.Module, row: Activation) -> bool:
    """What one of Hugging Face's modules calls is what its constructor gave it."""
    if getattr(function, "__self__", None) is module:
        return True
    computed = activation(getattr(function, "func", function), (None,), getattr(function, "keywords", {}))
    return computed is not None and computed.row is row


def dropout(callee: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> float | None:
    """With which probability a call drops elements, 0 in eval mode; None if it does anything else."""
    if type(callee) is _Dropout:
        own = callee.__dict__
        p, training = own["p"], own["training"]
        if (
            kwargs
            or len(args) != 1
            or not _has_no_own(callee, _dropout_forward)
            or F.dropout is not _f_dropout
        ):
            return None
    else:
        names = _DROPOUTS.get(callee) if isinstance(callee, _CALLABLES) else None  # type: ignore[call-overload]
        if names is None or len(args) > len(names) + 1:
            return None
        values: dict[str, Any] = {"p": 0.5, "train": True, "training": True, "inplace": False}
        values.update(zip(names, args[1:]))  # noqa: B905
        values.update(kwargs)
        values.pop("input", None)
        if len(values) != 4:
            return None
        p, training = values["p"], values[names[1]]
    if (type(p) is not float and type(p) is not int) or type(training) is not bool:
        return None
    return p if training else 0.0


def is_inplace(callee: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """A call of a dropout changes its input."""
    if isinstance(callee, nn.Module):
        return callee.__dict__.get("inplace", False) is not False
    return callee is F.dropout and kwargs.get("inplace", (*args, False)[3:4] == (True,)) is not False


def is_identity(callee: Any) -> bool:
    """Calling it gives back what it gets."""
    return type(callee) is nn.Identity and is_untouched(callee, _identity_forward)


def is_sequence(callee: Any) -> bool:
    """Calling it calls its children one after the other and does nothing else."""
    return (
        isinstance(callee, nn.Sequential)
        and is_untouched(callee, _sequential_forward)
        and not (callee._forward_hooks or callee._forward_pre_hooks)  # who looks wants it to be called
    )


def is_fresh(callee: Any) -> bool:
    """Calling it gives a new tensor that nobody else holds."""
    if is_sequence(callee):
        children = list(callee._modules.values())
        return len(children) > 0 and is_fresh(children[-1])
    return (
        isinstance(callee, _FRESH)
        and type(callee).__module__.startswith("torch.nn.modules.")
        and is_untouched(callee, type(callee).forward)
    )


def half(callee: Any) -> Half | None:
    """What a module or function is in a pair, as it is now; None if it is no part of one.

    A string is the name of something that isn't known.
    """
    if isinstance(callee, str):
        return _named_half(callee)
    if not isinstance(callee, nn.Module):
        return _function_half(callee) if isinstance(callee, _CALLABLES) else None
    cls, own = type(callee), vars(callee)
    name, known, inplace = cls.__name__, known_module(cls), bool(own.get("inplace"))
    if isinstance(callee, nn.Identity):
        return Half(name, identity=True) if is_identity(callee) else None
    if isinstance(callee, nn.modules.dropout._DropoutNd):
        problem = "" if cls is nn.Dropout else _no_kernel(cls, nn.Dropout)
        return Half(f"{name}(p={callee.p})", True, None, inplace, False, problem or _touched(callee), callee)
    if known is None:
        base = next((base for base in cls.__mro__ if known_module(base) or base in _OTHERS), None)
        return base and Half(name, False, None, inplace, False, _no_kernel(cls, base), callee)
    arguments = ", ".join(
        f"{parameter}={own[parameter]}" for parameter in known.row.names if parameter in own
    )
    text = f"{name}({arguments})" if arguments else name
    return Half(text, False, known.row, inplace, False, _touched(callee), callee)


def _function_half(function: Any) -> Half | None:
    name = function.__name__
    if function in _DROPOUTS:
        return Half(name, True)
    if function in _OTHER_DROPOUTS:
        return Half(name, True, problem=f"no fused kernel for {name}")
    if function in _OTHER_FUNCTIONS:
        return Half(name, problem=f"no fused kernel for {name}")
    known = FUNCTIONS.get(function)
    if known is None:
        return None
    return Half(name, False, known.row, known.inplace)


def _named_half(name: str) -> Half | None:
    last = name.rpartition(".")[2].lower()
    if "drop" in last:
        return Half(name, True)
    return Half(name) if re.search(r"act(_?fn|ivation\w*)?$|nonlin", last) else None


_SAVES = {
    Saves.MASK: "1 bit",
    Saves.ONE_BIT: "1 bit",
    Saves.TWO_BITS: "2 bits",
    Saves.INPUT: "1 bit and the input",
}


def saves(row: Activation | None) -> str:
    """What a pair keeps for backward, per element."""
    return "what its activation needs" if row is None else _SAVES[row.saves]


def make_pair(first: Half, second: Half) -> bool:
    """Two calls, one on the other's result, are an activation and its dropout, or the same function of both."""
    if first.dropout:
        return second.row is not None and commutes(second.row)
    return second.dropout and not first.identity


def _no_kernel(cls: type, base: type) -> str:
    if cls is base or cls.__module__.startswith("torch.nn.modules."):
        return f"no fused kernel for {cls.__name__}"
    return f"{cls.__name__} is a subclass of {base.__name__} and may do something else"


def _touched(module: nn.Module) -> str:
    """Why a module does more than its class's forward; empty if it doesn't."""
    if is_untouched(module, type(module).forward):
        return ""
    replaced = "forward" in vars(module)
    name = type(module).__name__
    return f"forward of this {name} was replaced" if replaced else f"hooks on {name}"


def takes(input: Any, activated: Activated) -> bool:
    """The kernels take the input, and compute what the two calls do."""
    if _runs_kernels(input):
        runs = _TRITON and not (_function_modes() and _has_users_modes())
    else:
        runs = (
            torch.compiler.is_compiling()
            and not torch.compiler._is_exporting_flag
            and dispatch.runs_operators(input)
            and operators.can_compute(activated.row, activated.values, 0.5, "eager")
        )
    return (
        runs
        and input.dtype in dispatch.DTYPES
        and not (activated.widens and torch.is_autocast_enabled(input.device.type))
        and not _have_global_hooks()
    )


def _has_users_modes() -> bool:
    """A mode of the user's wants to see every function that is called."""
    modes = [torch._C._get_function_stack_at(i) for i in range(_function_modes())]
    return any(not isinstance(mode, torch.utils._device.DeviceContext) for mode in modes)
