"""Which calls are activations or dropouts, and by which row a kernel computes them.

Everything that `fusedact.fusion` knows of the rest of the package stands here: the rows, the operation that
runs them, and which inputs its kernels take.
"""

import types
from collections.abc import Callable, Mapping
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
CALLABLES = types.FunctionType | types.BuiltinFunctionType | types.MethodDescriptorType
_FRESH = (
    nn.modules.linear.Linear,
    nn.Bilinear,
    nn.modules.conv._ConvNd,
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
)
DROPOUTS: dict[Any, tuple[str, ...]] = {
    F.dropout: ("p", "training", "inplace"),
    torch.dropout: ("p", "train"),
}
# Looked up once: they are asked at every call.
_Dropout, _dropout_forward, _f_dropout = nn.Dropout, nn.Dropout.forward, F.dropout
_identity_forward, _sequential_forward = nn.Identity.forward, nn.Sequential.forward
_runs_kernels, _TRITON = dispatch.runs_kernels, kernels.INSTALLED
_function_modes: Callable[[], int] = torch._C._len_torch_function_stack


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
    return FUNCTIONS.get(callee) if isinstance(callee, CALLABLES) else None


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
        names = DROPOUTS.get(callee) if isinstance(callee, CALLABLES) else None
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


_SAVES = {
    Saves.MASK: "1 bit",
    Saves.ONE_BIT: "1 bit",
    Saves.TWO_BITS: "2 bits",
    Saves.INPUT: "1 bit and the input",
}


def saves(row: Activation | None) -> str:
    """What a pair keeps for backward, per element."""
    return "what its activation needs" if row is None else _SAVES[row.saves]


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
