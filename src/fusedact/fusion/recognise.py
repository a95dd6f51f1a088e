"""Which calls are activations or dropouts, and by which row a kernel computes them.

Everything that `fusedact.fusion` knows of the rest of the package stands here: the rows, the operation that
runs them, and which inputs its kernels take.
"""

import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import _torch, dispatch, operators, rows
from .._torch import BACKWARD_HOOKS, BACKWARD_PRE_HOOKS, COMPILED, HOOKS, PRE_HOOKS
from ..activations import ROWS, Activation, Bound, Saves, own_rows
from ..observer import only_look
from ..watcher import Watchers

# Activations of Hugging Face, by what they compute. Under autocast those of `_WIDENING` return float32, where
# their row keeps the input's dtype.
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
_WIDENING = {"GELUTanh", "NewGELUActivation", "AccurateGELUActivation"}


class Method:
    """The call of a tensor's method without arguments, as in `x.relu()`."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, input: Any) -> Any:
        """Call it."""
        return getattr(input, self.name)()


CALLABLES = types.FunctionType | types.BuiltinFunctionType | types.MethodDescriptorType | Method
_LAYERS = (nn.Linear, nn.Bilinear, _torch.CONVOLUTION, _torch.NORM, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
# Modules of exactly these classes give a new tensor that nobody else holds.
FRESH = frozenset(cls for cls in vars(nn).values() if isinstance(cls, type) and issubclass(cls, _LAYERS))
DROPOUTS: dict[Any, dict[str, Any]] = {
    F.dropout: {"p": 0.5, "training": True, "inplace": False},
    torch.dropout: {"p": None, "train": None},  # PyTorch requires both
}
# Looked up once: they are asked at every call.
_Dropout, _dropout_forward, _f_dropout = nn.Dropout, nn.Dropout.forward, F.dropout
_identity_forward, _sequential_forward = nn.Identity.forward, nn.Sequential.forward
_function_modes, _global_hooks = _torch.function_modes, _torch.global_hooks
_hooks, _pre_hooks, _backward_hooks, _backward_pre_hooks = _global_hooks
_calls_alone, _module_call = _torch.calls_alone, _torch.module_call
# Tests put others in their place.
by_kernels, repeated = dispatch.by_kernels, dispatch.repeated


@dataclass(frozen=True, slots=True)
class Known:
    """An activation that can be recognised.

    Attributes:
        row: its row; a parameter may choose another one.
        forward: of the module's class, to see whether it was replaced; None for a function.
        inplace: the function works in place whatever its arguments say.
        alone: what a module computes that has no parameters.
        holds: the module calls its attribute `act`, which may be another by now.
        widens: under autocast it returns float32, where its row doesn't.
        space: the names among which the module's forward looks up its function, if it has one.
        name: the function's.
        function: what stands there.
    """

    row: Activation
    forward: Callable[..., Any] | None = None
    inplace: bool = False
    alone: Bound | None = None
    holds: bool = False
    widens: bool = False
    space: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""
    function: Any = None


MODULES: dict[type, Known] = {}
FUNCTIONS: dict[Callable[..., Any], Known] = {}
METHODS: dict[str, Method] = {}  # of tensors, by name


def refresh() -> None:
    """Read the rows that have been registered since; what PyTorch's names stand for now isn't read again."""
    for row in own_rows():
        if row is rows.IDENTITY or row.function in FUNCTIONS:
            continue
        if row.module is not None:
            alone = None if row.names else row.bind()
            forward = row.module.forward
            names = forward.__code__.co_names if isinstance(forward, types.FunctionType) else ()
            scope = vars(torch if "torch" in names else F) if row.name in names else {}
            function = scope.get(row.name)
            MODULES[row.module] = Known(
                row, forward, alone=alone, space=scope, name=row.name, function=function
            )
        FUNCTIONS[row.function] = Known(row)
        if not row.function.__module__.startswith("fusedact."):
            for space in (F, torch, Tensor):
                for suffix in ("", "_"):
                    function = getattr(space, row.name + suffix, None)
                    if function is not None and row.module is not None:
                        FUNCTIONS[function] = Known(row, None, bool(suffix))
    for function, known in list(FUNCTIONS.items()):
        if getattr(function, "__objclass__", None) is not None and not known.row.names:
            method = METHODS.setdefault(function.__name__, Method(function.__name__))
            FUNCTIONS[method] = known


refresh()


def known_module(cls: type) -> Known | None:
    """What modules of exactly that class compute; None if it is no activation that is known."""
    known = MODULES.get(cls)
    name = cls.__name__
    if known is None and cls.__module__ == "transformers.activations" and name in _HUGGING_FACE:
        row, forward = ROWS[_HUGGING_FACE[name]], cls.forward  # type: ignore[attr-defined]
        alone = row.bind(*dict(row.defaults).values())
        known = MODULES[cls] = Known(row, forward, False, alone, True, name in _WIDENING)
    return known


def is_untouched(module: nn.Module, forward: Callable[..., Any] | None) -> bool:
    """Calling `module` runs `forward` and nothing else: no hook but those that only look."""
    return _calls_alone(module, forward, only_look) and not any(_global_hooks)


def activation(
    callee: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], producer: Any = None
) -> Bound | None:
    """What a call computes; None unless a kernel computes the same.

    `producer` was called for its input, which nobody else uses: if that is new, the call may be in place.
    """
    known = MODULES.get(type(callee))
    if known is None:
        if not isinstance(callee, nn.Module):
            return _activation_function(callee, args, kwargs, producer)
        known = known_module(type(callee))
    if known is None or len(args) + len(kwargs) != 1 or not _calls_alone(callee, known.forward, only_look):
        return None
    return _bound(known, callee, producer)


def _bound(known: Known, module: Any, producer: Any) -> Bound | None:
    """What a module computes by its attributes."""
    own = module.__dict__
    if (
        (own.get("inplace", False) is not False and not is_fresh(producer))
        or known.space.get(known.name) is not known.function
        or (known.holds and "act" in own and not _is_own(own["act"], module, known.row))
        or (known.widens and _torch.is_autocast())
    ):
        return None
    if known.alone is not None:
        return known.alone
    names = known.row.names
    try:
        if len(names) == 1:  # as most rows with parameters: a loop takes longer
            return known.row.bind(own[names[0]])
        return known.row.bind(*[own[name] for name in names])
    except (KeyError, ValueError):  # a parameter is something else by now, or the call is about to raise
        return None


def _activation_function(
    callee: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], producer: Any
) -> Bound | None:
    """The same for functions and tensors' methods."""
    known = FUNCTIONS.get(callee) if isinstance(callee, CALLABLES) else None
    if known is None:
        return None
    given = _given(args, kwargs, {**dict(known.row.defaults), "inplace": False})
    if given is None:
        return None
    if (given["inplace"] is not False or known.inplace) and not is_fresh(producer):
        return None
    try:
        return known.row.bind(*[given[name] for name in known.row.names])
    except ValueError:
        return None


def _given(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], defaults: dict[str, Any]
) -> dict[str, Any] | None:
    """The arguments after the input, by name; None if these aren't all."""
    given = {**defaults, **dict(zip(defaults, args[1:])), **kwargs}  # noqa: B905
    given.pop("input", None)
    return given if len(given) == len(defaults) and len(args) <= len(defaults) + 1 else None


def commutes(row: Activation) -> bool:
    """Dropout may as well come first: the same elements are 0, the others have the same bits."""
    return row is rows.RELU


IDENTITY = rows.IDENTITY.bind()  # the activation that dropout alone is the dropout of
NEW = object()  # the producer of an input that is new


def _is_own(function: Any, module: nn.Module, row: Activation) -> bool:
    """What one of Hugging Face's modules calls is what its constructor gave it."""
    if getattr(function, "__self__", None) is module:
        return True
    computed = activation(getattr(function, "func", function), (None,), getattr(function, "keywords", {}))
    return computed is not None and computed.row is row


def dropout(
    callee: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], producer: Any = None
) -> float | None:
    """With which probability a call drops elements, 0 in eval mode; None if it does anything else."""
    if type(callee) is _Dropout:
        own = callee.__dict__
        p, training, inplace = own.get("p"), own["training"], own.get("inplace")
        if (
            len(args) + len(kwargs) != 1
            or not _calls_alone(callee, _dropout_forward, only_look)
            or F.dropout is not _f_dropout
        ):
            return None
    else:
        defaults = DROPOUTS.get(callee) if isinstance(callee, CALLABLES) else None
        given = _given(args, kwargs, defaults) if defaults else None
        if given is None:
            return None
        p, inplace = given["p"], given.get("inplace", False)
        training = given.get("training", given.get("train"))
    if (type(p) is not float and type(p) is not int) or type(training) is not bool:
        return None
    if inplace is not False and not is_fresh(producer):
        return None
    return p if training else 0.0


def is_identity(callee: Any) -> bool:
    """Calling it gives back what it gets."""
    return type(callee) is nn.Identity and is_untouched(callee, _identity_forward)


def is_sequence(callee: Any) -> bool:
    """Calling it calls its children one after the other and does nothing else."""
    return (
        isinstance(callee, nn.Sequential)
        and is_untouched(callee, _sequential_forward)
        # Who looks wants it to be called.
        and not (getattr(callee, HOOKS) or getattr(callee, PRE_HOOKS))
    )


def is_fresh(callee: Any) -> bool:
    """Calling it gives a new tensor that nobody else holds."""
    if callee is NEW:
        return True
    if is_sequence(callee):
        children = list(_torch.parts(callee).values())
        return len(children) > 0 and is_fresh(children[-1])
    return type(callee) in FRESH and is_untouched(callee, type(callee).forward)


def saves(row: Activation | None) -> str:
    """What a pair keeps for backward, per element."""
    if row is None:
        return "what its activation needs"
    bits = row.saves.value.partition(":")[0]
    return f"{bits} and the input" if row.saves is Saves.INPUT else bits


def fused(activated: Bound, x: Any, p: float, watchers: Watchers) -> Tensor | None:
    """One kernel's result for an activation and a dropout; None where no kernel computes what the two do."""
    if any(_global_hooks) or (_function_modes() and _torch.has_users_modes()):
        return None
    row, values = activated
    result = None if watchers else repeated(row, x, values, p, "eager")
    if result is None:
        result = by_kernels(row, x, values, p, False, "eager", watchers)
    if (
        result is None
        and dispatch.runs_operators(x)
        and not _torch.is_exporting()
        and operators.can_compute(row, values, p, "eager")
        and x.dtype in dispatch.DTYPES
    ):
        result = operators.activation_dropout(row, x, values, p, False, "eager", watchers)
    return result


# Most pairs are two modules that nothing hangs on. These two functions look at each of them once. What
# `_torch.calls_alone` asks is written out, since its call would take longer than its answer.


def at_once(act: Any, producer: Any = None) -> Bound | None:
    """What an activation's module computes, if calling it runs nobody's code; `producer` as above."""
    cls = type(act)
    known = MODULES.get(cls)
    if known is None:
        return None
    own = act.__dict__
    if (
        cls.forward is not known.forward
        or cls.__call__ is not _module_call
        or own[HOOKS]
        or own[PRE_HOOKS]
        or own[BACKWARD_HOOKS]
        or own[BACKWARD_PRE_HOOKS]
        or "forward" in own
        or COMPILED in own
    ):
        return None
    return _bound(known, act, producer)


def dropped(drop: Any, activated: Bound, x: Any) -> Tensor | None:
    """One kernel's result for that and a module of dropout; None if that takes a closer look."""
    if type(drop) is not _Dropout:
        return None
    own = drop.__dict__
    p = own.get("p")
    if (
        own["training"] is not True
        or type(p) is not float
        or not 0.0 < p < 1.0
        or own.get("inplace") is not False
        or _Dropout.forward is not _dropout_forward
        or _Dropout.__call__ is not _module_call
        or F.dropout is not _f_dropout
        or own[HOOKS]
        or own[PRE_HOOKS]
        or own[BACKWARD_HOOKS]
        or own[BACKWARD_PRE_HOOKS]
        or "forward" in own
        or COMPILED in own
        or _hooks
        or _pre_hooks
        or _backward_hooks
        or _backward_pre_hooks
        or _function_modes()
    ):
        return None
    row, values = activated
    result = repeated(row, x, values, p, "eager")
    return by_kernels(row, x, values, p, False, "eager", ()) if result is None else result
