"""Which calls are activations or dropouts, and by which row a kernel computes them.

Everything that `fusedact.fusion` knows of the rest of the package stands here: the rows, the operation that
runs them, and which inputs its kernels take.
"""

import math
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

from .. import functional as _rows  # noqa: F401  (registers the rows)
from .. import ops
from ..activations import ROWS, Activation, Saved
from ..observer import only_look

run = ops.activation_dropout

# PyTorch's elementwise activations: the row's name, the module, its parameters with their defaults in the
# function's order. The function has the row's name.
_PYTORCH: dict[str, tuple[type[nn.Module], dict[str, float]]] = {
    "relu": (nn.ReLU, {}),
    "relu6": (nn.ReLU6, {}),
    "hardtanh": (nn.Hardtanh, {"min_val": -1.0, "max_val": 1.0}),
    "hardsigmoid": (nn.Hardsigmoid, {}),
    "hardshrink": (nn.Hardshrink, {"lambd": 0.5}),
    "softshrink": (nn.Softshrink, {"lambd": 0.5}),
    "threshold": (nn.Threshold, {"threshold": math.nan, "value": math.nan}),
    "leaky_relu": (nn.LeakyReLU, {"negative_slope": 0.01}),
    "sigmoid": (nn.Sigmoid, {}),
    "tanh": (nn.Tanh, {}),
    "softsign": (nn.Softsign, {}),
    "elu": (nn.ELU, {"alpha": 1.0}),
    "celu": (nn.CELU, {"alpha": 1.0}),
    "selu": (nn.SELU, {}),
    "gelu": (nn.GELU, {}),
    "silu": (nn.SiLU, {}),
    "mish": (nn.Mish, {}),
    "softplus": (nn.Softplus, {"beta": 1.0, "threshold": 20.0}),
    "logsigmoid": (nn.LogSigmoid, {}),
    "tanhshrink": (nn.Tanhshrink, {}),
    "hardswish": (nn.Hardswish, {}),
}
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
_APPROXIMATE = {"none": "gelu", "tanh": "gelu_tanh"}
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
_runs_kernels, _TRITON = ops._runs_kernels, ops._TRITON
_function_modes: Callable[[], int] = torch._C._len_torch_function_stack


class Known(NamedTuple):
    """An activation that can be recognised.

    Attributes:
        row: the name of its row.
        parameters: the names of its parameters, with their defaults.
        widens: under autocast it returns float32.
        forward: of the module's class, to see whether it was replaced; None for a function.
        inplace: the function works in place whatever its arguments say.
        alone: what a module without parameters computes, not in place; None where that depends on the module.
    """

    row: str
    parameters: dict[str, float]
    widens: bool
    forward: Callable[..., Any] | None = None
    inplace: bool = False
    alone: "Activated | None" = None


class Activated(NamedTuple):
    """A call of an activation: its row and parameters, whether in place, whether autocast widens it."""

    row: Activation
    parameters: tuple[float, ...]
    inplace: bool
    widens: bool


def _modules() -> dict[type, Known]:
    known = {}
    for name, (cls, parameters) in _PYTORCH.items():
        widens, row = name in _WIDENING, ROWS.get(name)
        alone = Activated(row, (), False, widens) if row and not parameters and cls is not nn.GELU else None
        known[cls] = Known(name, parameters, widens, cls.forward, alone=alone)
    for name, row in ROWS.items():
        if name not in _PYTORCH and row.module not in known:
            parameters = dict.fromkeys(_names(row), math.nan)
            known[row.module] = Known(name, parameters, False, row.module.forward)
    return known


def _functions() -> dict[Callable[..., Any], Known]:
    known = {}
    for name, (_, parameters) in _PYTORCH.items():
        for space in (F, torch, torch.Tensor):
            for suffix in ("", "_"):
                function = getattr(space, name + suffix, None)
                if function is not None:
                    known[function] = Known(name, parameters, name in _WIDENING, None, bool(suffix))
    for name, row in ROWS.items():
        if name not in _PYTORCH:
            known.setdefault(row.eager, Known(name, dict.fromkeys(_names(row), math.nan), False))
    return known


def _names(row: Activation) -> tuple[str, ...]:
    return (row.parameter,) if row.parameter else ()


MODULES: dict[type, Known] = {}
FUNCTIONS: dict[Callable[..., Any], Known] = {}
METHODS: dict[str, Known] = {}  # of tensors, without arguments


def refresh() -> None:
    """Read the rows again: activations may have been registered since."""
    MODULES.update(_modules())
    FUNCTIONS.update(_functions())
    METHODS.update(
        (function.__name__, known)
        for function, known in FUNCTIONS.items()
        if getattr(function, "__objclass__", None) is not None and not known.parameters
    )


refresh()


def known_module(cls: type) -> Known | None:
    """What modules of exactly that class compute; None if it is no activation that is known."""
    known = MODULES.get(cls)
    if known is None and cls.__module__ == "transformers.activations":
        name = cls.__name__
        if name in _HUGGING_FACE:
            known = Known(_HUGGING_FACE[name], {}, name in _WIDENING, cls.forward)  # type: ignore[attr-defined]
            MODULES[cls] = known
    return known


def row_name(known: Known, approximate: object = "none") -> str:
    """The name of the row, which PyTorch's GELU chooses by an argument."""
    return _APPROXIMATE.get(str(approximate), "") if known.row == "gelu" else known.row


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
        gelu = known.row == "gelu"  # other rows aren't chosen by an argument
        row = ROWS.get(row_name(known, own.get("approximate", "none")) if gelu else known.row)
        parameters = tuple([own.get(name) for name in known.parameters])
        inplace = own.get("inplace", False)
    else:
        known = METHODS.get(callee) if isinstance(callee, str) else _function(callee)
        if known is None:
            return None
        names = [*known.parameters, "inplace"]
        values = {**known.parameters, "inplace": known.inplace, "approximate": "none"}
        values.update(zip(names, args[1:]))  # noqa: B905
        values.update(kwargs)
        values.pop("input", None)
        if len(values) != len(names) + 1 or len(args) > len(names) + 1:
            return None
        row = ROWS.get(row_name(known, values["approximate"]))
        parameters = tuple([values[name] for name in known.parameters])
        inplace = values["inplace"] or known.inplace
    if row is None:
        return None
    for value in parameters:
        if type(value) is not float or not -math.inf < value < math.inf:
            if type(value) is not int:
                return None
            parameters = tuple(map(float, parameters))
    return Activated(row, parameters, inplace is not False, known.widens)


def commutes(row: Activation) -> bool:
    """Dropout may as well come first: the same elements are 0, the others have the same bits."""
    return row.name == "relu"


def identity() -> Activated | None:
    """The activation that dropout alone is the dropout of; None without its row."""
    row = ROWS.get("identity")
    return None if row is None else Activated(row, (), False, False)


def _function(callee: Any) -> Known | None:
    return FUNCTIONS.get(callee) if isinstance(callee, CALLABLES) else None


def _is_own(function: Any, module: nn.Module, row: str) -> bool:
    """What one of Hugging Face's modules calls is what its constructor gave it."""
    approximate = getattr(function, "keywords", {}).get("approximate", "none")
    known = _function(getattr(function, "func", function))
    return getattr(function, "__self__", None) is module or (
        known is not None and row_name(known, approximate) == row
    )


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


_SAVES = {Saved.ALIVE: "1 bit", Saved.FLAG: "2 bits", Saved.INPUT: "1 bit and the input"}


def saves(row: Activation | None) -> str:
    """What a pair keeps for backward, per element."""
    return "what its activation needs" if row is None else _SAVES[row.saved]


def takes(input: Any, activated: Activated) -> bool:
    """The kernels take the input, and compute what the two calls do."""
    if _runs_kernels(input):
        runs = _TRITON and not (_function_modes() and _has_users_modes())
    else:
        runs = (
            torch.compiler.is_compiling()
            and not torch.compiler._is_exporting_flag
            and ops._runs_operators(input)
        )
    return (
        runs
        and input.dtype in ops.DTYPES
        and not (activated.widens and torch.is_autocast_enabled(input.device.type))
        and not _have_global_hooks()
    )


def _has_users_modes() -> bool:
    """A mode of the user's wants to see every function that is called."""
    modes = [torch._C._get_function_stack_at(i) for i in range(_function_modes())]
    return any(not isinstance(mode, torch.utils._device.DeviceContext) for mode in modes)
